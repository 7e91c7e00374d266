//! The node that the worker works on, as far as it is asked and changed.

use crate::worker::host::Host;
use crate::worker::kernel::Kernel;
use crate::worker::store::Store;

/// The kernel, the host around it, and the worker's own files.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    /// The kernel's modules.
    pub kernel: &'a dyn Kernel,
    /// Files of the host.
    pub host: &'a dyn Host,
    /// The record, and what is kept beside it.
    pub store: &'a dyn Store,
}

impl std::fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}
