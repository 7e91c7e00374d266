//! How a worker begins: its turn on the node, who the kernel is, what the disk remembers; and why it cannot go on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::kernel::Kernel;
use super::observe;
use super::record::kept_plan::KeptPlan;
use super::record::{Owner, Record};
use super::settings::WorkerSettings;
use super::store::{StateDir, StoreError};
use crate::runtime::readiness::Gate;

/// How often a worker that waits for another looks again.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// The worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its own files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel does not tell who it is.
    #[error("failed to read the {what} of the kernel")]
    Kernel {
        /// What was to be read.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The node cannot be looked at.
    #[error(transparent)]
    Look(#[from] observe::Error),
    /// A task of the worker broke off.
    #[error("a task of the worker broke off")]
    Task(#[source] tokio::task::JoinError),
    /// A job for the kernel broke off.
    #[error("a job of {0} broke off")]
    Job(Owner),
    /// The watch ended for good.
    #[error("the watch of NodeModulesConfig {0} ended")]
    WatchEnded(String),
}

/// The turn of this worker on its node, as the process around it is told.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Open once it is this worker's turn; until then it names who has it.
    pub gate: Gate,
    /// Told once the port for probes is this worker's: not while another worker answers there.
    pub port: Arc<Notify>,
}

/// What a worker begins with: who the kernel is, and what the node's disk remembers.
pub(super) struct Beginning {
    pub(super) boot_id: String,
    pub(super) release: String,
    pub(super) record: Record,
    pub(super) kept: Option<KeptPlan>,
}

impl Beginning {
    pub(super) fn of(kernel: &dyn Kernel, state: &StateDir) -> Result<Self, Error> {
        let boot_id = kernel.boot_id().map_err(|source| Error::Kernel { what: "boot id", source })?;
        let release = kernel.release().map_err(|source| Error::Kernel { what: "release", source })?;
        let (record, record_aside) = state.record(&boot_id)?;
        let (kept, plan_aside) = state.plan()?;
        for aside in record_aside.into_iter().chain(plan_aside) {
            warn!(file = %aside.display(), "a file of the worker could not be read and was put aside");
        }
        Ok(Self { boot_id, release, record, kept })
    }
}

/// The state folder, as soon as no other worker has it; `None` at shutdown.
pub(super) async fn lock(
    settings: &WorkerSettings,
    turn: &Turn,
    shutdown: &CancellationToken,
) -> Result<Option<StateDir>, Error> {
    let mut waiting_for = None;
    loop {
        if let Some(state) = StateDir::open(&settings.state_dir)? {
            state.sign(false);
            if waiting_for.is_some() {
                info!("the other worker has gone");
            }
            turn.gate.open();
            turn.port.notify_one();
            return Ok(Some(state));
        }
        let holder = StateDir::holder(&settings.state_dir);
        if waiting_for.as_ref() != Some(&holder) {
            let folder = settings.state_dir.display();
            warn!(%folder, holder = %holder, "another worker runs on this node; waiting until it has gone");
            turn.gate.waiting(format!("another worker runs on this node ({holder}) and has {folder}"));
            if holder.once {
                turn.port.notify_one();
            }
            waiting_for = Some(holder);
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(LOCK_WAIT) => {}
        }
    }
}
