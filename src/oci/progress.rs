//! What a pull has moved, and whether anybody still waits for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by all parts of one pull.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    moved: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Bytes were fetched or unpacked.
    pub(crate) fn add(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// All bytes that were fetched or unpacked.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Nobody waits any more.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether nobody waits any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}
