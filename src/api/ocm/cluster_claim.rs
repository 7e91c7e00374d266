//! ClusterClaim: a fact that a cluster tells its Hub.

use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// The fact. The object's name says which.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[kube(
    group = "cluster.open-cluster-management.io",
    version = "v1alpha1",
    kind = "ClusterClaim",
    schema = "disabled",
    derive = "PartialEq",
    derive = "Default",
    doc = "A fact that a cluster tells its Hub."
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterClaimSpec {
    /// 1 to 1024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}
