//! From a tag to a digest, and the closed list of what may go wrong on the way.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::core::image::{Algorithm, Digest, ImageRef, ParseError};
use crate::oci::credentials::Credentials;
use crate::oci::endpoint::Endpoint;
use crate::oci::proxies::Proxies;
use crate::oci::session::{Connection, Session, is_manifest_type, read_bounded, refusal};

/// Largest manifest that is read, in bytes; what the distribution specification asks registries to support.
pub(crate) const MAX_MANIFEST: usize = 4 << 20;

/// How a registry is to be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegistryOptions {
    /// Plain HTTP may be used. HTTPS is tried first, as the tools do that know this option.
    pub insecure: bool,
    /// Any server certificate is accepted.
    pub insecure_skip_tls_verify: bool,
}

/// Why a registry gave no answer. One variant for one reason; only [`Error::NotFound`] says that an image is missing.
///
/// No message holds a credential, a token or a URL with a query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Something that is a registry said that the image is not there.
    #[error("image {image} does not exist in its registry")]
    NotFound {
        /// The image as asked for.
        image: String,
    },
    /// The registry or its token server wants other credentials; registries hide missing images behind this, too.
    #[error("image {image}: the registry wants other credentials than the ones given ({tried})")]
    Unauthorized {
        /// The image as asked for.
        image: String,
        /// What was tried, in words: anonymous, or that a credential was sent.
        tried: &'static str,
    },
    /// The registry knows who asks, and refuses.
    #[error("image {image}: the registry refuses access ({tried})")]
    Forbidden {
        /// The image as asked for.
        image: String,
        /// What was tried, in words.
        tried: &'static str,
    },
    /// The registry wants fewer requests.
    #[error("image {image}: the registry wants fewer requests")]
    RateLimited {
        /// The image as asked for.
        image: String,
        /// How long to wait, where the registry says so.
        retry_after: Option<Duration>,
    },
    /// The registry or its token server failed.
    #[error("image {image}: the registry failed with status {status}")]
    RegistryError {
        /// The image as asked for.
        image: String,
        /// The HTTP status, 500 to 599.
        status: u16,
        /// How long to wait, where the registry says so.
        retry_after: Option<Duration>,
    },
    /// No answer, or not all of it, in time.
    #[error("image {image}: the registry did not answer within {} ms", after.as_millis())]
    Timeout {
        /// The image as asked for.
        image: String,
        /// The time that was given.
        after: Duration,
    },
    /// The name does not resolve, nothing listens, or the connection broke.
    #[error("image {image}: the registry {registry} cannot be reached: {why}")]
    Unreachable {
        /// The image as asked for.
        image: String,
        /// `host[:port]` of the registry.
        registry: String,
        /// What the system says.
        why: String,
    },
    /// The certificate is not trusted, or the other side speaks no TLS.
    #[error("image {image}: no trusted connection to the registry {registry}: {why}")]
    TlsError {
        /// The image as asked for.
        image: String,
        /// `host[:port]` of the registry.
        registry: String,
        /// What the TLS library says.
        why: String,
    },
    /// The image's name is none.
    #[error(transparent)]
    InvalidReference(#[from] ParseError),
    /// The answer is no answer to the question.
    #[error("image {image}: the registry's answer cannot be used: {why}")]
    InvalidResponse {
        /// The image as asked for.
        image: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// The name of the reason, as it stands in conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "NotFound",
            Self::Unauthorized { .. } => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::RateLimited { .. } => "RateLimited",
            Self::RegistryError { .. } => "RegistryError",
            Self::Timeout { .. } => "Timeout",
            Self::Unreachable { .. } => "Unreachable",
            Self::TlsError { .. } => "TlsError",
            Self::InvalidReference(_) => "InvalidReference",
            Self::InvalidResponse { .. } => "InvalidResponse",
        }
    }

    /// How long the registry asks to wait, where it does.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::RegistryError { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the same question may get another answer with other credentials.
    pub(crate) fn depends_on_credentials(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. } | Self::Unauthorized { .. } | Self::Forbidden { .. } | Self::RateLimited { .. }
        )
    }

    /// Whether the same question may get another answer a little later.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. } | Self::RegistryError { .. } | Self::Timeout { .. } | Self::Unreachable { .. }
        )
    }
}

/// The digest that an image's reference stands for right now: that of the index where there is one.
///
/// A reference that holds a digest is looked up by it, and so answers whether it is there. Candidates among the
/// credentials are tried in turn; [`Error::NotFound`] is said only when not one of them was refused.
///
/// **Units**: `deadline` bounds the whole call, whatever the registry does. **Errors**: see [`Error`].
pub async fn resolve(
    image: &ImageRef,
    credentials: &Credentials,
    options: &RegistryOptions,
    proxies: &Proxies,
    deadline: Duration,
) -> Result<Digest, Error> {
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
        Err(refused.unwrap_or_else(|| Error::NotFound { image: image.to_string() }))
    };
    tokio::time::timeout(deadline, asked)
        .await
        .unwrap_or_else(|_| Err(Error::Timeout { image: image.to_string(), after: deadline }))
}

/// Of two refusals the one that says less: a missing image is certain only when everybody was allowed to look.
pub(crate) fn worse(one: Option<Error>, other: Error) -> Error {
    match one {
        Some(one) if !matches!(one, Error::NotFound { .. }) => one,
        _ => other,
    }
}

async fn look_up(session: &mut Session<'_>) -> Result<Digest, Error> {
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
        let actual = super::hash::of(digest.algorithm(), &body);
        if actual != *digest {
            return Err(session.invalid(format!("the bytes of the manifest have the digest {actual}, not {digest}")));
        }
    }
    check_manifest(&body).map_err(|why| session.invalid(why))?;
    Ok(image.digest().cloned().unwrap_or_else(|| super::hash::of(Algorithm::Sha256, &body)))
}

/// Whether the registry has what it told. A header is only a claim, and what is known once is kept for good.
async fn answers_for(session: &mut Session<'_>, told: &Digest) -> Result<bool, Error> {
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
pub(crate) async fn fetch_manifest(session: &mut Session<'_>, reference: &str) -> Result<FetchedManifest, Error> {
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
async fn missing(session: &mut Session<'_>, mut response: reqwest::Response) -> Error {
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
        return Error::Forbidden { image, tried: session.tried() };
    }
    if is_registry || !codes.is_empty() {
        return Error::NotFound { image };
    }
    match session.is_registry().await {
        Ok(true) => Error::NotFound { image },
        Ok(false) => session.invalid("status 404 from something that is no registry"),
        Err(error) => error,
    }
}

fn check_manifest(body: &[u8]) -> Result<(), &'static str> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: u64,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(body).map_err(|_| "what it serves as a manifest is none")?;
    match shape {
        Shape { schema_version: 2, manifests: Some(_), layers: None }
        | Shape { schema_version: 2, manifests: None, layers: Some(_) } => Ok(()),
        Shape { schema_version: 1, .. } => Err("manifests of schema version 1 are not supported, push the image again"),
        _ => Err("what it serves as a manifest is neither an image nor an index"),
    }
}

fn content_digest(headers: &http::HeaderMap) -> Option<&str> {
    // A header that is no text is as wrong as one that is no digest.
    headers.get("docker-content-digest").map(|value| value.to_str().unwrap_or("?"))
}

fn content_type(headers: &http::HeaderMap) -> Option<&str> {
    headers.get(http::header::CONTENT_TYPE)?.to_str().ok()
}
