//! What one node means for one Module.

use std::sync::Arc;

use crate::core::kernel::KernelVersion;

/// What the planner of a node found out about one Module there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Kernel of a node for which an image is needed.
    pub kernel: Option<KernelVersion>,
    /// Where the Module stands on the node.
    pub standing: Standing,
    /// Whether the end of the Module waits for this node: its NodeModulesConfig names the Module, and no person
    /// released the node.
    pub holds: bool,
}

/// Where a Module stands on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The node is none of the Module's, and never was or has lost it.
    Elsewhere,
    /// Selected, but no mapping can be carried out for its kernel.
    Unmapped {
        /// Whether it had the module under an earlier kernel, and waits for a mapping to have it again.
        awaits: bool,
        /// Which kernel.
        why: Arc<Trouble>,
    },
    /// Selected, but a taint keeps it from getting the module for the first time.
    Tainted(Arc<Trouble>),
    /// To be loaded and on its way.
    Waiting,
    /// To be loaded, and no worker of the node's present boot has said anything.
    Silent,
    /// The image is missing or cannot be looked up.
    NoImage(Arc<Trouble>),
    /// It failed.
    Failing(Arc<Trouble>),
    /// The worker proved in the present boot that it is loaded as wanted.
    Available,
    /// To be loaded; an older file is, and the policy leaves it until the node boots again.
    WaitingForReboot,
    /// Not wanted any more; the policy leaves it in the kernel until the node boots again.
    Kept,
    /// It must go, or make room for another file, and pods that use it are still on the node.
    WaitingForConsumers {
        /// Whether it is not wanted on the node any more.
        leaves: bool,
        /// Which pods, and what to do about them.
        why: Arc<Trouble>,
    },
    /// It must go and is on its way.
    Leaving,
    /// It must go and cannot.
    Stuck(Arc<Trouble>),
}

/// Whose wish the deletion of a Module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deletion {
    /// Somebody's who wants it unloaded.
    Ordered,
    /// Nobody's: OCM's agent lost the Hub that the Module came from, and evicts what it applied.
    Evicted,
}

/// Why something is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Trouble {
    /// One word.
    pub reason: String,
    /// One sentence.
    pub message: String,
}

impl Trouble {
    /// Both parts.
    pub(super) fn new(reason: impl Into<String>, message: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { reason: reason.into(), message: message.into() })
    }
}

impl Outcome {
    /// Whether the node matches the Module's selector.
    pub(super) fn is_matching(&self) -> bool {
        !matches!(self.standing, Standing::Elsewhere | Standing::Kept) && !self.is_leaving()
    }

    /// Whether the node is to run the module.
    pub(super) fn is_desired(&self) -> bool {
        matches!(
            self.standing,
            Standing::Waiting
                | Standing::Silent
                | Standing::NoImage(_)
                | Standing::Failing(_)
                | Standing::Available
                | Standing::WaitingForReboot
                | Standing::WaitingForConsumers { leaves: false, .. }
        )
    }

    /// Whether the node has the module and is to lose it.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(
            self.standing,
            Standing::Leaving | Standing::Stuck(_) | Standing::WaitingForConsumers { leaves: true, .. }
        )
    }

    /// Whether the node counts for the Module at all.
    pub(super) fn is_relevant(&self) -> bool {
        self.holds || self.standing != Standing::Elsewhere
    }
}
