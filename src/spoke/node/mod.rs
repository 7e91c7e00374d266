//! The node planner: one controller, keyed by node, computes the whole NodeModulesConfig of a node from all Modules,
//! and the labels of the node from what its worker proved. Two Modules can therefore never overwrite each other.

mod apply;
mod consumers;
mod echo;
mod entry;
mod labels;
mod observe;
mod plan;
mod replace;
mod standing;

pub use consumers::Consumer;
pub use echo::Echo;
pub use entry::{Belongs, build_entry, same_in_kernel, trimmed};
#[cfg(test)]
pub(super) use labels::of_config as labels_of;
pub(super) use labels::{is_label_key, is_label_value};
pub use observe::{observe, selects, want};
pub use plan::{ConfigAction, ModuleHere, Observed, Plan, Want, plan};

use std::sync::Arc;

use tokio::time::Instant;

use crate::runtime::client::ApiError;
use crate::runtime::queue::Outcome;

use super::Context;

/// One pass over one node.
pub(super) async fn reconcile(context: Arc<Context>, name: String) -> Result<Outcome, ApiError> {
    let mut plan = {
        let mut totals = context.tally.lock();
        let observed = observe(&context.stores, &name);
        let plan = plan(&observed);
        let changed = totals.record(&name, plan.outcomes.clone());
        drop(totals);
        context.queues.wake_modules(&context.stores, &changed);
        context.warm_up();
        plan
    };
    let again = context.echo.take_out(&name, &mut plan, Instant::now());
    apply::carry_out(&context.client, &name, &plan).await?;
    context.echo.wrote(&name, &plan, Instant::now());
    Ok(again.map_or(Outcome::Done, Outcome::Again))
}

#[cfg(test)]
mod policies;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
