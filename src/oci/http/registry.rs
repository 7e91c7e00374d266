//! From a tag to a digest, and from a digest to a manifest.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::session::{Connection, Session, is_manifest_type, read_bounded, refusal};
use crate::core::hash::Algorithm;
use crate::core::image::{Digest, ImageRef};
use crate::oci::auth::credentials::Credentials;
use crate::oci::error::RegistryError;
use crate::oci::route::endpoint::{Endpoint, RegistryOptions};
use crate::oci::route::proxies::Proxies;

/// Largest manifest that is read, in bytes; what the distribution specification asks registries to support.
pub(crate) const MAX_MANIFEST: usize = 4 << 20;

/// The digest that an image's reference stands for right now: that of the index where there is one.
///
/// A reference that holds a digest is looked up by it, and so answers whether it is there. Candidates among the
/// credentials are tried in turn; [`RegistryError::NotFound`] is said only when not one of them was refused.
///
/// **Units**: `deadline` bounds the whole call, whatever the registry does. **Errors**: see [`RegistryError`].
pub async fn resolve(
    image: &ImageRef,
    credentials: &Credentials,
    options: &RegistryOptions,
    proxies: &Proxies,
    deadline: Duration,
) -> Result<Digest, RegistryError> {
    let origin = Endpoint::origin(image, *options);
    let asked = async {
        let connection = Arc::new(Connection::open(image, &origin, proxies, deadline).await?);
        let mut refused = None;
        for candidate in origin.candidates(credentials) {
            match look_up(&mut Session::new(Arc::clone(&connection), candidate)).await {
                Err(error) if error.depends_on_credentials() => refused = Some(worse(refused, error)),
                answer => return answer,
            }
        }
        Err(refused.unwrap_or_else(|| RegistryError::NotFound { image: image.to_string() }))
    };
    tokio::time::timeout(deadline, asked)
        .await
        .unwrap_or_else(|_| Err(RegistryError::Timeout { image: image.to_string(), after: deadline }))
}

/// Of two refusals the one that says less: a missing image is certain only when everybody was allowed to look.
pub(crate) fn worse(one: Option<RegistryError>, other: RegistryError) -> RegistryError {
    match one {
        Some(one) if !matches!(one, RegistryError::NotFound { .. }) => one,
        _ => other,
    }
}

async fn look_up(session: &mut Session<'_>) -> Result<Digest, RegistryError> {
    let image = session.image();
    let reference = reference(image);
    let head = session.manifest(http::Method::HEAD, &reference).await?;
    if is_final(head.status()) {
        return Err(session.refused(&head));
    }
    if let Some(told) = told_digest(&head) {
        match image.digest() {
            Some(wanted) if wanted.algorithm() == Algorithm::Sha256 && *wanted != told => {
                return Err(session.invalid(format!("asked for {wanted}, it answers for {told}")));
            }
            Some(wanted) => return Ok(wanted.clone()),
            None if answers_for(session, &told).await? => return Ok(told),
            None => {}
        }
    }
    // No digest, a wrong one, or a server that has something against HEAD requests: only a GET request tells.
    let FetchedManifest { body, told } = fetch_manifest(session, &reference).await?;
    for digest in image.digest().into_iter().chain(&told) {
        let actual = Digest::of_bytes(digest.algorithm(), &body);
        if actual != *digest {
            return Err(session.invalid(format!("the bytes of the manifest have the digest {actual}, not {digest}")));
        }
    }
    form(&body).map_err(|why| session.invalid(why))?;
    Ok(image.digest().cloned().unwrap_or_else(|| Digest::of_bytes(Algorithm::Sha256, &body)))
}

/// Whether the registry has what it told. A header is only a claim, and what is known once is kept for good.
async fn answers_for(session: &mut Session<'_>, told: &Digest) -> Result<bool, RegistryError> {
    let head = session.manifest(http::Method::HEAD, &told.to_string()).await?;
    if is_final(head.status()) {
        return Err(session.refused(&head));
    }
    Ok(told_digest(&head).as_ref() == Some(told))
}

/// Whether another method would get no other answer.
fn is_final(status: http::StatusCode) -> bool {
    status == http::StatusCode::UNAUTHORIZED
        || status == http::StatusCode::TOO_MANY_REQUESTS
        || (status.is_server_error() && status != http::StatusCode::NOT_IMPLEMENTED)
}

