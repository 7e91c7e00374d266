//! The admission policies that the manager keeps: there, in force, put back, and in nobody's way.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kmm::api::names::{
    CLAIMS_POLICY, NAMESPACE_CONTAINS_MODULES_LABEL, NAMESPACES_POLICY, WORKER_DAEMON_SET, WORKER_POLICY,
};
use kmm::api::{Module, NodeModulesConfig};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::CustomResourceExt;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::spoke_bed::{Bed, DIGEST, LIMIT};
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::eventually;
use crate::support::manager::{Edition, Manager, NAMESPACE, install};

const POLICIES: [&str; 3] = [NAMESPACES_POLICY, CLAIMS_POLICY, WORKER_POLICY];

/// Policies and bindings as an overlay with the usual prefix made them before the manager kept them.
const EARLIER: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: kmm-operator-worker-own-node, labels: {app.kubernetes.io/name: kmm}}
spec:
  matchConstraints:
    resourceRules:
    - {apiGroups: [kmm.sigs.x-k8s.io], apiVersions: ['*'], resources: [nodemodulesconfigs/status], operations: [CREATE, UPDATE]}
  matchConditions:
  - {name: by-a-service-account, expression: 'request.userInfo.username.startsWith(\"system:serviceaccount:\")'}
  validations: [{expression: 'false', message: the earlier one}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: kmm-operator-worker-own-node}
spec: {policyName: kmm-operator-worker-own-node, validationActions: [Deny]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: kmm-operator-own-cluster-claims}
spec:
  matchConstraints:
    resourceRules:
    - {apiGroups: [cluster.open-cluster-management.io], apiVersions: ['*'], resources: [clusterclaims], operations: ['*']}
  validations: [{expression: 'false', message: the earlier one}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: kmm-operator-own-cluster-claims}
spec: {policyName: kmm-operator-own-cluster-claims, validationActions: [Deny]}
";

/// Names and specifications of all objects of a kind.
async fn specs<K>(client: &Client) -> Result<Vec<(String, Value)>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let list = Api::<K>::all(client.clone()).list(&ListParams::default()).await?;
    list.items.iter().map(|item| Ok((item.name_any(), serde_json::to_value(item)?["spec"].take()))).collect()
}

/// Every policy and every binding of the cluster.
async fn all(client: &Client) -> Result<(Vec<(String, Value)>, Vec<(String, Value)>)> {
    let policies = specs::<ValidatingAdmissionPolicy>(client).await?;
    Ok((policies, specs::<ValidatingAdmissionPolicyBinding>(client).await?))
}

async fn edit<K>(client: &Client, name: &str, body: Value) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    Api::<K>::all(client.clone()).patch(name, &PatchParams::default(), &Patch::Merge(body)).await?;
    Ok(())
}

/// Waits until `/readyz` says this of the policies.
async fn readyz_says(manager: &Manager, said: &str) -> Result<()> {
    eventually(LIMIT, &format!("/readyz to say {said}"), || async {
        let text = manager.readyz().await?;
        ensure!(text.contains(said), "{text}\n{}", manager.log_tail(10));
        Ok(Some(()))
    })
    .await
}

