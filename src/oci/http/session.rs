//! HTTP with one registry for one image: scheme, authentication, and what refusals and broken connections mean.
//!
//! The reading side is our own because the reasons are: a general client turns a 429 into text without its
//! `Retry-After`, a failing token server into an anonymous request (and its 401), and reads bodies of any size.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode};
use oci_distribution::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
};
use reqwest::{Response, Url};
use serde::Deserialize;

use crate::core::image::{Digest, ImageRef};
use crate::oci::auth::credentials::Credential;
use crate::oci::error::RegistryError;
use crate::oci::route::endpoint::{Endpoint, Scheme, Tls};
use crate::oci::route::proxies::Proxies;

/// Everything that a tag may stand for. An index first: where there is one, its digest is the one that travels.
const MANIFEST_TYPES: [&str; 4] =
    [OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE];
/// Largest answer of a token server that is read, in bytes.
const MAX_TOKEN: usize = 1 << 20;
/// Longest redirection chain.
const MAX_REDIRECTS: usize = 5;
/// Longest time that HTTPS is tried where plain HTTP may be used.
const PROBE: Duration = Duration::from_secs(5);
/// Longest time between two pieces of an answer.
const STALL: Duration = Duration::from_secs(30);
/// Longest wait that a registry may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// Whether a content type is that of an image or an index.
pub(crate) fn is_manifest_type(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    MANIFEST_TYPES.contains(&media_type)
}

/// A client for one endpoint of an image, with the scheme decided.
pub(crate) struct Connection<'a> {
    image: &'a ImageRef,
    endpoint: &'a Endpoint,
    http: reqwest::Client,
    scheme: &'static str,
}

impl<'a> Connection<'a> {
    /// Prepares the client. Where plain HTTP may be used, one request tells whether it must be.
    pub(crate) async fn open(
        image: &'a ImageRef,
        endpoint: &'a Endpoint,
        proxies: &Proxies,
        deadline: Duration,
    ) -> Result<Connection<'a>, RegistryError> {
        let http = client(endpoint, proxies).map_err(|error| transport(image, endpoint, STALL, &error))?;
        let mut connection = Self { image, endpoint, http, scheme: "https" };
        match endpoint.scheme {
            Scheme::Https => {}
            Scheme::Http => connection.scheme = "http",
            Scheme::Either => {
                let probe = connection.http.get(connection.url("")).headers(endpoint.headers.clone()).send();
                if !matches!(tokio::time::timeout(PROBE.min(deadline / 3), probe).await, Ok(Ok(_))) {
                    connection.scheme = "http";
                }
            }
        }
        Ok(connection)
    }

    /// Below the root of the API.
    fn url(&self, path: &str) -> String {
        format!("{}://{}{}/{path}", self.scheme, self.endpoint.host, self.endpoint.root)
    }
}

fn client(endpoint: &Endpoint, proxies: &Proxies) -> reqwest::Result<reqwest::Client> {
    // Without a provider the client would panic; where one is installed already this changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("kmm/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(endpoint.connect_timeout.unwrap_or(STALL))
            .read_timeout(STALL)
            .referer(false)
            .redirect(redirections(endpoint.scheme))
            // Those of the environment were read at start, and are in `proxies`.
            .no_proxy();
        builder = if let Some(proxy) = &endpoint.proxy {
            builder.proxy(reqwest::Proxy::all(proxy.clone())?)
        } else {
            let proxies = proxies.clone();
            builder.proxy(reqwest::Proxy::custom(move |url| proxies.proxy(url).cloned()))
        };
        trusting(builder, &endpoint.tls)
    };
    match builder()?.build() {
        // Without a single root certificate on the system HTTPS cannot work, but plain HTTP can.
        Err(_) if endpoint.scheme != Scheme::Https => builder()?.tls_certs_only([]).build(),
        built => built,
    }
}

fn trusting(mut builder: reqwest::ClientBuilder, tls: &Tls) -> reqwest::Result<reqwest::ClientBuilder> {
    builder = builder.tls_danger_accept_invalid_certs(tls.skip_verify);
    if let Some(identity) = &tls.identity {
        builder = builder.identity(reqwest::Identity::from_pem(identity)?);
    }
    let known = |all: &[Vec<u8>]| {
        all.iter().map(|der| reqwest::Certificate::from_der(der)).collect::<reqwest::Result<Vec<_>>>()
    };
    let besides = known(&tls.authorities)?;
    Ok(match &tls.roots {
        Some(roots) => builder.tls_certs_only(known(roots)?.into_iter().chain(besides)),
        None => builder.tls_certs_merge(besides),
    })
}

fn redirections(scheme: Scheme) -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(move |attempt| {
        let from_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirections")
        } else if from_https && attempt.url().scheme() != "https" && scheme == Scheme::Https {
            attempt.error("a redirection leads from HTTPS to plain HTTP")
        } else {
            attempt.follow()
        }
    })
}

