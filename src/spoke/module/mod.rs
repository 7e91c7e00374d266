//! Two controllers keyed by Module: one for its finalizer and its images, one for its status, which is coalesced.

mod apply;
mod plan;
mod status;

pub(super) use plan::{Observed, plan};
use status::plan_status;

use std::sync::Arc;

use jiff::Timestamp;

use crate::runtime::client::ApiError;
use crate::runtime::queue::Outcome;
use crate::runtime::store::ObjectKey;

use super::Context;

/// One pass over the finalizer and the images of one Module.
pub(super) async fn reconcile(context: Arc<Context>, key: ObjectKey) -> Result<Outcome, ApiError> {
    // The Module is read before the totals: whoever planned a node later knew at least this much of it.
    let Some(module) = context.stores.modules.get(&key) else { return Ok(Outcome::Done) };
    let observed = Observed {
        images: context.stores.images.get(&key),
        pull_secrets: context.stores.pull_secrets(&module.facts),
        totals: context.is_warm().then(|| context.tally.lock().of(&module.facts.uid)),
        facts: Arc::clone(&module.facts),
    };
    apply::carry_out(&context.client, &context.stores.nodes, &module.facts, &plan(&observed)).await
}

/// One pass over the status of one Module.
pub(super) async fn reconcile_status(context: Arc<Context>, key: ObjectKey) -> Result<Outcome, ApiError> {
    let Some(module) = context.stores.modules.get(&key) else { return Ok(Outcome::Done) };
    if !context.is_warm() {
        return Ok(Outcome::Done);
    }
    let totals = context.tally.lock().of(&module.facts.uid);
    let images = context.stores.images.get(&key).filter(|images| images.owner.as_deref() == Some(&*module.facts.uid));
    let trigger = images.and_then(|images| images.trigger);
    if let Some(status) = plan_status(&module.facts, &module.status, &totals, trigger, Timestamp::now()) {
        apply::write_status(&context.client, &key, &module.status, &status).await?;
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests;
