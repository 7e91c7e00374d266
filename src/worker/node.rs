//! The node that the worker works on, as far as it is asked and changed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::worker::host::Host;
use crate::worker::kernel::Kernel;
use crate::worker::record::Record;
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

/// The node and the record, for jobs that change both beside the loop.
pub struct Hands<S> {
    /// The kernel's modules.
    pub kernel: Arc<dyn Kernel>,
    /// Files of the host.
    pub host: Arc<dyn Host>,
    /// The worker's own files.
    pub state: Arc<S>,
    /// The record as it is on the disk.
    pub record: Arc<Mutex<Record>>,
}

impl<S> Clone for Hands<S> {
    fn clone(&self) -> Self {
        Self {
            kernel: Arc::clone(&self.kernel),
            host: Arc::clone(&self.host),
            state: Arc::clone(&self.state),
            record: Arc::clone(&self.record),
        }
    }
}

impl<S: Store> Hands<S> {
    /// The node.
    pub fn node(&self) -> Node<'_> {
        Node { kernel: self.kernel.as_ref(), host: self.host.as_ref(), store: self.state.as_ref() }
    }

    /// The record as it is now.
    pub fn recorded(&self) -> Record {
        lock(&self.record).clone()
    }
}

impl<S> std::fmt::Debug for Hands<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hands").field("record", &self.record).finish_non_exhaustive()
    }
}

/// The record for a moment. A panic elsewhere cannot have left it half changed: it is replaced whole.
pub fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}
