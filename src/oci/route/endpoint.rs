//! One place where an image may be asked for, and how it is talked to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use reqwest::Url;

use crate::core::image::ImageRef;
use crate::oci::auth::credentials::{Credential, Credentials};

/// How a registry is to be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegistryOptions {
    /// Plain HTTP may be used. HTTPS is tried first, as the tools do that know this option.
    pub insecure: bool,
    /// Any server certificate is accepted.
    pub insecure_skip_tls_verify: bool,
}

/// How an endpoint is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// HTTPS only.
    #[default]
    Https,
    /// HTTPS, and plain HTTP where nothing there speaks it.
    Either,
    /// Plain HTTP only.
    Http,
}

/// Whom an endpoint must be, and who asks it. The default trusts what this system trusts.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Any certificate is accepted.
    pub(crate) skip_verify: bool,
    /// What is trusted instead of this system's own authorities: certificates in DER.
    pub(crate) roots: Option<Arc<Vec<Vec<u8>>>>,
    /// What is trusted besides: certificates in DER.
    pub(crate) authorities: Vec<Vec<u8>>,
    /// The client's certificate with its chain, and its key: PEM.
    pub(crate) identity: Option<Vec<u8>>,
}

/// A registry or a mirror of one, for one image.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host[:port]`.
    pub(crate) host: String,
    pub(crate) scheme: Scheme,
    /// Path of the API's root, without a slash at its end: `/v2`.
    pub(crate) root: String,
    /// The image's repository there.
    pub(crate) repository: String,
    /// The registry that the image is of, where the endpoint wants to be told.
    pub(crate) namespace: Option<String>,
    /// `registry/repository` by which credentials are chosen: those of one registry are never sent to another.
    pub(crate) credentials_of: String,
    pub(crate) tls: Tls,
    /// Sent with every request.
    pub(crate) headers: HeaderMap,
    pub(crate) connect_timeout: Option<Duration>,
    /// In place of the process's proxies.
    pub(crate) proxy: Option<Url>,
    /// Whether this is the registry that the image's name names.
    pub(crate) is_origin: bool,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers, proxy and identity may hold secrets.
        f.debug_struct("Endpoint")
            .field("host", &self.host)
            .field("scheme", &self.scheme)
            .field("root", &self.root)
            .field("repository", &self.repository)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// The registry that the image's name names.
    pub fn origin(image: &ImageRef, options: RegistryOptions) -> Self {
        let mut origin = Self::at(image, image.registry_api().to_owned());
        origin.scheme = if options.insecure { Scheme::Either } else { Scheme::Https };
        origin.tls.skip_verify = options.insecure_skip_tls_verify;
        origin
    }

    /// The image's repository at some host, over HTTPS.
    pub(crate) fn at(image: &ImageRef, host: String) -> Self {
        let is_origin = host == image.registry() || host == image.registry_api();
        let registry = if is_origin { image.registry() } else { &host };
        Self {
            credentials_of: format!("{registry}/{}", image.repository()),
            host,
            scheme: Scheme::Https,
            root: "/v2".to_owned(),
            repository: image.repository().to_owned(),
            namespace: None,
            tls: Tls::default(),
            headers: HeaderMap::new(),
            connect_timeout: None,
            proxy: None,
            is_origin,
        }
    }

    /// What to try in turn here: every credential that is for it, or nothing but an anonymous request.
    pub(crate) fn candidates<'a>(&self, credentials: &'a Credentials) -> Vec<Option<&'a Credential>> {
        let found = credentials.of_name(&self.credentials_of);
        if found.is_empty() { vec![None] } else { found.into_iter().map(Some).collect() }
    }

    /// For messages: `the mirror HOST`, or the host of the registry itself.
    pub(crate) fn describe(&self) -> String {
        if self.is_origin { self.host.clone() } else { format!("the mirror {}", self.host) }
    }
}
