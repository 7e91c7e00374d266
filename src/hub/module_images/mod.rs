//! One ModuleImagesConfig per ManagedClusterModule: every image that a selected cluster needs, asked for once
//! however many clusters need it.

mod apply;
mod observe;
mod plan;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::names::EventReason;
use crate::core::hash;
use crate::hub::events::publish;
use crate::hub::fleet::Fleet;
use crate::runtime::client::{ApiError, Class};
use crate::runtime::events::{Events, Severity};
use crate::runtime::queue::{Failure, Outcome};
use plan::Plan;

/// `ManagedClusterModules` that are planned and written at a time.
const WORKERS: usize = 4;

/// A pass over one ManagedClusterModule failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("failed to compare the ModuleImagesConfig")]
    Compare(#[from] hash::Error),
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Api(error) => error.class(),
            Self::Compare(_) => Class::Invalid,
        }
    }
}

/// Runs the controller while this process leads.
pub(super) async fn run(client: kube::Client, events: Events, fleet: Arc<Fleet>, shutdown: CancellationToken) {
    let queue = fleet.images_queue.clone();
    queue
        .run(WORKERS, shutdown, move |module| {
            let (client, events, fleet) = (client.clone(), events.clone(), Arc::clone(&fleet));
            async move { pass(&client, &events, &fleet, &module).await }
        })
        .await;
}

async fn pass(client: &kube::Client, events: &Events, fleet: &Fleet, module: &Arc<str>) -> Result<Outcome, Error> {
    let observed = observe::observe(fleet, module);
    let plan = plan::plan(&observed)?;
    if let Plan::OwnedByOther = plan {
        warn!(images = %observed.key, "a ModuleImagesConfig of this name belongs to somebody else and is not touched");
    }
    let written = apply::apply(client, &observed.key, &plan).await;
    let refused = written.as_ref().err().filter(|error| error.class() != Class::Conflict);
    fleet.images_refused(module, refused.map(ApiError::reason).as_deref());
    written?;
    if let Plan::Apply { .. } | Plan::Delete { .. } = plan {
        info!(images = %observed.key, "ModuleImagesConfig written");
    }
    let moved = plan::moved(&observed);
    if fleet.tags_moved(module, moved.as_deref())
        && let (Some(module), Some(note)) = (&observed.module, moved)
    {
        publish(events, module, Severity::Warning, EventReason::ImageTagMoved, &note).await;
    }
    Ok(Outcome::Done)
}
