//! `kmm worker`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{EXIT_FAILURE, EXIT_USAGE, LogArgs, client, fail};
use crate::runtime::client::chain;
use crate::runtime::metrics::Metrics;
use crate::runtime::readiness::Readiness;
use crate::runtime::serve;
use crate::runtime::tasks::{self, Tasks};
use crate::worker::{self, WorkerSettings};

/// Port on which the worker answers probes. It shares the node's network, so only on the loopback address.
pub(super) const HEALTH_PORT: u16 = 18181;

/// Time for a load under way to end: it is never cut off halfway if that can be helped.
const GRACE: Duration = Duration::from_secs(25);

#[derive(Args, Debug)]
pub(super) struct WorkerArgs {
    /// Name of the node that this worker drives
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Folder of the worker on the host's disk: its record and the unpacked images
    #[arg(long, env = "KMM_STATE_DIR", default_value = "/var/lib/kmm")]
    state_dir: PathBuf,
    /// The host's /proc
    #[arg(long, env = "KMM_PROC", default_value = "/proc")]
    proc: PathBuf,
    /// The host's /sys
    #[arg(long, env = "KMM_SYS", default_value = "/sys")]
    sys: PathBuf,
    /// The host's /lib/modules
    #[arg(long, env = "KMM_LIB_MODULES", default_value = "/lib/modules")]
    lib_modules: PathBuf,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, env = "KMM_HEALTH_ADDRESS", default_value_t = SocketAddr::from(([127, 0, 0, 1], HEALTH_PORT)))]
    health_address: SocketAddr,
    #[command(flatten)]
    log: LogArgs,
}

/// What may end a worker.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Client(#[from] super::ClientError),
    #[error(transparent)]
    Tasks(#[from] tasks::Error),
}

pub(super) fn run(args: WorkerArgs) -> ExitCode {
    if let Err(usage) = args.log.init() {
        return fail(EXIT_USAGE, &usage.to_string());
    }
    if args.node_name.is_empty() {
        return fail(EXIT_USAGE, "--node-name (NODE_NAME) is empty; name the node that this worker drives");
    }
    // One thread: a worker rests nearly always, and there is one on every node.
    let result = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(work(args)).map_err(|error| chain(&error)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(EXIT_FAILURE, &error),
    }
}

async fn work(args: WorkerArgs) -> Result<(), Error> {
    info!(version = env!("CARGO_PKG_VERSION"), node = args.node_name, "worker starts");
    let client = client().await?;
    let shutdown = CancellationToken::new();
    let mut tasks = Tasks::new(shutdown.clone(), GRACE);
    let probes = serve::serve(args.health_address, Readiness::default(), Metrics::default(), shutdown.clone());
    tasks.spawn("probes and metrics", probes);
    let settings = WorkerSettings {
        state_dir: args.state_dir,
        proc: args.proc,
        sys: args.sys,
        lib_modules: args.lib_modules,
        ..WorkerSettings::new(args.node_name)
    };
    tasks.spawn("worker", worker::run(settings, client, shutdown));
    tasks.run().await?;
    Ok(())
}
