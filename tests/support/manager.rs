//! The product in the bed: an edition installed as users install it, and its manager as a process that has nothing
//! but the token of its ServiceAccount under the RBAC that ships.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kmm::api::names::WORKER_SERVICE_ACCOUNT;
use kube::api::{Api, ObjectMeta, PostParams};

use super::bed::{bed, free_port};
use super::control_plane::ControlPlane;
use super::process::{Process, output};
use super::{HOST, eventually};

/// Namespace of every edition.
pub const NAMESPACE: &str = "kmm-operator-system";

/// The user name of a ServiceAccount of the product; of an empty name what the names of all begin with.
pub fn user(service_account: &str) -> String {
    format!("system:serviceaccount:{NAMESPACE}:{service_account}")
}

/// What is installed by which overlay of `config/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edition {
    Hub,
    Spoke,
    Standalone,
}

impl Edition {
    pub fn overlay(self) -> &'static str {
        match self {
            Self::Hub => "config/default-hub",
            Self::Spoke => "config/default-spoke",
            Self::Standalone => "config/default",
        }
    }

    /// Name of the manager's Deployment and ServiceAccount.
    pub fn manager(self) -> &'static str {
        match self {
            Self::Hub => "kmm-operator-hub-controller",
            Self::Spoke | Self::Standalone => "kmm-operator-controller",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Hub => &["manager", "--mode=hub"],
            Self::Spoke | Self::Standalone => &["manager"],
        }
    }

    /// `KMM_MANAGED`, as its Deployment sets it.
    fn managed(self) -> Option<(&'static str, &'static str)> {
        (self == Self::Spoke).then_some(("KMM_MANAGED", "1"))
    }
}

/// Applies the edition's overlay and waits until its kinds are served. Its Deployment stays without a pod where
/// there is no node, so that a process may take its place.
pub async fn install(cluster: &ControlPlane, edition: Edition) -> Result<()> {
    let overlay = Path::new(env!("CARGO_MANIFEST_DIR")).join(edition.overlay());
    cluster.apply_kustomization(&overlay).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(cluster.admin().await?);
    eventually(Duration::from_secs(30), "the CRDs to be established", || async {
        let list = crds.list(&kube::api::ListParams::default()).await?;
        let established = |crd: &CustomResourceDefinition| {
            let conditions = crd.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Established" && c.status == "True"))
        };
        Ok(list.items.iter().all(established).then_some(()))
    })
    .await
}

/// Copies the product's image from the layout that `make image` made to `image`, `registry/name:tag`.
pub fn push_product(image: &str) -> Result<()> {
    let layout = super::bed::target().join("image/kmm");
    let source = format!("oci:{}:latest", layout.display());
    let target = format!("docker://{image}");
    output(Command::new("skopeo").args(["copy", "-q", "--dest-tls-verify=false", &source, &target]))
        .context("pushing the product's image; `make image` builds it")?;
    Ok(())
}

/// Installs the edition to run as pods from `image`: an overlay that only sets the image.
pub async fn install_image(cluster: &ControlPlane, edition: Edition, image: &str) -> Result<()> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(edition.overlay());
    let folder = bed()?.new_dir("overlay")?;
    let up: PathBuf = folder.components().skip(1).map(|_| "..").collect();
    let base = up.join(base.strip_prefix("/")?);
    let (name, tag) = image.rsplit_once(':').context("an image without tag")?;
    let overlay =
        format!("resources:\n- {}\nimages:\n- name: kmm\n  newName: {name}\n  newTag: {tag}\n", base.display());
    std::fs::write(folder.join("kustomization.yaml"), overlay)?;
    cluster.apply_kustomization(&folder).await.map(drop)
}

/// Waits until the manager's pod is available; the error tells its pods and the end of its log.
pub async fn wait_available(cluster: &ControlPlane, edition: Edition) -> Result<()> {
    let deployment = format!("deployment/{}", edition.manager());
    let rollout = cluster.kubectl(&["-n", NAMESPACE, "rollout", "status", "--timeout=300s", &deployment]).await;
    if let Err(error) = rollout {
        let pods = cluster.kubectl(&["-n", NAMESPACE, "describe", "pods"]).await.unwrap_or_default();
        let log = cluster.kubectl(&["-n", NAMESPACE, "logs", &deployment, "--tail=20"]).await;
        bail!("{error:#}\n{pods}\n{}", log.unwrap_or_else(|error| format!("{error:#}")));
    }
    Ok(())
}

/// A manager that runs as a process. Dropping it kills it with SIGKILL.
#[derive(Debug)]
pub struct Manager {
    edition: Edition,
    dir: PathBuf,
    kubeconfig: PathBuf,
    port: u16,
    environment: Vec<(String, String)>,
    process: Process,
}

impl Manager {
    /// Starts the manager of an installed edition and waits until it is ready.
    pub async fn start(cluster: &ControlPlane, edition: Edition) -> Result<Self> {
        Self::start_with(cluster, edition, &[]).await
    }

    /// The same with further environment variables, for instance `KMM_LOG`.
    pub async fn start_with(cluster: &ControlPlane, edition: Edition, environment: &[(&str, &str)]) -> Result<Self> {
        let mut manager = Self::spawn(cluster, edition, environment).await?;
        manager.wait_ready().await?;
        Ok(manager)
    }

