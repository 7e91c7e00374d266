//! ManifestWork: objects that a Hub wants on a cluster, and what became of them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

use crate::api::wire::{is_false, null_as_default};

/// Which objects are wanted on the cluster whose namespace the work is in.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "work.open-cluster-management.io",
    version = "v1",
    kind = "ManifestWork",
    namespaced,
    schema = "disabled",
    status = "ManifestWorkStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Objects that a Hub wants on a cluster, and what became of them."
)]
#[serde(rename_all = "camelCase")]
pub struct ManifestWorkSpec {
    /// What becomes of the objects when the work is deleted; absent means deleted in the foreground.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_option: Option<DeleteOption>,
    /// How each object is updated and what is read back of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub manifest_configs: Vec<ManifestConfig>,
    /// The objects.
    #[serde(default)]
    pub workload: ManifestsTemplate,
}

/// The objects of a work.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestsTemplate {
    /// Whole objects; each has a name, together they have at most 512,000 bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub manifests: Vec<serde_json::Value>,
}

/// What becomes of the objects when the work is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOption {
    /// `Foreground`, `Orphan` or `SelectivelyOrphan`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<String>,
    /// Which objects stay, under `SelectivelyOrphan`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selectively_orphans: Option<SelectivelyOrphan>,
}

/// Which objects stay when the work is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SelectivelyOrphan {
    /// One rule for each object, no wildcards.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub orphaning_rules: Vec<OrphaningRule>,
}

/// An object that stays when the work is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OrphaningRule {
    /// API group, empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Name of the object.
    #[serde(default)]
    pub name: String,
    /// Namespace, empty for cluster-wide kinds.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Plural of the kind.
    #[serde(default)]
    pub resource: String,
}

/// How an object is updated and what is read back of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestConfig {
    /// Which values of the object are reported back.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub feedback_rules: Vec<FeedbackRule>,
    /// `Poll` (the agent's resync, the default) or `Watch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feedback_scrape_type: Option<String>,
    /// The object.
    #[serde(default)]
    pub resource_identifier: ResourceIdentifier,
    /// How the object is updated; absent means OCM's own comparison.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_strategy: Option<UpdateStrategy>,
}

/// Which object of the work is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceIdentifier {
    /// API group, empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Name of the object.
    #[serde(default)]
    pub name: String,
    /// Namespace, empty for cluster-wide kinds.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Plural of the kind.
    #[serde(default)]
    pub resource: String,
}

/// Which values of an object are reported back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedbackRule {
    /// The values, under `JSONPaths`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub json_paths: Vec<JsonPath>,
    /// `JSONPaths` or `WellKnownStatus`; the latter does not exist for custom resources.
    #[serde(default, rename = "type")]
    pub type_: String,
}

/// A value that is reported back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JsonPath {
    /// Name under which the value is reported.
    #[serde(default)]
    pub name: String,
    /// Where the value is: a path of kubectl's kind, without braces, that hits one scalar.
    #[serde(default)]
    pub path: String,
}

/// How an object is updated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategy {
    /// Settings of `ServerSideApply`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_side_apply: Option<ServerSideApply>,
    /// `Update`, `CreateOnly`, `ServerSideApply` or `ReadOnly`.
    #[serde(default, rename = "type")]
    pub type_: String,
}

/// Settings of an update by server-side apply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerSideApply {
    /// Field manager; it begins with `work-agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field_manager: Option<String>,
    /// Whether fields are taken from other managers.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "null_as_default")]
    pub force: bool,
}

/// What became of the objects.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestWorkStatus {
    /// `Applied`, `Available`, `Deleting`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
    /// Each object.
    #[serde(default)]
    pub resource_status: ManifestResourceStatus,
}

/// What became of each object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestResourceStatus {
    /// One entry for each object.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub manifests: Vec<ManifestStatus>,
}

/// What became of one object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestStatus {
    /// `Applied`, `Available`, `StatusFeedbackSynced`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
    /// The object.
    #[serde(default)]
    pub resource_meta: ManifestResourceMeta,
    /// The values that were asked for.
    #[serde(default)]
    pub status_feedback: StatusFeedback,
}

/// Which object of the work an entry speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestResourceMeta {
    /// API group, empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Kind of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Name of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Namespace, empty for cluster-wide kinds.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Index of the object in the specification.
    #[serde(default)]
    pub ordinal: i32,
    /// Plural of the kind; empty while the cluster does not know the kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource: String,
    /// API version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// Values of an object that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusFeedback {
    /// The values; a path that hits nothing has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub values: Vec<FeedbackValue>,
}

/// A value that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedbackValue {
    /// The value.
    #[serde(default)]
    pub field_value: FieldValue,
    /// Name that the rule gave it.
    #[serde(default)]
    pub name: String,
}

/// A value; `type` says which of the others is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldValue {
    /// Set with `Boolean`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boolean: Option<bool>,
    /// Set with `Integer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub integer: Option<i64>,
    /// Set with `JsonRaw`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_raw: Option<String>,
    /// Set with `String`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub string: Option<String>,
    /// `Integer`, `String`, `Boolean` or `JsonRaw`.
    #[serde(default, rename = "type")]
    pub type_: String,
}
