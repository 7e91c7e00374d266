//! ManagedCluster: a cluster as its Hub sees it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

use crate::api::wire::null_as_default;

/// What the Hub's administrator decided about the cluster.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[kube(
    group = "cluster.open-cluster-management.io",
    version = "v1",
    kind = "ManagedCluster",
    schema = "disabled",
    status = "ManagedClusterStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A cluster as its Hub sees it."
)]
#[serde(rename_all = "camelCase")]
pub struct ManagedClusterSpec {
    /// Whether the Hub accepts the cluster.
    #[serde(default, deserialize_with = "null_as_default")]
    pub hub_accepts_client: bool,
    /// Every how many seconds the cluster renews its lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_duration_seconds: Option<i32>,
    /// Taints that placements look at.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub taints: Vec<ManagedClusterTaint>,
}

/// A taint of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManagedClusterTaint {
    /// `NoSelect`, `PreferNoSelect` or `NoSelectIfNew`.
    #[serde(default)]
    pub effect: String,
    /// Key of the taint.
    #[serde(default)]
    pub key: String,
    /// Value of the taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// What the cluster's agent reports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManagedClusterStatus {
    /// Facts that the cluster tells. OCM's own come first, custom ones by name, at most 20 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub cluster_claims: Vec<ManagedClusterClaim>,
    /// Accepted, joined, available.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
}

/// A fact that a cluster tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManagedClusterClaim {
    /// Name of the ClusterClaim.
    #[serde(default)]
    pub name: String,
    /// Value of the ClusterClaim.
    #[serde(default)]
    pub value: String,
}
