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

use crate::api::ModuleStatus;
use crate::runtime::client::ApiError;
use crate::runtime::queue::Outcome;
use crate::runtime::store::ObjectKey;

use super::stores::Stores;
use super::tally::{Count, Tally};
use super::view::ModuleView;

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
        let Some((module, status)) = self.decide_status(&key, Timestamp::now()) else { return Ok(Outcome::Done) };
        apply::write_status(&self.client, &key, &module.status, &status).await?;
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
