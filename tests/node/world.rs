//! A cluster with one node on which the product runs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node as KubeNode, Pod};
use kmm::api::names::{WORKER_DAEMON_SET, ready_label};
use kmm::api::{Module, ModuleState, NodeModuleStatus, NodeModulesConfig};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::credentials;
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::manager::{self, Edition, NAMESPACE};
use crate::support::node::{Node, NodeOptions};
use crate::support::registry::{Registry, RegistryOptions};
use crate::support::{bed, eventually, images, kmods};

/// Longest time until a module is loaded.
pub(crate) const LIMIT: Duration = Duration::from_mins(3);
pub(crate) const NODE: &str = "node-1";
/// The Module that is there throughout.
pub(crate) const MODULE: &str = "kmm-plain";

pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) cluster: ControlPlane,
    pub(crate) registry: Registry,
    /// One that wants a password, which the node's kubelet has.
    pub(crate) closed: Registry,
}

impl World {
    pub(crate) async fn start() -> Result<Self> {
        let bed = bed()?;
        let registry = Registry::start(RegistryOptions::default()).await?;
        let image = format!("{}/kmm:test", registry.address());
        manager::push_product(&image)?;
        for kernel in [bed.kernel(), bed.older_kernel()] {
            let module = kmods::for_kernel(&kernel.release)?.plain()?;
            let layer = images::kmod_layer(&kernel.release, &[(module.file_name, module.bytes)], "/opt")?;
            registry.push("kmods/plain", &kernel.release, &images::Image::new().layer(layer).build()?).await?;
        }
        let cluster = ControlPlane::start(ControlPlaneOptions::full()).await?;
        let registries = vec![(registry.address(), None)];
        let auth = Some((credentials::USER.into(), credentials::PASSWORD.into()));
        let closed = Registry::start(RegistryOptions { auth, ..RegistryOptions::default() }).await?;
        let files = credentials::files(&closed);
        let options = NodeOptions { name: NODE.into(), registries, files, ..NodeOptions::default() };
        let node = Node::start(&cluster, options).await?;
        manager::install_image(&cluster, Edition::Standalone, &image).await?;
        manager::wait_available(&cluster, Edition::Standalone).await?;
        Ok(Self { node, cluster, registry, closed })
    }

    pub(crate) async fn apply_module(&self) -> Result<()> {
        let image = format!("{}/kmods/plain:${{KERNEL_FULL_VERSION}}", self.registry.address());
        let container = json!({
            "registryTLS": {"insecure": true}, "modprobe": {"moduleName": "kmm_plain"},
            "kernelMappings": [{"regexp": "^.+$", "containerImage": image}],
        });
        self.apply(MODULE, &json!({"container": container})).await
    }

