//! Open Cluster Management for the test bed: what joins a spoke to a hub.
//!
//! [`Ocm::start`] joins one spoke to one hub: it does the hub's part (namespace, rights, accepted, taints,
//! lease) and runs the two agents of the spoke. They are a stand-in, tasks of the test process, unless
//! `OCM_BIN_DIR` names a folder with the real programs `work` and `registration`; tests cannot tell, except
//! that the real ones repair drift after minutes, whatever [`OcmOptions::resync`] says (see [`Ocm::resync`]).
//!
//! The stand-in has the properties that hurt: it writes with the agent's rights and no more, a CRD that
//! appears later does not wake it, failures are tried again after 5 ms doubling up to 1000 s, drift is seen
//! only at the resync, claims beyond the twentieth are dropped without a word, and with the agent offline
//! nothing moves. It lacks condition rules in CEL, `ignoreFields` and executors; a work that asks for one of
//! those is not applied, and says so.
//!
//! A test crate takes this in beside the bed: `#[path = "../support/ocm/mod.rs"] mod ocm;`. For many
//! clusters without agents see [`fake`], for judging a work see [`check`].
// Every test crate uses another part of the harness.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs, missing_debug_implementations)]

pub mod apply;
pub mod check;
pub mod config;
pub mod delete;
pub mod evict;
pub mod fake;
pub mod feedback;
pub mod hub;
pub mod jsonpath;
pub mod kinds;
pub mod real;
pub mod reconcile;
pub mod register;
pub mod scrape;
pub mod spoke;
pub mod status;
pub mod work;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use crate::support::control_plane::ControlPlane;
use crate::support::process::Process;
use crate::support::{bed, eventually};

pub use check::{Expectation, check_manifest_work};

/// The identity of every agent here.
pub const AGENT_ID: &str = "agent1";

/// Folder of the hub's CRDs and of the spoke's; both may be installed on one server.
pub fn crds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/ocm/crds")
}

/// The hub, as the joining of one cluster needs it.
#[derive(Clone)]
pub struct HubSide {
    pub admin: Client,
    /// Client certificate with the name and group of [`hub::agent_identity`].
    pub agent_kubeconfig: PathBuf,
}

impl HubSide {
    /// The hub's side for `cluster`; installs the CRDs.
    ///
    /// # Errors
    /// What the hub said.
    pub async fn of(control_plane: &ControlPlane, cluster: &str) -> Result<Self> {
        control_plane.install_crds(&crds()).await?;
        let (user, group) = hub::agent_identity(cluster, AGENT_ID);
        let agent_kubeconfig = control_plane.client_cert(&user, &[&group])?;
        Ok(Self { admin: control_plane.admin().await?, agent_kubeconfig })
    }
}

/// The spoke, with the identities of its two agents.
#[derive(Clone)]
pub struct SpokeSide {
    pub admin: Client,
    /// Token of `klusterlet-work-sa`.
    pub work_kubeconfig: PathBuf,
    /// Token of `klusterlet-registration-sa`.
    pub registration_kubeconfig: PathBuf,
}

impl SpokeSide {
    /// The spoke's side; installs the CRDs and the agents' rights. The spoke needs a controller manager.
    ///
    /// # Errors
    /// What the spoke said.
    pub async fn of(control_plane: &ControlPlane) -> Result<Self> {
        control_plane.install_crds(&crds()).await?;
        let admin = control_plane.admin().await?;
        spoke::prepare(&admin).await?;
        let account = |name| control_plane.service_account_kubeconfig(spoke::NAMESPACE, name);
        Ok(Self {
            work_kubeconfig: account(spoke::WORK_ACCOUNT).await?,
            registration_kubeconfig: account(spoke::REGISTRATION_ACCOUNT).await?,
            admin,
        })
    }
}

/// How the agents behave. The default is what a real installation has.
#[derive(Clone, Debug)]
pub struct OcmOptions {
    /// Labels of the `ManagedCluster`.
    pub labels: BTreeMap<String, String>,
    /// Polling of objects and feedback; up to 90 % longer each time.
    pub status_sync_interval: Duration,
    /// Drift repair after an apply that succeeded; up to 50 % longer each time. Stand-in only.
    pub resync: Duration,
    /// Pause after the first failure of an apply; it doubles. Stand-in only.
    pub first_retry: Duration,
    /// The longest such pause. Stand-in only.
    pub longest_retry: Duration,
    /// The agent looks at its own cluster at least so often.
    pub health_check_period: Duration,
    /// The cluster is unknown after five of these without a sign of the agent.
    pub lease_duration: Duration,
    /// Claims with other than reserved names that reach the hub.
    pub max_custom_claims: usize,
    /// Names with these endings do not count against the limit.
    pub reserved_claim_suffixes: Vec<String>,
    /// Time from the loss of a work, or of the hub, to the end of what was applied for it.
    pub eviction_grace: Duration,
    /// Feedback of objects, lists and floats as JSON text.
    pub raw_feedback: bool,
}

impl Default for OcmOptions {
    fn default() -> Self {
        Self {
            labels: BTreeMap::new(),
            status_sync_interval: Duration::from_secs(10),
            resync: Duration::from_mins(4),
            first_retry: Duration::from_millis(5),
            longest_retry: Duration::from_secs(1000),
            health_check_period: Duration::from_mins(1),
            lease_duration: Duration::from_mins(1),
            max_custom_claims: 20,
            reserved_claim_suffixes: Vec::new(),
            eviction_grace: Duration::from_hours(1),
            raw_feedback: false,
        }
    }
}

