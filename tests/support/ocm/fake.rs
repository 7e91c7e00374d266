//! Clusters without agents: for tests with fifty or a thousand of them, where only the hub is real.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use kube::Client;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::config::ResourceMeta;
use super::hub::{ACCEPTED, AVAILABLE, JOINED};
use super::kinds::{list, managed_clusters, manifest_works, put, set_condition, to_json};

/// Makes a cluster that is joined and available, with its namespace and these claims.
///
/// # Errors
/// What the hub said; a claim that is empty or longer than 1,024 characters is refused by it.
pub async fn fake_cluster(hub: &Client, name: &str, labels: &[(&str, &str)], claims: &[(&str, &str)]) -> Result<()> {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    put(
        hub,
        &json!({
            "apiVersion": "cluster.open-cluster-management.io/v1", "kind": "ManagedCluster",
            "metadata": {"name": name, "labels": labels}, "spec": {"hubAcceptsClient": true},
        }),
    )
    .await?;
    put(hub, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await?;
    let mut conditions = Vec::new();
    for (kind, reason) in [
        (ACCEPTED, "HubClusterAdminAccepted"),
        (JOINED, "ManagedClusterJoined"),
        (AVAILABLE, "ManagedClusterAvailable"),
    ] {
        set_condition(&mut conditions, kind, "True", reason, "", None);
    }
    write_status(hub, name, &json!({"conditions": conditions, "clusterClaims": claim_list(claims)})).await
}

/// Replaces the claims of a cluster, as its registration agent would; the list is sorted by name.
///
/// # Errors
/// What the hub said.
pub async fn fake_claims(hub: &Client, name: &str, claims: &[(&str, &str)]) -> Result<()> {
    write_status(hub, name, &json!({"clusterClaims": claim_list(claims)})).await
}

fn claim_list(claims: &[(&str, &str)]) -> Vec<Value> {
    let sorted: BTreeMap<&str, &str> = claims.iter().copied().collect();
    sorted.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

async fn write_status(hub: &Client, name: &str, status: &Value) -> Result<()> {
    let patch = Patch::Merge(json!({"status": status}));
    let written = managed_clusters(hub).patch_status(name, &PatchParams::default(), &patch).await;
    written.map(|_| ()).with_context(|| format!("status of cluster {name} cannot be written"))
}

/// What an agent would have reported about a work.
#[derive(Clone, Debug)]
pub struct WorkReport {
    /// Condition `Applied` of the work and of each manifest.
    pub applied: bool,
    /// Condition `Available`: `True`, `False` or `Unknown`.
    pub available: &'static str,
    /// Generation that the conditions speak of, `None` for the one that the work has now.
    pub generation: Option<i64>,
    /// Feedback of the manifest of each kind: name and value (a number, a string or a truth value).
    pub feedback: BTreeMap<String, Vec<(String, Value)>>,
}

impl Default for WorkReport {
    fn default() -> Self {
        Self { applied: true, available: "True", generation: None, feedback: BTreeMap::new() }
    }
}

impl WorkReport {
    /// With feedback for the manifest of this kind.
    #[must_use]
    pub fn with_feedback(mut self, kind: &str, values: &[(&str, Value)]) -> Self {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.feedback.insert(kind.to_owned(), values);
        self
    }
}

/// Writes the status of a work as the agent of a cluster would that reports this.
///
/// # Errors
/// The work is not there, a value has no type in feedback, or the hub refused.
pub async fn fake_work_status(hub: &Client, cluster: &str, name: &str, report: &WorkReport) -> Result<()> {
    let api = manifest_works(hub, cluster);
    let work = to_json(&api.get(name).await.with_context(|| format!("work {cluster}/{name} cannot be read"))?);
    let generation = report.generation.or(work["metadata"]["generation"].as_i64());
    let mut manifests = Vec::new();
    for (ordinal, manifest) in list(&work, "/spec/workload/manifests").iter().enumerate() {
        let plural = format!("{}s", manifest["kind"].as_str().unwrap_or_default().to_lowercase());
        let meta = ResourceMeta::of(ordinal, manifest, &plural);
        let mut conditions = Vec::new();
        let (status, reason) =
            if report.applied { ("True", "AppliedManifestComplete") } else { ("False", "AppliedManifestFailed") };
        set_condition(&mut conditions, "Applied", status, reason, "", None);
        let reason = match report.available {
            "True" => "ResourceAvailable",
            "False" => "ResourceNotAvailable",
            _ => "FetchingResourceFailed",
        };
        set_condition(&mut conditions, "Available", report.available, reason, "", None);
        let mut entry = json!({"conditions": conditions, "resourceMeta": meta.to_json()});
        if let Some(values) = report.feedback.get(&meta.kind) {
            entry["statusFeedback"]["values"] = json!(values.iter().map(field).collect::<Result<Vec<_>>>()?);
        }
        manifests.push(entry);
    }
    let mut conditions = Vec::new();
    let (status, reason) =
        if report.applied { ("True", "AppliedManifestWorkComplete") } else { ("False", "AppliedManifestWorkFailed") };
    set_condition(&mut conditions, "Applied", status, reason, "", generation);
    let reason = match report.available {
        "True" => "ResourcesAvailable",
        "False" => "ResourcesNotAvailable",
        _ => "ResourcesStatusUnknown",
    };
    set_condition(&mut conditions, "Available", report.available, reason, "", generation);
    let patch = json!({"status": {"conditions": conditions, "resourceStatus": {"manifests": manifests}}});
    let written = api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    written.map(|_| ()).with_context(|| format!("status of work {cluster}/{name} cannot be written"))
}

fn field((name, value): &(String, Value)) -> Result<Value> {
    let field = match value {
        Value::Bool(value) => json!({"type": "Boolean", "boolean": value}),
        Value::String(value) => json!({"type": "String", "string": value}),
        Value::Number(value) if value.is_i64() => json!({"type": "Integer", "integer": value}),
        other => anyhow::bail!("feedback {name} cannot be {other}"),
    };
    Ok(json!({"name": name, "fieldValue": field}))
}
