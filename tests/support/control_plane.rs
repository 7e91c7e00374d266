//! A Kubernetes control plane: etcd and kube-apiserver, on request kube-controller-manager and kube-scheduler.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::OnceCell;

use super::bed::{bed, free_port};
use super::pki::{Authority, Certificate, token_keys};
use super::process::{Process, output};
use super::{HOST, audit, eventually};

const READY: Duration = Duration::from_mins(2);

/// What to start. The default is the least: etcd and kube-apiserver.
#[derive(Debug, Clone, Default)]
pub struct ControlPlaneOptions {
    /// Garbage collection by owner references, pods of every DaemonSet, namespaces that finish deleting, service accounts.
    pub controller_manager: bool,
    /// Pods without `nodeName` get one.
    pub scheduler: bool,
    /// Every request is written to an audit log; see [`ControlPlane::requests`].
    pub audit: bool,
    /// Further flags of kube-apiserver.
    pub apiserver_flags: Vec<String>,
}

impl ControlPlaneOptions {
    /// All of it: what a cluster with nodes needs.
    pub fn full() -> Self {
        Self { controller_manager: true, scheduler: true, audit: true, apiserver_flags: Vec::new() }
    }
}

/// A running control plane on [`HOST`]. Dropping it kills it; etcd's data goes with the test binary.
#[derive(Debug)]
pub struct ControlPlane {
    dir: PathBuf,
    port: u16,
    authority: Authority,
    identities: AtomicUsize,
    audit: bool,
    apiserver_flags: Vec<String>,
    // The API server before etcd: without etcd it would take long to leave.
    apiserver: Mutex<Option<Process>>,
    others: Mutex<Vec<Process>>,
}

impl ControlPlane {
    /// Starts a control plane and waits until it answers; with a controller manager also until the service account of
    /// the namespace `default` is there.
    pub async fn start(options: ControlPlaneOptions) -> Result<Self> {
        let bed = bed()?;
        let dir = bed.new_dir("control-plane")?;
        let authority = Authority::new(&dir.join("pki"), "bed")?;
        let (etcd_port, peer_port) = (free_port()?, free_port()?);
        let mut this = Self {
            port: free_port()?,
            identities: AtomicUsize::new(1),
            audit: options.audit,
            apiserver_flags: Vec::new(),
            apiserver: Mutex::new(None),
            others: Mutex::new(Vec::new()),
            authority,
            dir,
        };

        let mut etcd = Command::new(bed.program("etcd"));
        let (client, peer) = (format!("http://127.0.0.1:{etcd_port}"), format!("http://127.0.0.1:{peer_port}"));
        etcd.arg("--data-dir").arg(this.dir.join("etcd")).args(["--unsafe-no-fsync", "--log-level", "warn"]);
        etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        etcd.arg(format!("--initial-cluster=default={peer}"));
        this.keep(Process::spawn("etcd", &this.dir, etcd)?)?;

        this.apiserver_flags = this.flags(&client, &options)?;
        this.write_kubeconfig("admin", &this.issue("admin", "admin", &["system:masters"])?)?;
        this.start_apiserver().await?;
        if options.controller_manager {
            this.start_controller_manager()?;
        }
        if options.scheduler {
            let kubeconfig = this.component("system:kube-scheduler")?;
            let mut scheduler = Command::new(bed.program("kube-scheduler"));
            scheduler.args(["--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false"]);
            scheduler.arg(format!("--secure-port={}", free_port()?));
            for flag in ["--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig"] {
                scheduler.arg(flag).arg(&kubeconfig);
            }
            this.keep(Process::spawn("kube-scheduler", &this.dir, scheduler)?)?;
        }
        if options.controller_manager {
            this.wait_for_service_account("default").await?;
        }
        Ok(this)
    }

