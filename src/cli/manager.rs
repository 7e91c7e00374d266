//! `kmm manager`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use k8s_openapi::api::core::v1::{Pod, Toleration};
use kube::{Api, Client};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::args::{LogArgs, NodeCredentialArgs, ProxyArgs, Usage, node_credential_variables};
use super::process::{ClientError, EXIT_FAILURE, EXIT_USAGE, client, fail, instance};
use crate::admission::Admission;
use crate::api::names;
use crate::core::hash;
use crate::core::taints::{InvalidToleration, parse_toleration};
use crate::hub::standing::RemovalGuard;
use crate::hub::{Hub, HubSettings};
use crate::images::{Images, ImagesSettings};
use crate::oci::route::proxies::Proxies;
use crate::runtime::client::{ApiError, chain, within};
use crate::runtime::lease;
use crate::runtime::metrics::Metrics;
use crate::runtime::readiness::Readiness;
use crate::runtime::serve;
use crate::runtime::tasks::{self, Tasks};
use crate::spoke::{Spoke, SpokeSettings};

/// Time for passes under way to end.
const GRACE: Duration = Duration::from_secs(8);

#[derive(Args, Debug)]
pub(super) struct ManagerArgs {
    /// What this cluster is; standalone unless `KMM_MANAGED` is true
    #[arg(long, env = "KMM_MODE", value_enum)]
    mode: Option<Mode>,
    /// Whether a Hub manages this cluster: true means `--mode spoke`
    #[arg(long, env = "KMM_MANAGED", value_name = "BOOL")]
    managed: Option<String>,
    /// Namespace of this manager: its lease, the worker DaemonSet, on a Hub also images and pull secrets
    #[arg(long, env = "OPERATOR_NAMESPACE")]
    operator_namespace: String,
    /// Image of the worker; the image of the manager's own pod if empty
    #[arg(long, env = "RELATED_IMAGE_WORKER")]
    worker_image: Option<String>,
    /// ServiceAccount of the worker, in the operator namespace
    #[arg(long, env = "WORKER_SERVICE_ACCOUNT", default_value = names::WORKER_SERVICE_ACCOUNT)]
    worker_service_account: String,
    /// Port of each node, on its loopback address, on which the worker says whether it is ready
    #[arg(long, env = "KMM_WORKER_HEALTH_PORT", default_value_t = super::worker::HEALTH_PORT)]
    worker_health_port: u16,
    /// Taints that keep no Module off a node, whatever it tolerates itself; as `kubectl taint` writes them, with commas
    /// between them
    #[arg(long, env = "KMM_TOLERATIONS", default_value = "", value_name = "TAINTS", value_parser = tolerations)]
    tolerations: Tolerations,
    /// On a Hub: a change that takes a module from more than this share of the clusters that have it, in percent, waits
    /// for a confirmation; 100 asks never
    #[arg(long, env = "KMM_REMOVAL_SHARE", value_name = "PERCENT", default_value_t = RemovalGuard::default().share,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    removal_share: u8,
    /// On a Hub: of a module that fewer clusters have, no removal waits for a confirmation
    #[arg(long, env = "KMM_REMOVAL_MINIMUM", value_name = "CLUSTERS", default_value_t = RemovalGuard::default().minimum)]
    removal_minimum: usize,
    /// Name of this replica: holder of the lease, and the pod whose image the worker runs from
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, env = "KMM_HEALTH_ADDRESS", default_value = "0.0.0.0:8081")]
    health_address: SocketAddr,
    #[command(flatten)]
    proxies: ProxyArgs,
    #[command(flatten)]
    node_credentials: NodeCredentialArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Gives modules to the clusters of a fleet; loads none
    Hub,
    /// Loads modules that a Hub sends, and tells the Hub this cluster's kernels
    Spoke,
    /// A cluster without a Hub
    Standalone,
}

/// The values that Go's `strconv.ParseBool` knows: existing installations set them.
fn parse_bool(value: &str) -> Result<bool, Usage> {
    match value {
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        other => Err(Usage(format!(
            "KMM_MANAGED (--managed) is `{other}`; write 1 or true on a Spoke, 0 or false elsewhere"
        ))),
    }
}

