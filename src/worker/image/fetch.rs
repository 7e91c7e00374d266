//! From a wanted entry to files on the node: credentials from the API server, the image from its registry.

use std::path::{Path, PathBuf};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kube::Client;
use tracing::{info, warn};

use super::credentials::Wallet;
use crate::api::NodeModuleSpec;
use crate::api::names::NodeReason;
use crate::core::image::{ImageRef, is_never_pulled, never_pulled};
use crate::core::kernel::spellings;
use crate::oci::auth::credentials::Credentials;
use crate::oci::limits::{Keep, Limits, Platform};
use crate::oci::pull::{self, PullRequest};
use crate::oci::route::endpoint::RegistryOptions;
use crate::oci::route::mirrors::{self, Endpoints};
use crate::runtime::client::chain;
use crate::worker::facts::Trouble;
use crate::worker::plan::Wanted;
use crate::worker::settings::{Network, WorkerSettings};

/// Brings the image of an entry onto the node.
pub trait Fetch: Send + Sync + 'static {
    /// On success `tree` holds the folders of the image that matter for `release`; on failure it does not exist.
    /// `runtime` is the node's container runtime, whose mirrors are asked.
    fn fetch(
        &self,
        wanted: Wanted,
        runtime: Option<String>,
        release: String,
        tree: PathBuf,
    ) -> BoxFuture<'static, Result<(), Trouble>>;
}

/// The real one.
#[derive(Clone)]
pub struct RegistryFetch {
    wallet: Wallet,
    /// How registries are reached from this node.
    network: Network,
}

impl std::fmt::Debug for RegistryFetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryFetch").field("network", &self.network).finish_non_exhaustive()
    }
}

impl RegistryFetch {
    /// Reads pull secrets through `client`.
    pub fn new(client: Client, settings: &WorkerSettings) -> Self {
        Self { wallet: Wallet::new(client, settings), network: settings.network.clone() }
    }
}

impl Fetch for RegistryFetch {
    fn fetch(
        &self,
        wanted: Wanted,
        runtime: Option<String>,
        release: String,
        tree: PathBuf,
    ) -> BoxFuture<'static, Result<(), Trouble>> {
        let Self { wallet, network } = self.clone();
        async move {
            if is_never_pulled(&wanted.spec.config.image_pull_policy) {
                let message = never_pulled(&wanted.spec.config.container_image);
                return Err(Trouble::new(NodeReason::ImageNeverPulled, message));
            }
            let image = wanted.spec.config.container_image.parse::<ImageRef>();
            let image = image.map_err(|error| Trouble::new(NodeReason::ImageInvalidReference, error.to_string()))?;
            let gathered = wallet.gather(&wanted.spec, &image).await?;
            let pulled = pull(&wanted, image, runtime, &release, &tree, &gathered.credentials, &network).await;
            pulled.map_err(|trouble| gathered.explain(trouble))
        }
        .boxed()
    }
}

/// How the registry is talked to. Without `registryTLS` the older `insecurePull` means an unverified certificate.
fn options(spec: &NodeModuleSpec) -> RegistryOptions {
    match &spec.config.registry_tls {
        Some(tls) => RegistryOptions { insecure: tls.insecure, insecure_skip_tls_verify: tls.insecure_skip_tls_verify },
        None => RegistryOptions { insecure: false, insecure_skip_tls_verify: spec.config.insecure_pull },
    }
}

async fn pull(
    Wanted { spec, identity, .. }: &Wanted,
    image: ImageRef,
    runtime: Option<String>,
    release: &str,
    tree: &Path,
    credentials: &Credentials,
    network: &Network,
) -> Result<(), Trouble> {
    let text = &spec.config.container_image;
    let keep = Keep::new(&identity.dir_name, &spellings(release), identity.firmware_path.as_deref());
    info!(image = %text, "fetching");
    let Endpoints { list, notes } = endpoints(image.clone(), options(spec), runtime, network.host_etc.clone()).await?;
    for note in &notes {
        warn!("passed over: {note}");
    }
    let request = PullRequest {
        image: &image,
        platform: &Platform::of_this_machine(),
        credentials,
        endpoints: &list,
        proxies: &network.proxies,
        destination: tree,
        keep: &keep,
        limits: Limits::default(),
        patience: network.patience,
    };
    let pulled = pull::pull(request).await.map_err(|error| {
        let notes: Vec<String> = notes.iter().map(|note| format!("; passed over: {note}")).collect();
        let trouble = Trouble::new(error.reason(), format!("image {text}: {}{}", chain(&error), notes.concat()));
        warn!(image = %text, reason = trouble.reason.as_str(), "{}", trouble.message);
        trouble
    })?;
    for skipped in &pulled.skipped {
        info!(image = %text, path = %skipped.path.display(), "left out: {}", skipped.why);
    }
    info!(image = %text, files = pulled.files, bytes = pulled.bytes, "fetched");
    Ok(())
}

/// Where the node's container runtime would ask. The files are read beside the loop: they may be on a slow disk.
async fn endpoints(
    image: ImageRef,
    options: RegistryOptions,
    runtime: Option<String>,
    etc: PathBuf,
) -> Result<Endpoints, Trouble> {
    let reading =
        tokio::task::spawn_blocking(move || mirrors::endpoints(&image, options, runtime.as_deref(), &etc)).await;
    let told = |error: mirrors::Error| {
        let trouble = Trouble::new(error.reason(), chain(&error));
        warn!(reason = trouble.reason.as_str(), "{}", trouble.message);
        trouble
    };
    match reading {
        Ok(found) => found.map_err(told),
        Err(error) => Err(Trouble::new(NodeReason::RegistryConfigInvalid, format!("reading it broke off: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use http::StatusCode;

    use super::*;
    use crate::worker::plan::Desired;
    use crate::worker::testing::{RELEASE, spec};

    #[tokio::test]
    async fn an_image_that_is_never_pulled_is_refused_before_anybody_is_asked() {
        let client = Client::new(Router::new().fallback(async || StatusCode::SERVICE_UNAVAILABLE), "default");
        let mut spec = spec("gpu", "kmm_a", 'a', 1);
        spec.config.image_pull_policy = "Never".into();
        let wanted = Desired::of(spec.clone()).check(RELEASE).unwrap();
        let fetch = RegistryFetch::new(client, &WorkerSettings::new("node"));
        let trouble = fetch.fetch(wanted, None, RELEASE.into(), "/nowhere/tree".into()).await.unwrap_err();
        assert_eq!(trouble.reason, NodeReason::ImageNeverPulled);
        assert!(trouble.message.contains(&spec.config.container_image), "{}", trouble.message);
    }
}
