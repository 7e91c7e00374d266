//! AppliedManifestWork: what OCM's agent applied on a cluster for one work, and owner of all of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// Which work it is for; nothing of that is read.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[kube(
    group = "work.open-cluster-management.io",
    version = "v1",
    kind = "AppliedManifestWork",
    schema = "disabled",
    status = "AppliedManifestWorkStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "What OCM's agent applied on a cluster for one work."
)]
#[serde(rename_all = "camelCase")]
pub struct AppliedManifestWorkSpec {}

/// How far the agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AppliedManifestWorkStatus {
    /// Since when the agent finds no work for it on its Hub, or has another Hub; after a grace period it deletes what it
    /// applied. Absent while there is a work, also one that is being deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eviction_start_time: Option<Time>,
}