/// Flag or variable, either is enough; both may be given if they agree.
fn mode(mode: Option<Mode>, managed: Option<&str>) -> Result<Mode, Usage> {
    let managed = managed.map(parse_bool).transpose()?;
    match (mode, managed) {
        (None, Some(true)) | (Some(Mode::Spoke), _) if managed != Some(false) => Ok(Mode::Spoke),
        (Some(Mode::Spoke), Some(false)) => {
            Err(Usage("--mode spoke (KMM_MODE) and KMM_MANAGED=0 disagree; drop one of them".to_owned()))
        }
        (Some(other), Some(true)) => {
            let name = if other == Mode::Hub { "hub" } else { "standalone" };
            Err(Usage(format!(
                "--mode {name} (KMM_MODE) and KMM_MANAGED=1 disagree: a managed cluster is a Spoke; drop one of them"
            )))
        }
        (mode, _) => Ok(mode.unwrap_or(Mode::Standalone)),
    }
}

/// What is tolerated for every Module: one argument, which may be empty.
#[derive(Clone, Debug)]
struct Tolerations(Vec<Toleration>);

fn tolerations(list: &str) -> Result<Tolerations, InvalidToleration> {
    let taints = list.split(',').map(str::trim).filter(|taint| !taint.is_empty());
    taints.map(parse_toleration).collect::<Result<_, _>>().map(Tolerations)
}

