//! What the manager of a cluster with nodes has to be told.

use k8s_openapi::api::core::v1::Toleration;

use crate::runtime::store::ObjectKey;

/// Whether there is a Hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A Spoke: kernels are told to the Hub, images are not built here.
    Managed,
    /// A cluster of its own.
    Standalone,
}

/// What the manager of a cluster with nodes has to be told.
#[derive(Clone, Debug)]
pub struct SpokeSettings {
    /// Whether there is a Hub.
    pub mode: Mode,
    /// Namespace of the manager and of the worker DaemonSet.
    pub operator_namespace: String,
    /// Image of the worker.
    pub worker_image: String,
    /// Service account of the worker, in the operator's namespace.
    pub worker_service_account: String,
    /// Port of each node, on its loopback address, on which the worker says whether it is ready.
    pub worker_health_port: u16,
    /// Variables of the worker's environment: the manager's own proxies, and whether a node's credentials are used.
    pub worker_variables: Vec<(&'static str, String)>,
    /// Taints that keep no Module off a node, whatever it tolerates itself.
    pub tolerations: Vec<Toleration>,
    /// Name of this replica, shown in events.
    pub instance: String,
}

impl SpokeSettings {
    /// Namespace and name of the workers' service account.
    pub(super) fn worker_account(&self) -> ObjectKey {
        ObjectKey::new(self.operator_namespace.as_str(), self.worker_service_account.as_str())
    }
}
