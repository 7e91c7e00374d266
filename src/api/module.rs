//! Module: a kernel module wanted on the nodes of this cluster.
//!
//! Source: `api/v1beta1/module_types.go` of KMM; fields that are not there are listed, with the
//! reason for each, in the compatibility test of the CRDs.

// printer columns of one type repeat it, which is what their attribute asks for
#![allow(clippy::duplicated_attributes)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::module_spec::ModuleLoaderSpec;
use super::plugins::{DRASpec, DevicePluginSpec};
use super::schema::{embedded, plain_integer};
use super::wire::null_as_default;

/// Which kernel module is wanted on which nodes, and what runs beside it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "kmm.sigs.x-k8s.io",
    version = "v1beta1",
    kind = "Module",
    namespaced,
    doc = "A kernel module wanted on nodes of this cluster.",
    derive = "PartialEq",
    derive = "Default",
    status = "ModuleStatus",
    shortname = "kmod",
    category = "kmm",
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.moduleLoader.nodesMatchingSelectorNumber"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.moduleLoader.desiredNumber"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.moduleLoader.availableNumber"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!(has(self.dra) && has(self.devicePlugin))",
    "message": "spec.dra and spec.devicePlugin are mutually exclusive"
}]))]
#[serde(rename_all = "camelCase")]
pub struct ModuleSpec {
    /// The device plugin that runs where the kernel module is loaded. Not together with `dra`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_plugin: Option<DevicePluginSpec>,
    /// The DRA driver that runs where the kernel module is loaded. Not together with `devicePlugin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dra: Option<DRASpec>,
    /// Any change makes the images be looked up again, and built again where a build makes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain_integer")]
    pub image_rebuild_trigger_generation: Option<i64>,
    /// Secret with the registry credentials for all images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "embedded::<LocalObjectReference>")]
    pub image_repo_secret: Option<LocalObjectReference>,
    /// The kernel module. Absent: only the device plugin or DRA driver is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_loader: Option<ModuleLoaderSpec>,
    /// Labels of the nodes that want the module; empty means all nodes.
    pub selector: BTreeMap<String, String>,
    /// Taints that do not keep the module, or the pods beside it, off a node.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(schema_with = "embedded::<Vec<Toleration>>")]
    pub tolerations: Vec<Toleration>,
}

/// What became of a Module.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModuleStatus {
    /// What holds of the Module as a whole; `Ready` sums it up.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(
        schema_with = "embedded::<Vec<Condition>>",
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// Pods of the device plugin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_plugin: Option<DaemonSetStatus>,
    /// Pods of the DRA driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dra: Option<DaemonSetStatus>,
    /// The last value of `spec.imageRebuildTriggerGeneration` that was acted upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain_integer")]
    pub image_rebuild_trigger_generation: Option<i64>,
    /// Nodes with the kernel module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_loader: Option<DaemonSetStatus>,
    /// The first nodes, by name, on which the module is not as wanted; at most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    pub nodes_failing: Vec<FailingNode>,
    /// Generation of the Module that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Value of the annotation `kmm.node.kubernetes.io/rendered-hash` of the Module that this status
    /// speaks of. A Hub counts a status only if it is the one that it sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendered_hash: Option<String>,
}

/// Counted nodes. Zero is written, so absent means that nobody counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaemonSetStatus {
    /// Nodes that run what is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_number: Option<i32>,
    /// Nodes that are to run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_number: Option<i32>,
    /// Nodes that match the selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_matching_selector_number: Option<i32>,
}

/// A node on which the module is not as wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailingNode {
    /// Name of the node.
    pub name: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
