//! A Hub, a Spoke with one node, a registry with a password, and the product on all of them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kmm::api::ocm::{ManagedCluster, ManifestWork};
use kmm::api::{ManagedClusterModule, NodeModuleStatus, NodeModulesConfig};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::ocm::{HubSide, Ocm, OcmOptions, SpokeSide};
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::kernel_vm::{KernelVm, KernelVmOptions};
use crate::support::kubelet::Kubelet;
use crate::support::manager::{Edition, Manager, NAMESPACE, executable, install, stripped, user, worker_kubeconfig};
use crate::support::registry::{Registry, RegistryOptions};
use crate::support::{audit, eventually, images, kmods};

/// Longest time of anything, on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_mins(3);
/// The cluster, and the value of the label by which it is selected.
pub(crate) const CLUSTER: &str = "spoke";
/// The ManagedClusterModule.
pub(crate) const NAME: &str = "plain";
const MODULE: &str = "kmm_plain";
/// Namespace of the Module on the Spoke.
const SPOKE_NAMESPACE: &str = "drivers";
const SECRET: &str = "pull";

pub(crate) struct World {
    registry: Registry,
    hub: ControlPlane,
    spoke: ControlPlane,
    hub_client: Client,
    spoke_client: Client,
    managers: [Manager; 2],
    _ocm: Ocm,
    vm: KernelVm,
    kubelet: Kubelet,
}

