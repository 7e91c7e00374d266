//! Whether this process leads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Closed until this process begins to lead; clones share the same state.
///
/// Watches run on every replica and keep its stores complete, but what they find out is no work for a replica that only waits:
/// a queue that asks this takes in nothing before. Whoever begins to lead calls [`Leading::begin`] first and puts everything that
/// the stores hold into the queues then: what changes after the call wakes a controller, what changed before is in the stores.
#[derive(Clone, Debug, Default)]
pub struct Leading(Arc<AtomicBool>);

impl Leading {
    /// From here on this process leads; it never stops before it ends.
    pub fn begin(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether this process leads.
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