async fn control_plane() -> Result<ControlPlane> {
    let options = ControlPlaneOptions { controller_manager: true, audit: true, ..ControlPlaneOptions::default() };
    ControlPlane::start(options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_taken_over_put_back_and_go_with_the_kind_and_nothing_is_written_without_need() -> Result<()> {
    let cluster = control_plane().await?;
    cluster.apply_yaml(EARLIER).await?;
    install(&cluster, Edition::Spoke).await?;
    let admin = cluster.admin().await?;
    let manager = Manager::start(&cluster, Edition::Spoke).await?;
    let mut bed = Bed { cluster, admin, manager, nodes: std::collections::BTreeMap::new() };
    let admin = bed.admin.clone();

    // Those of an earlier installation have become those of today, and there are no others.
    let right = eventually(LIMIT, "the policies", || async {
        let (policies, bindings) = all(&admin).await?;
        let names = |objects: &[(String, Value)]| objects.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        ensure!(names(&policies) == POLICIES && names(&bindings) == POLICIES, "{policies:?} {bindings:?}");
        ensure!(!format!("{policies:?}").contains("the earlier one"), "{policies:?}");
        Ok(Some((policies, bindings)))
    })
    .await?;
    readyz_says(&bed.manager, "ok").await?;
    let is_right = || async {
        let is = all(&admin).await?;
        ensure!(is == right, "{is:?}\n{}", bed.manager.log_tail(10));
        Ok(Some(()))
    };

    // The server's own check of types has no remark.
    eventually(LIMIT, "the types of the policies to be checked", || async {
        for policy in Api::<ValidatingAdmissionPolicy>::all(admin.clone()).list(&ListParams::default()).await? {
            let status = policy.status.clone().unwrap_or_default();
            ensure!(status.observed_generation == policy.metadata.generation, "{status:?}");
            let warnings = status.type_checking.and_then(|checked| checked.expression_warnings);
            ensure!(warnings.as_ref().is_none_or(Vec::is_empty), "{}: {warnings:?}", policy.name_any());
        }
        Ok(Some(()))
    })
    .await?;

    // Whatever somebody does to one of them is undone: also what server-side apply would leave.
    type Policies = ValidatingAdmissionPolicy;
    type Bindings = ValidatingAdmissionPolicyBinding;
    for name in POLICIES {
        Api::<Policies>::all(admin.clone()).delete(name, &DeleteParams::default()).await?;
        eventually(LIMIT, "the policy to come back", is_right).await?;
        Api::<Bindings>::all(admin.clone()).delete(name, &DeleteParams::default()).await?;
        eventually(LIMIT, "the binding to come back", is_right).await?;
        edit::<Bindings>(&admin, name, json!({"spec": {"validationActions": ["Audit"]}})).await?;
        eventually(LIMIT, "the binding to refuse again", is_right).await?;
        edit::<Policies>(&admin, name, json!({"spec": {"failurePolicy": "Ignore"}})).await?;
        eventually(LIMIT, "the policy to fail closed again", is_right).await?;
        let off = json!({
            "apiVersion": Policies::api_version(&()), "kind": Policies::kind(&()), "metadata": {"name": name},
            "spec": {"matchConditions": [{"name": "off", "expression": "false"}]},
        });
        Api::<Policies>::all(admin.clone()).patch(name, &PatchParams::apply("somebody"), &Patch::Apply(off)).await?;
        eventually(LIMIT, "the added condition to go", is_right).await?;
    }

    // As they are, they are left alone, also by a manager that has just started.
    let before = bed.settled(Edition::Spoke).await?;
    bed.manager.restart().await?;
    readyz_says(&bed.manager, "ok").await?;
    assert_eq!(bed.settled(Edition::Spoke).await?, before);
    assert_eq!(bed.forbidden()?, [] as [String; 0]);

    // With the kind Module they go, and a kind that comes again brings them along.
    Api::<CustomResourceDefinition>::all(admin.clone()).delete(Module::crd_name(), &DeleteParams::default()).await?;
    eventually(LIMIT, "the policies to go", || async {
        let (policies, bindings) = all(&admin).await?;
        ensure!(policies.is_empty() && bindings.is_empty(), "{policies:?} {bindings:?}");
        Ok(Some(()))
    })
    .await?;
    readyz_says(&bed.manager, "CustomResourceDefinition modules.kmm.sigs.x-k8s.io is not there").await?;
    install(&bed.cluster, Edition::Spoke).await?;
    eventually(LIMIT, "the policies of the new kind", || async {
        let is = all(&admin).await?;
        ensure!(is == right, "{is:?}\n{}", bed.manager.log_tail(10));
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_policy_in_force_no_worker_is_started_and_readyz_says_why() -> Result<()> {
    let mut bed = Bed::start(Edition::Standalone).await?;
    let admin = bed.admin.clone();
    readyz_says(&bed.manager, "ok").await?;

    // Somebody takes away the right to keep the policies, and then a policy.
    let roles: Api<ClusterRole> = Api::all(admin.clone());
    let role = roles.get("kmm-operator-manager").await?;
    let mut without = role.clone();
    let of_policies = |groups: &Vec<String>| groups.iter().any(|group| group == "admissionregistration.k8s.io");
    without.rules.get_or_insert_default().retain(|rule| !rule.api_groups.as_ref().is_some_and(of_policies));
    roles.replace("kmm-operator-manager", &PostParams::default(), &without).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(admin.clone());
    policies.delete(WORKER_POLICY, &DeleteParams::default()).await?;
    readyz_says(&bed.manager, &format!("waiting for admission policies: {WORKER_POLICY}: failed to apply")).await?;

    // A node that needs a worker gets its order and no worker.
    bed.node("n1", "6.1.0-1-cloud-amd64", json!({"gpu": "yes"})).await?;
    bed.module("drivers", "gpu", &format!("registry.invalid/kmods/gpu@{DIGEST}"), json!({})).await?;
    eventually(LIMIT, "the order", || async { bed.config("n1").await }).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let sets: Api<DaemonSet> = Api::namespaced(admin.clone(), NAMESPACE);
    ensure!(sets.get_opt(WORKER_DAEMON_SET).await?.is_none(), "a worker is started without its policy");

    // With the right the policy comes back, and then the worker.
    let rules = json!({"rules": role.rules});
    edit::<ClusterRole>(&admin, "kmm-operator-manager", rules).await?;
    eventually(LIMIT, "the worker", || async { sets.get_opt(WORKER_DAEMON_SET).await.map_err(Into::into) }).await?;
    readyz_says(&bed.manager, "ok").await?;
    let set = sets.get(WORKER_DAEMON_SET).await?.metadata.creation_timestamp;
    let policy = policies.get(WORKER_POLICY).await?.metadata.creation_timestamp;
    ensure!(set >= policy, "the worker is older than its policy");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_the_api_server_does_not_apply_is_not_in_force_although_it_is_there() -> Result<()> {
    let flags = vec!["--disable-admission-plugins=ValidatingAdmissionPolicy".to_owned()];
    let options =
        ControlPlaneOptions { controller_manager: true, audit: true, apiserver_flags: flags, ..Default::default() };
    let cluster = ControlPlane::start(options).await?;
    install(&cluster, Edition::Standalone).await?;
    let mut bed = Bed {
        admin: cluster.admin().await?,
        manager: Manager::spawn(&cluster, Edition::Standalone, &[]).await?,
        cluster,
        nodes: std::collections::BTreeMap::new(),
    };
    readyz_says(&bed.manager, &format!("{WORKER_POLICY}: the API server does not apply it")).await?;
    assert_eq!(all(&bed.admin).await?.0.len(), 2);
    bed.node("n1", "6.1.0-1-cloud-amd64", json!({"gpu": "yes"})).await?;
    bed.module("drivers", "gpu", &format!("registry.invalid/kmods/gpu@{DIGEST}"), json!({})).await?;
    eventually(LIMIT, "the order", || async { bed.config("n1").await }).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bed.count::<DaemonSet>().await?, 0);
    assert_eq!(bed.count::<NodeModulesConfig>().await?, 1, "a question was stored");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_with_modules_is_deleted_only_without_them_and_one_that_ends_already_is_held_up_by_nobody()
-> Result<()> {
    let bed = Bed::start(Edition::Standalone).await?;
    readyz_says(&bed.manager, "ok").await?;
    let image = format!("registry.invalid/kmods/gpu@{DIGEST}");
    bed.module("drivers", "gpu", &image, json!({})).await?;
    let namespaces: Api<Namespace> = Api::all(bed.admin.clone());
    let marked = |name: &'static str, wanted: bool| {
        let namespaces = namespaces.clone();
        async move {
            eventually(LIMIT, &format!("the mark of {name} to be {wanted}"), || async {
                let labels = namespaces.get(name).await?.metadata.labels.unwrap_or_default();
                Ok((labels.contains_key(NAMESPACE_CONTAINS_MODULES_LABEL) == wanted).then_some(()))
            })
            .await
        }
    };
    marked("drivers", true).await?;

    // Not by an administrator, not by a service account that may do everything, as those of GitOps tools may.
    let bind = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "gitops"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
    });
    bed.cluster.apply_yaml(&bind.to_string()).await?;
    let account = bed.cluster.client(&bed.cluster.service_account_kubeconfig("default", "default").await?).await?;
    for client in [bed.admin.clone(), account.clone()] {
        let refused = Api::<Namespace>::all(client).delete("drivers", &DeleteParams::background()).await;
        let said = format!("{:#}", refused.err().context("it was deleted")?);
        ensure!(said.contains("namespace drivers holds Modules"), "{said}");
        ensure!(said.contains("kubectl delete modules.kmm.sigs.x-k8s.io --all -n drivers"), "{said}");
    }
    ensure!(namespaces.get("drivers").await?.metadata.deletion_timestamp.is_none());

    // Nor is anybody else's namespace kept, and that of a Module that has gone is free.
    bed.cluster.kubectl(&["create", "namespace", "other"]).await?;
    bed.cluster.kubectl(&["delete", "namespace", "other", "--timeout=60s"]).await?;
    bed.delete_module("drivers", "gpu").await?;
    marked("drivers", false).await?;
    bed.cluster.kubectl(&["delete", "namespace", "drivers", "--timeout=60s"]).await?;

    // A namespace that ends already is not held up, whatever mark it has: not by a second order, which may be the
    // namespace controller's, nor by what is collected in it.
    bed.cluster.kubectl(&["create", "namespace", "ending"]).await?;
    let held = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "held", "namespace": "ending", "finalizers": ["example.com/held"]},
    });
    bed.cluster.apply_yaml(&held.to_string()).await?;
    bed.cluster.kubectl(&["delete", "namespace", "ending", "--wait=false"]).await?;
    bed.cluster.kubectl(&["label", "namespace", "ending", &format!("{NAMESPACE_CONTAINS_MODULES_LABEL}=")]).await?;
    bed.cluster.kubectl(&["delete", "namespace", "ending", "--wait=false"]).await?;
    let free = r#"{"metadata":{"finalizers":null}}"#;
    bed.cluster.kubectl(&["-n", "ending", "patch", "configmap", "held", "--type=merge", "-p", free]).await?;
    eventually(LIMIT, "the namespace to end", || async {
        Ok(namespaces.get_opt("ending").await?.is_none().then_some(()))
    })
    .await?;

    // A mark without a Module is the manager's to remove.
    bed.cluster.kubectl(&["create", "namespace", "empty"]).await?;
    bed.cluster.kubectl(&["label", "namespace", "empty", &format!("{NAMESPACE_CONTAINS_MODULES_LABEL}=")]).await?;
    marked("empty", false).await
}
