//! How one cluster stands with one ManagedClusterModule.

use std::sync::Arc;

use crate::api::names::ClusterReason;
use crate::core::kernel::KernelVersion;
use crate::hub::intern;
use crate::hub::view::Nodes;

/// The part of the status that one cluster contributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Into which counter it goes.
    pub phase: Phase,
    /// Why, in one word.
    pub reason: ClusterReason,
    /// Why, in one sentence of at most [`MESSAGE_MAX`](intern::MESSAGE_MAX) characters; empty where the reason says it all.
    pub message: Arc<str>,
    /// Whether every selected node is one that gets the module.
    pub coverage: Coverage,
    /// The present generation of its work was applied.
    pub applied: bool,
    /// Its nodes, zero unless it reports on what it was sent, or counts alone.
    pub nodes: Nodes,
    /// Kernels that have a mapping and no image yet.
    pub held_back: Arc<[KernelVersion]>,
}

/// The counters that a cluster can be in; each cluster is in exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The module is loaded on every node that gets it.
    Ready,
    /// It is on its way, or waits for somebody.
    Waiting,
    /// Nothing valid is known of the cluster.
    Unknown,
    /// Something failed.
    Degraded,
}

/// Whether every node of a cluster that the Module selects is one that gets it: its kernel has a mapping and an image, and
/// its taints are tolerated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Every one.
    Covered,
    /// Not every one.
    NotCovered {
        /// Why, in one word.
        reason: ClusterReason,
        /// Why, in one sentence.
        message: Arc<str>,
    },
    /// Nobody can tell.
    Unknown,
}

impl Standing {
    /// A cluster of which only a reason is to be told.
    pub fn new(phase: Phase, reason: ClusterReason, message: &str) -> Self {
        Self {
            phase,
            reason,
            message: intern::message(message),
            coverage: Coverage::Unknown,
            applied: false,
            nodes: Nodes::default(),
            held_back: intern::kernels(&[]),
        }
    }

    /// Another reason for the same cluster; what is known of its work stays.
    #[must_use]
    pub fn because(self, phase: Phase, reason: ClusterReason, message: &str) -> Self {
        Self { phase, reason, message: intern::message(message), ..self }
    }
}
