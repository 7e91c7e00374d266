//! The Hub: what a fleet is to run, and what became of it.
//!
//! ```text
//! ManagedCluster claims ─┐
//! ManagedClusterModule ──┼─ module_images ─→ ModuleImagesConfig ─→ (images) ─→ digests ─┐
//!                        └─ manifest_work ←─────────────────────────────────────────────┘
//!                           └─→ one ManifestWork per cluster ─→ feedback ─→ fleet_status
//! ```
//!
//! An event about one cluster costs one pass over that cluster, whatever the size of the fleet. What a cluster
//! contributes to the status is kept in a [`tally`], so that totals are never counted anew.

mod events;
mod fleet;
mod fleet_status;
pub mod intern;
pub mod manifest_work;
mod module_images;
pub mod standing;
pub mod tally;
#[cfg(test)]
mod testing;
pub mod view;
mod waits;

use std::sync::Arc;

use kube::Api;
use kube_runtime::watcher::Config;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::api::names::MANAGED_CLUSTER_MODULE_LABEL;
use crate::runtime::events::Events;
use crate::runtime::metrics::Metrics;
use crate::runtime::readiness::Readiness;
use crate::runtime::store::{drive, store};
use crate::runtime::tasks::Tasks;
use fleet::{Fleet, Stores};

/// Objects per page of a list: works hold whole Modules, and a page is decoded at once.
const PAGE: u32 = 200;
/// A connection that died silently is noticed after this time.
const WATCH_TIMEOUT_SECS: u32 = 240;

/// What the Hub needs to know about its installation.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// Namespace of the manager: image requests and pull secrets are there.
    pub operator_namespace: String,
    /// Name of this replica, shown as the source of events.
    pub instance: Option<String>,
}

/// The Hub's controllers: watches run on every replica, the rest only on the one that leads.
pub struct Hub {
    client: kube::Client,
    events: Events,
    fleet: Arc<Fleet>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

impl Hub {
    /// Starts the watches as tasks; a replica that waits for the lease has its stores filled already.
    pub fn start(
        settings: HubSettings,
        client: kube::Client,
        metrics: &Metrics,
        readiness: &Readiness,
        tasks: &mut Tasks,
    ) -> Self {
        let (modules, modules_writer) = store();
        let (clusters, clusters_writer) = store();
        let (images, images_writer) = store();
        let (works, works_writer) = store();
        let stores = Stores { modules, clusters, images, works };
        let fleet = Arc::new(Fleet::new(settings.operator_namespace.clone(), stores, metrics));
        let config = || Config::default().page_size(PAGE).timeout(WATCH_TIMEOUT_SECS);

        let of = Arc::clone(&fleet);
        let gate = readiness.gate("watch of ManagedClusterModules");
        let watch = drive(Api::all(client.clone()), config(), modules_writer, gate, move |change| of.on_module(change));
        tasks.spawn_endless("watch of ManagedClusterModules", watch);

        let of = Arc::clone(&fleet);
        let gate = readiness.gate("watch of ManagedClusters");
        let watch =
            drive(Api::all(client.clone()), config(), clusters_writer, gate, move |change| of.on_cluster(change));
        tasks.spawn_endless("watch of ManagedClusters", watch);

        let of = Arc::clone(&fleet);
        let gate = readiness.gate("watch of ModuleImagesConfigs");
        let api = Api::namespaced(client.clone(), &settings.operator_namespace);
        let watch = drive(api, config(), images_writer, gate, move |change| of.on_images(change));
        tasks.spawn_endless("watch of ModuleImagesConfigs", watch);

        let of = Arc::clone(&fleet);
        let gate = readiness.gate("watch of ManifestWorks");
        let labelled = config().labels(MANAGED_CLUSTER_MODULE_LABEL);
        let watch = drive(Api::all(client.clone()), labelled, works_writer, gate, move |change| of.on_work(change));
        tasks.spawn_endless("watch of ManifestWorks", watch);

        let events = Events::new(client.clone(), "kmm-hub", settings.instance);
        Self { client, events, fleet }
    }

    /// Plans and writes until `shutdown`; for the replica that holds the lease. No planner runs before every
    /// store holds a complete list.
    pub async fn lead(self, shutdown: CancellationToken) {
        let Self { client, events, fleet } = self;
        tokio::select! {
            () = fleet.wait_until_ready() => {}
            () = shutdown.cancelled() => return,
        }
        info!(
            modules = fleet.modules.len(),
            clusters = fleet.clusters.len(),
            works = fleet.works.len(),
            "all stores are complete, planning begins"
        );
        fleet.begin_to_lead();
        tokio::join!(
            manifest_work::run(client.clone(), Arc::clone(&fleet), shutdown.clone()),
            module_images::run(client.clone(), events.clone(), Arc::clone(&fleet), shutdown.clone()),
            fleet_status::run(client, events, fleet, shutdown),
        );
    }
}
