//! The part of Open Cluster Management's kinds that is read or written here.
//!
//! These are foreign kinds: no schema is generated, fields that are not listed are dropped on reading, and
//! objects are therefore never replaced by what was read, only applied or patched.
//! Source: `open-cluster-management.io/api`, `cluster/v1`, `cluster/v1alpha1` and `work/v1`.

mod applied_manifest_work;
mod cluster_claim;
mod managed_cluster;
mod manifest_work;

pub use applied_manifest_work::{AppliedManifestWork, AppliedManifestWorkSpec, AppliedManifestWorkStatus};
pub use cluster_claim::{ClusterClaim, ClusterClaimSpec};
pub use managed_cluster::{
    ManagedCluster, ManagedClusterClaim, ManagedClusterSpec, ManagedClusterStatus, ManagedClusterTaint,
};
pub use manifest_work::{
    DeleteOption, FeedbackRule, FeedbackValue, FieldValue, JsonPath, ManifestConfig, ManifestResourceMeta,
    ManifestResourceStatus, ManifestStatus, ManifestWork, ManifestWorkSpec, ManifestWorkStatus, ManifestsTemplate,
    OrphaningRule, ResourceIdentifier, SelectivelyOrphan, ServerSideApply, StatusFeedback, UpdateStrategy,
};

/// Values of OCM's enumerations that are written or compared here.
pub mod values {
    /// `deleteOption.propagationPolicy`: what was applied is deleted, and waited for.
    pub const DELETE_FOREGROUND: &str = "Foreground";
    /// `deleteOption.propagationPolicy`: what was applied stays.
    pub const DELETE_ORPHAN: &str = "Orphan";
    /// `deleteOption.propagationPolicy`: what the rules name stays, the rest is deleted.
    pub const DELETE_SELECTIVELY_ORPHAN: &str = "SelectivelyOrphan";
    /// `updateStrategy.type`: the manifest is applied by server-side apply.
    pub const UPDATE_SERVER_SIDE_APPLY: &str = "ServerSideApply";
    /// `updateStrategy.type`: the manifest is created and then left alone.
    pub const UPDATE_CREATE_ONLY: &str = "CreateOnly";
    /// `feedbackRules[].type`: values are read by JSON path.
    pub const FEEDBACK_JSON_PATHS: &str = "JSONPaths";
    /// `feedbackScrapeType`: feedback follows a watch instead of the agent's resync.
    pub const FEEDBACK_WATCH: &str = "Watch";
    /// Condition of a ManagedCluster: a person accepted it.
    pub const CLUSTER_ACCEPTED: &str = "HubAcceptedManagedCluster";
    /// Condition of a ManagedCluster: its agent is heard of.
    pub const CLUSTER_AVAILABLE: &str = "ManagedClusterConditionAvailable";
    /// Condition of a ManifestWork and of each manifest in it: applied on the cluster.
    pub const WORK_APPLIED: &str = "Applied";
    /// Condition of a ManifestWork and of each manifest in it: exists on the cluster.
    pub const WORK_AVAILABLE: &str = "Available";
    /// Condition of a ManifestWork: the agent is cleaning up.
    pub const WORK_DELETING: &str = "Deleting";
    /// Condition of a manifest: the feedback values are those of the object.
    pub const WORK_STATUS_FEEDBACK_SYNCED: &str = "StatusFeedbackSynced";
    /// Longest value of a ClusterClaim, in characters; the API server refuses longer ones.
    pub const CLAIM_VALUE_MAX_CHARS: usize = 1024;
    /// Custom claims, the first by name, that OCM's agent copies to the Hub; the rest is dropped silently.
    pub const CLAIMS_ON_HUB_MAX: usize = 20;
    /// Sum of the sizes of the manifests in a ManifestWork, in bytes, that OCM's webhook allows.
    pub const MANIFESTS_MAX_BYTES: usize = 512_000;
}
