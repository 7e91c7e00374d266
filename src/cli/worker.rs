//! `kmm worker`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::args::{LogArgs, NodeCredentialArgs, ProxyArgs};
use super::process::{ClientError, EXIT_FAILURE, EXIT_USAGE, client, fail};
use crate::runtime::client::chain;
use crate::runtime::metrics::Metrics;
use crate::runtime::readiness::Readiness;
use crate::runtime::serve;
use crate::runtime::tasks::{self, Tasks};
use crate::runtime::watchdog;
use crate::worker::once::Pass;
use crate::worker::{self, Network, Turn, WorkerSettings};

/// Port on which the worker says whether it is ready, unless the manager is told another. It shares the node's network, so
/// only on the loopback address.
pub(super) const HEALTH_PORT: u16 = 18181;
/// A worker whose tasks have not run for so long ends and is started again. Longer than any flush to a slow disk.
const STUCK: Duration = Duration::from_mins(5);
/// How often a port that somebody else has is tried again.
const PORT_AGAIN: Duration = Duration::from_secs(30);

/// Time for a load under way to end: it is never cut off halfway if that can be helped.
const GRACE: Duration = Duration::from_secs(25);

#[derive(Args, Debug)]
pub(super) struct WorkerArgs {
    /// Name of the node that this worker drives
    #[arg(long, env = "NODE_NAME", required_unless_present = "once")]
    node_name: Option<String>,
    /// Load what asks to be loaded at boot from the node's own store, without an API server, and end
    #[arg(long)]
    once: bool,
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
    /// The host's /lib/modules where it can be written, for Modules with publishOnHost; ends in lib/modules
    #[arg(long, env = "KMM_HOST_MODULES")]
    host_modules: Option<PathBuf>,
    /// kmod's executable; it loads and unloads for Modules with args, rawArgs or modprobeConfig
    #[arg(long, env = "KMM_MODPROBE", default_value = "/usr/sbin/modprobe")]
    modprobe: PathBuf,
    /// The host's /etc: mirrors and certificates of its container runtime
    #[arg(long, env = "KMM_HOST_ETC", default_value = "/host/etc")]
    host_etc: PathBuf,
    /// Bytes that unpacked images may take on the disk, for instance `512Mi`; those in use stay in any case
    #[arg(long, env = "KMM_STORE_LIMIT", default_value = "4Gi", value_name = "BYTES", value_parser = bytes)]
    store_limit: u64,
    #[command(flatten)]
    proxies: ProxyArgs,
    #[command(flatten)]
    node_credentials: NodeCredentialArgs,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, env = "KMM_HEALTH_ADDRESS", default_value_t = SocketAddr::from(([127, 0, 0, 1], HEALTH_PORT)))]
    health_address: SocketAddr,
    /// Socket of systemd, which is told when a single pass is over
    #[arg(long, env = "NOTIFY_SOCKET", hide = true)]
    notify_socket: Option<OsString>,
    #[command(flatten)]
    log: LogArgs,
}