    /// The same without waiting: it may never be ready.
    pub async fn spawn(cluster: &ControlPlane, edition: Edition, environment: &[(&str, &str)]) -> Result<Self> {
        let kubeconfig = eventually(Duration::from_secs(20), "the manager's ServiceAccount", || async {
            Ok(cluster.service_account_kubeconfig(NAMESPACE, edition.manager()).await.ok())
        })
        .await?;
        let dir = bed()?.new_dir("manager")?;
        let port = free_port()?;
        let environment: Vec<_> = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let process = spawn(edition, &dir, &kubeconfig, port, &environment)?;
        Ok(Self { edition, dir, kubeconfig, port, environment, process })
    }

    /// Waits until `/readyz` says so; the error holds what is missing and the end of the log.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let url = format!("http://{HOST}:{}/readyz", self.port);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
        for _ in 0..600 {
            self.process.check()?;
            if let Ok(answer) = client.get(&url).send().await
                && answer.status().is_success()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let missing = client.get(&url).send().await?.text().await?;
        ensure!(missing.is_empty(), "the manager is not ready: {missing}\n{}", self.log_tail(20));
        Ok(())
    }

    /// SIGKILL, as a crash would end it.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM; returns the exit code once it has ended.
    pub async fn terminate(&mut self) -> Result<Option<i32>> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.process.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        for _ in 0..200 {
            if let Some(status) = self.process.ended()? {
                return Ok(status.code());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("the manager did not end within 20 s of SIGTERM:\n{}", self.log_tail(20))
    }

    /// Starts the same manager again and waits until it is ready.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill();
        self.process = spawn(self.edition, &self.dir, &self.kubeconfig, self.port, &self.environment)?;
        self.wait_ready().await
    }

    pub fn log_tail(&self, lines: usize) -> String {
        self.process.log_tail(lines)
    }

    /// The text of `/readyz`: what is missing.
    pub async fn readyz(&self) -> Result<String> {
        Ok(reqwest::get(format!("http://{HOST}:{}/readyz", self.port)).await?.text().await?)
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> Result<String> {
        Ok(reqwest::get(format!("http://{HOST}:{}/metrics", self.port)).await?.text().await?)
    }

    /// Highest resident memory so far, bytes: `VmHWM`.
    pub fn peak_memory(&self) -> Result<u64> {
        memory(self.process.id(), "VmHWM:")
    }

    /// Resident memory now, bytes: `VmRSS`.
    pub fn resident_memory(&self) -> Result<u64> {
        memory(self.process.id(), "VmRSS:")
    }

    /// CPU time of its process so far, in user and system mode, seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        // The second field is the program's name in brackets; ticks are hundredths of a second on every Linux.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let fields = stat.rsplit_once(") ").context("no name")?.1.split_whitespace();
        let ticks = fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(ticks as f64 / 100.0)
    }
}

/// A memory figure of `/proc/<pid>/status`, bytes.
pub fn memory(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// The executable: the one that Cargo built with the tests, or `KMM_BIN` (`make test` and the bench name the product
/// image's).
pub fn executable() -> PathBuf {
    super::bed::variable("KMM_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_kmm").into())
}

/// A copy without debug information, named `kmm`: machines write it to their disks at every start.
pub fn stripped(executable: &Path) -> Result<PathBuf> {
    let copy = bed()?.new_dir("stripped")?.join("kmm");
    output(Command::new("strip").arg("-o").arg(&copy).arg(executable))?;
    Ok(copy)
}

fn spawn(
    edition: Edition,
    dir: &Path,
    kubeconfig: &Path,
    port: u16,
    environment: &[(String, String)],
) -> Result<Process> {
    let mut command = Command::new(executable());
    command
        .args(edition.arguments())
        .env_remove("KMM_MANAGED")
        .envs(edition.managed())
        .env("KUBECONFIG", kubeconfig)
        .env("OPERATOR_NAMESPACE", NAMESPACE)
        .env("POD_NAME", format!("manager-{port}"))
        .env("RELATED_IMAGE_WORKER", "registry.invalid/kmm:test")
        .env("KMM_HEALTH_ADDRESS", format!("{HOST}:{port}"))
        .env("KMM_LOG_FORMAT", "text")
        .envs(environment.iter().map(|(key, value)| (key, value)));
    Process::spawn("manager", dir, command)
}

/// A kubeconfig with the token that the worker on `node` would have: of its ServiceAccount, bound to the Node.
pub async fn worker_kubeconfig(cluster: &ControlPlane, node: &str) -> Result<PathBuf> {
    let node = Api::<Node>::all(cluster.admin().await?).get(node).await?;
    bound_kubeconfig(cluster, NAMESPACE, WORKER_SERVICE_ACCOUNT, "Node", &node.metadata).await
}

/// A kubeconfig with a token of a ServiceAccount that is bound to an object of Kubernetes' core.
pub async fn bound_kubeconfig(
    cluster: &ControlPlane,
    namespace: &str,
    account: &str,
    kind: &str,
    to: &ObjectMeta,
) -> Result<PathBuf> {
    let bound = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some(kind.into()),
        name: to.name.clone(),
        uid: to.uid.clone(),
    };
    let spec = TokenRequestSpec {
        expiration_seconds: Some(3600),
        bound_object_ref: Some(bound),
        ..TokenRequestSpec::default()
    };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let api: Api<ServiceAccount> = Api::namespaced(cluster.admin().await?, namespace);
    let answer = api.create_token_request(account, &PostParams::default(), &request).await?;
    let token = answer.status.context("a token request was answered without a token")?.token;
    let name = format!("{namespace}-{account}-{}", to.name.as_deref().unwrap_or_default());
    cluster.write_kubeconfig_user(&name, serde_json::json!({ "token": token }))
}
