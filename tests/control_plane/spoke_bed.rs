//! A cluster with nodes for tests: control plane, the manager as a process with the rights that ship, and nodes whose
//! kubelet and worker are scripts. The worker has the token that a real one would have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kmm::api::{
    Module, ModuleState, NodeModuleSpec, NodeModuleStatus, NodeModulesConfig, NodeModulesConfigStatus, OnChange,
    OnRemoval,
};
use kmm::core::load::same_in_kernel;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::audit;
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::eventually;
use crate::support::kubelet::Kubelet;
use crate::support::manager::{Edition, Manager, install, user, worker_kubeconfig};

/// Longest wait for anything that takes a few passes.
pub(crate) const LIMIT: Duration = Duration::from_secs(45);
/// A digest that no registry is asked for.
pub(crate) const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// What the kernel of a scripted node holds, and what happened to it.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) boot: u32,
    pub(crate) release: String,
    pub(crate) loaded: BTreeMap<String, NodeModuleSpec>,
    pub(crate) journal: Vec<String>,
    pub(crate) in_use: BTreeSet<String>,
    /// The worker does not look and says nothing.
    pub(crate) asleep: bool,
    /// Why nothing can be loaded: reason and sentence.
    pub(crate) refuses: Option<(&'static str, &'static str)>,
}

impl Kernel {
    /// Carries out what stands in the object and says what is.
    fn carry_out(&mut self, config: &NodeModulesConfig) -> NodeModulesConfigStatus {
        let mut reports: BTreeMap<String, NodeModuleStatus> = BTreeMap::new();
        let report = |entry: &NodeModuleSpec, state, reason: &str, loaded: Option<&NodeModuleSpec>| NodeModuleStatus {
            name: entry.name.clone(),
            namespace: entry.namespace.clone(),
            module_uid: entry.module_uid.clone(),
            service_account_name: entry.service_account_name.clone(),
            config: loaded.map(|loaded| loaded.config.clone()),
            state: Some(state),
            reason: Some(reason.to_owned()),
            message: (state == ModuleState::UnloadFailed).then(|| "used by 1".to_owned()),
            duration: Some("0.1s".to_owned()),
            observed_generation: entry.generation,
            boot_id: Some(format!("boot-{}", self.boot)),
            ..NodeModuleStatus::default()
        };
        let mut stuck = BTreeSet::new();
        for intent in &config.spec.unload {
            let Some(entry) = self.loaded.get(&intent.module_uid).cloned() else { continue };
            if entry.generation > Some(intent.generation) {
                continue;
            }
            if self.in_use.contains(&entry.name) {
                stuck.insert(intent.module_uid.clone());
                let status = report(&entry, ModuleState::UnloadFailed, "InUse", Some(&entry));
                reports.insert(intent.module_uid.clone(), status);
                continue;
            }
            self.loaded.remove(&intent.module_uid);
            self.journal.push(format!("unload {}/{} {}", intent.namespace, intent.name, intent.reason));
        }
        for entry in &config.spec.modules {
            let uid = entry.module_uid.clone().unwrap_or_default();
            if entry.config.kernel_version != self.release.strip_suffix('+').unwrap_or(&self.release) {
                reports.insert(uid, report(entry, ModuleState::Failed, "WrongKernel", None));
                continue;
            }
            let before = self
                .loaded
                .iter()
                .find(|(of, held)| (&held.namespace, &held.name) == (&entry.namespace, &entry.name) && **of != uid);
            if let Some((of, held)) = before.map(|(of, held)| (of.clone(), held.clone())) {
                // A Module made again under its name: the same file is its own from now on.
                if same_in_kernel(&held.config, &entry.config) {
                    self.loaded.remove(&of);
                    self.loaded.insert(uid.clone(), entry.clone());
                }
            }
            if let (false, Some((reason, message))) = (self.loaded.contains_key(&uid), self.refuses) {
                let failed = report(entry, ModuleState::Failed, reason, None);
                reports.insert(uid, NodeModuleStatus { message: Some(message.to_owned()), ..failed });
                continue;
            }
            match self.loaded.get_mut(&uid) {
                None => {
                    self.journal.push(format!("load {}/{}", entry.namespace, entry.name));
                    self.loaded.insert(uid.clone(), entry.clone());
                }
                Some(loaded) if same_in_kernel(&loaded.config, &entry.config) => *loaded = entry.clone(),
                Some(_) => {}
            }
            if stuck.contains(&uid) {
                continue;
            }
            let loaded = &self.loaded[&uid];
            let same = same_in_kernel(&loaded.config, &entry.config);
            let (state, reason) = match entry.policy.unwrap_or_default().on_change {
                _ if same => (ModuleState::Loaded, "Loaded"),
                OnChange::Reload => (ModuleState::Failed, "LoadedOtherFile"),
                OnChange::OnReboot => (ModuleState::Pending, "WaitingForReboot"),
            };
            reports.insert(uid, report(entry, state, reason, Some(loaded)));
        }
        for (uid, entry) in &self.loaded {
            let keeps = entry.policy.unwrap_or_default().on_removal == OnRemoval::Keep;
            let reason = if keeps { "Kept" } else { "NotWanted" };
            let orphaned = || report(entry, ModuleState::Orphaned, reason, Some(entry));
            reports.entry(uid.clone()).or_insert_with(orphaned);
        }
        NodeModulesConfigStatus {
            boot_id: Some(format!("boot-{}", self.boot)),
            observed_generation: config.metadata.generation,
            worker_version: Some("test".to_owned()),
            modules: reports.into_values().collect(),
            ..NodeModulesConfigStatus::default()
        }
    }
}

