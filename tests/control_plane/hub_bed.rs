//! A Hub for tests: control plane, registry, the Hub's controllers with the rights of their ServiceAccount.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use kmm::api::{ManagedClusterModule, ManagedClusterModuleStatus, ModuleImagesConfig};
use kmm::hub::standing::RemovalGuard;
use kmm::hub::{Hub, HubSettings};
use kmm::images::{Images, ImagesSettings};
use kmm::runtime::metrics::Metrics;
use kmm::runtime::readiness::Readiness;
use kmm::runtime::tasks::Tasks;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::ocm;
use crate::ocm::kinds::{manifest_works, to_json};
use crate::support::audit;
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::eventually;
use crate::support::images::{Image, Layer};
use crate::support::manager::{Edition, NAMESPACE, install, user};
use crate::support::registry::{Registry, RegistryOptions};

/// Longest wait for anything that takes a few passes.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

pub(crate) struct Bed {
    pub(crate) cluster: ControlPlane,
    pub(crate) registry: Registry,
    pub(crate) admin: Client,
    hub: Option<RunningHub>,
}

struct RunningHub {
    shutdown: CancellationToken,
    tasks: JoinHandle<()>,
    leading: JoinHandle<()>,
}

impl Bed {
    pub(crate) async fn start() -> Result<Self> {
        let options = ControlPlaneOptions { controller_manager: true, audit: true, ..ControlPlaneOptions::default() };
        let cluster = ControlPlane::start(options).await?;
        cluster.install_crds(&ocm::crds()).await?;
        install(&cluster, Edition::Hub).await?;
        let admin = cluster.admin().await?;
        let registry = Registry::start(RegistryOptions::default()).await?;
        let mut bed = Self { cluster, registry, admin, hub: None };
        bed.start_hub().await?;
        Ok(bed)
    }

    /// Starts the controllers as a manager that holds the lease would.
    pub(crate) async fn start_hub(&mut self) -> Result<()> {
        let account =
            || async { Ok(self.cluster.service_account_kubeconfig(NAMESPACE, Edition::Hub.manager()).await.ok()) };
        let kubeconfig = eventually(LIMIT, "the manager's ServiceAccount", account).await?;
        let client = self.cluster.client(&kubeconfig).await?;
        let (shutdown, metrics, readiness) = (CancellationToken::new(), Metrics::default(), Readiness::default());
        let mut tasks = Tasks::new(shutdown.clone(), Duration::from_secs(8));
        let settings = HubSettings {
            operator_namespace: NAMESPACE.to_owned(),
            removal_guard: RemovalGuard::default(),
            instance: None,
        };
        let hub = Hub::start(settings, client.clone(), &metrics, &readiness, &mut tasks);
        let settings = ImagesSettings {
            namespace: Some(NAMESPACE.to_owned()),
            is_hub: true,
            instance: None,
            proxies: kmm::oci::route::proxies::Proxies::default(),
        };
        let images = Images::start(settings, client, &metrics, &readiness, &mut tasks);
        let tasks = tokio::spawn(async move { tasks.run().await.expect("a watch ended") });
        let end = shutdown.clone();
        let leading = tokio::spawn(async move {
            tokio::join!(hub.lead(end.clone()), images.lead(end));
        });
        eventually(LIMIT, "the watches", || async { Ok(readiness.missing().is_empty().then_some(())) }).await?;
        self.hub = Some(RunningHub { shutdown, tasks, leading });
        Ok(())
    }

    pub(crate) async fn stop_hub(&mut self) -> Result<()> {
        let hub = self.hub.take().context("the Hub does not run")?;
        hub.shutdown.cancel();
        hub.leading.await?;
        Ok(hub.tasks.await?)
    }

    /// Pushes an image for each kernel into `repository`; gives the image with digest by kernel.
    pub(crate) async fn push(&self, repository: &str, kernels: &[&str]) -> Result<BTreeMap<String, String>> {
        let mut images = BTreeMap::new();
        for kernel in kernels {
            let kernel = kernel.strip_suffix('+').unwrap_or(kernel);
            let layer = Layer::new().file(format!("opt/lib/modules/{kernel}/x.ko"), kernel.as_bytes());
            let tag = kernel.replace('+', "_");
            let digest = self.registry.push(repository, &tag, &Image::new().layer(layer).build()?).await?;
            images.insert(kernel.to_owned(), format!("{}/{repository}@{digest}", self.registry.address()));
        }
        Ok(images)
    }

