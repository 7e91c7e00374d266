//! What is planned on its own: one ManagedClusterModule in one cluster.

use std::fmt;
use std::sync::Arc;

/// One ManagedClusterModule in one cluster: the key of a work.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Target {
    /// Name of the ManagedClusterModule, and of the work.
    pub(super) module: Arc<str>,
    /// Name of the ManagedCluster, and the work's namespace.
    pub(super) cluster: Arc<str>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.module)
    }
}