/// A node without a machine.
pub(crate) struct FakeNode {
    pub(crate) kernel: Arc<Mutex<Kernel>>,
    pub(crate) kubelet: Kubelet,
    worker: JoinHandle<()>,
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

pub(crate) struct Bed {
    pub(crate) cluster: ControlPlane,
    pub(crate) admin: Client,
    pub(crate) manager: Manager,
    pub(crate) nodes: BTreeMap<String, FakeNode>,
}

impl Bed {
    pub(crate) async fn start(edition: Edition) -> Result<Self> {
        let options = ControlPlaneOptions { controller_manager: true, audit: true, ..ControlPlaneOptions::default() };
        let cluster = ControlPlane::start(options).await?;
        install(&cluster, edition).await?;
        let admin = cluster.admin().await?;
        let manager = Manager::start(&cluster, edition).await?;
        Ok(Self { cluster, admin, manager, nodes: BTreeMap::new() })
    }

    /// A node that is Ready, whose kubelet tells so, and whose worker looks five times a second.
    pub(crate) async fn node(&mut self, name: &str, kernel: &str, labels: Value) -> Result<()> {
        let kubelet = Kubelet::join(self.admin.clone(), name, &labels, kernel, "boot-1").await?;
        let held = Arc::new(Mutex::new(Kernel { boot: 1, release: kernel.to_owned(), ..Kernel::default() }));
        let worker = self.cluster.client(&worker_kubeconfig(&self.cluster, name).await?).await?;
        let worker = tokio::spawn(work(worker, name.to_owned(), Arc::clone(&held)));
        self.nodes.insert(name.to_owned(), FakeNode { kernel: held, kubelet, worker });
        Ok(())
    }

    /// The node starts again, with this kernel, in which nothing is loaded.
    pub(crate) async fn reboot(&self, name: &str, kernel: &str) -> Result<()> {
        let boot = {
            let mut held = self.nodes[name].kernel.lock().unwrap();
            held.boot += 1;
            kernel.clone_into(&mut held.release);
            held.loaded.clear();
            held.boot
        };
        self.nodes[name].kubelet.tell_boot(kernel, &format!("boot-{boot}")).await
    }

