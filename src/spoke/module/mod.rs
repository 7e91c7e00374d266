//! Two controllers keyed by Module: one for its finalizer and its images, one for its status, which is coalesced.

mod apply;
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

use crate::runtime::client::ApiError;
use crate::runtime::queue::Outcome;
use crate::runtime::store::ObjectKey;

use super::stores::Stores;
use super::tally::Tally;

/// The two controllers of Modules.
pub(super) struct Controller {
    client: Client,
    stores: Stores,
    tally: Tally,
}

impl Controller {
    /// The controllers.
    pub(super) fn new(client: Client, stores: Stores, tally: Tally) -> Self {
        Self { client, stores, tally }
    }

    /// One pass over the finalizer and the images of one Module.
    pub(super) async fn pass(self: Arc<Self>, key: ObjectKey) -> Result<Outcome, ApiError> {
        let Some(observed) = observe::observe(&self.stores, &self.tally, &key) else { return Ok(Outcome::Done) };
        apply::apply(&self.client, &self.stores.nodes, &observed.facts, &plan::plan(&observed)).await
    }

    /// One pass over the status of one Module.
    pub(super) async fn pass_status(self: Arc<Self>, key: ObjectKey) -> Result<Outcome, ApiError> {
        let Some(module) = self.stores.modules.get(&key) else { return Ok(Outcome::Done) };
        if !self.tally.is_warm() {
            return Ok(Outcome::Done);
        }
        let totals = self.tally.lock().of(&module.facts.uid);
        let images = self.stores.images.get(&key).filter(|images| images.owner.as_deref() == Some(&*module.facts.uid));
        let trigger = images.and_then(|images| images.trigger);
        if let Some(status) = status::plan_status(&module.facts, &module.status, &totals, trigger, Timestamp::now()) {
            apply::write_status(&self.client, &key, &module.status, &status).await?;
        }
        Ok(Outcome::Done)
    }
}