    /// Writes a Module for every node.
    pub(crate) async fn apply(&self, name: &str, loader: &serde_json::Value) -> Result<()> {
        let module = json!({
            "apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "Module", "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"kubernetes.io/os": "linux"}, "moduleLoader": loader},
        });
        let api: Api<Module> = Api::namespaced(self.cluster.admin().await?, "default");
        api.patch(name, &PatchParams::apply("test"), &Patch::Apply(module)).await?;
        Ok(())
    }

    /// What the worker reports of a Module, once it is loaded.
    pub(crate) async fn wait_loaded(&self, name: &str) -> Result<NodeModuleStatus> {
        self.wait_loaded_after(name, None).await
    }

    /// The same, in another boot than the one that is given.
    pub(crate) async fn wait_loaded_after(&self, name: &str, boot: Option<&str>) -> Result<NodeModuleStatus> {
        let api: Api<NodeModulesConfig> = Api::all(self.cluster.admin().await?);
        let reported = eventually(LIMIT, "the module to be reported as loaded", || async {
            let config = api.get(NODE).await?;
            let status = config.status.unwrap_or_default();
            let entry = status.modules.into_iter().find(|module| module.name == name).context("no entry yet")?;
            let loaded =
                entry.state == Some(ModuleState::Loaded) && (boot.is_none() || entry.boot_id.as_deref() != boot);
            if loaded { Ok(Some(entry)) } else { bail!("{:?} {:?}: {:?}", entry.state, entry.reason, entry.message) }
        })
        .await;
        match reported {
            Ok(entry) => {
                ensure!(self.in_kernel().await?, "reported as loaded, but the kernel has no such module: {entry:?}");
                Ok(entry)
            }
            Err(error) => bail!("{error:#}\n{}", self.logs().await),
        }
    }

    pub(crate) async fn in_kernel(&self) -> Result<bool> {
        Ok(self.node.exec("grep -qw ^kmm_plain /proc/modules").await?.code == 0)
    }

    pub(crate) async fn stays_loaded(&self, quiet: Duration, after: &str) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < quiet {
            if !self.in_kernel().await? {
                bail!("the module was unloaded after {after}\n{}", self.logs().await);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    pub(crate) async fn wait_ready_label(&self, wanted: bool) -> Result<()> {
        let api: Api<KubeNode> = Api::all(self.cluster.admin().await?);
        let label = ready_label("default", MODULE);
        eventually(Duration::from_mins(1), &format!("label {label} to be there: {wanted}"), || async {
            Ok((api.get(NODE).await?.labels().contains_key(&label) == wanted).then_some(()))
        })
        .await
    }

    /// Digest that the registry has for the kernel that runs.
    pub(crate) async fn digest_of_running_kernel(&self) -> Result<String> {
        self.registry.digest("kmods/plain", &self.node.kernel()).await?.context("no image for the running kernel")
    }

    pub(crate) async fn kill_manager_pod(&self) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.cluster.admin().await?, NAMESPACE);
        let managers = ListParams::default().labels("control-plane=controller");
        api.delete_collection(&DeleteParams::default().grace_period(0), &managers).await?;
        Ok(())
    }

    pub(crate) async fn daemon_sets(&self) -> Result<Api<DaemonSet>> {
        Ok(Api::namespaced(self.cluster.admin().await?, NAMESPACE))
    }

    /// The pods of the worker's DaemonSet that is there, by UID, and whether they are ready.
    pub(crate) async fn worker_pods(&self) -> Result<Vec<(String, bool)>> {
        let Some(owner) = self.daemon_sets().await?.get_opt(WORKER_DAEMON_SET).await?.and_then(|set| set.uid()) else {
            return Ok(Vec::new());
        };
        let api: Api<Pod> = Api::namespaced(self.cluster.admin().await?, NAMESPACE);
        let ready = |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
        };
        let pods = api.list(&ListParams::default()).await?.items.into_iter();
        let own = pods.filter(|pod| pod.owner_references().iter().any(|reference| reference.uid == owner));
        Ok(own.map(|pod| (pod.uid().unwrap_or_default(), ready(&pod))).collect())
    }

    /// SIGKILL for every worker process of the node.
    pub(crate) async fn kill_worker(&self) -> Result<()> {
        let workers = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/usr/bin/kmm worker' \
                       && kill -9 ${p#/proc/}; done; true";
        self.node.exec(workers).await.map(drop)
    }

    pub(crate) async fn delete_module_and_wait(&self, name: &str) -> Result<()> {
        let api: Api<Module> = Api::namespaced(self.cluster.admin().await?, "default");
        api.delete(name, &DeleteParams::default()).await?;
        let gone = eventually(Duration::from_mins(2), "the Module to go", || async {
            Ok(api.get_opt(name).await?.is_none().then_some(()))
        })
        .await;
        match gone {
            Ok(()) => Ok(()),
            Err(error) => bail!("{error:#}\n{}", self.logs().await),
        }
    }

    /// The end of the logs of manager and worker, for an error.
    pub(crate) async fn logs(&self) -> String {
        let manager = format!("deployment/{}", Edition::Standalone.manager());
        let mut text = String::new();
        for target in [manager.as_str(), &format!("daemonset/{WORKER_DAEMON_SET}")] {
            let log = self.cluster.kubectl(&["-n", NAMESPACE, "logs", target, "--tail=25"]).await;
            text += "-- ";
            text += target;
            text += "\n";
            text += &log.unwrap_or_else(|error| format!("{error:#}"));
        }
        text + &self.cluster.kubectl(&["get", "nmc,modules,pods", "-A", "-o", "wide"]).await.unwrap_or_default()
    }
}
