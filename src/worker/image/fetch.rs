//! From a wanted entry to files on the node: credentials from the API server, the image from its registry.

use std::path::{Path, PathBuf};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tracing::{info, warn};

use crate::api::NodeModuleSpec;
use crate::api::names::NodeReason;
use crate::core::image::ImageRef;
use crate::core::kernel::trimmed;
use crate::oci::auth::credentials::Credentials;
use crate::oci::limits::{Keep, Limits, Platform};
use crate::oci::pull::{self, PullRequest};
use crate::oci::route::endpoint::RegistryOptions;
use crate::oci::route::mirrors::{self, Endpoints};
use crate::runtime::client::{chain, within};
use crate::worker::facts::Trouble;
use crate::worker::plan::Wanted;
use crate::worker::settings::Network;

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
    client: Client,
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
    pub fn new(client: Client, network: Network) -> Self {
        Self { client, network }
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
        let Self { client, network } = self.clone();
        async move {
            let Found { credentials, passed_over } = credentials(&client, &wanted.spec).await?;
            let pulled = pull(&wanted, runtime, &release, &tree, &credentials, &network).await;
            pulled.map_err(|trouble| explained(trouble, &passed_over))
        }
        .boxed()
    }
}

/// Credentials that serve an image, in the order in which they are tried.
struct Found {
    credentials: Credentials,
    /// Pull secrets of the service account that could not be used, and why.
    passed_over: Vec<String>,
}

/// The Module's own secret, without which nothing is fetched, and then those of its service account. Of these the kubelet
/// passes over what it cannot use, and so does the worker.
async fn credentials(client: &Client, spec: &NodeModuleSpec) -> Result<Found, Trouble> {
    let own = spec.image_repo_secret.as_ref().map(|secret| secret.name.as_str()).filter(|name| !name.is_empty());
    let mut credentials = match own {
        Some(name) => secret(client, &spec.namespace, name).await?,
        None => Credentials::anonymous(),
    };
    let mut passed_over = Vec::new();
    for more in &spec.image_pull_secrets {
        match secret(client, &spec.namespace, &more.name).await {
            Ok(more) => credentials.extend(more),
            Err(trouble) => passed_over.push(trouble.message),
        }
    }
    Ok(Found { credentials, passed_over })
}

async fn secret(client: &Client, namespace: &str, name: &str) -> Result<Credentials, Trouble> {
    let which = format!("pull secret {namespace}/{name}");
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = match within(|| format!("read {which}"), api.get_opt(name)).await {
        Ok(Some(secret)) => secret,
        Ok(None) => return Err(Trouble::new(NodeReason::PullSecretMissing, format!("{which} does not exist"))),
        Err(error) => return Err(Trouble::new(NodeReason::PullSecretForbidden, chain(&error))),
    };
    let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
    Credentials::from_secret_data(&data)
        .map_err(|error| Trouble::new(NodeReason::PullSecretInvalid, format!("{which}: {}", chain(&error))))
}

/// A refusal with the secrets that might have prevented it. Some registries say of what is closed to somebody that it is
/// not there.
fn explained(mut trouble: Trouble, passed_over: &[String]) -> Trouble {
    use NodeReason::{ImageForbidden, ImageNotFound, ImageUnauthorized};
    if matches!(trouble.reason, ImageUnauthorized | ImageForbidden | ImageNotFound) {
        for why in passed_over {
            trouble.message.push_str("; passed over: ");
            trouble.message.push_str(why);
        }
    }
    trouble
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
    runtime: Option<String>,
    release: &str,
    tree: &Path,
    credentials: &Credentials,
    network: &Network,
) -> Result<(), Trouble> {
    let text = &spec.config.container_image;
    let image: ImageRef =
        text.parse().map_err(|error| Trouble::new(NodeReason::ImageInvalidReference, format!("{error}")))?;
    let keep = Keep::new(&identity.dir_name, &[release, trimmed(release)], identity.firmware_path.as_deref());
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
