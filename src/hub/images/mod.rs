//! One ModuleImagesConfig per ManagedClusterModule: every image that a selected cluster needs, asked for once
//! however many clusters need it.

mod apply;
mod observe;
mod plan;
#[cfg(test)]
mod plan_tests;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::names::EventReason;
use crate::core::hash;
use crate::hub::events::publish;
use crate::hub::fleet::{Fleet, Notes};
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

/// The controller of what is asked for.
pub(super) struct Controller {
    client: kube::Client,
    events: Events,
    fleet: Arc<Fleet>,
    /// Which tags of a ManagedClusterModule have moved, as it was told.
    tags_moved: Notes,
}

impl Controller {
    /// A controller that has looked at nothing yet.
    pub(super) fn new(client: kube::Client, events: Events, fleet: Arc<Fleet>) -> Self {
        Self { client, events, fleet, tags_moved: Notes::default() }
    }

    /// Plans and writes while this process leads.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let (queue, this) = (self.fleet.images_queue.clone(), Arc::new(self));
        let pass = move |module| {
            let this = Arc::clone(&this);
            async move { this.pass(&module).await }
        };
        queue.run(WORKERS, shutdown, pass).await;
    }

    async fn pass(&self, module: &Arc<str>) -> Result<Outcome, Error> {
        let fleet = &self.fleet;
        let observed = observe::observe(fleet, module);
        let plan = plan::plan(&observed)?;
        if let Plan::OwnedByOther = plan {
            warn!(images = %observed.key, "a ModuleImagesConfig of this name belongs to somebody else and is not touched");
        }
        let written = apply::apply(&self.client, &observed.key, &plan).await;
        let refused = written.as_ref().err().filter(|error| error.class() != Class::Conflict);
        if fleet.images_refused.set(module, refused.map(ApiError::reason).as_deref()) {
            fleet.status_queue.add(Arc::clone(module));
        }
        written?;
        if let Plan::Apply { .. } | Plan::Delete { .. } = plan {
            info!(images = %observed.key, "ModuleImagesConfig written");
        }
        let moved = plan::moved(&observed);
        if self.tags_moved.set(module, moved.as_deref())
            && let (Some(module), Some(note)) = (&observed.module, moved)
        {
            publish(&self.events, module, Severity::Warning, EventReason::ImageTagMoved, &note).await;
        }
        Ok(Outcome::Done)
    }
}
