//! ManagedClusterModule: a kernel module wanted on the clusters of a fleet.
//!
//! Source: `api-hub/v1beta1/managedclustermodule_types.go` of KMM; fields that are not there are
//! listed, with the reason for each, in the compatibility test of the CRDs.

// printer columns of one type repeat it, which is what their attribute asks for
#![allow(clippy::duplicated_attributes)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::module::ModuleSpec;
use super::schema::embedded;
use super::wire::null_as_default;

/// Which Module is wanted on which clusters.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "hub.kmm.sigs.x-k8s.io",
    version = "v1beta1",
    kind = "ManagedClusterModule",
    doc = "A kernel module wanted on clusters of a fleet.",
    derive = "PartialEq",
    derive = "Default",
    status = "ManagedClusterModuleStatus",
    shortname = "mcm",
    category = "kmm",
    printcolumn(name = "Clusters", type_ = "integer", json_path = ".status.numberDesired"),
    printcolumn(name = "Applied", type_ = "integer", json_path = ".status.numberApplied"),
    printcolumn(name = "Ready Clusters", type_ = "integer", json_path = ".status.numberReady"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.desired"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.nodes.available"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Covered", type_ = "string", json_path = ".status.conditions[?(@.type==\"Covered\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ManagedClusterModuleSpec {
    /// The Module that every selected cluster gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_spec: Option<ModuleSpec>,
    /// Labels of the ManagedClusters that get the Module; empty means all clusters.
    pub selector: BTreeMap<String, String>,
    /// Namespace of the Module on the clusters.
    pub spoke_namespace: String,
}

/// What became of a ManagedClusterModule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManagedClusterModuleStatus {
    /// The first clusters, by name, that are not ready; at most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    pub clusters: Vec<FailingCluster>,
    /// What holds of the fleet as a whole; `Ready` sums it up.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(
        schema_with = "embedded::<Vec<Condition>>",
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// Nodes, summed over the clusters that report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeTotals>,
    /// Clusters to which the Module was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_applied: Option<i32>,
    /// Clusters that are not selected any more and keep the Module until that is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_awaiting_removal: Option<i32>,
    /// Clusters that report a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_degraded: Option<i32>,
    /// Selected clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_desired: Option<i32>,
    /// Clusters on which the module is loaded on every node that wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_ready: Option<i32>,
    /// Clusters of which nothing valid is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_unknown: Option<i32>,
    /// Clusters on which the Module is on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_waiting: Option<i32>,
    /// Generation of the ManagedClusterModule that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Nodes of the clusters that report. Zero is written, so absent means that nobody counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTotals {
    /// Nodes that run the module as wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<i64>,
    /// Nodes that are to run the module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<i64>,
    /// Nodes that match the Module's selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matching: Option<i64>,
}

/// A cluster that is not ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailingCluster {
    /// Name of the ManagedCluster.
    pub name: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Since when it has been named here for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "embedded::<Time>")]
    pub since: Option<Time>,
}
