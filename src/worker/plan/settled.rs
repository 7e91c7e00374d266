//! What the worker need not remember any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::desired::Desired;
use super::observed::{Observed, Prepared};
use super::outcome::Attempts;
use super::report::Plan;
use crate::api::ModuleState;
use crate::worker::record::{Entry, Owner};

/// How long a load must last before earlier failures are forgotten.
const LASTED: Duration = Duration::from_mins(1);

/// Which Modules are loaded and have nothing to be done, and which are of interest at all.
#[derive(Debug)]
pub struct Settled {
    now: Duration,
    wanted: BTreeSet<Owner>,
    recorded: BTreeSet<Owner>,
    at_rest: BTreeSet<Owner>,
}

impl Settled {
    /// As a plan says.
    pub fn of(observed: &Observed, plan: &Plan) -> Self {
        let open = |owner: &Owner| plan.held.contains(owner) || plan.jobs.iter().any(|job| job.owner == *owner);
        let loaded = plan.reports.iter().filter(|report| report.state == ModuleState::Loaded);
        Self {
            now: observed.now,
            wanted: observed.desired.modules.iter().map(Desired::owner).collect(),
            recorded: observed.record.entries.iter().map(Entry::owner).collect(),
            at_rest: loaded.map(|report| Owner::of(&report.spec)).filter(|owner| !open(owner)).collect(),
        }
    }

    /// Whether the files of a Module are still looked at.
    pub fn needs_files(&self, owner: &Owner) -> bool {
        self.wanted.contains(owner) && !self.at_rest.contains(owner)
    }

    /// Drops preparations and failures that no plan looks at any more.
    pub fn forget(&self, prepared: &mut BTreeMap<Owner, Prepared>, attempts: &mut Attempts) {
        prepared.retain(|owner, _| self.needs_files(owner));
        attempts.retain(|owner, attempt| {
            let known = owner.is_node() || self.wanted.contains(owner) || self.recorded.contains(owner);
            known && !(self.at_rest.contains(owner) && self.now > attempt.retry_at.saturating_add(LASTED))
        });
    }
}
