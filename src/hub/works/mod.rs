//! One ManifestWork per selected cluster and ManagedClusterModule; keyed by both, so that no cluster waits for
//! another.

mod apply;
mod observe;
mod plan;
#[cfg(test)]
mod plan_tests;
mod render;
#[cfg(test)]
mod report_tests;
mod waits;
#[cfg(test)]
mod world_tests;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::core::hash;
use crate::hub::fleet::Fleet;
use crate::hub::standing::Standing;
use crate::hub::target::Target;
use crate::runtime::client::{ApiError, Class};
use crate::runtime::queue::{Failure, Outcome};
use apply::Done;
use plan::{Action, Plan};
use waits::Waits;

/// Works that are planned and written at a time.
const WORKERS: usize = 16;
/// A work of somebody else without our label is seen by no watch; this long until it is looked for again.
const LOOK_AGAIN: Duration = Duration::from_mins(5);

/// A pass over one cluster failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("failed to render the ManifestWork")]
    Render(#[from] hash::Error),
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Api(error) => error.class(),
            Self::Render(_) => Class::Invalid,
        }
    }
}

/// The controller of works.
pub(super) struct Controller {
    client: kube::Client,
    fleet: Arc<Fleet>,
    waits: Waits,
}

impl Controller {
    /// A controller that has looked at nothing yet.
    pub(super) fn new(client: kube::Client, fleet: Arc<Fleet>) -> Self {
        Self { client, fleet, waits: Waits::default() }
    }

    /// Plans and writes while this process leads.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let (queue, this) = (self.fleet.work_queue.clone(), Arc::new(self));
        let pass = move |target| {
            let this = Arc::clone(&this);
            async move { this.pass(&target).await }
        };
        queue.run(WORKERS, shutdown, pass).await;
    }

    async fn pass(&self, target: &Target) -> Result<Outcome, Error> {
        let Self { client, fleet, waits: all_waits } = self;
        let observed = observe::observe(fleet, all_waits, target);
        let revision = observed.module.as_ref().map(|module| module.revision()).unwrap_or_default();
        let stands = |standing| fleet.stands(target, &revision, standing);
        let planned = plan::plan(&observed);
        let Plan { action, standing, wants_images, waits, again } = match planned {
            Ok(plan) => plan,
            Err(error) => {
                stands(Some(Standing::not_rendered(&error.to_string())));
                return Err(error.into());
            }
        };
        if wants_images {
            fleet.images_queue.add(Arc::clone(&target.module));
        }
        all_waits.set(target, waits);
        match apply::apply(client, target, &action).await {
            Ok(Done::AsPlanned) => {
                match action {
                    Action::Nothing => {}
                    Action::Apply { .. } => info!(work = %target, "ManifestWork applied"),
                    Action::Delete { .. } => {
                        info!(work = %target, "ManifestWork deleted: the cluster is not selected any more");
                    }
                }
                stands(standing);
                Ok(again.map_or(Outcome::Done, Outcome::Again))
            }
            Ok(Done::Occupied(standing)) => {
                stands(Some(standing));
                Ok(Outcome::Again(LOOK_AGAIN))
            }
            Err(error) => {
                stands(standing.map(|standing| standing.refused(&error)));
                Err(error.into())
            }
        }
    }
}
