//! The manager of a cluster with nodes: a Spoke of a Hub, or a single cluster.
//!
//! ```text
//! Node kernels ─────────────────────────────→ ClusterClaims            claims (Spoke only)
//! Module ─→ ModuleImagesConfig ─→ digests ┐                            module
//! Module + Node + digest ─────────────────┴→ NodeModulesConfig.spec    node
//! pods of device plugins, DRA drivers ──────→ order or wait            node
//! NodeModulesConfig.status ─────────────────→ labels of the Node       node
//!                          ├────────────────→ Module.status            module
//!                          └────────────────→ events                   reports
//! any NodeModulesConfig ────────────────────→ worker DaemonSet         worker_daemonset
//! Modules of a namespace ───────────────────→ mark, pull secret Role   namespace
//! ```
//!
//! Watches run on every replica. What decides and writes runs only while leading, and only after every store that it
//! reads has had its first complete list.

mod claims;
mod consumers;
mod module;
mod namespace;
mod node;
mod outcome;
mod reports;
mod settings;
mod stores;
mod tally;
#[cfg(test)]
mod testing;
pub mod view;
mod watches;
mod worker;

pub use settings::{Mode, SpokeSettings};
pub use watches::Watch;

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::core::hash;
use crate::runtime::events::Events;
use crate::runtime::metrics::Metrics;
use crate::runtime::readiness::Readiness;

use claims::Kernels;
use reports::Publisher;
use stores::{Queues, Stores};
use tally::Tally;
use watches::Wakes;

/// Passes that run at once, over all nodes.
const NODE_WORKERS: usize = 16;
/// Passes that run at once, over all Modules and namespaces.
const MODULE_WORKERS: usize = 4;

/// The manager, ready to lead.
pub struct Spoke {
    stores: Stores,
    queues: Queues,
    tally: Tally,
    node: Arc<node::Controller>,
    module: Arc<module::Controller>,
    namespace: Arc<namespace::Controller>,
    worker: Arc<worker::Controller>,
    claims: Option<Arc<claims::Controller>>,
    publisher: Publisher,
    events: Events,
}

impl std::fmt::Debug for Spoke {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spoke").finish_non_exhaustive()
    }
}

impl Spoke {
    /// The manager and its watches. The watches are to be polled on every replica, for as long as the process runs. No
    /// worker is started before the admission policies are in force.
    ///
    /// # Errors
    /// The worker's DaemonSet cannot be rendered, which no settings bring about.
    pub fn new(
        settings: &SpokeSettings,
        policies_in_force: watch::Receiver<bool>,
        client: &Client,
        metrics: &Metrics,
        readiness: &Readiness,
    ) -> Result<(Self, Vec<Watch>), hash::Error> {
        let daemon_set = worker::Rendered::new(settings)?;
        let (stores, writers) = stores::stores(settings.mode == Mode::Managed);
        let (queues, tally, kernels) = (Queues::new(metrics), Tally::default(), Kernels::default());
        let (teller, publisher) = reports::reports();
        let namespace = settings.operator_namespace.clone();
        let own = || client.clone();
        let events = Events::new(own(), "kmm", Some(settings.instance.clone()));
        let claims = stores.claims.clone();
        let claims = claims.map(|store| claims::Controller::new(own(), store, kernels.clone(), events.clone()));
        let worker = worker::Controller::new(own(), stores.clone(), namespace.clone(), daemon_set, policies_in_force);
        let spoke = Self {
            node: Arc::new(node::Controller::new(
                own(),
                stores.clone(),
                queues.clone(),
                tally.clone(),
                settings.tolerations.as_slice().into(),
            )),
            module: Arc::new(module::Controller::new(
                own(),
                stores.clone(),
                queues.clone(),
                tally.clone(),
                events.clone(),
            )),
            namespace: Arc::new(namespace::Controller::new(own(), stores.clone(), settings.worker_account())),
            worker: Arc::new(worker),
            claims: claims.map(Arc::new),
            publisher,
            events,
            stores: stores.clone(),
            queues: queues.clone(),
            tally: tally.clone(),
        };
        let wakes = Arc::new(Wakes { stores, queues, tally, kernels, teller });
        let watches = watches::watches(client, &namespace, &wakes, writers, readiness);
        Ok((spoke, watches))
    }

    /// Decides and writes until shutdown. To be run while this replica holds the lease; dropping the future ends it.
    pub async fn lead(self, shutdown: CancellationToken) {
        let Self { stores, queues, tally, node, module, namespace, worker, claims, publisher, events } = self;
        tokio::select! {
            () = stores.wait_until_ready() => {}
            () = shutdown.cancelled() => return,
        }
        info!("every store is complete, planning begins");
        publisher.begin();
        // Without nodes nobody else does.
        if tally.warms_up(&stores.nodes) {
            queues.wake_every_module(&stores);
        }
        let stop = || shutdown.clone();
        let of_status = Arc::clone(&module);
        let of_claims = async {
            let Some(claims) = claims else { return };
            tokio::select! {
                () = claims.wait_until_ready() => {}
                () = shutdown.cancelled() => return,
            }
            queues.claims.run(1, stop(), move |key| Arc::clone(&claims).pass(key)).await;
        };
        tokio::join!(
            queues.nodes.run(NODE_WORKERS, stop(), move |key| Arc::clone(&node).pass(key)),
            queues.modules.run(MODULE_WORKERS, stop(), move |key| Arc::clone(&module).pass(key)),
            queues.statuses.run(MODULE_WORKERS, stop(), move |key| Arc::clone(&of_status).pass_status(key)),
            queues.namespaces.run(MODULE_WORKERS, stop(), move |key| Arc::clone(&namespace).pass(key)),
            queues.worker.run(1, stop(), move |key| Arc::clone(&worker).pass(key)),
            of_claims,
            publisher.run(events, stop()),
        );
    }
}
