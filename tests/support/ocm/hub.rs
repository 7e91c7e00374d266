//! The hub's half of registration: accepts a cluster, gives its agent the rights that it has in a real
//! installation, and keeps taints, lease and the end of a cluster right.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tracing::debug;

use super::kinds::{
    CLUSTER_FINALIZER, CLUSTER_GROUP, WORK_GROUP, condition_status, finalizer_patch, has_finalizer, is_deleting,
    is_not_found, list, managed_clusters, manifest_works, put, set_condition, to_json,
};

/// The lease that the agent renews, in the namespace of its cluster.
pub const LEASE: &str = "managed-cluster-lease";
pub const AVAILABLE: &str = "ManagedClusterConditionAvailable";
pub const ACCEPTED: &str = "HubAcceptedManagedCluster";
pub const JOINED: &str = "ManagedClusterJoined";

/// Client certificate name and groups of a cluster's agent on the hub.
pub fn agent_identity(cluster: &str, agent_id: &str) -> (String, String) {
    let group = format!("system:open-cluster-management:{cluster}");
    (format!("{group}:{agent_id}"), group)
}

/// Makes the cluster, its namespace, its lease and the rights of its agent.
///
/// # Errors
/// What the hub said.
pub async fn accept(hub: &Client, cluster: &str, labels: &BTreeMap<String, String>, lease: Duration) -> Result<()> {
    let (_, group) = agent_identity(cluster, "");
    let name = format!("open-cluster-management:managedcluster:{cluster}");
    put(
        hub,
        &json!({
            "apiVersion": format!("{CLUSTER_GROUP}/v1"), "kind": "ManagedCluster",
            "metadata": {"name": cluster, "labels": labels},
            "spec": {"hubAcceptsClient": true, "leaseDurationSeconds": lease.as_secs().max(1)},
        }),
    )
    .await?;
    put(hub, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster}})).await?;
    put(
        hub,
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
            "rules": [
                {"apiGroups": [CLUSTER_GROUP], "resources": ["managedclusters"], "resourceNames": [cluster],
                 "verbs": ["get", "list", "update", "watch"]},
                {"apiGroups": [CLUSTER_GROUP], "resources": ["managedclusters/status"], "resourceNames": [cluster],
                 "verbs": ["patch", "update"]},
                {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"],
                 "verbs": ["create", "get", "list", "watch"]},
            ],
        }),
    )
    .await?;
    put(hub, &json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name, "namespace": cluster},
        "rules": [
            {"apiGroups": [WORK_GROUP], "resources": ["manifestworks"],
             "verbs": ["get", "list", "watch", "update", "patch"]},
            {"apiGroups": [WORK_GROUP], "resources": ["manifestworks/status"], "verbs": ["update", "patch"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "update", "patch"]},
            {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
        ],
    }))
    .await?;
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]);
    put(
        hub,
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": subjects,
        }),
    )
    .await?;
    put(
        hub,
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": cluster},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": subjects,
        }),
    )
    .await?;
    put(
        hub,
        &json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": LEASE, "namespace": cluster},
            "spec": {"leaseDurationSeconds": lease.as_secs().max(1), "renewTime": micro_now()},
        }),
    )
    .await?;
    tend(hub, cluster, lease).await
}

/// Now, as a lease has it.
pub fn micro_now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Keeps the hub's part of one cluster right until dropped.
pub async fn run(hub: Client, cluster: String, lease: Duration) {
    loop {
        match tend(&hub, &cluster, lease).await {
            Ok(()) => {}
            Err(error) => debug!(cluster, error = format!("{error:#}"), "hub's part of the cluster not done"),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// One look: accepted, reachable, tainted or not; and if it is being deleted, its works go first.
async fn tend(hub: &Client, cluster: &str, lease: Duration) -> Result<()> {
    let api = managed_clusters(hub);
    let Some(object) = api.get_opt(cluster).await?.map(|object| to_json(&object)) else { return Ok(()) };
    if is_deleting(&object) {
        return release(hub, cluster, &object).await;
    }
    if !has_finalizer(&object, CLUSTER_FINALIZER) {
        let patch = finalizer_patch(&object, CLUSTER_FINALIZER, true);
        api.patch(cluster, &PatchParams::default(), &Patch::Merge(patch)).await?;
        return Box::pin(tend(hub, cluster, lease)).await;
    }
    let mut conditions = list(&object, "/status/conditions").to_vec();
    set_condition(&mut conditions, ACCEPTED, "True", "HubClusterAdminAccepted", "Accepted by hub cluster admin", None);
    if !condition_status(&conditions, AVAILABLE).is_empty() && lease_is_stale(hub, cluster, lease).await? {
        let message = "Registration agent stopped updating its lease.";
        set_condition(&mut conditions, AVAILABLE, "Unknown", "ManagedClusterLeaseUpdateStopped", message, None);
    }
    if list(&object, "/status/conditions") != conditions {
        let version = &object["metadata"]["resourceVersion"];
        let patch = json!({"metadata": {"resourceVersion": version}, "status": {"conditions": conditions}});
        api.patch_status(cluster, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    let wanted = match condition_status(&conditions, AVAILABLE) {
        "True" => None,
        "False" => Some("unavailable"),
        _ => Some("unreachable"),
    };
    set_taint(hub, &object, wanted).await
}

/// Exactly one of the two taints, or none; taints of others stay.
async fn set_taint(hub: &Client, object: &Value, wanted: Option<&str>) -> Result<()> {
    let ours = ["unavailable", "unreachable"].map(|word| format!("{CLUSTER_GROUP}/{word}"));
    let wanted = wanted.map(|word| format!("{CLUSTER_GROUP}/{word}"));
    let old = list(object, "/spec/taints");
    let mut taints: Vec<Value> = old
        .iter()
        .filter(|taint| {
            let key = taint["key"].as_str().unwrap_or_default();
            !ours.iter().any(|our| our == key) || wanted.as_deref() == Some(key)
        })
        .cloned()
        .collect();
    if let Some(key) = wanted
        && !taints.iter().any(|taint| taint["key"] == key.as_str())
    {
        taints.push(json!({"key": key, "effect": "NoSelect", "timeAdded": super::kinds::now()}));
    }
    if taints != old {
        let patch = json!({"spec": {"taints": taints}});
        let name = super::kinds::text(object, "/metadata/name");
        managed_clusters(hub).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}

/// Whether the lease was not renewed for five of its durations.
async fn lease_is_stale(hub: &Client, cluster: &str, lease: Duration) -> Result<bool> {
    let leases: Api<Lease> = Api::namespaced(hub.clone(), cluster);
    let renewed = leases.get(LEASE).await?.spec.and_then(|spec| spec.renew_time);
    let Some(renewed) = renewed else { return Ok(true) };
    let age = Timestamp::now().duration_since(renewed.0);
    Ok(age.as_secs_f64() > lease.as_secs_f64() * 5.0)
}

/// The end of a cluster: its works are deleted, and the cluster goes when they are gone.
async fn release(hub: &Client, cluster: &str, object: &Value) -> Result<()> {
    if !has_finalizer(object, CLUSTER_FINALIZER) {
        return Ok(());
    }
    let works = manifest_works(hub, cluster);
    let left = works.list(&ListParams::default()).await?.items;
    for work in &left {
        if work.metadata.deletion_timestamp.is_none() {
            match works.delete(work.metadata.name.as_deref().unwrap_or_default(), &DeleteParams::default()).await {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
    }
    if left.is_empty() {
        let patch = finalizer_patch(object, CLUSTER_FINALIZER, false);
        managed_clusters(hub).patch(cluster, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}
