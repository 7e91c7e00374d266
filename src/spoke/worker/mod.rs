//! The DaemonSet of the worker: there while any node has a NodeModulesConfig. Removing or upgrading it unloads nothing.

mod plan;
mod render;

pub(super) use render::Rendered;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::api::names::WORKER_DAEMON_SET;
use crate::api::names::field_manager::WORKER_DAEMON_SET as MANAGER;
use crate::runtime::client::{ApiError, apply, delete};
use crate::runtime::queue::Outcome;
use crate::runtime::store::ObjectKey;

use super::stores::Stores;
use plan::Action;

/// Pause before looking again whether the policies that bind the workers are in force.
const POLICIES: Duration = Duration::from_millis(500);

/// The controller of the DaemonSet.
pub(super) struct Controller {
    client: Client,
    stores: Stores,
    namespace: String,
    rendered: Rendered,
    policies_in_force: watch::Receiver<bool>,
    /// The generation that the server gave to what was written last.
    settled: Mutex<Option<i64>>,
}

impl Controller {
    /// A controller that keeps the DaemonSet in this namespace as it was rendered, once the admission policies are in force.
    pub(super) fn new(
        client: Client,
        stores: Stores,
        namespace: String,
        rendered: Rendered,
        policies_in_force: watch::Receiver<bool>,
    ) -> Self {
        Self { client, stores, namespace, rendered, policies_in_force, settled: Mutex::default() }
    }

    fn settled(&self) -> MutexGuard<'_, Option<i64>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One pass.
    pub(super) async fn pass(self: Arc<Self>, _: String) -> Result<Outcome, ApiError> {
        let present = self.stores.daemon_sets.get(&ObjectKey::new(self.namespace.as_str(), WORKER_DAEMON_SET));
        let wanted = !self.stores.configs.is_empty();
        let mut asked = false;
        self.stores.modules.for_each(|_, module| asked |= module.facts.publishes());
        let (body, hash) = self.rendered.of(asked, present.as_deref());
        let settled = *self.settled();
        let settles = match plan::plan(wanted, hash, present.as_deref(), settled) {
            Action::Nothing => settled.or(present.map(|set| set.generation)),
            // What binds the workers comes before them.
            Action::Apply if !*self.policies_in_force.borrow() => return Ok(Outcome::Again(POLICIES)),
            Action::Apply => apply(&self.api(), WORKER_DAEMON_SET, MANAGER, body).await?.metadata.generation,
            Action::Delete { uid } => {
                delete(&self.api(), WORKER_DAEMON_SET, &uid).await?;
                None
            }
        };
        *self.settled() = settles;
        Ok(Outcome::Done)
    }

    fn api(&self) -> Api<DaemonSet> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}
