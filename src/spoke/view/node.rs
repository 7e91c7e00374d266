//! Nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::api::names::RELEASE_NODE_ANNOTATION;
use crate::core::kernel::{self, KernelVersion};
use crate::runtime::store::Projection;

/// What is read of a Node. Heartbeats change none of it; whether it is ready counts through its taints.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// `metadata.uid`; another one means that the Node was made again.
    pub uid: String,
    /// All labels: Modules select by any of them.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`; a cordon is one of them.
    pub taints: Vec<Taint>,
    /// `status.nodeInfo.kernelVersion`, or what is wrong with it; empty until the kubelet told it.
    pub kernel: Result<KernelVersion, kernel::Error>,
    /// `status.nodeInfo.bootID`; empty until the kubelet told it.
    pub boot_id: String,
    /// `status.nodeInfo.containerRuntimeVersion`, for instance `containerd://2.1.4`; empty until the kubelet told it.
    pub runtime: String,
    /// Whether a person said that the node will not come back.
    pub released: bool,
}

impl Projection for NodeView {
    type Kind = Node;

    fn project(node: Node) -> Self {
        let status = node.status.unwrap_or_default();
        let info = status.node_info.unwrap_or_default();
        Self {
            uid: node.metadata.uid.unwrap_or_default(),
            released: node.metadata.annotations.is_some_and(|all| all.contains_key(RELEASE_NODE_ANNOTATION)),
            labels: node.metadata.labels.unwrap_or_default(),
            taints: node.spec.and_then(|spec| spec.taints).unwrap_or_default(),
            kernel: KernelVersion::parse(&info.kernel_version),
            boot_id: info.boot_id,
            runtime: info.container_runtime_version,
        }
    }
}
