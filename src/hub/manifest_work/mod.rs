//! One ManifestWork per selected cluster and ManagedClusterModule; keyed by both, so that no cluster waits for
//! another.

mod apply;
pub mod feedback;
mod observe;
mod plan;
#[cfg(test)]
mod plan_tests;
mod render;
#[cfg(test)]
mod world_tests;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

pub use observe::Target;
pub use plan::resolve;
pub use render::{label_value, owner_reference};

use crate::api::names::ClusterReason;
use crate::core::hash;
use crate::hub::fleet::Fleet;
use crate::hub::standing::{Phase, Standing};
use crate::runtime::client::{ApiError, Class};
use crate::runtime::queue::{Failure, Outcome};
use apply::Done;
use plan::{Action, Plan};

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

/// Runs the controller while this process leads.
pub async fn run(client: kube::Client, fleet: Arc<Fleet>, shutdown: CancellationToken) {
    let queue = fleet.work_queue.clone();
    queue
        .run(WORKERS, shutdown, move |target| {
            let (client, fleet) = (client.clone(), Arc::clone(&fleet));
            async move { pass(&client, &fleet, &target).await }
        })
        .await;
}

async fn pass(client: &kube::Client, fleet: &Fleet, target: &Target) -> Result<Outcome, Error> {
    let Plan { action, standing, wants_images, waits, again } = match plan::plan(&observe::observe(fleet, target)) {
        Ok(plan) => plan,
        Err(error) => {
            fleet.stands(target, Some(Standing::new(Phase::Degraded, ClusterReason::InvalidSpec, &error.to_string())));
            return Err(error.into());
        }
    };
    if wants_images {
        fleet.images_queue.add(Arc::clone(&target.module));
    }
    fleet.waits.set(target, waits);
    match apply::apply(client, target, &action).await {
        Ok(Done::AsPlanned) => {
            match action {
                Action::Nothing => {}
                Action::Apply { .. } => info!(work = %target, "ManifestWork applied"),
                Action::Delete { .. } => {
                    info!(work = %target, "ManifestWork deleted: the cluster is not selected any more");
                }
            }
            fleet.stands(target, standing);
            Ok(again.map_or(Outcome::Done, Outcome::Again))
        }
        Ok(Done::Occupied(standing)) => {
            fleet.stands(target, Some(standing));
            Ok(Outcome::Again(LOOK_AGAIN))
        }
        Err(error) => {
            fleet.stands(target, standing.map(|standing| refused(standing, &error)));
            Err(error.into())
        }
    }
}

/// How a cluster stands whose work could not be written.
fn refused(standing: Standing, error: &ApiError) -> Standing {
    let message = error.reason();
    match error.class() {
        Class::Invalid | Class::Denied => standing.because(Phase::Degraded, ClusterReason::WorkRefused, &message),
        Class::Transient if error.is_not_found() => {
            standing.because(Phase::Degraded, ClusterReason::WorkRefused, &message)
        }
        Class::Conflict | Class::Transient => {
            standing.because(Phase::Waiting, ClusterReason::WaitingForApply, &format!("not written yet: {message}"))
        }
    }
}
