//! A front before a registry that answers wrongly on request: what a real one cannot be made to do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use futures::{StreamExt, stream};
use http::{HeaderValue, Method, StatusCode, Uri};
use tokio::task::JoinHandle;

use super::HOST;
use super::registry::Registry;

/// Bytes that are sent at once of a body that ends too early.
const PIECE: usize = 16 << 10;

/// How requests are answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Fault {
    /// Passed on to the registry.
    #[default]
    None,
    /// This status with an error body as registries send it; 401 asks for a password, 429 and 503 for a second's rest.
    Status(u16),
    /// No answer at all.
    Hang,
    /// The registry's answer without `Docker-Content-Digest`.
    NoDigest,
    /// The registry's answer with the digest of something else in `Docker-Content-Digest`.
    WrongDigest,
    /// The registry's answer with its body changed in one byte.
    Corrupt,
    /// The headers and half of the body, then the connection ends.
    Truncate,
    /// The headers and so many bytes of the body, and nothing more.
    Stall(usize),
    /// The registry's answer after a while.
    Slow(Duration),
}

/// A request that arrived: method and path with query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    /// Whether it carried an `Authorization` header.
    pub authorized: bool,
    /// The byte from which on it asked for something, if it asked for a part.
    pub from: Option<u64>,
}

/// The front, plain HTTP. It lives on the runtime that started it and ends when dropped.
#[derive(Debug)]
pub struct FaultyRegistry {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    client: reqwest::Client,
    state: Mutex<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    /// Part of a path, and what happens to requests that have it; the first match counts.
    by_path: Vec<(String, Fault)>,
    seen: Vec<Seen>,
    /// Requests that hang now, and those that hung until whoever asked gave them up.
    hanging: usize,
    given_up: usize,
}

/// A request that hangs, until whoever asked gives it up.
struct Hanging(Arc<Shared>);

impl Hanging {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.lock().hanging += 1;
        Self(shared.clone())
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.hanging -= 1;
        state.given_up += 1;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Faults> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FaultyRegistry {
    /// Starts a front that passes everything on.
    pub async fn start(registry: &Registry) -> Result<Self> {
        let mut client = reqwest::Client::builder().no_proxy();
        client = match registry.ca_pem() {
            Some(pem) => client.tls_certs_only([reqwest::Certificate::from_pem(pem.as_bytes())?]),
            None => client.tls_certs_only([]),
        };
        let shared = Arc::new(Shared { upstream: registry.url(), client: client.build()?, state: Mutex::default() });
        let listener = tokio::net::TcpListener::bind((HOST, 0)).await.context("listening for the front")?;
        let port = listener.local_addr()?.port();
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let task = tokio::spawn(async move {
            // Ends with the task; an error would show as a refused connection in the test.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { port, shared, task })
    }

    /// `172.30.0.1:<port>`.
    pub fn address(&self) -> String {
        format!("{HOST}:{}", self.port)
    }

    /// From now on every request meets this fault.
    pub fn set(&self, fault: Fault) {
        self.set_for("", fault);
    }

    /// From now on requests whose path holds `part` (`/manifests/`, `/blobs/`, a repository) meet this fault, and no
    /// others.
    pub fn set_for(&self, part: &str, fault: Fault) {
        self.shared.lock().by_path = vec![(part.to_owned(), fault)];
    }

    /// As [`set_for`](Self::set_for), beside what was set before; earlier settings win.
    pub fn also_for(&self, part: &str, fault: Fault) {
        self.shared.lock().by_path.push((part.to_owned(), fault));
    }

    /// All requests since the last call.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.lock().seen)
    }

    /// How many requests hang now ([`Fault::Hang`]).
    pub fn hanging(&self) -> usize {
        self.shared.lock().hanging
    }

    /// How many requests have hung until whoever asked gave them up. What happens while this stays as it is did not
    /// wait for the end of such a request, however slow the machine.
    pub fn given_up(&self) -> usize {
        self.shared.lock().given_up
    }
}

impl Drop for FaultyRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: http::HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let fault = {
        let mut state = shared.lock();
        let authorized = headers.contains_key(http::header::AUTHORIZATION);
        let range = headers.get(http::header::RANGE).and_then(|range| range.to_str().ok());
        let from = range.and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
        state.seen.push(Seen { method: method.clone(), path: path.clone(), authorized, from });
        state.by_path.iter().find(|(part, _)| path.contains(part)).map(|(_, f)| f.clone()).unwrap_or_default()
    };
    match fault {
        Fault::Status(code) => return refuse(code),
        Fault::Hang => {
            let _hanging = Hanging::new(&shared);
            std::future::pending::<()>().await;
        }
        Fault::Slow(time) => tokio::time::sleep(time).await,
        _ => {}
    }
    match pass_on(&shared, method, &path, &headers, body, &fault).await {
        Ok(response) => response,
        Err(error) => plain(StatusCode::BAD_GATEWAY, format!("{error:#}")),
    }
}

fn plain(status: StatusCode, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

fn refuse(code: u16) -> Response {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let text = format!(r#"{{"errors":[{{"code":"BED","message":"answered {code} on request"}}]}}"#);
    let mut response = plain(status, text);
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    match code {
        401 => headers.insert("www-authenticate", HeaderValue::from_static("Basic realm=\"bed\"")),
        429 | 503 => headers.insert("retry-after", HeaderValue::from_static("1")),
        _ => None,
    };
    response
}

async fn pass_on(
    shared: &Shared,
    method: Method,
    path: &str,
    headers: &http::HeaderMap,
    body: Bytes,
    fault: &Fault,
) -> Result<Response> {
    let head = method == Method::HEAD;
    let mut request = shared.client.request(method, format!("{}{path}", shared.upstream)).body(body);
    for (name, value) in headers.iter().filter(|(n, _)| *n != http::header::HOST && *n != http::header::CONTENT_LENGTH)
    {
        request = request.header(name, value);
    }
    let upstream = request.send().await?;
    let (status, mut headers) = (upstream.status(), upstream.headers().clone());
    let mut bytes = upstream.bytes().await?.to_vec();
    headers.remove("transfer-encoding");
    match fault {
        Fault::NoDigest => {
            headers.remove("docker-content-digest");
        }
        Fault::WrongDigest => {
            let other = super::images::digest(b"something else");
            headers.insert("docker-content-digest", HeaderValue::from_str(&other)?);
        }
        Fault::Corrupt => {
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 1;
            }
        }
        _ => {}
    }
    let part = match fault {
        Fault::Truncate => Some(bytes.len() / 2),
        Fault::Stall(most) if *most < bytes.len() => Some(*most),
        _ => None,
    };
    let body = if let Some(part) = part {
        bytes.truncate(part);
        let stalls = *fault != Fault::Truncate;
        // In pieces, and with a pause: what hyper still holds when the connection ends never arrives.
        let bytes = Bytes::from(bytes);
        let pieces = (0..bytes.len()).step_by(PIECE).map(move |at| bytes.slice(at..bytes.len().min(at + PIECE)));
        let part = stream::iter(pieces.map(Ok));
        let end = stream::once(async move {
            if stalls {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            Err(std::io::Error::other("cut off on request"))
        });
        Body::from_stream(part.chain(end))
    } else if head {
        // The length of a HEAD answer is that of the body that a GET would have.
        Body::empty()
    } else {
        Body::from(bytes)
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}
