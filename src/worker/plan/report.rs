//! What a plan says: what is to be done, and what is true of each Module.

use std::collections::BTreeSet;

use super::desired::Wanted;
use super::job::Job;
use super::observed::InKernel;
use crate::api::names::NodeReason;
use crate::api::{ModuleState, NodeModuleSpec};
use crate::worker::facts::Trouble;
use crate::worker::record::Owner;

/// What is true of one Module on this node.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The wanted entry, or the one that was loaded.
    pub spec: NodeModuleSpec,
    /// Where it is on its way.
    pub state: ModuleState,
    /// Why.
    pub reason: NodeReason,
    /// Why, in a sentence; empty if there is nothing to add.
    pub message: String,
    /// Generation that this speaks of: that of the wanted entry, or of the unload intent.
    pub generation: Option<i64>,
    /// What is in the kernel.
    pub loaded: Option<InKernel>,
}

impl Report {
    /// Says besides what is wrong beside the load: the state stays what it is.
    pub(super) fn add(&mut self, trouble: &Trouble) {
        let before = if self.message.is_empty() { String::new() } else { format!("{}; ", self.message) };
        self.message = format!("{before}{}: {}", trouble.reason.as_str(), trouble.message);
    }
}

/// What to do and what to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Images to fetch and to read.
    pub prepare: Vec<Wanted>,
    /// What to tell the kernel.
    pub jobs: Vec<Job>,
    /// What holds now. A Module that is in neither list and not in the kernel is not in here: it is gone.
    pub reports: Vec<Report>,
    /// Modules of which something is to be done that could not be remembered.
    pub held: BTreeSet<Owner>,
    /// Modules with a job that loads what an order has taken back since.
    pub taken_back: BTreeSet<Owner>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_quiet(&self) -> bool {
        self.prepare.is_empty() && self.jobs.is_empty()
    }
}

/// A report on a wanted entry.
pub(super) fn report(spec: &NodeModuleSpec, state: ModuleState, trouble: Trouble, loaded: Option<InKernel>) -> Report {
    let Trouble { reason, message } = trouble;
    Report { spec: spec.clone(), state, reason, message, generation: spec.generation, loaded }
}
