//! The spoke's half of an installation: the namespace of the agents, their service accounts, and exactly
//! the rights that they have in a real one.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Client;
use kube::api::Api;
use serde_json::{Value, json};

use super::kinds::{CLUSTER_GROUP, WORK_GROUP, put};
use crate::support::eventually;

pub const NAMESPACE: &str = "open-cluster-management-agent";
pub const WORK_ACCOUNT: &str = "klusterlet-work-sa";
pub const REGISTRATION_ACCOUNT: &str = "klusterlet-registration-sa";
/// Rules of every `ClusterRole` with this label are given to the work agent.
pub const AGGREGATE_LABEL: &str = "open-cluster-management.io/aggregate-to-work";
const AGGREGATE_ROLE: &str = "open-cluster-management:klusterlet-work:aggregate";
const RBAC: &str = "rbac.authorization.k8s.io";

/// Makes namespace, accounts, roles and bindings; a second call changes nothing.
///
/// # Errors
/// What the spoke said, or that no controller manager aggregates roles there.
pub async fn prepare(spoke: &Client) -> Result<()> {
    put(spoke, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await?;
    for account in [WORK_ACCOUNT, REGISTRATION_ACCOUNT] {
        put(
            spoke,
            &json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": NAMESPACE},
            }),
        )
        .await?;
    }
    let events =
        json!({"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]});
    let all = json!(["get", "list", "watch", "create", "update", "patch", "delete"]);
    role(
        spoke,
        "open-cluster-management:klusterlet-work",
        WORK_ACCOUNT,
        &json!([
            {"apiGroups": [WORK_GROUP], "resources": ["appliedmanifestworks"], "verbs": all},
            {"apiGroups": [WORK_GROUP], "resources": ["appliedmanifestworks/status"], "verbs": ["patch", "update"]},
            {"apiGroups": [WORK_GROUP], "resources": ["appliedmanifestworks/finalizers"], "verbs": ["update"]},
            {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
            {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["impersonate"]},
            events,
        ]),
    )
    .await?;
    role(
        spoke,
        "open-cluster-management:klusterlet-work:execution",
        WORK_ACCOUNT,
        &json!([
            {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "verbs": all},
            {"apiGroups": [""], "resources": ["namespaces"], "verbs": all},
            {"apiGroups": [RBAC], "resources": ["clusterrolebindings", "rolebindings"], "verbs": all},
            {"apiGroups": [RBAC], "resources": ["clusterroles", "roles"],
             "verbs": ["get", "list", "watch", "create", "update", "patch", "delete", "bind", "escalate"]},
            {"apiGroups": ["scheduling.k8s.io"], "resources": ["priorityclasses"], "verbs": all},
            {"apiGroups": ["admissionregistration.k8s.io"],
             "resources": ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"], "verbs": all},
        ]),
    )
    .await?;
    bind(spoke, "open-cluster-management:klusterlet-work:admin", "admin", WORK_ACCOUNT).await?;
    let label = std::collections::BTreeMap::from([(AGGREGATE_LABEL, "true")]);
    put(
        spoke,
        &json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": {"name": AGGREGATE_ROLE},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": label}]},
        }),
    )
    .await?;
    bind(spoke, AGGREGATE_ROLE, AGGREGATE_ROLE, WORK_ACCOUNT).await?;
    role(spoke, "open-cluster-management:klusterlet-registration", REGISTRATION_ACCOUNT, &json!([
        {"apiGroups": [CLUSTER_GROUP], "resources": ["clusterclaims"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes", "namespaces"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch", "create", "update", "patch"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
         "verbs": ["get", "list", "watch", "create", "update", "patch"]},
        {"nonResourceURLs": ["/livez", "/healthz", "/version"], "verbs": ["get"]},
        events,
    ]))
    .await?;
    wait_for_admin(spoke).await
}

/// The built-in role `admin` has no rules of its own: a controller manager fills it from other roles.
async fn wait_for_admin(spoke: &Client) -> Result<()> {
    let roles: Api<ClusterRole> = Api::all(spoke.clone());
    eventually(
        Duration::from_mins(1),
        "the rules of ClusterRole admin (the spoke needs a controller manager)",
        || async {
            let role = roles.get("admin").await?;
            ensure!(role.aggregation_rule.is_some(), "ClusterRole admin does not aggregate");
            Ok(role.rules.filter(|rules| !rules.is_empty()).map(|_| ()))
        },
    )
    .await
}

async fn role(spoke: &Client, name: &str, account: &str, rules: &Value) -> Result<()> {
    put(
        spoke,
        &json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules,
        }),
    )
    .await?;
    bind(spoke, name, name, account).await
}

async fn bind(spoke: &Client, name: &str, role: &str, account: &str) -> Result<()> {
    put(
        spoke,
        &json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
        }),
    )
    .await?;
    Ok(())
}