    /// A control plane with a controller manager and an audit log that all tests of this binary may share; each takes a
    /// [`namespace`](Self::namespace) of its own. Cluster-scoped objects need names of their own.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED
            .get_or_try_init(|| {
                Self::start(ControlPlaneOptions {
                    controller_manager: true,
                    audit: true,
                    ..ControlPlaneOptions::default()
                })
            })
            .await
    }

    fn flags(&self, etcd: &str, options: &ControlPlaneOptions) -> Result<Vec<String>> {
        let pki = self.dir.join("pki");
        let names =
            ["DNS:localhost", "DNS:kubernetes.default", "DNS:kubernetes.default.svc", "IP:127.0.0.1", "IP:10.96.0.1"];
        let mut names: Vec<String> = names.map(str::to_owned).to_vec();
        names.push(format!("IP:{HOST}"));
        let serving = self.authority.issue("apiserver", "kube-apiserver", &[], &names)?;
        let kubelet = self.issue("kubelet-client", "kube-apiserver-kubelet-client", &["system:masters"])?;
        let (token_key, token_public) = token_keys(&pki)?;
        // A front proxy is not there, but components look for its authority.
        let front = Authority::new(&self.dir.join("front-proxy"), "front-proxy")?;
        let ca = self.authority.certificate();
        let path = |p: &Path| p.display().to_string();
        let mut flags = vec![
            format!("--etcd-servers={etcd}"),
            format!("--secure-port={}", self.port),
            format!("--bind-address={HOST}"),
            format!("--advertise-address={HOST}"),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--endpoint-reconciler-type=master-count".into(),
            format!("--client-ca-file={}", path(&ca)),
            format!("--tls-cert-file={}", path(&serving.certificate)),
            format!("--tls-private-key-file={}", path(&serving.key)),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", path(&token_public)),
            format!("--service-account-signing-key-file={}", path(&token_key)),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--allow-privileged=true".into(),
            format!("--kubelet-certificate-authority={}", path(&ca)),
            format!("--kubelet-client-certificate={}", path(&kubelet.certificate)),
            format!("--kubelet-client-key={}", path(&kubelet.key)),
            "--kubelet-preferred-address-types=InternalIP".into(),
            "--enable-aggregator-routing=true".into(),
            format!("--requestheader-client-ca-file={}", path(&front.certificate())),
            "--requestheader-username-headers=X-Remote-User".into(),
            "--requestheader-group-headers=X-Remote-Group".into(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
            "--profiling=false".into(),
        ];
        if !options.controller_manager {
            // Nobody makes service accounts, and pods are to be accepted without.
            flags.push("--disable-admission-plugins=ServiceAccount".into());
        }
        if options.audit {
            let policy = self.dir.join("audit-policy.yaml");
            std::fs::write(&policy, audit::POLICY)?;
            flags.push(format!("--audit-policy-file={}", path(&policy)));
            flags.push(format!("--audit-log-path={}", path(&self.audit_log())));
            // A request is in the log when its answer is.
            flags.push("--audit-log-mode=blocking".into());
        }
        flags.extend(options.apiserver_flags.iter().cloned());
        Ok(flags)
    }

    fn start_controller_manager(&self) -> Result<()> {
        let kubeconfig = self.component("system:kube-controller-manager")?;
        let mut command = Command::new(bed()?.program("kube-controller-manager"));
        for flag in ["--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig"] {
            command.arg(flag).arg(&kubeconfig);
        }
        command.arg("--service-account-private-key-file").arg(self.dir.join("pki/sa.key"));
        command.arg("--root-ca-file").arg(self.authority.certificate());
        command.arg("--cluster-signing-cert-file").arg(self.authority.certificate());
        command.arg("--cluster-signing-key-file").arg(self.authority.key());
        // The manager would make this folder under /usr/libexec of the host.
        command.arg("--flex-volume-plugin-dir").arg(self.dir.join("flex"));
        command.arg(format!("--secure-port={}", free_port()?));
        command.args(["--bind-address=127.0.0.1", "--use-service-account-credentials=true", "--leader-elect=false"]);
        command.args(["--controllers=*", "--profiling=false", "--kube-api-qps=300", "--kube-api-burst=600"]);
        // Pod ranges are given out by the nodes' own configuration; a lost node is noticed soon.
        command.args(["--node-monitor-grace-period=20s", "--node-monitor-period=2s"]);
        self.keep(Process::spawn("kube-controller-manager", &self.dir, command)?)
    }

    /// Kills the API server. Clients see refused connections until [`start_apiserver`](Self::start_apiserver).
    pub fn stop_apiserver(&self) -> Result<()> {
        self.apiserver.lock().map_err(|_| poisoned())?.take();
        Ok(())
    }

    /// Starts the API server with the data, port and certificates that it had, and waits until it is ready.
    pub async fn start_apiserver(&self) -> Result<()> {
        {
            let mut apiserver = self.apiserver.lock().map_err(|_| poisoned())?;
            anyhow::ensure!(apiserver.is_none(), "the API server runs already");
            let mut command = Command::new(bed()?.program("kube-apiserver"));
            command.args(&self.apiserver_flags);
            *apiserver = Some(Process::spawn("kube-apiserver", &self.dir, command)?);
        }
        let mut config = self.config(&self.kubeconfig_admin()).await?;
        config.default_retry = false;
        let client = Client::try_from(config)?;
        let mut gone = None;
        let ready = eventually(READY, "the API server to be ready", || async {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            let text = client.request_text(request).await?;
            Ok((text == "ok").then_some(()))
        });
        let watch = async {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                if let Err(error) = self.check() {
                    return error;
                }
            }
        };
        let ready = tokio::select! {
            ready = ready => ready,
            error = watch => { gone = Some(error); Ok(()) }
        };
        if let Some(error) = gone {
            return Err(error);
        }
        ready.with_context(|| {
            format!("the end of its log:\n{}", super::process::tail(&self.dir.join("kube-apiserver.log"), 15))
        })
    }

    /// An error with the end of its log for the first program that has left.
    pub fn check(&self) -> Result<()> {
        if let Some(apiserver) = self.apiserver.lock().map_err(|_| poisoned())?.as_mut() {
            apiserver.check()?;
        }
        self.others.lock().map_err(|_| poisoned())?.iter_mut().try_for_each(Process::check)
    }

    fn keep(&self, process: Process) -> Result<()> {
        self.others.lock().map_err(|_| poisoned())?.push(process);
        Ok(())
    }

    // ---- identities -------------------------------------------------------------------------------------

    /// `https://…`, as machines and the test see it.
    pub fn url(&self) -> String {
        format!("https://{HOST}:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority of all certificates here; kubelets and webhooks get theirs from it.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The folder of this control plane, with the logs of its programs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn issue(&self, file: &str, common_name: &str, groups: &[&str]) -> Result<Certificate> {
        self.authority.issue(file, common_name, groups, &[])
    }

    fn component(&self, user: &str) -> Result<PathBuf> {
        let file = user.replace(':', "-");
        self.write_kubeconfig(&file, &self.issue(&file, user, &[])?)
    }

    fn write_kubeconfig(&self, file: &str, identity: &Certificate) -> Result<PathBuf> {
        let encode =
            |path: &Path| -> Result<String> { Ok(base64::prelude::BASE64_STANDARD.encode(std::fs::read(path)?)) };
        self.write_kubeconfig_user(
            file,
            serde_json::json!({
                "client-certificate-data": encode(&identity.certificate)?,
                "client-key-data": encode(&identity.key)?,
            }),
        )
    }

    /// A kubeconfig for this API server with any `user` entry, such as a token. JSON is YAML.
    pub fn write_kubeconfig_user(&self, file: &str, user: serde_json::Value) -> Result<PathBuf> {
        let ca = base64::prelude::BASE64_STANDARD.encode(self.authority.pem()?);
        let path = self.dir.join(format!("{file}.kubeconfig"));
        let mut config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bed", "cluster": {"server": self.url(), "certificate-authority-data": ca}}],
            "users": [{"name": "me"}],
            "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "me"}}],
            "current-context": "bed",
        });
        config["users"][0]["user"] = user;
        std::fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
        Ok(path)
    }

    /// The kubeconfig of a user who may do everything.
    pub fn kubeconfig_admin(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// A kubeconfig for any identity: a client certificate with this name and these groups. What it may do is up to
    /// RBAC.
    pub fn client_cert(&self, common_name: &str, groups: &[&str]) -> Result<PathBuf> {
        let file = format!("identity-{}", self.identities.fetch_add(1, Ordering::Relaxed));
        let identity = self.issue(&file, common_name, groups)?;
        self.write_kubeconfig(&file, &identity)
    }

    /// A kubeconfig with a token of a service account, which must exist; valid for an hour.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let api: Api<ServiceAccount> = Api::namespaced(self.admin().await?, namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() },
            ..TokenRequest::default()
        };
        let token = api
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("asking for a token of service account {namespace}/{name}"))?
            .status
            .context("a token request was answered without a token")?
            .token;
        self.write_kubeconfig_user(&format!("sa-{namespace}-{name}"), serde_json::json!({ "token": token }))
    }

    /// The client settings of a kubeconfig.
    pub async fn config(&self, kubeconfig: &Path) -> Result<Config> {
        let config = Kubeconfig::read_from(kubeconfig)?;
        Ok(Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?)
    }

    /// A client with the identity of a kubeconfig. It belongs to the runtime that made it.
    pub async fn client(&self, kubeconfig: &Path) -> Result<Client> {
        Ok(Client::try_from(self.config(kubeconfig).await?)?)
    }

    /// A client that may do everything. It belongs to the runtime that made it: ask for a new one in each test.
    pub async fn admin(&self) -> Result<Client> {
        self.client(&self.kubeconfig_admin()).await
    }

    // ---- objects ----------------------------------------------------------------------------------------

    /// A new namespace of its own. With a controller manager its default service account is there on return.
    pub async fn namespace(&self, prefix: &str) -> Result<String> {
        let api: Api<Namespace> = Api::all(self.admin().await?);
        let metadata = ObjectMeta { generate_name: Some(format!("{prefix}-")), ..ObjectMeta::default() };
        let made = api.create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await?;
        let name = made.metadata.name.context("a namespace was made without a name")?;
        if self.dir.join("kube-controller-manager.log").exists() {
            self.wait_for_service_account(&name).await?;
        }
        Ok(name)
    }

    async fn wait_for_service_account(&self, namespace: &str) -> Result<()> {
        let api: Api<ServiceAccount> = Api::namespaced(self.admin().await?, namespace);
        eventually(READY, "the default service account", || async {
            self.check()?;
            Ok(api.get_opt("default").await?.map(|_| ()))
        })
        .await
    }

    /// Applies every CRD of the YAML files of a folder and waits until each is established.
    pub async fn install_crds(&self, folder: &Path) -> Result<()> {
        let api: Api<CustomResourceDefinition> = Api::all(self.admin().await?);
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
            .with_context(|| format!("reading {}", folder.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        files.retain(|f| f.extension().is_some_and(|e| e == "yaml" || e == "yml"));
        files.sort();
        let mut names = Vec::new();
        for file in files {
            let text = std::fs::read_to_string(&file)?;
            let documents: Vec<serde_json::Value> =
                serde_saphyr::from_multiple(&text).with_context(|| format!("parsing {}", file.display()))?;
            for document in documents {
                if document["kind"] != "CustomResourceDefinition" {
                    continue;
                }
                let name = document["metadata"]["name"].as_str().context("a CRD without a name")?.to_owned();
                api.patch(&name, &PatchParams::apply("bed").force(), &Patch::Apply(&document))
                    .await
                    .with_context(|| format!("applying CRD {name} of {}", file.display()))?;
                names.push(name);
            }
        }
        anyhow::ensure!(!names.is_empty(), "{} holds no CustomResourceDefinition", folder.display());
        for name in names {
            eventually(READY, &format!("CRD {name} to be established"), || async {
                let conditions = api.get(&name).await?.status.and_then(|s| s.conditions).unwrap_or_default();
                Ok(conditions.iter().any(|c| c.type_ == "Established" && c.status == "True").then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Runs kubectl as admin and gives its standard output; the error holds what it wrote.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(bed()?.program("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig_admin()).args(arguments);
        // No discovery cache in the home of whoever runs the tests.
        command.arg("--cache-dir").arg(self.dir.join("kubectl-cache"));
        tokio::task::spawn_blocking(move || output(&mut command)).await?
    }

    /// `kubectl apply -k <folder>`, server-side.
    pub async fn apply_kustomization(&self, folder: &Path) -> Result<String> {
        let folder = folder.display().to_string();
        self.kubectl(&["apply", "--server-side", "--field-manager=bed", "-k", &folder]).await
    }

    /// `kubectl apply -f` of a text with one or more YAML documents, server-side.
    pub async fn apply_yaml(&self, text: &str) -> Result<String> {
        let file = self.dir.join(format!("apply-{}.yaml", self.identities.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&file, text)?;
        let file = file.display().to_string();
        self.kubectl(&["apply", "--server-side", "--field-manager=bed", "-f", &file]).await
    }

    // ---- what was asked ---------------------------------------------------------------------------------

    fn audit_log(&self) -> PathBuf {
        self.dir.join("audit.log")
    }

    /// Every request so far, in the order of the answers. Needs `audit` in the options.
    pub fn requests(&self) -> Result<Vec<audit::Request>> {
        anyhow::ensure!(self.audit, "this control plane keeps no audit log: set `audit` in its options");
        audit::read(&self.audit_log())
    }

    /// `apiserver_request_total`, summed per verb (`GET`, `LIST`, `WATCH`, `POST`, `PUT`, `PATCH`, `APPLY`, `DELETE`) and
    /// resource (`pods`, `pods/status`). It starts anew with the API server and does not know users.
    pub async fn request_counts(&self) -> Result<BTreeMap<(String, String), u64>> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        Ok(audit::request_totals(&self.admin().await?.request_text(request).await?))
    }
}

fn poisoned() -> anyhow::Error {
    anyhow!("a test died while it changed this control plane")
}