impl OcmOptions {
    /// Everything as quick as a test likes it: polling every half second, resync every two.
    pub fn quick() -> Self {
        Self {
            status_sync_interval: Duration::from_millis(500),
            resync: Duration::from_secs(2),
            health_check_period: Duration::from_secs(2),
            ..Self::default()
        }
    }
}

enum Agents {
    Paused,
    /// The tasks end with the set.
    StandIn(#[allow(dead_code, reason = "held for its end")] JoinSet<()>),
    /// The processes end with their values.
    Real(#[allow(dead_code, reason = "held for its end")] Vec<Process>),
}

/// One spoke joined to one hub. Dropping it ends the agents and leaves all objects as they are.
pub struct Ocm {
    hub: HubSide,
    spoke: SpokeSide,
    cluster: String,
    options: OcmOptions,
    programs: Option<PathBuf>,
    dir: PathBuf,
    agents: Agents,
    _hub_tasks: JoinSet<()>,
}

impl Ocm {
    /// Joins the spoke under the name `cluster` and waits until it is joined and available on the hub.
    ///
    /// # Errors
    /// What hub or spoke said, or what was waited for.
    pub async fn start(hub: &HubSide, spoke: &SpokeSide, cluster: &str, options: OcmOptions) -> Result<Self> {
        hub::accept(&hub.admin, cluster, &options.labels, options.lease_duration).await?;
        let mut hub_tasks = JoinSet::new();
        hub_tasks.spawn(hub::run(hub.admin.clone(), cluster.to_owned(), options.lease_duration));
        let mut ocm = Self {
            hub: hub.clone(),
            spoke: spoke.clone(),
            cluster: cluster.to_owned(),
            options,
            programs: real::programs()?,
            dir: bed()?.new_dir("ocm")?,
            agents: Agents::Paused,
            _hub_tasks: hub_tasks,
        };
        ocm.resume().await?;
        let clusters = kinds::managed_clusters(&hub.admin);
        eventually(Duration::from_mins(1), &format!("cluster {cluster} to be available without taints"), || async {
            let object = kinds::to_json(&clusters.get(cluster).await?);
            let conditions = kinds::list(&object, "/status/conditions");
            let good =
                [hub::JOINED, hub::AVAILABLE].iter().all(|kind| kinds::condition_status(conditions, kind) == "True");
            Ok((good && kinds::list(&object, "/spec/taints").is_empty()).then_some(()))
        })
        .await?;
        Ok(ocm)
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// A client of the hub with the rights of this cluster's agent.
    ///
    /// # Errors
    /// The identity cannot be read.
    pub async fn hub_client(&self) -> Result<Client> {
        Ok(client(&self.hub.agent_kubeconfig).await?.0)
    }

    /// Drift of an applied object is repaired within this time.
    pub fn resync(&self) -> Duration {
        let period = if self.programs.is_some() { Duration::from_mins(4) } else { self.options.resync };
        period.mul_f64(1.5) + Duration::from_secs(5)
    }

    /// Takes both agents offline, as if the spoke were cut off or its agent pods gone.
    pub fn pause(&mut self) {
        self.agents = Agents::Paused;
    }

    /// Brings both agents back; like real ones after a restart they know nothing of earlier failures.
    ///
    /// # Errors
    /// An identity cannot be read or a program not started.
    pub async fn resume(&mut self) -> Result<()> {
        if let Some(programs) = &self.programs {
            real::identity_files(&self.hub.agent_kubeconfig, &self.dir)?;
            let setup = real::Setup {
                programs,
                files: real::Files {
                    hub: &self.hub.agent_kubeconfig,
                    work: &self.spoke.work_kubeconfig,
                    registration: &self.spoke.registration_kubeconfig,
                },
                cluster: &self.cluster,
                agent_id: AGENT_ID,
                dir: &self.dir,
                options: &self.options,
                ports: real::free_ports()?,
            };
            self.agents = Agents::Real(setup.start()?);
            return Ok(());
        }
        let (hub, address) = client(&self.hub.agent_kubeconfig).await?;
        let (work_spoke, _) = client(&self.spoke.work_kubeconfig).await?;
        let (registration_spoke, _) = client(&self.spoke.registration_kubeconfig).await?;
        let mut hub_hash = String::new();
        for byte in Sha256::digest(address.as_bytes()) {
            write!(hub_hash, "{byte:02x}")?;
        }
        let options = self.options.clone();
        let work = work::WorkAgent::new(hub.clone(), work_spoke, &self.cluster, AGENT_ID, hub_hash, options.clone());
        let registration =
            register::Registration { hub, spoke: registration_spoke, cluster: self.cluster.clone(), options };
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::new(work).run());
        tasks.spawn(registration.run());
        self.agents = Agents::StandIn(tasks);
        Ok(())
    }
}

/// A client for a kubeconfig, and the server's address as the file spells it.
async fn client(kubeconfig: &Path) -> Result<(Client, String)> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
    let server =
        file.clusters.first().and_then(|named| named.cluster.as_ref()).and_then(|cluster| cluster.server.clone());
    let server = server.with_context(|| format!("{} names no server", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok((Client::try_from(config)?, server))
}
