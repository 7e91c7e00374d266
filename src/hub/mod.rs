//! The Hub: what a fleet is to run, and what became of it.
//!
//! ```text
//! ManagedCluster claims ─┐
//! ManagedClusterModule ──┼─ images ─→ ModuleImagesConfig ─→ registries ─→ digests ─┐
//!                        └─ works ←────────────────────────────────────────────────┘
//!                           └─→ one ManifestWork per cluster ─→ feedback ─→ status
//! ```
//!
//! An event about one cluster costs one pass over that cluster, whatever the size of the fleet. What a cluster
//! contributes to the status is kept in a [`Tally`](standing::Tally), so that totals are never counted anew.

mod events;
mod fleet;
mod images;
pub mod intern;
pub mod standing;
mod status;
mod target;
#[cfg(test)]
mod testing;
pub mod view;
mod watches;
#[cfg(test)]
mod watches_tests;
mod works;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::runtime::events::Events;
use crate::runtime::metrics::Metrics;
use crate::runtime::readiness::Readiness;
use crate::runtime::tasks::Tasks;
use fleet::Fleet;
use standing::RemovalGuard;

/// What the Hub needs to know about its installation.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// Namespace of the manager: image requests and pull secrets are there.
    pub operator_namespace: String,
    /// From when on a change that takes a module from clusters waits for a confirmation.
    pub removal_guard: RemovalGuard,
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
        let (fleet, writers) = Fleet::new(settings.operator_namespace, settings.removal_guard, metrics);
        let fleet = Arc::new(fleet);
        watches::start(&fleet, &client, writers, readiness, tasks);
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
        watches::begin_to_lead(&fleet);
        let works = works::Controller::new(client.clone(), Arc::clone(&fleet));
        let images = images::Controller::new(client.clone(), events.clone(), Arc::clone(&fleet));
        let status = status::Controller::new(client, events, fleet);
        tokio::join!(works.run(shutdown.clone()), images.run(shutdown.clone()), status.run(shutdown));
    }
}
