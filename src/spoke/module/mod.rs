//! Two controllers keyed by Module: one for its finalizer and its images, one for its status, which is coalesced.

mod apply;
mod eviction;
mod observe;
mod plan;
mod status;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) use {observe::Observed, plan::plan};

use std::sync::Arc;

use jiff::Timestamp;
use kube::Client;

use crate::api::ModuleStatus;
use crate::api::names::EventReason;
use crate::runtime::client::ApiError;
use crate::runtime::events::{Events, Severity};
use crate::runtime::queue::Outcome;
use crate::runtime::store::ObjectKey;

use super::outcome::Deletion;
use super::stores::{Queues, Stores};
use super::tally::{Count, Tally};
use super::view::{ModuleFacts, ModuleView};

/// The two controllers of Modules.
pub(super) struct Controller {
    client: Client,
    stores: Stores,
    queues: Queues,
    tally: Tally,
    events: Events,
}

impl Controller {
    /// The controllers.
    pub(super) fn new(client: Client, stores: Stores, queues: Queues, tally: Tally, events: Events) -> Self {
        Self { client, stores, queues, tally, events }
    }

    /// One pass over the finalizer and the images of one Module.
    pub(super) async fn pass(self: Arc<Self>, key: ObjectKey) -> Result<Outcome, ApiError> {
        let Some(mut observed) = observe::observe(&self.stores, &self.tally, &key) else { return Ok(Outcome::Done) };
        if let (None, Some(owner)) = (observed.deletion, &observed.facts.applied_by) {
            let deletion = eviction::ask(&self.client, owner).await?;
            self.deletion_is(&observed.facts, deletion).await;
            let Some(again) = observe::observe(&self.stores, &self.tally, &key) else { return Ok(Outcome::Done) };
            observed = again;
        }
        apply::apply(&self.client, &self.stores.nodes, &observed.facts, &plan::plan(&observed)).await
    }

    /// Takes in whose wish it is that a Module goes, tells it, and has every node planned by that.
    async fn deletion_is(&self, facts: &ModuleFacts, deletion: Deletion) {
        let selected = self.stores.selected_by(&[facts]);
        let nodes = {
            let mut totals = self.tally.lock();
            totals.deletion_is(&facts.uid, deletion);
            totals.module_changed(facts, selected)
        };
        for node in nodes {
            self.queues.nodes.add(node);
        }
        if deletion == Deletion::Evicted {
            let note = "the agent of Open Cluster Management deletes this Module because its Hub is lost or another one; \
                        its kernel modules stay loaded";
            let (reason, about) = (EventReason::ModuleEvicted.as_str(), facts.reference());
            self.events.publish(&about, Severity::Warning, reason, "Evict", note).await;
        }
    }

    /// One pass over the status of one Module.
    pub(super) async fn pass_status(self: Arc<Self>, key: ObjectKey) -> Result<Outcome, ApiError> {
        let Some((module, status)) = self.decide_status(&key, Timestamp::now()) else { return Ok(Outcome::Done) };
        apply::write_status(&self.client, &module.facts, &module.status, &status).await?;
        Ok(Outcome::Done)
    }

    /// The Module as it stands and its status as it should be, if that is another one.
    pub(super) fn decide_status(&self, key: &ObjectKey, now: Timestamp) -> Option<(Arc<ModuleView>, ModuleStatus)> {
        let module = self.stores.modules.get(key).filter(|_| self.tally.is_warm())?;
        let count = self.tally.lock().count(&module.facts);
        let status = match &count {
            Count::Complete(counted) => {
                let images = self.stores.images.get(key);
                let images = images.filter(|images| images.owner.as_deref() == Some(&*module.facts.uid));
                status::plan_status(counted, &module.status, images.and_then(|images| images.trigger), now)
            }
            Count::Unplanned(nodes) => status::while_counting(&module.facts, &module.status, *nodes, now),
            Count::Unknown => None,
        };
        Some((module, status?))
    }
}
