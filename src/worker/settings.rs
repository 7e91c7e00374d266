//! Where the worker finds the host, and its patience.

use std::path::PathBuf;
use std::time::Duration;

use crate::oci::route::proxies::Proxies;

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
                node_credentials: Some(NodeCredentialSettings::default()),
            },
            store_limit: 4 << 30,
        }
    }
}

/// How registries are reached from this node.
#[derive(Clone, Debug)]
pub struct Network {
    /// Where the host's `/etc` is mounted.
    pub host_etc: PathBuf,
    /// Proxies on the way.
    pub proxies: Proxies,
    /// How long a pull may move next to nothing; see [`Limits::progress_bytes`](crate::oci::limits::Limits::progress_bytes).
    pub patience: Duration,
    /// Where the node's own credentials are; `None` if they are not to be used.
    pub node_credentials: Option<NodeCredentialSettings>,
}

/// Where the node's own credentials are, where its kubelet's command line does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeCredentialSettings {
    /// The file, or the folder of files, that names credential provider plugins.
    pub provider_config: Option<PathBuf>,
    /// The folder with their executables.
    pub provider_bin_dir: Option<PathBuf>,
}
