//! The real agents, as plain processes, where somebody has put them into the folder `OCM_BIN_DIR`.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use serde_json::{Value, json};

use super::{OcmOptions, spoke};
use crate::support::process::Process;

/// The folder of the real agents, if there is one.
///
/// # Errors
/// The folder is named but does not hold both programs.
pub fn programs() -> Result<Option<PathBuf>> {
    #[expect(clippy::disallowed_methods, reason = "the setting of a test bed, not of the product")]
    let Some(folder) = std::env::var_os("OCM_BIN_DIR").filter(|folder| !folder.is_empty()).map(PathBuf::from) else {
        return Ok(None);
    };
    for program in ["work", "registration"] {
        let file = folder.join(program);
        ensure!(file.is_file(), "OCM_BIN_DIR names {}, but {} is not there", folder.display(), file.display());
    }
    Ok(Some(folder))
}

/// The kubeconfigs of the agents.
pub struct Files<'a> {
    /// The cluster's identity on the hub.
    pub hub: &'a Path,
    /// `klusterlet-work-sa` on the spoke.
    pub work: &'a Path,
    /// `klusterlet-registration-sa` on the spoke.
    pub registration: &'a Path,
}

/// What the command lines are made of.
pub struct Setup<'a> {
    pub programs: &'a Path,
    pub files: Files<'a>,
    pub cluster: &'a str,
    pub agent_id: &'a str,
    /// Holds the files of [`identity_files`].
    pub dir: &'a Path,
    pub options: &'a OcmOptions,
    /// Ports of the two health servers on the loopback address.
    pub ports: (u16, u16),
}

impl Setup<'_> {
    /// The command line of the work agent.
    pub fn work(&self) -> Vec<String> {
        vec![
            self.programs.join("work").display().to_string(),
            "agent".to_owned(),
            format!("--kubeconfig={}", self.files.work.display()),
            format!("--spoke-cluster-name={}", self.cluster),
            format!("--agent-id={}", self.agent_id),
            "--workload-source-driver=kube".to_owned(),
            format!("--workload-source-config={}", self.files.hub.display()),
            "--disable-leader-election".to_owned(),
            format!("--listen=127.0.0.1:{}", self.ports.0),
            format!("--status-sync-interval={}ms", self.options.status_sync_interval.as_millis()),
            format!("--appliedmanifestwork-eviction-grace-period={}ms", self.options.eviction_grace.as_millis()),
            format!("--feature-gates=RawFeedbackJsonString={}", self.options.raw_feedback),
        ]
    }

    /// The command line of the registration agent.
    pub fn registration(&self) -> Vec<String> {
        let mut line = vec![
            self.programs.join("registration").display().to_string(),
            "agent".to_owned(),
            format!("--kubeconfig={}", self.files.registration.display()),
            format!("--namespace={}", spoke::NAMESPACE),
            format!("--spoke-cluster-name={}", self.cluster),
            format!("--agent-id={}", self.agent_id),
            format!("--bootstrap-kubeconfig={}", self.dir.join("bootstrap.kubeconfig").display()),
            format!("--hub-kubeconfig-dir={}", self.dir.join("hub").display()),
            "--disable-leader-election".to_owned(),
            format!("--listen=127.0.0.1:{}", self.ports.1),
            format!("--max-custom-cluster-claims={}", self.options.max_custom_claims),
            format!("--cluster-healthcheck-period={}ms", self.options.health_check_period.as_millis()),
            "--feature-gates=AddonManagement=false".to_owned(),
        ];
        if !self.options.reserved_claim_suffixes.is_empty() {
            line.push(format!("--reserved-cluster-claim-suffixes={}", self.options.reserved_claim_suffixes.join(",")));
        }
        line
    }

    /// Starts both; dropping the processes ends them.
    ///
    /// # Errors
    /// A program cannot be started.
    pub fn start(&self) -> Result<Vec<Process>> {
        let mut started = Vec::new();
        for (name, line) in [("ocm-work", self.work()), ("ocm-registration", self.registration())] {
            let mut command = Command::new(&line[0]);
            command.args(&line[1..]).current_dir(self.dir);
            started.push(Process::spawn(name, self.dir, command)?);
        }
        Ok(started)
    }
}

/// Two free ports of the loopback address.
///
/// # Errors
/// None is free.
pub fn free_ports() -> Result<(u16, u16)> {
    let (one, two) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((one.local_addr()?.port(), two.local_addr()?.port()))
}

/// Writes what lets the registration agent skip its bootstrap: an identity that is already valid, and a
/// bootstrap kubeconfig with the same server and no user.
///
/// # Errors
/// The kubeconfig of the agent does not embed a client certificate, or a file cannot be written.
pub fn identity_files(agent_kubeconfig: &Path, dir: &Path) -> Result<()> {
    let text =
        fs::read_to_string(agent_kubeconfig).with_context(|| format!("reading {}", agent_kubeconfig.display()))?;
    let config: Value =
        serde_saphyr::from_str(&text).with_context(|| format!("parsing {}", agent_kubeconfig.display()))?;
    let cluster = config.pointer("/clusters/0/cluster").context("kubeconfig without cluster")?;
    let decode = |field: &str| {
        let data = config.pointer(&format!("/users/0/user/{field}")).and_then(Value::as_str);
        let data = data.with_context(|| format!("kubeconfig without embedded {field}"))?;
        base64::prelude::BASE64_STANDARD.decode(data).with_context(|| format!("kubeconfig with broken {field}"))
    };
    let hub = dir.join("hub");
    fs::create_dir_all(&hub).with_context(|| format!("creating {}", hub.display()))?;
    let write = |file: PathBuf, content: Vec<u8>| {
        fs::write(&file, content).with_context(|| format!("writing {}", file.display()))
    };
    write(hub.join("tls.crt"), decode("client-certificate-data")?)?;
    write(hub.join("tls.key"), decode("client-key-data")?)?;
    let with_user = |user: Value| {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "default-context",
            "clusters": [{"name": "default-cluster", "cluster": cluster}],
            "users": [{"name": "default-auth", "user": user}],
            "contexts": [{"name": "default-context", "context": {
                "cluster": "default-cluster", "user": "default-auth", "namespace": "configuration",
            }}],
        })
    };
    let files = json!({"client-certificate": "tls.crt", "client-key": "tls.key"});
    write(hub.join("kubeconfig"), serde_json::to_vec_pretty(&with_user(files))?)?;
    write(dir.join("bootstrap.kubeconfig"), serde_json::to_vec_pretty(&with_user(json!({})))?)
}