    pub(crate) async fn cluster(&self, name: &str, labels: &[(&str, &str)], kernels: &[&str]) -> Result<()> {
        let claim = kernels.join("\n");
        let claims = [(kmm::api::names::KERNEL_CLAIM, claim.as_str()), ("id.k8s.io", name)];
        ocm::fake::fake_cluster(&self.admin, name, labels, if kernels.is_empty() { &claims[1..] } else { &claims })
            .await
    }

    pub(crate) async fn label_cluster(&self, name: &str, labels: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        ocm::kinds::managed_clusters(&self.admin).patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Applies a ManagedClusterModule for clusters with the label `mcm=<name>`; gives its uid.
    pub(crate) async fn module(&self, name: &str, image: &str, parameters: &[&str]) -> Result<String> {
        let object = json!({
            "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1", "kind": "ManagedClusterModule", "metadata": {"name": name},
            "spec": {"spokeNamespace": "drivers", "selector": {"mcm": name}, "moduleSpec": {
                "selector": {},
                "moduleLoader": {"container": {
                    "registryTLS": {"insecure": true},
                    "containerImage": image,
                    "modprobe": {"moduleName": "x", "parameters": parameters},
                    "kernelMappings": [{"regexp": "^[0-9]", "containerImage": ""}],
                }},
            }},
        });
        self.cluster.apply_yaml(&object.to_string()).await?;
        Ok(self.modules().get(name).await?.uid().unwrap_or_default())
    }

    pub(crate) fn modules(&self) -> Api<ManagedClusterModule> {
        Api::all(self.admin.clone())
    }

    pub(crate) fn images(&self) -> Api<ModuleImagesConfig> {
        Api::namespaced(self.admin.clone(), NAMESPACE)
    }

    pub(crate) async fn work(&self, cluster: &str, name: &str) -> Result<Option<Value>> {
        Ok(manifest_works(&self.admin, cluster).get_opt(name).await?.map(|work| to_json(&work)))
    }

    /// Every work as JSON.
    pub(crate) async fn works(&self) -> Result<Vec<Value>> {
        let kind = Api::<kmm::api::ocm::ManifestWork>::all(self.admin.clone());
        let mut works = Vec::new();
        for work in kind.list_metadata(&ListParams::default()).await?.items {
            works.extend(self.work(&work.namespace().unwrap_or_default(), &work.name_any()).await?);
        }
        Ok(works)
    }

    /// Waits until the status is as `wanted` says; the error holds the last status.
    pub(crate) async fn status(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&ManagedClusterModuleStatus) -> bool,
    ) -> Result<ManagedClusterModuleStatus> {
        eventually(LIMIT, &format!("{name}: {what}"), || async {
            let status = self.modules().get(name).await?.status.unwrap_or_default();
            anyhow::ensure!(wanted(&status), "{}", serde_json::to_string(&status)?);
            Ok(Some(status))
        })
        .await
    }

    /// Everything that the manager's ServiceAccount wrote so far, events apart.
    pub(crate) fn writes(&self) -> Result<Vec<String>> {
        audit::writes(&[&self.cluster], &user(Edition::Hub.manager()), &["events"])
    }

    /// The same, once nothing was added for `seconds`.
    pub(crate) async fn settled(&self, seconds: u64) -> Result<Vec<String>> {
        audit::settled(Duration::from_secs(seconds), || self.writes()).await
    }

    /// Requests of the manager's ServiceAccount that the server refused for lack of rights.
    pub(crate) fn forbidden(&self) -> Result<Vec<String>> {
        let refused = audit::forbidden(&[&self.cluster], &user(Edition::Hub.manager()))?;
        Ok(refused.iter().map(|r| format!("{} {}", r.verb, r.uri)).collect())
    }
}

/// Status and reason of a condition.
pub(crate) fn condition<'a>(status: &'a ManagedClusterModuleStatus, type_: &str) -> (&'a str, &'a str) {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_);
    found.map_or(("", ""), |condition| (&condition.status, &condition.reason))
}

/// Kernel and image of each mapping in a work.
pub(crate) fn sent(work: &Value) -> BTreeMap<String, String> {
    let mappings = &work["spec"]["workload"]["manifests"][1]["spec"]["moduleLoader"]["container"]["kernelMappings"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    mappings.as_array().into_iter().flatten().map(|m| (text(&m["literal"]), text(&m["containerImage"]))).collect()
}