/// One credential, or none, in use with one endpoint.
pub(crate) struct Session<'a> {
    connection: Arc<Connection<'a>>,
    credential: Option<&'a Credential>,
    authorization: Option<HeaderValue>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(connection: Arc<Connection<'a>>, credential: Option<&'a Credential>) -> Self {
        Self { connection, credential, authorization: None }
    }

    /// The same connection, asked with another credential.
    pub(crate) fn with(&self, credential: Option<&'a Credential>) -> Self {
        Self::new(Arc::clone(&self.connection), credential)
    }

    pub(crate) fn image(&self) -> &'a ImageRef {
        self.connection.image
    }

    /// In words, for messages.
    pub(crate) fn tried(&self) -> String {
        match self.credential {
            Some(credential) => format!("with the credentials of {}", credential.source),
            None => "asked without credentials".to_owned(),
        }
    }

    pub(crate) fn invalid(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::InvalidResponse { image: self.image().to_string(), why: why.into() }
    }

    /// The error for a response whose status is a refusal or otherwise no success.
    pub(crate) fn refused(&self, response: &Response) -> RegistryError {
        refusal(self.image(), self.tried(), response)
            .unwrap_or_else(|| self.invalid(format!("status {}", response.status().as_u16())))
    }

    /// Nobody answers, or the answer broke off.
    pub(crate) fn unreachable(&self, why: impl Into<String>) -> RegistryError {
        let registry = self.connection.endpoint.host.clone();
        RegistryError::Unreachable { image: self.image().to_string(), registry, why: why.into() }
    }

    /// Asks for a manifest or index by tag or digest. Whatever the registry wants for authentication is done once; a 401
    /// that comes back means that it did not help.
    pub(crate) async fn manifest(&mut self, method: Method, reference: &str) -> Result<Response, RegistryError> {
        let mut headers = HeaderMap::new();
        if let Ok(types) = HeaderValue::try_from(MANIFEST_TYPES.join(", ")) {
            headers.insert(ACCEPT, types);
        }
        self.send(method, &format!("manifests/{reference}"), headers).await
    }

    /// Asks for a blob, from the byte `from` on if it is not the first; whether that is what comes, the answer says.
    pub(crate) async fn blob(&mut self, digest: &Digest, from: u64) -> Result<Response, RegistryError> {
        let mut headers = HeaderMap::new();
        if let Some(range) = (from > 0).then(|| HeaderValue::try_from(format!("bytes={from}-")).ok()).flatten() {
            headers.insert(RANGE, range);
        }
        self.send(Method::GET, &format!("blobs/{digest}"), headers).await
    }

    async fn send(&mut self, method: Method, path: &str, headers: HeaderMap) -> Result<Response, RegistryError> {
        let url = self.connection.url(&format!("{}/{path}", self.connection.endpoint.repository));
        let response = self.request(method.clone(), &url, headers.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        if self.authorize(&response).await? { self.request(method, &url, headers).await } else { Ok(response) }
    }

    /// Whether the registry's API root answers as one.
    pub(crate) async fn is_registry(&mut self) -> Result<bool, RegistryError> {
        let response = self.request(Method::GET, &self.connection.url(""), HeaderMap::new()).await?;
        match response.status() {
            StatusCode::OK | StatusCode::UNAUTHORIZED => Ok(true),
            status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                Err(self.refused(&response))
            }
            _ => Ok(false),
        }
    }

    async fn request(&self, method: Method, url: &str, headers: HeaderMap) -> Result<Response, RegistryError> {
        let endpoint = self.connection.endpoint;
        let mut url = Url::parse(url).map_err(|_| self.invalid("its address is none"))?;
        if let Some(namespace) = &endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        let mut request = self.connection.http.request(method, url).headers(endpoint.headers.clone()).headers(headers);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        request.send().await.map_err(|error| self.transport(&error))
    }

    fn transport(&self, error: &reqwest::Error) -> RegistryError {
        transport(self.connection.image, self.connection.endpoint, STALL, error)
    }

    /// Does what a 401 asks for; false when there is nothing that could be done.
    async fn authorize(&mut self, response: &Response) -> Result<bool, RegistryError> {
        let mut wants_basic = false;
        for header in response.headers().get_all(WWW_AUTHENTICATE) {
            let Ok(header) = header.to_str() else { continue };
            for challenge in http_auth::ChallengeParser::new(header) {
                let Ok(challenge) = challenge else { break };
                let param = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    wants_basic = true;
                } else if challenge.scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = param("realm")
                {
                    let scope = param("scope")
                        .unwrap_or_else(|| format!("repository:{}:pull", self.connection.endpoint.repository));
                    let token = self.token(&realm, param("service"), &scope).await?;
                    self.authorization = Some(self.secret_header(format!("Bearer {token}"))?);
                    return Ok(true);
                }
            }
        }
        match self.credential {
            Some(credential) if wants_basic => {
                self.authorization = Some(self.secret_header(basic(credential))?);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Asks the token server that the registry names for a token to pull.
    async fn token(&self, realm: &str, service: Option<String>, scope: &str) -> Result<String, RegistryError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let mut url = Url::parse(realm).map_err(|_| self.invalid("its token server has no valid address"))?;
        let plain = self.connection.endpoint.scheme != Scheme::Https;
        if url.scheme() != "https" && !(plain && url.scheme() == "http") {
            return Err(self.invalid("its token server is not on HTTPS"));
        }
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", &service);
        }
        url.query_pairs_mut().append_pair("scope", scope);
        let mut request = self.connection.http.get(url);
        if let Some(credential) = self.credential {
            request = request.header(AUTHORIZATION, self.secret_header(basic(credential))?);
        }
        let mut response = request.send().await.map_err(|error| self.transport(&error))?;
        if let Some(error) = refusal(self.image(), self.tried(), &response) {
            return Err(error);
        }
        if response.status() != StatusCode::OK {
            return Err(self.invalid(format!("its token server answers with status {}", response.status().as_u16())));
        }
        let body = read_bounded(self, &mut response, MAX_TOKEN).await?;
        let token: Token =
            serde_json::from_slice(&body).map_err(|_| self.invalid("its token server gives no token"))?;
        let found = token.token.filter(|token| !token.is_empty()).or(token.access_token);
        found.filter(|token| !token.is_empty()).ok_or_else(|| self.invalid("its token server gives no token"))
    }

    /// A header value that no debug output shows.
    fn secret_header(&self, value: String) -> Result<HeaderValue, RegistryError> {
        let mut value =
            HeaderValue::try_from(value).map_err(|_| self.invalid("the token or password fits no HTTP header"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn basic(credential: &Credential) -> String {
    use base64::Engine;
    let pair = format!("{}:{}", credential.username, credential.password);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// The error that a status stands for, where it is one that any request may meet.
pub(crate) fn refusal(image: &ImageRef, tried: String, response: &Response) -> Option<RegistryError> {
    let image = image.to_string();
    let retry_after = || retry_after(response.headers().get(RETRY_AFTER)?.to_str().ok()?);
    match response.status() {
        StatusCode::UNAUTHORIZED => Some(RegistryError::Unauthorized { image, tried }),
        StatusCode::FORBIDDEN => Some(RegistryError::Forbidden { image, tried }),
        StatusCode::TOO_MANY_REQUESTS => Some(RegistryError::RateLimited { image, retry_after: retry_after() }),
        status if status.is_server_error() => {
            Some(RegistryError::ServerError { image, status: status.as_u16(), retry_after: retry_after() })
        }
        _ => None,
    }
}

/// Seconds, or a date; at most an hour, because a wrong date must not silence us for a year.
fn retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    let wait = if let Ok(seconds) = value.parse() {
        Duration::from_secs(seconds)
    } else {
        let until = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
        let seconds = until.duration_since(jiff::Timestamp::now()).as_secs();
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Reads a whole answer of at most `max` bytes.
pub(crate) async fn read_bounded(
    session: &Session<'_>,
    response: &mut Response,
    max: usize,
) -> Result<Vec<u8>, RegistryError> {
    let mut body = Vec::new();
    while let Some(piece) = next_piece(session, response).await? {
        if body.len() + piece.len() > max {
            return Err(session.invalid(format!("an answer of more than {max} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// The next piece of an answer, `None` at its end.
pub(crate) async fn next_piece(
    session: &Session<'_>,
    response: &mut Response,
) -> Result<Option<bytes::Bytes>, RegistryError> {
    response.chunk().await.map_err(|error| session.transport(&error))
}

/// What a failed request means. Only the innermost cause is told: the outer ones hold URLs, some of them signed.
fn transport(image: &ImageRef, endpoint: &Endpoint, after: Duration, error: &reqwest::Error) -> RegistryError {
    let registry = endpoint.host.clone();
    let image = image.to_string();
    if error.is_timeout() {
        return RegistryError::Timeout { image, after };
    }
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return RegistryError::TlsError { image, registry, why: tls.to_string() };
        }
        // An I/O error hides what it wraps: its own source is that of the wrapped error.
        let wrapped = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match wrapped.map(|wrapped| wrapped as &(dyn std::error::Error + 'static)).or(cause.source()) {
            Some(source) => cause = source,
            None => break,
        }
    }
    // An error without a cause of its own speaks for itself, and may hold its URL.
    let why = if error.source().is_some() { cause.to_string() } else { "the request cannot be made".to_owned() };
    if error.is_redirect() {
        RegistryError::InvalidResponse { image, why }
    } else if error.is_builder() {
        RegistryError::TlsError { image, registry, why }
    } else {
        RegistryError::Unreachable { image, registry, why }
    }
}
