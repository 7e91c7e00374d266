//! One hub and one spoke for all tests; each test joins the spoke under a name of its own.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::ocm::hub::agent_identity;
use crate::ocm::kinds::{applied_manifest_works, condition_status, list, manifest_works, put, text, to_json};
use crate::ocm::{AGENT_ID, HubSide, Ocm, OcmOptions, SpokeSide};
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::eventually;

static PLANES: OnceCell<(ControlPlane, ControlPlane)> = OnceCell::const_new();

/// Soon, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// A custom resource with a default, a status subresource and no rights for the agent.
const WIDGET_CRD: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: NAME.bed.example.com}
spec:
  group: bed.example.com
  scope: Namespaced
  names: {kind: KIND, listKind: KINDList, plural: NAME, singular: kind}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {size: {type: integer, default: 7}}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

/// A spoke joined to the hub, and a namespace on the spoke.
pub(crate) struct World {
    pub(crate) hub: Client,
    pub(crate) spoke: Client,
    pub(crate) ocm: Ocm,
    pub(crate) cluster: String,
    pub(crate) namespace: String,
}

impl World {
    /// Joins the shared spoke under the name `cluster`, which no other test uses.
    pub(crate) async fn join(cluster: &str, options: OcmOptions) -> Result<Self> {
        let (hub, spoke) = PLANES
            .get_or_try_init(|| async {
                let with_manager =
                    || ControlPlaneOptions { controller_manager: true, ..ControlPlaneOptions::default() };
                let hub =
                    ControlPlane::start(ControlPlaneOptions { audit: true, ..ControlPlaneOptions::default() }).await?;
                anyhow::Ok((hub, ControlPlane::start(with_manager()).await?))
            })
            .await?;
        let hub_side = HubSide::of(hub, cluster).await?;
        let spoke_side = SpokeSide::of(spoke).await?;
        let namespace = spoke.namespace(cluster).await?;
        let ocm = Ocm::start(&hub_side, &spoke_side, cluster, options).await?;
        Ok(Self { hub: hub_side.admin, spoke: spoke_side.admin, ocm, cluster: cluster.to_owned(), namespace })
    }

    /// How many writes the agent of this cluster has sent to the hub, its lease apart.
    pub(crate) fn writes_to_hub(&self) -> Result<usize> {
        let (hub, _) = PLANES.get().context("the control planes are not there")?;
        let user = agent_identity(&self.cluster, AGENT_ID).0;
        let requests = hub.requests()?.into_iter();
        Ok(requests
            .filter(|request| request.user == user && request.is_write() && request.resource != "leases")
            .count())
    }

    pub(crate) fn works(&self) -> Api<DynamicObject> {
        manifest_works(&self.hub, &self.cluster)
    }

    /// Creates or changes a work; `spec` is the whole spec.
    pub(crate) async fn put_work(&self, name: &str, spec: &Value) -> Result<Value> {
        let work = json!({
            "apiVersion": "work.open-cluster-management.io/v1", "kind": "ManifestWork",
            "metadata": {"name": name, "namespace": self.cluster}, "spec": spec,
        });
        Ok(to_json(&put(&self.hub, &work).await?))
    }

    pub(crate) async fn work(&self, name: &str) -> Result<Value> {
        Ok(to_json(&self.works().get(name).await?))
    }

    /// Waits until a condition of the work has a status for its current generation.
    pub(crate) async fn wait_for(&self, name: &str, kind: &str, status: &str) -> Result<Value> {
        self.wait_until(name, &format!("{kind}={status}"), |work| {
            let conditions = list(work, "/status/conditions");
            condition_status(conditions, kind) == status
                && conditions
                    .iter()
                    .any(|c| c["type"] == kind && c["observedGeneration"] == work["metadata"]["generation"])
        })
        .await
    }

