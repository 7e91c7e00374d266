//! Pods of device plugins and DRA drivers.

use k8s_openapi::api::core::v1::Pod;

use crate::api::names::MODULE_NAME_LABEL;
use crate::runtime::store::Projection;

/// What is read of a pod that uses the kernel module of a Module of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerView {
    /// Name of the Module.
    pub module: String,
    /// Name of the node, empty until the pod is bound to one.
    pub node: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether all its containers have ended for good.
    pub ended: bool,
}

impl Projection for ConsumerView {
    type Kind = Pod;

    fn project(pod: Pod) -> Self {
        let phase = pod.status.and_then(|status| status.phase);
        Self {
            module: pod.metadata.labels.and_then(|mut all| all.remove(MODULE_NAME_LABEL)).unwrap_or_default(),
            node: pod.spec.and_then(|spec| spec.node_name).unwrap_or_default(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            ended: matches!(phase.as_deref(), Some("Succeeded" | "Failed")),
        }
    }
}
