//! What is to be done, and what is to be reported, given what was observed. Pure: no kernel, no client, no clock.
//!
//! Nothing is unloaded unless an intent says so, and only what the record says that the Module has in the kernel.
//! Carried out in the observed world, the next plan does nothing.

mod checks;
mod desired;
mod hold;
mod in_tree;
mod in_use;
mod job;
mod load;
mod load_set;
mod observed;
mod outcome;
pub mod pause;
mod reach;
mod report;
mod settled;
mod together;
mod unload;
mod upkeep;

use std::collections::BTreeSet;

pub use self::checks::enough_memory;
pub use self::desired::{Desired, Wanted, Wants};
pub use self::in_use::in_use;
pub use self::job::{Job, Step};
pub use self::load_set::{LoadFile, LoadSet, Modprobe};
pub use self::observed::{InKernel, KernelView, Observed, Preparation, Prepared, Scope};
pub use self::outcome::{AfterJob, Attempt, Attempts, Outcome};
pub use self::reach::{Reach, RunningJob};
pub use self::report::{Plan, Report};
pub use self::settled::Settled;
pub use self::together::startable;
use crate::api::ModuleState;
use crate::worker::record::Owner;

/// Decides. Never panics, whatever the objects say.
pub fn plan(observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let mut wanted_owners = BTreeSet::new();
    for desired in &observed.desired.modules {
        let (spec, owner) = (&desired.spec, desired.owner());
        // A newer intent than the entry: the planner took it back and has not removed the entry yet.
        if observed.intent(&owner, spec.generation.unwrap_or(0)).is_some() || !wanted_owners.insert(owner.clone()) {
            continue;
        }
        match desired.check(&observed.release) {
            Ok(wanted) => load::plan(observed, &wanted, &mut plan),
            Err(trouble) => {
                let loaded = observed.in_kernel(&owner);
                plan.reports.push(report::report(spec, ModuleState::Failed, trouble, loaded));
            }
        }
    }
    for entry in observed.record.entries.iter().filter(|_| observed.scope == Scope::Everything) {
        if !wanted_owners.contains(&entry.owner()) {
            unload::plan(observed, entry, &mut plan);
        }
    }
    together::wait_for_running(observed, &mut plan);
    upkeep::plan(observed, &mut plan);
    hold::plan(observed, &mut plan);
    together::tell_waiting(observed, &mut plan);
    plan.reports.sort_by_key(|report| Owner::of(&report.spec));
    plan
}

#[cfg(test)]
mod firmware_tests;
#[cfg(test)]
mod host_tests;
#[cfg(test)]
mod in_tree_tests;
#[cfg(test)]
mod needed_tests;
#[cfg(test)]
mod policies_tests;
#[cfg(test)]
mod tests;
