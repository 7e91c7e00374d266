//! ManagedCluster: labels, kernels, whether it is accepted, heard of, going away.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::ocm::{ManagedCluster, values};
use crate::core::claims::{self, KernelReport};
use crate::core::kernel::KernelVersion;
use crate::hub::intern;
use crate::runtime::store::Projection;

/// What is read of a ManagedCluster.
#[derive(Debug, PartialEq)]
pub struct Cluster {
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// What its claims say about kernels.
    pub kernels: Kernels,
    /// `spec.hubAcceptsClient`.
    pub accepted: bool,
    /// Its agent is known and is not heard of.
    pub silent: bool,
    /// It is being deleted.
    pub deleting: bool,
}

/// Kernels of a cluster: without a trailing `+`, sorted, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// All of them.
    Complete(Arc<[KernelVersion]>),
    /// Some of them; what is not listed may be there all the same.
    Incomplete {
        /// Those that are known.
        known: Arc<[KernelVersion]>,
        /// What is missing, for people.
        missing: Arc<str>,
    },
    /// The claims hold something else.
    Invalid(Arc<str>),
    /// No claims.
    Absent,
}

impl Kernels {
    /// The kernels that are known to be there.
    pub fn known(&self) -> &[KernelVersion] {
        match self {
            Self::Complete(known) | Self::Incomplete { known, .. } => known,
            Self::Invalid(_) | Self::Absent => &[],
        }
    }

    fn of(report: &KernelReport) -> Self {
        let known = || {
            let mut kernels: Vec<KernelVersion> =
                report.known().into_iter().flatten().map(|kernel| intern::kernel(&kernel.without_plus())).collect();
            kernels.sort_unstable();
            kernels.dedup();
            intern::kernels(&kernels)
        };
        match report {
            KernelReport::Complete(_) => Self::Complete(known()),
            KernelReport::Incomplete { missing_parts, .. } => {
                let missing = if missing_parts.is_empty() {
                    "its claims are of two different lists".to_owned()
                } else {
                    let parts: Vec<String> = missing_parts.iter().map(ToString::to_string).collect();
                    format!("its claims lack part {}", parts.join(", "))
                };
                Self::Incomplete { known: known(), missing: intern::text(&missing) }
            }
            KernelReport::Invalid { why } => Self::Invalid(intern::message(why)),
            KernelReport::Absent => Self::Absent,
        }
    }
}

impl Projection for Cluster {
    type Kind = ManagedCluster;

    fn project(object: ManagedCluster) -> Self {
        let status = object.status.unwrap_or_default();
        let claims = status.cluster_claims.iter().map(|claim| (claim.name.as_str(), claim.value.as_str()));
        let heard = status.conditions.iter().find(|condition| condition.type_ == values::CLUSTER_AVAILABLE);
        Self {
            kernels: Kernels::of(&claims::decode(claims)),
            labels: object.metadata.labels.unwrap_or_default(),
            accepted: object.spec.hub_accepts_client,
            silent: heard.is_some_and(|condition| condition.status != "True"),
            deleting: object.metadata.deletion_timestamp.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster(value: serde_json::Value) -> Cluster {
        Cluster::project(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn kernels_lose_one_plus_and_doubles_and_keep_an_order() {
        let seen = cluster(json!({
            "apiVersion": "cluster.open-cluster-management.io/v1", "kind": "ManagedCluster",
            "metadata": {"name": "c1", "labels": {"a": "b"}},
            "spec": {"hubAcceptsClient": true},
            "status": {
                "clusterClaims": [
                    {"name": "id.k8s.io", "value": "c1"},
                    {"name": "kernel-versions.kmm.node.kubernetes.io", "value": "6.2\n6.1+\n6.1\n6.1++\n"},
                ],
                "conditions": [{"type": "ManagedClusterConditionAvailable", "status": "Unknown",
                    "reason": "ManagedClusterLeaseUpdateStopped", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            },
        }));
        let kernels: Vec<&str> = seen.kernels.known().iter().map(KernelVersion::as_str).collect();
        assert_eq!(kernels, ["6.1", "6.1+", "6.2"]);
        assert!(matches!(seen.kernels, Kernels::Complete(_)));
        assert!(seen.accepted && seen.silent && !seen.deleting);
    }

    #[test]
    fn a_cluster_that_says_nothing_is_neither_silent_nor_accepted() {
        let seen = cluster(json!({
            "apiVersion": "cluster.open-cluster-management.io/v1", "kind": "ManagedCluster",
            "metadata": {"name": "c1"}, "spec": {},
        }));
        let nothing = Cluster {
            labels: BTreeMap::new(),
            kernels: Kernels::Absent,
            accepted: false,
            silent: false,
            deleting: false,
        };
        assert_eq!(seen, nothing);
    }
}