/// A number of bytes with one of the suffixes that Kubernetes has for powers of two.
fn bytes(value: &str) -> Result<u64, String> {
    let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &value[digits.len()..] {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        _ => return Err("write a number of bytes, or one with Ki, Mi, Gi or Ti".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{error}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is too large".to_owned())
}

/// How long a port that another process has is waited for: one worker ends while the next begins.
const PORT_WAIT: Duration = Duration::from_secs(10);

/// What may end a worker.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Worker(#[from] worker::Error),
    #[error("the pass broke off")]
    Broken(#[from] tokio::task::JoinError),
    #[error("{failed} of {asking} modules that are to be loaded at boot are not in the kernel")]
    NotLoaded { failed: usize, asking: usize },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Tasks(#[from] tasks::Error),
    #[error("failed to start the thread that looks after the worker")]
    Watchdog(#[source] std::io::Error),
}

pub(super) fn run(args: WorkerArgs) -> ExitCode {
    if let Err(usage) = args.log.init() {
        return fail(EXIT_USAGE, &usage.to_string());
    }
    let node_name = args.node_name.clone().unwrap_or_default();
    if node_name.is_empty() && !args.once {
        return fail(EXIT_USAGE, "--node-name (NODE_NAME) is empty; name the node that this worker drives");
    }
    let reached = args.proxies.proxies().and_then(|proxies| Ok((proxies, args.node_credentials.settings()?)));
    let (proxies, node_credentials) = match reached {
        Ok(reached) => reached,
        Err(usage) => return fail(EXIT_USAGE, &usage.to_string()),
    };
    let usual = WorkerSettings::new(node_name);
    let settings = WorkerSettings {
        network: Network { host_etc: args.host_etc, proxies, node_credentials, ..usual.network },
        store_limit: args.store_limit,
        state_dir: args.state_dir,
        proc: args.proc,
        sys: args.sys,
        lib_modules: args.lib_modules,
        host_modules: args.host_modules,
        modprobe: args.modprobe,
        ..usual
    };
    let work = async {
        if args.once { once(settings, args.notify_socket).await } else { work(settings, args.health_address).await }
    };
    // One thread: a worker rests nearly always, and there is one on every node.
    let result = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(work).map_err(|error| chain(&error)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(EXIT_FAILURE, &error),
    }
}

async fn work(settings: WorkerSettings, health_address: SocketAddr) -> Result<(), Error> {
    info!(version = env!("CARGO_PKG_VERSION"), node = settings.node_name, "worker starts");
    let client = client().await?;
    let shutdown = CancellationToken::new();
    let mut tasks = Tasks::new(shutdown.clone(), GRACE);
    let readiness = Readiness::default();
    let turn = Turn { gate: readiness.gate("the lock of this node"), port: Arc::default() };
    let (port, stop) = (Arc::clone(&turn.port), shutdown.clone());
    tasks.spawn_endless("probes and metrics", async move {
        port.notified().await;
        answer(health_address, readiness, stop).await;
    });
    let alive = watchdog::watch_over(STUCK, || std::process::exit(EXIT_FAILURE.into())).map_err(Error::Watchdog)?;
    tasks.spawn_endless("signs of life", alive);
    tasks.spawn("worker", worker::run(settings, client, turn, shutdown));
    tasks.run().await?;
    Ok(())
}

/// Serves probes and metrics. Where that cannot be, the worker works all the same, and the log says what to do.
async fn answer(address: SocketAddr, readiness: Readiness, stop: CancellationToken) {
    while let Err(error) = serve::serve(address, PORT_WAIT, readiness.clone(), Metrics::default(), stop.clone()).await {
        warn!(
            "{}; the pod does not look ready, the worker works all the same. Free the port, or give the manager another by \
             --worker-health-port (KMM_WORKER_HEALTH_PORT)",
            chain(&error)
        );
        tokio::time::sleep(PORT_AGAIN).await;
    }
}

async fn once(settings: WorkerSettings, notify: Option<OsString>) -> Result<(), Error> {
    let shutdown = CancellationToken::new();
    let (stop, asked) = (shutdown.clone(), tasks::asked_to_end()?);
    tokio::spawn(async move {
        info!("{}, ending", asked.await);
        stop.cancel();
    });
    let pass = tokio::task::spawn_blocking(move || worker::once::run(&settings, &shutdown)).await?;
    // A job that the kernel does not finish keeps the process; what waits for this unit does not wait for that.
    if let Some(socket) = notify
        && let Err(error) = tell_ready(&socket)
    {
        warn!("systemd cannot be told that the pass is over: {error}");
    }
    match pass? {
        Pass::Elsewhere(holder) => {
            info!(holder = %holder, "another worker runs on this node and loads what asks for it");
            Ok(())
        }
        Pass::Done { loaded, failed } => {
            for (owner, trouble) in &failed {
                error!(module = %owner, reason = trouble.reason.as_str(), "not loaded: {}", trouble.message);
            }
            info!(loaded = loaded.len(), failed = failed.len(), "done");
            let asking = loaded.len() + failed.len();
            if failed.is_empty() { Ok(()) } else { Err(Error::NotLoaded { failed: failed.len(), asking }) }
        }
    }
}

/// Tells systemd that the unit has started: a datagram to a socket, by its path or, after `@`, its abstract name.
/// Source: `sd_notify(3)`.
fn tell_ready(socket: &OsStr) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => UnixAddr::from_abstract_name(name)?,
        path => UnixAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told_by_a_path_and_by_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("kmm-test-{}", std::process::id());
        let abstract_name = UnixAddr::from_abstract_name(&name).unwrap();
        for (listener, socket) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}").into()),
        ] {
            tell_ready(&socket).unwrap();
            let mut told = [0; 32];
            let length = listener.recv(&mut told).unwrap();
            assert_eq!(&told[..length], b"READY=1");
        }
        assert!(tell_ready(OsStr::new("/no/such/socket")).is_err());
    }

    #[test]
    fn a_number_of_bytes_is_written_as_in_kubernetes() {
        let table =
            [("0", Some(0)), ("512Mi", Some(512 << 20)), ("4Gi", Some(4 << 30)), ("3", Some(3)), ("2Ki", Some(2048))];
        for (text, expected) in table {
            assert_eq!(bytes(text).ok(), expected, "{text}");
        }
        for text in ["", "Gi", "4G", "4 Gi", "-1", "1.5Gi", "99999999999Ti"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