    pub(crate) async fn wait_until(
        &self,
        name: &str,
        what: &str,
        mut test: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let what = format!("{what} of work {}/{name}", self.cluster);
        let mut last = Value::Null;
        let start = std::time::Instant::now();
        while start.elapsed() < SOON {
            last = self.work(name).await?;
            if test(&last) {
                return Ok(last);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("waited for {what}; its status is {:#}", last["status"])
    }

    pub(crate) async fn wait_gone(&self, api: &Api<DynamicObject>, name: &str) -> Result<()> {
        eventually(SOON, &format!("the end of {name}"), || async {
            Ok(api.get_opt(name).await?.is_none().then_some(()))
        })
        .await
    }

    pub(crate) fn config_maps(&self) -> Api<DynamicObject> {
        self.objects("", "v1", "ConfigMap", "configmaps")
    }

    /// Objects of a kind in the namespace of this test on the spoke, as an administrator.
    pub(crate) fn objects(&self, group: &str, version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        Api::namespaced_with(self.spoke.clone(), &self.namespace, &resource)
    }

    pub(crate) fn config_map(&self, name: &str, value: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": self.namespace}, "data": {"key": value},
        })
    }

    /// A manifest of the kind that [`World::install_crd`] installs.
    pub(crate) fn widget(&self, kind: &str, name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "bed.example.com/v1", "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace}, "spec": spec,
        })
    }

    /// Installs the custom resource `kind` on the spoke and waits until it is served.
    pub(crate) async fn install_crd(&self, kind: &str) -> Result<Api<DynamicObject>> {
        let plural = format!("{}s", kind.to_lowercase());
        let crd = WIDGET_CRD
            .replace("NAME", &plural)
            .replace("KIND", kind)
            .replace("singular: kind", &format!("singular: {}", kind.to_lowercase()));
        put(&self.spoke, &serde_saphyr::from_str::<Value>(&crd)?).await?;
        let api = self.objects("bed.example.com", "v1", kind, &plural);
        let list = ListParams::default();
        eventually(SOON, "the new kind to be served", || async { Ok(Some(api.list(&list).await.map(|_| ())?)) })
            .await?;
        Ok(api)
    }

    /// Gives the work agent the custom resource, in the way that a real installation offers.
    pub(crate) async fn aggregate(&self, kind: &str) -> Result<()> {
        let plural = format!("{}s", kind.to_lowercase());
        put(&self.spoke, &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": format!("bed-{plural}"), "labels": {"open-cluster-management.io/aggregate-to-work": "true"}},
            "rules": [{"apiGroups": ["bed.example.com"], "resources": [plural],
                "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"]}],
        }))
        .await?;
        Ok(())
    }

    pub(crate) async fn record(&self, work: &str) -> Result<Value> {
        let all = applied_manifest_works(&self.spoke).list(&ListParams::default()).await?;
        let found = all.items.iter().map(to_json).find(|record| text(record, "/spec/manifestWorkName") == work);
        found.with_context(|| format!("no record of work {work}"))
    }
}

/// `spec` with these manifests and nothing else.
pub(crate) fn manifests(all: &[Value]) -> Value {
    json!({"workload": {"manifests": all}})
}

/// A spec with one manifest and the entry of `manifestConfigs` for it.
pub(crate) fn configured(manifest: &Value, resource: &str, config: &Value) -> Value {
    let group = text(manifest, "/apiVersion").split_once('/').map_or("", |(group, _)| group);
    let mut entry = config.clone();
    entry["resourceIdentifier"] = json!({
        "group": group, "resource": resource,
        "name": manifest["metadata"]["name"], "namespace": manifest["metadata"]["namespace"],
    });
    json!({"workload": {"manifests": [manifest]}, "manifestConfigs": [entry]})
}

/// The condition of manifest `at`: status, reason, message.
pub(crate) fn manifest_condition(work: &Value, at: usize, kind: &str) -> (String, String, String) {
    let conditions = list(work, &format!("/status/resourceStatus/manifests/{at}/conditions"));
    let found = conditions.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null);
    let field = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    (field("status"), field("reason"), field("message"))
}

pub(crate) async fn merge(api: &Api<DynamicObject>, name: &str, patch: Value) -> Result<DynamicObject> {
    Ok(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?)
}