    pub(crate) async fn patch_node(&self, name: &str, body: Value) -> Result<()> {
        let api: Api<Node> = Api::all(self.admin.clone());
        api.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    pub(crate) fn journal(&self, node: &str) -> Vec<String> {
        self.nodes[node].kernel.lock().unwrap().journal.clone()
    }

    /// A Module on the nodes with the label `gpu=yes`; `edit` is merged into its specification.
    pub(crate) async fn module(&self, namespace: &str, name: &str, image: &str, edit: Value) -> Result<Module> {
        self.cluster
            .apply_yaml(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}"))
            .await?;
        let module = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": {"gpu": "yes"}, "moduleLoader": {"container": {
                "modprobe": {"moduleName": name},
                "kernelMappings": [{"regexp": "^6\\.", "containerImage": image}],
            }}},
        }))?;
        let api: Api<Module> = Api::namespaced(self.admin.clone(), namespace);
        api.create(&PostParams::default(), &module).await?;
        self.edit_module(namespace, name, json!({"spec": edit})).await
    }

    pub(crate) async fn edit_module(&self, namespace: &str, name: &str, body: Value) -> Result<Module> {
        let api: Api<Module> = Api::namespaced(self.admin.clone(), namespace);
        Ok(api.patch(name, &PatchParams::default(), &Patch::Merge(body)).await?)
    }

    pub(crate) async fn delete_module(&self, namespace: &str, name: &str) -> Result<()> {
        let api: Api<Module> = Api::namespaced(self.admin.clone(), namespace);
        api.delete(name, &DeleteParams::background()).await?;
        Ok(())
    }

    pub(crate) async fn get_module(&self, namespace: &str, name: &str) -> Result<Option<Module>> {
        Ok(Api::<Module>::namespaced(self.admin.clone(), namespace).get_opt(name).await?)
    }

    /// Waits until the condition Ready of a Module has this status and reason; returns its message.
    pub(crate) async fn ready(&self, namespace: &str, name: &str, status: &str, reason: &str) -> Result<String> {
        let what = format!("{namespace}/{name} to be {status} {reason}");
        let found = eventually(LIMIT, &what, || async {
            let module = self.get_module(namespace, name).await?.context("it is gone")?;
            let is = module.status.clone().unwrap_or_default();
            let ready =
                is.conditions.iter().find(|condition| condition.type_ == "Ready").context("no condition yet")?;
            let told = (ready.status.as_str(), ready.reason.as_str());
            ensure!(told == (status, reason), "{told:?}: {}", ready.message);
            ensure!(is.observed_generation == module.metadata.generation, "of an older generation");
            Ok(Some(ready.message.clone()))
        });
        match found.await {
            Ok(message) => Ok(message),
            Err(error) => {
                let is = self.get_module(namespace, name).await?.and_then(|module| module.status);
                Err(error.context(format!("{is:#?}\n{}", self.manager.log_tail(20))))
            }
        }
    }

    pub(crate) async fn config(&self, node: &str) -> Result<Option<NodeModulesConfig>> {
        Ok(Api::<NodeModulesConfig>::all(self.admin.clone()).get_opt(node).await?)
    }

    /// The labels of the node that the manager decides on.
    pub(crate) async fn labels(&self, node: &str) -> Result<BTreeSet<String>> {
        let node = Api::<Node>::all(self.admin.clone()).get(node).await?;
        let ours = |key: &&String| key.starts_with("kmm.node.kubernetes.io/");
        Ok(node.labels().keys().filter(ours).map(|key| key.replace("kmm.node.kubernetes.io/", "")).collect())
    }

    pub(crate) async fn labels_become(&self, node: &str, wanted: &[&str]) -> Result<()> {
        let wanted: BTreeSet<String> = wanted.iter().map(|label| (*label).to_owned()).collect();
        eventually(LIMIT, &format!("{node} to have the labels {wanted:?}"), || async {
            let labels = self.labels(node).await?;
            ensure!(labels == wanted, "{labels:?}");
            Ok(Some(()))
        })
        .await
    }

    pub(crate) async fn journal_becomes(&self, node: &str, wanted: &[&str]) -> Result<()> {
        eventually(LIMIT, &format!("{node} to have done {wanted:?}"), || async {
            let journal = self.journal(node);
            ensure!(journal == wanted, "{journal:?}\n{}", self.manager.log_tail(5));
            Ok(Some(()))
        })
        .await
    }

    /// Everything that the manager wrote, its lease and events apart.
    pub(crate) fn writes(&self, edition: Edition) -> Result<Vec<String>> {
        audit::writes(&[&self.cluster], &user(edition.manager()), &["events", "leases"])
    }

    /// The same, once nothing was added for three seconds.
    pub(crate) async fn settled(&self, edition: Edition) -> Result<Vec<String>> {
        audit::settled(Duration::from_secs(3), || self.writes(edition)).await
    }

    /// Requests of manager and workers that were refused for want of a right.
    pub(crate) fn forbidden(&self) -> Result<Vec<String>> {
        let refused = audit::forbidden(&[&self.cluster], &user(""))?;
        Ok(refused.iter().map(|r| format!("{} {}", r.verb, r.uri)).collect())
    }

    pub(crate) async fn count<K>(&self) -> Result<usize>
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        Ok(Api::<K>::all(self.admin.clone()).list(&ListParams::default()).await?.items.len())
    }
}

async fn work(client: Client, name: String, kernel: Arc<Mutex<Kernel>>) {
    let api: Api<NodeModulesConfig> = Api::all(client);
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let Ok(Some(config)) = api.get_opt(&name).await else { continue };
        let status = {
            let mut kernel = kernel.lock().unwrap();
            if kernel.asleep {
                continue;
            }
            kernel.carry_out(&config)
        };
        if config.status.as_ref() == Some(&status) {
            continue;
        }
        let body = json!({
            "apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "NodeModulesConfig", "metadata": {"name": name},
            "status": status,
        });
        let params = PatchParams::apply("kmm-worker").force();
        if let Err(error) = api.patch_status(&name, &params, &Patch::Apply(body)).await {
            eprintln!("worker on {name}: {error}");
        }
    }
}
