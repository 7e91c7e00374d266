//! The node side: drives the kernel of one node and reports what it really holds.
//!
//! The worker watches its own NodeModulesConfig only. What stands in `spec.modules` is loaded, what stands in
//! `spec.unload` is taken out, and nothing else is touched: a missing object, a lost API server, a restart of
//! the worker or its end unload nothing. It asks the kernel, never its memory, and says so in the status.
//!
//! - [`observe`] reads the kernel, [`plan`] decides, [`apply`] carries out, [`status`] tells; [`agent`] connects them.
//! - [`record`] is what survives the process: what was inserted, the last plan, unpacked images; [`rebuild`] makes up for
//!   a record that was lost.
//! - [`once`] is a single pass before the kubelet: from the node's own store, without an API server.
//! - [`fetch`] and [`examine`] bring an image onto the node and read its modules.
//! - [`firmware`] lets the kernel find the firmware of Modules.

pub mod agent;
pub mod apply;
pub mod command;
pub mod examine;
pub mod fetch;
pub mod firmware;
pub mod firmware_folder;
pub mod kept_plan;
pub mod kernel;
pub mod kernel_linux;
pub mod modprobe;
pub mod observe;
pub mod once;
pub mod plan;
pub mod prepare;
pub mod publish;
pub mod rebuild;
pub mod record;
pub mod refusal;
mod remove;
pub mod state_dir;
pub mod status;
mod trees;
pub mod unpack;
pub mod users;
pub mod wanted;

#[cfg(test)]
mod simulated;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::agent::Agent;
use self::fetch::{Network, RegistryFetch};
use self::kept_plan::KeptPlan;
use self::kernel::Kernel;
use self::kernel_linux::LinuxKernel;
use self::record::{Owner, Record};
use self::state_dir::{StateDir, StoreError};
use crate::oci::route::proxies::Proxies;
use crate::runtime::readiness::Gate;

/// How often a worker that waits for another looks again.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Where the worker finds the host, and its patience.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Name of the node; also that of its NodeModulesConfig.
    pub node_name: String,
    /// Folder of the worker's own, on the host's disk.
    pub state_dir: PathBuf,
    /// The host's `/proc`.
    pub proc: PathBuf,
    /// The host's `/sys`.
    pub sys: PathBuf,
    /// The host's `/lib/modules`.
    pub lib_modules: PathBuf,
    /// The host's `/lib/modules` where it can be written, for Modules that are published there.
    pub host_modules: Option<PathBuf>,
    /// The kernel's log; for messages only, may be absent.
    pub kmsg: PathBuf,
    /// kmod's executable, for what Modules ask of modprobe.
    pub modprobe: PathBuf,
    /// Longest time that modprobe may take for one load or removal.
    pub modprobe_limit: Duration,
    /// How often the kernel is looked at while nothing else happens.
    pub look_every: Duration,
    /// How long the API server is waited for at start before the kept plan is carried out.
    pub kept_plan_after: Duration,
    /// How registries are reached.
    pub network: Network,
    /// Bytes of the disk that unpacked images may take together; those in use stay in any case.
    pub store_limit: u64,
}

impl WorkerSettings {
    /// kmod's executable and its limit.
    fn kmod(&self) -> modprobe::Program {
        modprobe::Program { path: self.modprobe.clone(), limit: self.modprobe_limit }
    }

    /// The usual places and times.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            state_dir: "/var/lib/kmm".into(),
            proc: "/proc".into(),
            sys: "/sys".into(),
            lib_modules: "/lib/modules".into(),
            host_modules: None,
            kmsg: "/dev/kmsg".into(),
            modprobe: "/usr/sbin/modprobe".into(),
            modprobe_limit: Duration::from_mins(5),
            look_every: Duration::from_secs(2),
            kept_plan_after: Duration::from_secs(10),
            network: Network {
                host_etc: "/host/etc".into(),
                proxies: Proxies::default(),
                patience: Duration::from_mins(10),
            },
            store_limit: 4 << 30,
        }
    }
}

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

/// Runs the worker until `shutdown`.
///
/// At shutdown a step that the kernel has begun is finished, and so is a job that has begun to take something out; nothing
/// else is unloaded. A second worker on the same node waits until the first has gone.
pub async fn run(
    settings: WorkerSettings,
    client: Client,
    turn: Turn,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let Some(state) = lock(&settings, &turn, &shutdown).await? else { return Ok(()) };
    let kernel = Arc::new(LinuxKernel::of(&settings));
    let fetch = Arc::new(RegistryFetch::new(client.clone(), settings.network.clone()));
    Agent::new(settings, kernel, fetch, state, client, shutdown)?.run().await
}

/// What a worker begins with: who the kernel is, and what the node's disk remembers.
struct Beginning {
    boot_id: String,
    release: String,
    record: Record,
    kept: Option<KeptPlan>,
}

impl Beginning {
    fn of(kernel: &dyn Kernel, state: &StateDir) -> Result<Self, Error> {
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
async fn lock(settings: &WorkerSettings, turn: &Turn, shutdown: &CancellationToken) -> Result<Option<StateDir>, Error> {
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
