//! What a job touches: jobs that share nothing may run side by side.

use std::collections::BTreeSet;
use std::time::Duration;

use super::job::{Job, Step};
use crate::api::NodeModuleSpec;
use crate::worker::record::{Owner, Record};

/// What a job touches. Two jobs that share anything of it must not run at the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    owners: BTreeSet<Owner>,
    pub(super) modules: BTreeSet<String>,
    firmware: BTreeSet<String>,
}

/// A job that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct RunningJob {
    /// When it was begun, on the worker's own clock.
    pub since: Duration,
    /// The entry that it loads; `None` if it only unloads or writes.
    pub load: Option<NodeModuleSpec>,
    /// What it touches.
    pub reach: Reach,
}

impl RunningJob {
    /// The job, begun now.
    pub fn of(job: &Job, reach: Reach, now: Duration) -> Self {
        let written = job.steps.iter().find_map(|step| match step {
            Step::Write(entry) if entry.owner() == job.owner => Some(entry.spec.clone()),
            _ => None,
        });
        Self { since: now, load: written.filter(|_| job.identity.is_some()), reach }
    }
}

impl Reach {
    /// Everything that the job writes about, loads or unloads, and what else its Modules have in the record.
    pub fn of(job: &Job, record: &Record) -> Self {
        let mut reach = Self { owners: BTreeSet::from([job.owner.clone()]), ..Self::default() };
        for step in &job.steps {
            match step {
                Step::Write(entry) => {
                    reach.owners.insert(entry.owner());
                    // Two files of one name may differ, which only shows once the first is recorded.
                    let firmware = entry.firmware.iter().flat_map(|firmware| firmware.files.keys());
                    reach.firmware.extend(firmware.cloned());
                    reach.modules.extend(entry.modules.iter().map(|module| module.name.clone()));
                }
                Step::Forget(owner) => {
                    reach.owners.insert(owner.clone());
                }
                Step::TakeOut { name, .. } | Step::PutBack(name) => {
                    reach.modules.insert(name.clone());
                }
                Step::OnFailure(steps) => {
                    let names = steps.iter().filter_map(|step| match step {
                        Step::PutBack(name) => Some(name.clone()),
                        _ => None,
                    });
                    reach.modules.extend(names);
                }
                // What all Modules share there is changed by one step at a time, whichever jobs they are of.
                Step::Publish { .. } | Step::Unpublish { .. } | Step::Index(_) | Step::Firmware => {}
                Step::Check { .. } | Step::ForgetTakenOut(_) => {}
                Step::Unload { name, .. } => {
                    reach.modules.insert(name.clone());
                }
                Step::Load { file, .. } => {
                    reach.modules.insert(file.name.clone());
                }
                Step::Modprobe { modules, .. } => reach.modules.extend(modules.iter().cloned()),
            }
        }
        let recorded = record.entries.iter().filter(|entry| reach.owners.contains(&entry.owner()));
        let names: Vec<String> = recorded.flat_map(|entry| &entry.modules).map(|module| module.name.clone()).collect();
        reach.modules.extend(names);
        reach
    }

    /// Whether the two share anything.
    pub fn meets(&self, other: &Self) -> bool {
        self.shares(other).is_some()
    }

    /// Something that both touch, in words.
    pub(super) fn shares(&self, other: &Self) -> Option<String> {
        let module = self.modules.intersection(&other.modules).next().map(|name| format!("module {name}"));
        let firmware = || self.firmware.intersection(&other.firmware).next().map(|name| format!("firmware {name}"));
        let record = || self.owners.intersection(&other.owners).next().map(|owner| format!("the record of {owner}"));
        module.or_else(firmware).or_else(record)
    }
}