/// What may end a manager.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("--worker-image (RELATED_IMAGE_WORKER) is not set and the image of this pod cannot be read")]
    OwnImage(#[source] Box<ApiError>),
    #[error("--worker-image (RELATED_IMAGE_WORKER) is not set and pod {0} has no container `manager` with an image")]
    NoImage(String),
    #[error("failed to render the worker DaemonSet")]
    Worker(#[source] hash::Error),
    #[error(transparent)]
    Tasks(#[from] tasks::Error),
}

pub(super) fn run(args: ManagerArgs) -> ExitCode {
    let mode = match args.log.init().and_then(|()| mode(args.mode, args.managed.as_deref())) {
        Ok(mode) => mode,
        Err(usage) => return fail(EXIT_USAGE, &usage.to_string()),
    };
    if args.operator_namespace.is_empty() {
        return fail(
            EXIT_USAGE,
            "--operator-namespace (OPERATOR_NAMESPACE) is empty; name the namespace of this manager",
        );
    }
    let told = args.node_credentials.settings().map(|settings| node_credential_variables(settings.as_ref()));
    let reached = args.proxies.proxies().and_then(|proxies| Ok((proxies, told?)));
    let (proxies, node_credentials) = match reached {
        Ok(reached) => reached,
        Err(usage) => return fail(EXIT_USAGE, &usage.to_string()),
    };
    let result =
        Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(|error| error.to_string()).and_then(
            |runtime| runtime.block_on(manage(mode, proxies, node_credentials, args)).map_err(|error| chain(&error)),
        );
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(EXIT_FAILURE, &error),
    }
}

async fn manage(
    mode: Mode,
    proxies: Proxies,
    node_credentials: Vec<(&'static str, String)>,
    args: ManagerArgs,
) -> Result<(), Error> {
    info!(version = env!("CARGO_PKG_VERSION"), ?mode, namespace = args.operator_namespace, "manager starts");
    let client = client().await?;
    let shutdown = CancellationToken::new();
    let (metrics, readiness) = (Metrics::default(), Readiness::default());
    metrics.register(|registry| registry.register_collector(Box::new(readiness.clone())));
    let mut tasks = Tasks::new(shutdown.clone(), GRACE);
    let probes =
        serve::serve(args.health_address, Duration::ZERO, readiness.clone(), metrics.clone(), shutdown.clone());
    tasks.spawn("probes and metrics", probes);

    let instance = instance(args.pod_name.clone());
    let namespace = args.operator_namespace.clone();
    // On a Hub images are asked for in the operator's namespace only, and only its secrets may be read.
    let asked_in = (mode == Mode::Hub).then(|| namespace.clone());
    let settings = ImagesSettings {
        namespace: asked_in,
        is_hub: mode == Mode::Hub,
        instance: Some(instance.clone()),
        proxies: proxies.clone(),
    };
    let images = Images::start(settings, client.clone(), &metrics, &readiness, &mut tasks);
    let stop = shutdown.clone();
    let gate = readiness.gate("lease");
    match mode {
        Mode::Hub => {
            let settings = HubSettings {
                operator_namespace: namespace.clone(),
                removal_guard: RemovalGuard { share: args.removal_share, minimum: args.removal_minimum },
                instance: Some(instance.clone()),
            };
            let hub = Hub::start(settings, client.clone(), &metrics, &readiness, &mut tasks);
            tasks.spawn("leader", async move {
                let work = async {
                    tokio::join!(hub.lead(stop.clone()), images.lead(stop.clone()));
                };
                lease::lead(client, &namespace, names::HUB_LEASE, &instance, gate, stop.clone(), Box::pin(work)).await
            });
        }
        Mode::Spoke | Mode::Standalone => {
            let worker_image = match args.worker_image.filter(|image| !image.is_empty()) {
                Some(image) => image,
                None => own_image(&client, &namespace, &instance).await?,
            };
            let managed = mode == Mode::Spoke;
            let settings = SpokeSettings {
                mode: if managed { crate::spoke::Mode::Managed } else { crate::spoke::Mode::Standalone },
                operator_namespace: namespace.clone(),
                worker_image,
                worker_service_account: args.worker_service_account,
                worker_health_port: args.worker_health_port,
                worker_variables: [proxies.variables(), &node_credentials].concat(),
                tolerations: args.tolerations.0,
                instance: instance.clone(),
            };
            let admission = Admission::start(managed, client.clone(), &metrics, &readiness, &mut tasks);
            let (spoke, watches) =
                Spoke::new(&settings, admission.in_force(), &client, &metrics, &readiness).map_err(Error::Worker)?;
            for watch in watches {
                tasks.spawn_endless(watch.name, watch.work);
            }
            tasks.spawn("leader", async move {
                let work = async {
                    tokio::join!(admission.lead(stop.clone()), spoke.lead(stop.clone()), images.lead(stop.clone()));
                };
                lease::lead(client, &namespace, names::LEASE, &instance, gate, stop.clone(), Box::pin(work)).await
            });
        }
    }
    tasks.run().await?;
    Ok(())
}

/// The image of the manager's own pod: the worker is always of the manager's version.
async fn own_image(client: &Client, namespace: &str, pod: &str) -> Result<String, Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = within(|| format!("read pod {namespace}/{pod}"), api.get(pod)).await;
    let found = found.map_err(|source| Error::OwnImage(Box::new(source)))?;
    let containers = found.spec.map(|spec| spec.containers).unwrap_or_default();
    let manager = containers.into_iter().find(|container| container.name == "manager");
    manager.and_then(|container| container.image).ok_or_else(|| Error::NoImage(pod.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_a_list_and_one_that_is_none_is_named() {
        assert_eq!(tolerations("").unwrap().0, []);
        assert_eq!(tolerations("a:NoSchedule, b=c,").unwrap().0.len(), 2);
        assert!(tolerations("a,b:Never").unwrap_err().to_string().contains("`b:Never`"));
    }

    #[test]
    fn flag_or_variable_is_enough_and_a_contradiction_is_an_error() {
        let table = [
            (None, None, Ok(Mode::Standalone)),
            (None, Some("0"), Ok(Mode::Standalone)),
            (None, Some(""), Ok(Mode::Standalone)),
            (None, Some("1"), Ok(Mode::Spoke)),
            (None, Some("True"), Ok(Mode::Spoke)),
            (Some(Mode::Spoke), None, Ok(Mode::Spoke)),
            (Some(Mode::Spoke), Some("t"), Ok(Mode::Spoke)),
            (Some(Mode::Spoke), Some("false"), Err(())),
            (Some(Mode::Hub), None, Ok(Mode::Hub)),
            (Some(Mode::Hub), Some("0"), Ok(Mode::Hub)),
            (Some(Mode::Hub), Some("1"), Err(())),
            (Some(Mode::Standalone), Some("1"), Err(())),
            (None, Some("yes"), Err(())),
        ];
        for (flag, variable, expected) in table {
            assert_eq!(mode(flag, variable).map_err(|_| ()), expected, "{flag:?} {variable:?}");
        }
    }
}