impl World {
    pub(crate) async fn start() -> Result<Self> {
        let auth = Some(("puller".to_owned(), "hunter2".to_owned()));
        let registry = Registry::start(RegistryOptions { auth, ..RegistryOptions::default() }).await?;
        let options =
            || ControlPlaneOptions { controller_manager: true, audit: true, ..ControlPlaneOptions::default() };
        let programs = vec![stripped(&executable())?];
        let vm = KernelVm::start(KernelVmOptions { programs, ..KernelVmOptions::default() });
        let (hub, spoke, vm) = tokio::try_join!(ControlPlane::start(options()), ControlPlane::start(options()), vm)?;
        let sides = (HubSide::of(&hub, CLUSTER).await?, SpokeSide::of(&spoke).await?);
        install(&hub, Edition::Hub).await?;
        install(&spoke, Edition::Spoke).await?;
        let (hub_client, spoke_client) = (hub.admin().await?, spoke.admin().await?);
        for (plane, namespace) in [(&hub, NAMESPACE), (&spoke, SPOKE_NAMESPACE)] {
            let name = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            plane.apply_yaml(&name.to_string()).await?;
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
                "metadata": {"name": SECRET, "namespace": namespace},
                "stringData": {".dockerconfigjson": registry.docker_config()},
            });
            plane.apply_yaml(&secret.to_string()).await?;
        }
        let labels = [("fleet".to_owned(), CLUSTER.to_owned())].into();
        let ocm = Ocm::start(&sides.0, &sides.1, CLUSTER, OcmOptions { labels, ..OcmOptions::default() }).await?;
        let managers = [Manager::start(&hub, Edition::Hub).await?, Manager::start(&spoke, Edition::Spoke).await?];
        let labels = json!({"kubernetes.io/hostname": vm.name(), "kubernetes.io/os": "linux"});
        let (kernel, boot_id) = (vm.kernel(), vm.boot_id().await?);
        let kubelet = Kubelet::join(spoke_client.clone(), vm.name(), &labels, &kernel, &boot_id).await?;
        let world = Self { registry, hub, spoke, hub_client, spoke_client, managers, _ocm: ocm, vm, kubelet };
        world.start_worker().await?;
        Ok(world)
    }

    /// Starts the worker with the token that belongs to its Node.
    async fn start_worker(&self) -> Result<()> {
        let name = self.vm.name();
        let kubeconfig = std::fs::read(worker_kubeconfig(&self.spoke, name).await?)?;
        self.vm.put("/root/kubeconfig", 0o600, &kubeconfig).await?;
        let worker = format!("KUBECONFIG=/root/kubeconfig KMM_LOG_FORMAT=text /kmm worker --node-name {name}");
        let command = format!("mkdir -p /var/log; {worker} >/var/log/worker.log 2>&1 </dev/null &");
        self.vm.run(&command).await.map(drop)
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.spoke_client.clone())
    }

    pub(crate) fn managed_cluster_modules(&self) -> Api<ManagedClusterModule> {
        Api::all(self.hub_client.clone())
    }

    // ---- what is asked for ------------------------------------------------------------------------------

    /// Pushes the image for the node's kernel; its digest.
    pub(crate) async fn push(&self) -> Result<String> {
        let release = self.vm.kernel();
        let image = images::kmod_image(&release, &[kmods::for_kernel(&release)?.plain()?], "/opt")?.build()?;
        self.registry.push("kmods/plain", "v1", &image).await
    }

    pub(crate) async fn apply(&self) -> Result<()> {
        let container = json!({
            "registryTLS": {"insecure": true}, "modprobe": {"moduleName": MODULE},
            "kernelMappings": [{"regexp": "^.+$", "containerImage": format!("{}/kmods/plain:v1", self.registry.address())}],
        });
        let module = json!({
            "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1", "kind": "ManagedClusterModule", "metadata": {"name": NAME},
            "spec": {"spokeNamespace": SPOKE_NAMESPACE, "selector": {"fleet": CLUSTER}, "moduleSpec": {
                "selector": {"kubernetes.io/os": "linux"}, "imageRepoSecret": {"name": SECRET},
                "moduleLoader": {"container": container},
            }},
        });
        self.hub.apply_yaml(&module.to_string()).await.map(drop)
    }

    /// Sets the cluster's label by which it is selected, or not.
    pub(crate) async fn label_cluster(&self, value: &str) -> Result<()> {
        let clusters: Api<ManagedCluster> = Api::all(self.hub_client.clone());
        let labels = json!({"metadata": {"labels": {"fleet": value}}});
        clusters.patch(CLUSTER, &PatchParams::default(), &Patch::Merge(labels)).await?;
        Ok(())
    }

    /// Both managers are killed and started again.
    pub(crate) async fn restart_managers(&mut self) -> Result<()> {
        for manager in &mut self.managers {
            manager.restart().await?;
        }
        Ok(())
    }

    // ---- what comes of it -------------------------------------------------------------------------------

    /// Waits until the Hub says that it is ready, on one node of one cluster.
    pub(crate) async fn becomes_ready(&self) -> Result<()> {
        let ready = eventually(LIMIT, "the ManagedClusterModule to be ready", || async {
            let status = self.managed_cluster_modules().get(NAME).await?.status.unwrap_or_default();
            let ready =
                status.conditions.iter().find(|condition| condition.type_ == "Ready").context("no condition")?;
            let available = status.nodes.as_ref().and_then(|nodes| nodes.available);
            let done = ready.status == "True" && (status.number_ready, available) == (Some(1), Some(1));
            if done { Ok(Some(())) } else { bail!("{}: {}", ready.reason, ready.message) }
        });
        match ready.await {
            Ok(()) => Ok(()),
            Err(error) => {
                let worker = self.vm.exec("tail -n 15 /var/log/worker.log").await?.text();
                let [hub, spoke] = &self.managers;
                Err(error.context(format!("{}\n{}\n{worker}", hub.log_tail(10), spoke.log_tail(10))))
            }
        }
    }

    /// How many clusters the Hub counts as ready.
    pub(crate) async fn ready_clusters(&self) -> Result<i32> {
        let status = self.managed_cluster_modules().get(NAME).await?.status.unwrap_or_default();
        Ok(status.number_ready.unwrap_or_default())
    }

    /// What the worker says of the Module.
    pub(crate) async fn told(&self) -> Result<NodeModuleStatus> {
        let configs: Api<NodeModulesConfig> = Api::all(self.spoke_client.clone());
        let status = configs.get(self.vm.name()).await?.status.unwrap_or_default();
        let [entry] = &status.modules[..] else { bail!("{status:?}") };
        Ok(entry.clone())
    }

    /// The ManifestWork, if it is there.
    pub(crate) async fn work(&self) -> Result<Option<Value>> {
        let works: Api<ManifestWork> = Api::namespaced(self.hub_client.clone(), CLUSTER);
        Ok(works.get_opt(NAME).await?.map(serde_json::to_value).transpose()?)
    }

    pub(crate) async fn in_kernel(&self) -> Result<bool> {
        Ok(self.vm.run("cat /proc/modules").await?.contains(&format!("{MODULE} ")))
    }

    pub(crate) async fn leaves_the_kernel(&self) -> Result<()> {
        let there = format!("{MODULE} ");
        self.vm.wait_for(LIMIT, "cat /proc/modules", |out| out.code == 0 && !out.text().contains(&there)).await?;
        Ok(())
    }

    /// The Node's heartbeat ends; waits until the cluster knows nothing of it any more.
    pub(crate) async fn lose_node(&mut self) -> Result<()> {
        self.kubelet.fall_silent();
        eventually(LIMIT, "the Node to be unreachable", || async {
            let node = self.nodes().get(self.vm.name()).await?;
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            let unknown =
                conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "Unknown");
            let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
            let tainted = taints.iter().any(|taint| taint.key == "node.kubernetes.io/unreachable");
            if unknown && tainted { Ok(Some(())) } else { bail!("{conditions:?} {taints:?}") }
        })
        .await
    }

    /// The Node's heartbeat is there again.
    pub(crate) fn find_node(&mut self) {
        self.kubelet.beat();
    }

    /// Everything that managers and worker wrote, their leases apart.
    pub(crate) fn writes(&self) -> Result<Vec<String>> {
        audit::writes(&[&self.hub, &self.spoke], &user(""), &["leases"])
    }

    /// The same, once nothing was added for twenty seconds: OCM's agents tell what they see late.
    pub(crate) async fn settled_writes(&self) -> Result<Vec<String>> {
        audit::settled(Duration::from_secs(20), || self.writes()).await
    }

    /// Requests of managers and worker that were refused for want of a right. The API server may see the right to read a
    /// pull secret a moment after the entry that names it; the worker then asks again, and nothing would be loaded if it
    /// never came.
    pub(crate) fn forbidden(&self) -> Result<Vec<String>> {
        let refused = audit::forbidden(&[&self.hub, &self.spoke], &user(""))?;
        let refused = refused.iter().filter(|request| request.resource != "secrets");
        Ok(refused.map(|request| format!("{} {}", request.verb, request.uri)).collect())
    }
}
