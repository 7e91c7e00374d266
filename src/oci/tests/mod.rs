//! Tests against a small registry in this process: real HTTP, and every fault that a registry can have.

mod layer;
mod pull;
mod registry;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{Method, StatusCode, header};

use crate::api::names::{ImageReason, NodeReason};
use crate::core::hash::Algorithm;
use crate::core::image::{Digest, ImageRef};
use crate::oci::auth::credentials::Credentials;
use crate::oci::route::endpoint::RegistryOptions;

/// What the registry saw: method, path with query, and the headers for authorization and range.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    method: Method,
    path: String,
    authorization: Option<String>,
    range: Option<String>,
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
        let digest = Digest::of_bytes(Algorithm::Sha256, body);
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
    let range = request.headers().get(header::RANGE).map(|value| value.to_str().unwrap().to_owned());
    let seen = Seen { method: request.method().clone(), path, authorization, range };
    let mut content = content.lock().unwrap();
    let earlier = content.seen.iter().filter(|one| one.method == seen.method && one.path == seen.path).count();
    content.seen.push(seen.clone());
    if let Some(response) = content.fault.as_ref().and_then(|fault| fault(&seen, earlier)) {
        return response;
    }
    let path = seen.path.split('?').next().unwrap_or_default();
    let found = if let Some((_, reference)) = path.split_once("/manifests/") {
        let accepted = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        content.manifests.get(reference).filter(|(media_type, _)| accepted.contains(media_type.as_str())).cloned()
    } else if let Some((_, digest)) = path.split_once("/blobs/") {
        content.blobs.get(digest).map(|blob| ("application/octet-stream".to_owned(), blob.clone()))
    } else if path == "/v2/" {
        Some(("application/json".to_owned(), b"{}".to_vec()))
    } else {
        None
    };
    if let Some((media_type, body)) = found {
        let digest = Digest::of_bytes(Algorithm::Sha256, &body).to_string();
        let body = if seen.method == Method::HEAD { Body::empty() } else { Body::from(body) };
        reply(StatusCode::OK, &[("content-type", &media_type), ("docker-content-digest", &digest)], body)
    } else {
        let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        reply(StatusCode::NOT_FOUND, &[("content-type", "application/json")], Body::from(body))
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

/// One entry of a layer.
enum Item<'a> {
    Folder(&'a str),
    File(&'a str, &'a str),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Other(&'a str, tar::EntryType),
}

/// An archive of these entries, byte by byte as told: no name is checked or cleaned.
fn layer(items: &[Item<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for item in items {
        let (path, kind, content, target) = match *item {
            Item::Folder(path) => (path, tar::EntryType::Directory, "", ""),
            Item::File(path, content) => (path, tar::EntryType::Regular, content, ""),
            Item::Link(path, target) => (path, tar::EntryType::Symlink, "", target),
            Item::Hard(path, target) => (path, tar::EntryType::Link, "", target),
            Item::Other(path, kind) => (path, kind, "", ""),
        };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o4777);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(content.as_bytes());
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn gzip(content: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Everything below a folder: files with their content, links with their target, empty folders with nothing.
fn listing(folder: &std::path::Path) -> Vec<(String, String)> {
    fn walk(folder: &std::path::Path, prefix: &str, found: &mut Vec<(String, String)>) {
        let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()).collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        if entries.is_empty() && !prefix.is_empty() {
            found.push((prefix.to_owned(), String::new()));
        }
        for entry in entries {
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            } else if kind.is_symlink() {
                found.push((name, format!("-> {}", std::fs::read_link(entry.path()).unwrap().display())));
            } else {
                found.push((name, std::fs::read_to_string(entry.path()).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found);
    found
}
