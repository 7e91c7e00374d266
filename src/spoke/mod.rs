//! The manager of a cluster with nodes: a Spoke of a Hub, or a single cluster.
//!
//! ```text
//! Node kernels ─────────────────────────────→ ClusterClaims            kernel_claims (Spoke only)
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

mod consumers;
mod context;
mod kernel_claims;
mod module;
pub mod namespace;
pub mod node;
mod outcome;
mod reports;
mod tally;
#[cfg(test)]
mod testing;
pub mod view;
mod watches;
mod worker_daemonset;

pub use context::Stores;
pub use outcome::{Outcome, Standing, Trouble};

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::core::hash;
use crate::runtime::events::Events;
use crate::runtime::metrics::Metrics;
use crate::runtime::queue;
use crate::runtime::readiness::Readiness;
use crate::runtime::store::ObjectKey;

use context::Context;
pub use watches::Watch;

/// Whether there is a Hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A Spoke: kernels are told to the Hub, images are not built here.
    Managed,
    /// A cluster of its own.
    Standalone,
}

/// What the manager of a cluster with nodes has to be told.
#[derive(Clone, Debug)]
pub struct SpokeSettings {
    /// Whether there is a Hub.
    pub mode: Mode,
    /// Namespace of the manager and of the worker DaemonSet.
    pub operator_namespace: String,
    /// Image of the worker.
    pub worker_image: String,
    /// Service account of the worker, in the operator's namespace.
    pub worker_service_account: String,
    /// Port of the node on which the worker answers probes.
    pub worker_health_port: u16,
    /// Variables of the worker's environment: the manager's own proxies.
    pub worker_variables: Vec<(&'static str, String)>,
    /// Name of this replica, shown in events.
    pub instance: String,
}

impl SpokeSettings {
    fn worker_account(&self) -> ObjectKey {
        ObjectKey::new(self.operator_namespace.as_str(), self.worker_service_account.as_str())
    }
}

/// Pause before looking again whether the policies that bind the workers are in force.
const POLICIES: Duration = Duration::from_millis(500);
/// Passes that run at once, over all nodes.
const NODE_WORKERS: usize = 16;
/// Passes that run at once, over all Modules and namespaces.
const MODULE_WORKERS: usize = 4;

/// The manager, ready to lead.
#[derive(Debug)]
pub struct Spoke {
    context: Arc<Context>,
    told: mpsc::Receiver<reports::Told>,
    policies_in_force: watch::Receiver<bool>,
}

impl Spoke {
    /// The manager and its watches. The watches are to be polled on every replica, for as long as the process runs. No
    /// worker is started before the admission policies are in force.
    ///
    /// # Errors
    /// The worker's DaemonSet cannot be rendered, which no settings bring about.
    pub fn new(
        settings: SpokeSettings,
        policies_in_force: watch::Receiver<bool>,
        client: Client,
        metrics: &Metrics,
        readiness: &Readiness,
    ) -> Result<(Self, Vec<Watch>), hash::Error> {
        let worker = worker_daemonset::Rendered::new(&settings)?;
        let (teller, told) = reports::Teller::new();
        let managed = settings.mode == Mode::Managed;
        let (stores, writers) = context::stores(managed);
        let context = Arc::new(Context::new(settings, client, stores, metrics, teller, worker));
        let watches = watches::watches(&context, writers, readiness);
        Ok((Self { context, told, policies_in_force }, watches))
    }

    /// Decides and writes until shutdown. To be run while this replica holds the lease; dropping the future ends it.
    pub async fn lead(self, shutdown: CancellationToken) {
        let Self { context, told, policies_in_force } = self;
        tokio::select! {
            () = context.stores.wait_until_ready() => {}
            () = shutdown.cancelled() => return,
        }
        info!("every store is complete, planning begins");
        context.leading.store(true, Ordering::SeqCst);
        // Without nodes nobody else does.
        context.warm_up();
        let queues = context.queues.clone();
        let pass = || (Arc::clone(&context), shutdown.clone());
        let (of_nodes, stop) = pass();
        let nodes = queues.nodes.run(NODE_WORKERS, stop, move |key| node::reconcile(Arc::clone(&of_nodes), key));
        let (of_modules, stop) = pass();
        let modules =
            queues.modules.run(MODULE_WORKERS, stop, move |key| module::reconcile(Arc::clone(&of_modules), key));
        let (of_status, stop) = pass();
        let statuses =
            queues.statuses.run(MODULE_WORKERS, stop, move |key| module::reconcile_status(Arc::clone(&of_status), key));
        let (of_namespaces, stop) = pass();
        let namespaces = queues
            .namespaces
            .run(MODULE_WORKERS, stop, move |key| namespace::reconcile(Arc::clone(&of_namespaces), key));
        let (of_worker, stop) = pass();
        let worker = queues.worker.run(1, stop, move |key| {
            let (context, in_force) = (Arc::clone(&of_worker), *policies_in_force.borrow());
            async move {
                // What binds the workers comes before them.
                if !in_force {
                    return Ok(queue::Outcome::Again(POLICIES));
                }
                worker_daemonset::reconcile(context, key).await
            }
        });
        let (of_claims, stop) = pass();
        let claims = async move {
            let Some(store) = of_claims.stores.claims.clone() else { return };
            tokio::select! {
                () = store.wait_until_ready() => {}
                () = stop.cancelled() => return,
            }
            queues.claims.run(1, stop, move |key| kernel_claims::reconcile(Arc::clone(&of_claims), key)).await;
        };
        let events = Events::new(context.client.clone(), "kmm", Some(context.settings.instance.clone()));
        let events = reports::publish(events, told, shutdown.clone());
        tokio::join!(nodes, modules, statuses, namespaces, worker, claims, events);
    }
}
