//! From a wanted entry to files on the node: credentials from the API server, the image from its registry.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tracing::{info, warn};

use super::kernel::Trouble;
use super::wanted::{self, LoadIdentity};
use crate::api::NodeModuleSpec;
use crate::api::names::NodeReason;
use crate::core::image::ImageRef;
use crate::oci::credentials::Credentials;
use crate::oci::pull::{self, Keep, Limits, Platform, PullRequest};
use crate::oci::registry::{self, RegistryOptions};
use crate::runtime::client::{chain, within};

/// Brings the image of an entry onto the node.
pub trait Fetch: Send + Sync + 'static {
    /// On success `tree` holds the folders of the image that matter for `release`; on failure it does not exist.
    fn fetch(&self, spec: NodeModuleSpec, release: String, tree: PathBuf) -> BoxFuture<'static, Result<(), Trouble>>;
}

/// The real one.
#[derive(Clone)]
pub struct RegistryFetch {
    client: Client,
    deadline: Duration,
}

impl std::fmt::Debug for RegistryFetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryFetch").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl RegistryFetch {
    /// `deadline` bounds one pull, its retries included.
    pub fn new(client: Client, deadline: Duration) -> Self {
        Self { client, deadline }
    }
}

impl Fetch for RegistryFetch {
    fn fetch(&self, spec: NodeModuleSpec, release: String, tree: PathBuf) -> BoxFuture<'static, Result<(), Trouble>> {
        let (client, deadline) = (self.client.clone(), self.deadline);
        async move {
            let identity = wanted::identity(&spec)?;
            let credentials = credentials(&client, &spec).await?;
            pull(&spec, &identity, &release, &tree, &credentials, deadline).await
        }
        .boxed()
    }
}

async fn credentials(client: &Client, spec: &NodeModuleSpec) -> Result<Credentials, Trouble> {
    let Some(name) = spec.image_repo_secret.as_ref().map(|secret| secret.name.as_str()).filter(|name| !name.is_empty())
    else {
        return Ok(Credentials::anonymous());
    };
    let which = format!("pull secret {}/{name}", spec.namespace);
    let api: Api<Secret> = Api::namespaced(client.clone(), &spec.namespace);
    let secret = match within(|| format!("read {which}"), api.get_opt(name)).await {
        Ok(Some(secret)) => secret,
        Ok(None) => return Err(Trouble::new(NodeReason::PullSecretMissing, format!("{which} does not exist"))),
        Err(error) => return Err(Trouble::new(NodeReason::PullSecretForbidden, chain(&error))),
    };
    let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
    Credentials::from_secret_data(&data)
        .map_err(|error| Trouble::new(NodeReason::PullSecretInvalid, format!("{which}: {}", chain(&error))))
}

/// How the registry is talked to. Without `registryTLS` the older `insecurePull` means an unverified certificate.
fn options(spec: &NodeModuleSpec) -> RegistryOptions {
    match &spec.config.registry_tls {
        Some(tls) => RegistryOptions { insecure: tls.insecure, insecure_skip_tls_verify: tls.insecure_skip_tls_verify },
        None => RegistryOptions { insecure: false, insecure_skip_tls_verify: spec.config.insecure_pull },
    }
}

async fn pull(
    spec: &NodeModuleSpec,
    identity: &LoadIdentity,
    release: &str,
    tree: &Path,
    credentials: &Credentials,
    deadline: Duration,
) -> Result<(), Trouble> {
    let text = &spec.config.container_image;
    let image: ImageRef =
        text.parse().map_err(|error| Trouble::new(NodeReason::ImageInvalidReference, format!("{error}")))?;
    let keep = Keep::new(&identity.dir_name, &[release, wanted::trimmed(release)], identity.firmware_path.as_deref());
    info!(image = %text, "fetching");
    let request = PullRequest {
        image: &image,
        platform: &Platform::of_this_machine(),
        credentials,
        options: options(spec),
        destination: tree,
        keep: &keep,
        limits: Limits::default(),
        deadline,
    };
    let pulled = pull::pull(request).await.map_err(|error| {
        let trouble = Trouble::new(reason(&error), format!("image {text}: {}", chain(&error)));
        warn!(image = %text, reason = trouble.reason.as_str(), "{}", trouble.message);
        trouble
    })?;
    for skipped in &pulled.skipped {
        info!(image = %text, path = %skipped.path.display(), "left out: {}", skipped.why);
    }
    info!(image = %text, files = pulled.files, bytes = pulled.bytes, "fetched");
    Ok(())
}

fn reason(error: &pull::Error) -> NodeReason {
    match error {
        pull::Error::Registry(error) => match error {
            registry::Error::NotFound { .. } => NodeReason::ImageNotFound,
            registry::Error::Unauthorized { .. } => NodeReason::ImageUnauthorized,
            registry::Error::Forbidden { .. } => NodeReason::ImageForbidden,
            registry::Error::RateLimited { .. } => NodeReason::ImageRateLimited,
            registry::Error::RegistryError { .. } => NodeReason::ImageRegistryError,
            registry::Error::Timeout { .. } => NodeReason::ImageTimeout,
            registry::Error::Unreachable { .. } => NodeReason::ImageUnreachable,
            registry::Error::TlsError { .. } => NodeReason::ImageTlsError,
            registry::Error::InvalidReference { .. } => NodeReason::ImageInvalidReference,
            registry::Error::InvalidResponse { .. } => NodeReason::ImageInvalidResponse,
        },
        pull::Error::NotPinned { .. } => NodeReason::ImageInvalidReference,
        pull::Error::PlatformMissing { .. } => NodeReason::ImagePlatformMissing,
        pull::Error::DigestMismatch { .. } => NodeReason::DigestMismatch,
        pull::Error::UnsafeImage { .. } => NodeReason::UnsafeImage,
        pull::Error::ImageTooLarge { .. } => NodeReason::ImageTooLarge,
        pull::Error::InvalidImage { .. } => NodeReason::ImageInvalidResponse,
        pull::Error::Storage { .. } => NodeReason::StoreFailed,
        pull::Error::Cancelled => NodeReason::ImageTimeout,
    }
}
