//! The node planner: one controller, keyed by node, computes the whole NodeModulesConfig of a node from all Modules,
//! and the labels of the node from what its worker proved. Two Modules can therefore never overwrite each other.

mod apply;
mod draft;
mod echo;
mod entry;
mod here;
mod hold_back;
mod labels;
mod left_behind;
mod observe;
mod plan;
mod removal;
mod replace;
mod share;
mod standing;
#[cfg(test)]
mod tests;
mod unreadable;

#[cfg(test)]
pub(super) use labels::of_config as labels_of;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Toleration;
use kube::Client;
use tokio::time::Instant;

use crate::runtime::client::ApiError;
use crate::runtime::queue::Outcome;

use super::stores::{Queues, Stores};
use super::tally::Tally;
use echo::Echo;
use observe::observe;
use plan::{Plan, plan};

/// The controller of nodes.
pub(super) struct Controller {
    client: Client,
    stores: Stores,
    queues: Queues,
    tally: Tally,
    tolerations: Arc<[Toleration]>,
    echo: Echo,
}

impl Controller {
    /// A controller that has written nothing yet; `tolerations` are those of every Module of the cluster.
    pub(super) fn new(
        client: Client,
        stores: Stores,
        queues: Queues,
        tally: Tally,
        tolerations: Arc<[Toleration]>,
    ) -> Self {
        Self { client, stores, queues, tally, tolerations, echo: Echo::default() }
    }

    /// One pass over one node.
    pub(super) async fn pass(self: Arc<Self>, name: String) -> Result<Outcome, ApiError> {
        let mut plan = self.decide(&name);
        let again = self.echo.take_out(&name, &mut plan, Instant::now());
        apply::apply(&self.client, &name, &plan).await?;
        self.echo.wrote(&name, &plan, Instant::now());
        Ok(again.map_or(Outcome::Done, Outcome::Again))
    }

    /// Plans the node, records what it means for each Module, and wakes those for which that makes a difference.
    fn decide(&self, name: &str) -> Plan {
        let (plan, changed) = {
            let mut totals = self.tally.lock();
            let plan = plan(&observe(&self.stores, &totals, &self.tolerations, name));
            let changed = totals.record(name, plan.outcomes.clone());
            (plan, changed)
        };
        self.queues.wake_modules(&self.stores, &changed);
        if self.tally.warms_up(&self.stores.nodes) {
            self.queues.wake_every_module(&self.stores);
        }
        plan
    }
}
