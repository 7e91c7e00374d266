//! A node without kubelet: a machine with the worker, which is started again whenever it ends, and a Node that this test
//! keeps true.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::orders::{CLOCK, HAND, Happened, parse_log};
use crate::support::control_plane::ControlPlane;
use crate::support::eventually;
use crate::support::kernel_vm::{KernelVm, KernelVmOptions};
use crate::support::kmods::Kmod;
use crate::support::kubelet::Kubelet;
use crate::support::manager::worker_kubeconfig;

/// The label that every node has, and the one that tells them apart.
pub(crate) const ALL: &str = "chaos.example/all";
pub(crate) const ONE: &str = "chaos.example/node";

/// A module that a kernel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) state: String,
    pub(crate) build_id: String,
    /// `None` where it has no such parameter.
    pub(crate) level: Option<u32>,
}

pub(crate) struct ChaosNode {
    pub(crate) name: String,
    pub(crate) number: usize,
    vm: KernelVm,
    client: Client,
    kubelet: Option<Kubelet>,
    /// What the kernel's log of each boot said; the last is the running one.
    pub(crate) boots: Vec<Vec<Happened>>,
    boot_id: String,
}

pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64())
}

impl ChaosNode {
    /// Starts it with `strangers` at hand: files that somebody will load who is not the worker.
    pub(crate) async fn start(
        cluster: &ControlPlane,
        client: Client,
        program: PathBuf,
        strangers: &[Kmod],
        number: usize,
    ) -> Result<Self> {
        let files =
            strangers.iter().map(|file| (format!("mods/{}.ko", file.name), 0o644, file.bytes.clone())).collect();
        let vm =
            KernelVm::start(KernelVmOptions { programs: vec![program], files, ..KernelVmOptions::default() }).await?;
        let name = vm.name().to_owned();
        let boots = vec![Vec::new()];
        let boot_id = vm.boot_id().await?;
        let mut node = Self { name, number, vm, client, kubelet: None, boots, boot_id };
        node.join(cluster).await?;
        node.start_worker().await?;
        Ok(node)
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    // ---- the Node ---------------------------------------------------------------------------------------

    /// Makes the Node and gives the worker the token that belongs to it.
    async fn join(&mut self, cluster: &ControlPlane) -> Result<()> {
        let labels = json!({ALL: "yes", ONE: self.number.to_string(), "kubernetes.io/hostname": self.name});
        let (kernel, client) = (self.vm.kernel(), self.client.clone());
        self.kubelet = Some(Kubelet::join(client, &self.name, &labels, &kernel, &self.boot_id).await?);
        let kubeconfig = std::fs::read(worker_kubeconfig(cluster, &self.name).await?)?;
        self.vm.put("/root/kubeconfig", 0o600, &kubeconfig).await?;
        // A power cut takes what is not on the disk yet.
        self.vm.run("sync").await.map(drop)
    }

    /// Deletes the Node and makes it again; what runs on the machine does not notice until its token is refused.
    pub(crate) async fn join_again(&mut self, cluster: &ControlPlane) -> Result<()> {
        self.kubelet = None;
        self.nodes().delete(&self.name, &DeleteParams::default()).await?;
        let gone = || async { Ok(self.nodes().get_opt(&self.name).await?.is_none().then_some(())) };
        eventually(Duration::from_secs(30), "the Node to be gone", gone).await?;
        self.join(cluster).await?;
        // With the Node its pods went: the worker that comes has the new token.
        self.kill_worker("TERM").await
    }

    /// Tells the cluster that the machine has started.
    pub(crate) async fn tell_boot(&self) -> Result<()> {
        let kubelet = self.kubelet.as_ref().context("no Node")?;
        kubelet.tell_boot(&self.vm.kernel(), &self.boot_id).await
    }

    /// Cordons and taints the node, or takes both back.
    pub(crate) async fn cordon(&self, closed: bool) -> Result<()> {
        let spec = if closed {
            json!({"unschedulable": true, "taints": [
                {"key": "chaos.example/closed", "effect": "NoExecute"},
                {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
            ]})
        } else {
            json!({"unschedulable": null, "taints": null})
        };
        self.nodes().patch(&self.name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await?;
        Ok(())
    }

    // ---- the machine ------------------------------------------------------------------------------------

    /// Starts the worker, and again whenever it ends, as a kubelet does.
    async fn start_worker(&self) -> Result<()> {
        let worker = format!(
            "KUBECONFIG=/root/kubeconfig KMM_LOG_FORMAT=text /kmm worker --node-name {} >>/var/log/worker.log 2>&1",
            self.name
        );
        self.tell_time().await?;
        let again = format!("mkdir -p /var/log; while :; do {worker}; sleep 1; done");
        self.vm.run(&format!("setsid sh -c '{again}' >/dev/null 2>&1 </dev/null &")).await?;
        Ok(())
    }

    pub(crate) async fn kill_worker(&self, signal: &str) -> Result<()> {
        self.vm.exec(&format!("kill -{signal} $(pidof kmm)")).await?;
        Ok(())
    }

    /// Boots the machine; without a warning if the power is cut.
    pub(crate) async fn boot(&mut self, power_cut: bool) -> Result<()> {
        self.listen().await?;
        if power_cut {
            self.vm.power_cut().await?;
        } else {
            self.vm.reboot().await?;
        }
        self.boots.push(Vec::new());
        let before = std::mem::replace(&mut self.boot_id, self.vm.boot_id().await?);
        ensure!(before != self.boot_id, "{} has the boot id of the boot before", self.name);
        self.start_worker().await
    }

    /// Takes a module out behind the worker's back, if nothing uses it. Whether it went.
    pub(crate) async fn rmmod(&self, kernel_module: &str) -> Result<bool> {
        Ok(self.by_hand(kernel_module, &format!("rmmod {kernel_module} && echo went")).await?.contains("went"))
    }

    /// Loads another file than a Module's behind the worker's back, in the place of what is loaded. Whether something went,
    /// and whether the file came: the worker may have been faster.
    pub(crate) async fn insmod(&self, kernel_module: &str) -> Result<(bool, bool)> {
        let script = format!("rmmod {kernel_module} && echo went; insmod /mods/{kernel_module}.ko && echo came");
        let told = self.by_hand(kernel_module, &script).await?;
        Ok((told.contains("went"), told.contains("came")))
    }

    /// What a script says that takes a module out, or tries to; the kernel's log tells that it was not the worker.
    async fn by_hand(&self, kernel_module: &str, script: &str) -> Result<String> {
        let hand = |of: &str| format!("echo '{HAND}: {of}' >/dev/kmsg");
        let script = format!("{}; {{ {script}; }} 2>/dev/null; {}", hand(kernel_module), hand("none"));
        Ok(self.vm.exec(&script).await?.text())
    }

    /// Takes in what the kernel's log of this boot says.
    pub(crate) async fn listen(&mut self) -> Result<()> {
        let log = self.vm.run("dmesg").await?;
        *self.boots.last_mut().context("no boot")? = parse_log(&log);
        Ok(())
    }

    /// Tells the kernel's log what time it is.
    pub(crate) async fn tell_time(&self) -> Result<()> {
        self.vm.run(&clock()).await.map(drop)
    }

    /// The modules of this test in the kernel.
    pub(crate) async fn held(&self) -> Result<BTreeMap<String, Held>> {
        let script = r#"grep ^kmm_ /proc/modules | while read -r name x x x state x; do
            id=$(od -An -v -tx1 /sys/module/$name/notes/.note.gnu.build-id | tr -d ' \n' | cut -c33-)
            echo "$name $state ${id:-none} $(cat /sys/module/$name/parameters/level 2>/dev/null)"
        done"#;
        let text = self.vm.run(&format!("{}; {script}", clock())).await?;
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let (name, state, build_id) = (words.next()?, words.next()?, words.next()?);
            let level = words.next().and_then(|level| level.parse().ok());
            Some((name.to_owned(), Held { state: state.to_owned(), build_id: build_id.to_owned(), level }))
        };
        Ok(text.lines().filter_map(parse).collect())
    }

    pub(crate) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// The kernel, the record and the end of the worker's log, for people.
    pub(crate) async fn tell(&self) -> String {
        let script =
            "grep ^kmm_ /proc/modules; echo; cat /var/lib/kmm/record.json; echo; tail -n 25 /var/log/worker.log";
        match self.vm.exec(script).await {
            Ok(out) => out.text(),
            Err(error) => format!("{error:#}"),
        }
    }
}

/// The command that tells the kernel's log what time it is on the host.
fn clock() -> String {
    format!("echo '{CLOCK}: {:.3}' >/dev/kmsg", now())
}