/// The digest that a successful answer tells for a manifest or index.
fn told_digest(answer: &reqwest::Response) -> Option<Digest> {
    let known = answer.status().is_success() && content_type(answer.headers()).is_some_and(is_manifest_type);
    let digest: Digest = content_digest(answer.headers()).filter(|_| known)?.parse().ok()?;
    (digest.algorithm() == Algorithm::Sha256).then_some(digest)
}

/// What the image is asked for by: its digest, else its tag.
pub(crate) fn reference(image: &ImageRef) -> String {
    match (image.digest(), image.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or(crate::core::image::DEFAULT_TAG).to_owned(),
    }
}

/// A manifest or index as it is served, not yet proved.
pub(crate) struct FetchedManifest {
    /// The bytes.
    pub(crate) body: Vec<u8>,
    /// The digest that the registry tells for them.
    told: Option<Digest>,
}

/// Fetches a manifest or index by tag or digest. The caller compares the digest.
pub(crate) async fn fetch_manifest(
    session: &mut Session<'_>,
    reference: &str,
) -> Result<FetchedManifest, RegistryError> {
    let mut response = session.manifest(http::Method::GET, reference).await?;
    if response.status() == http::StatusCode::NOT_FOUND {
        return Err(missing(session, response).await);
    }
    if response.status() != http::StatusCode::OK {
        let unusable = || session.invalid(format!("status {} for a manifest", response.status().as_u16()));
        return Err(refusal(session.image(), session.tried(), &response).unwrap_or_else(unusable));
    }
    let told = match content_digest(response.headers()) {
        Some(value) => Some(value.parse::<Digest>().map_err(|_| session.invalid("its digest header is no digest"))?),
        None => None,
    };
    let body = read_bounded(session, &mut response, MAX_MANIFEST).await?;
    Ok(FetchedManifest { body, told })
}

/// Whether a 404 proves that the image is missing: a registry must have said it, and not something in front of it.
async fn missing(session: &mut Session<'_>, mut response: reqwest::Response) -> RegistryError {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Code>,
    }
    #[derive(Deserialize)]
    struct Code {
        code: String,
    }
    let image = session.image().to_string();
    let is_registry = response
        .headers()
        .get("docker-distribution-api-version")
        .is_some_and(|version| version.as_bytes().starts_with(b"registry/2"));
    let body = match read_bounded(session, &mut response, MAX_MANIFEST).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    let codes = serde_json::from_slice::<Envelope>(&body).map(|envelope| envelope.errors).unwrap_or_default();
    if !codes.is_empty() && codes.iter().all(|error| matches!(error.code.as_str(), "DENIED" | "UNAUTHORIZED")) {
        return RegistryError::Forbidden { image, tried: session.tried() };
    }
    if is_registry || !codes.is_empty() {
        return RegistryError::NotFound { image };
    }
    match session.is_registry().await {
        Ok(true) => RegistryError::NotFound { image },
        Ok(false) => session.invalid("status 404 from something that is no registry"),
        Err(error) => error,
    }
}

/// What a manifest lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Images for several platforms.
    Index,
    /// The layers of one.
    Image,
}

/// Tells what the bytes of a manifest are.
///
/// **Errors**: what is neither, or both: two readers of such a document may see two images.
pub(crate) fn form(body: &[u8]) -> Result<Form, &'static str> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: u64,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(body).map_err(|_| "the manifest is none")?;
    match shape {
        Shape { schema_version: 2, manifests: Some(_), layers: None } => Ok(Form::Index),
        Shape { schema_version: 2, manifests: None, layers: Some(_) } => Ok(Form::Image),
        Shape { schema_version: 1, .. } => {
            Err("the manifest is of schema version 1, which is not supported: push the image again")
        }
        _ => Err("the manifest is neither that of an image nor an index"),
    }
}

fn content_digest(headers: &http::HeaderMap) -> Option<&str> {
    // A header that is no text is as wrong as one that is no digest.
    headers.get("docker-content-digest").map(|value| value.to_str().unwrap_or("?"))
}

fn content_type(headers: &http::HeaderMap) -> Option<&str> {
    headers.get(http::header::CONTENT_TYPE)?.to_str().ok()
}
