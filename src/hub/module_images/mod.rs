//! One ModuleImagesConfig per ManagedClusterModule: every image that a selected cluster needs, asked for once
//! however many clusters need it.

mod apply;
mod observe;
mod plan;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::core::hash;
use crate::hub::fleet::Fleet;
use crate::runtime::client::{ApiError, Class};
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
pub(super) async fn run(client: kube::Client, fleet: Arc<Fleet>, shutdown: CancellationToken) {
    let queue = fleet.images_queue.clone();
    queue
        .run(WORKERS, shutdown, move |module| {
            let (client, fleet) = (client.clone(), Arc::clone(&fleet));
            async move { pass(&client, &fleet, &module).await }
        })
        .await;
}

async fn pass(client: &kube::Client, fleet: &Fleet, module: &Arc<str>) -> Result<Outcome, Error> {
    let observed = observe::observe(fleet, module);
    let plan = plan::plan(&observed)?;
    match &plan {
        Plan::Nothing => return Ok(Outcome::Done),
        Plan::OwnedByOther => {
            warn!(images = %observed.key, "a ModuleImagesConfig of this name belongs to somebody else and is not touched");
            return Ok(Outcome::Done);
        }
        Plan::Apply { .. } | Plan::Delete { .. } => {}
    }
    apply::apply(client, &observed.key, &plan).await?;
    info!(images = %observed.key, "ModuleImagesConfig written");
    Ok(Outcome::Done)
}
