//! Tests against a small registry in this process: real HTTP, and every fault that a registry can have.

mod registry;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{Method, StatusCode, header};

use crate::core::image::{Algorithm, Digest, ImageRef};
use crate::oci::credentials::Credentials;
use crate::oci::hash;
use crate::oci::registry::RegistryOptions;

/// What the registry saw: method, path with query, and the authorization header.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    method: Method,
    path: String,
    authorization: Option<String>,
}

/// Answers instead of the registry, or lets it answer; the number counts earlier requests of that method and path.
type Fault = Box<dyn Fn(&Seen, usize) -> Option<Response> + Send + Sync>;

#[derive(Default)]
struct Content {
    manifests: HashMap<String, (String, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
    seen: Vec<Seen>,
    fault: Option<Fault>,
}

struct TestRegistry {
    address: String,
    content: Arc<Mutex<Content>>,
}

impl TestRegistry {
    async fn start() -> Self {
        let content = Arc::new(Mutex::new(Content::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = Router::new().fallback(answer).with_state(content.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, content }
    }

    fn image(&self, reference: &str) -> ImageRef {
        format!("{}/{reference}", self.address).parse().unwrap()
    }

    /// Stores a manifest under a tag and under its digest.
    fn put_manifest(&self, tag: &str, media_type: &str, body: &[u8]) -> Digest {
        let digest = hash::of(Algorithm::Sha256, body);
        let mut content = self.content.lock().unwrap();
        let manifest = (media_type.to_owned(), body.to_vec());
        content.manifests.insert(tag.to_owned(), manifest.clone());
        content.manifests.insert(digest.to_string(), manifest);
        digest
    }

    fn fault(&self, fault: impl Fn(&Seen, usize) -> Option<Response> + Send + Sync + 'static) {
        self.content.lock().unwrap().fault = Some(Box::new(fault));
    }

    /// Requires `user:hunter2` by HTTP basic authentication.
    fn require_basic(&self) {
        self.fault(|seen, _| {
            (seen.authorization.as_deref() != Some("Basic dXNlcjpodW50ZXIy")).then(|| {
                reply(StatusCode::UNAUTHORIZED, &[("www-authenticate", r#"Basic realm="registry""#)], Body::empty())
            })
        });
    }

    /// The requests so far, as `METHOD path`.
    fn requests(&self) -> Vec<String> {
        let content = self.content.lock().unwrap();
        content.seen.iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }
}

fn reply(status: StatusCode, headers: &[(&str, &str)], body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        let name: header::HeaderName = name.parse().unwrap();
        response.headers_mut().append(name, value.parse().unwrap());
    }
    response
}

/// The first piece of a body, and then nothing for ever.
fn hanging_body(first: &'static [u8]) -> Body {
    use futures::StreamExt;
    let first = futures::stream::once(async move { Ok::<_, std::io::Error>(bytes::Bytes::from_static(first)) });
    Body::from_stream(first.chain(futures::stream::pending()))
}

async fn answer(State(content): State<Arc<Mutex<Content>>>, request: Request) -> Response {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let authorization = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    let seen = Seen { method: request.method().clone(), path, authorization };
    let mut content = content.lock().unwrap();
    let earlier = content.seen.iter().filter(|one| one.method == seen.method && one.path == seen.path).count();
    content.seen.push(seen.clone());
    if let Some(response) = content.fault.as_ref().and_then(|fault| fault(&seen, earlier)) {
        return response;
    }
    let found = if let Some((_, reference)) = seen.path.split_once("/manifests/") {
        let accepted = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        content.manifests.get(reference).filter(|(media_type, _)| accepted.contains(media_type.as_str())).cloned()
    } else if let Some((_, digest)) = seen.path.split_once("/blobs/") {
        content.blobs.get(digest).map(|blob| ("application/octet-stream".to_owned(), blob.clone()))
    } else if seen.path == "/v2/" {
        Some(("application/json".to_owned(), b"{}".to_vec()))
    } else {
        None
    };
    match found {
        Some((media_type, body)) => {
            let digest = hash::of(Algorithm::Sha256, &body).to_string();
            let body = if seen.method == Method::HEAD { Body::empty() } else { Body::from(body) };
            reply(StatusCode::OK, &[("content-type", &media_type), ("docker-content-digest", &digest)], body)
        }
        None => {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            reply(StatusCode::NOT_FOUND, &[("content-type", "application/json")], Body::from(body))
        }
    }
}

fn plain_http() -> RegistryOptions {
    RegistryOptions { insecure: true, insecure_skip_tls_verify: false }
}

/// Credentials for every registry of these tests.
fn credentials(users: &[(&str, &str, &str)]) -> Credentials {
    let auths: HashMap<&str, serde_json::Value> = users
        .iter()
        .map(|(entry, user, password)| (*entry, serde_json::json!({"username": user, "password": password})))
        .collect();
    Credentials::from_docker_config_json(serde_json::json!({ "auths": auths }).to_string().as_bytes()).unwrap()
}
