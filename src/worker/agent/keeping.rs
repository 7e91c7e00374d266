//! Keeps on the disk what is wanted; where that fails it is tried again, more and more seldom. Makes up for a record that
//! was lost.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use tracing::{info, warn};

use super::Agent;
use super::tasks::pause;
use crate::api::NodeModulesConfigSpec;
use crate::api::names::NodeReason;
use crate::runtime::client::chain;
use crate::worker::kept_plan::KeptPlan;
use crate::worker::kernel::Trouble;
use crate::worker::{apply, observe, rebuild};

/// First and longest pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What is on the disk, and why what is wanted is not.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// Uid and generation of what is there.
    kept: Option<(String, i64)>,
    unkept: Option<Unkept>,
}

#[derive(Debug)]
struct Unkept {
    trouble: Trouble,
    again: Duration,
    failures: u32,
}

impl Keeping {
    /// This is on the disk, and it is what is wanted.
    pub(super) fn is_kept(&mut self, plan: Option<&KeptPlan>) {
        self.kept = plan.map(|plan| (plan.uid.clone(), plan.generation));
        self.unkept = None;
    }

    fn failed(&mut self, trouble: Trouble, now: Duration) {
        let failures = self.unkept.as_ref().map_or(0, |unkept| unkept.failures);
        let pause = pause(FIRST_PAUSE, LONGEST_PAUSE, failures);
        self.unkept = Some(Unkept { trouble, again: now + pause, failures: failures.saturating_add(1) });
    }

    /// Why what is wanted is not on the disk.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.unkept.as_ref().map(|unkept| unkept.trouble.clone())
    }

    /// When it is tried again.
    pub(super) fn due(&self) -> Option<Duration> {
        self.unkept.as_ref().map(|unkept| unkept.again)
    }

    /// The generation whose orders are taken in: that of what is wanted once it is kept, before that the one that is.
    pub(super) fn generation(&self, wanted: Option<&KeptPlan>) -> i64 {
        let kept = self.kept.as_ref().filter(|(uid, _)| wanted.is_some_and(|wanted| wanted.uid == *uid));
        kept.map_or(0, |(_, generation)| *generation)
    }
}

impl Agent {
    /// Writes what is wanted to the disk.
    pub(super) fn keep(&mut self) {
        let Some(wanted) = &self.wanted else { return };
        let mut saved = self.state.save_plan(wanted).map_err(|error| Trouble::from(&error));
        if saved.as_ref().is_err_and(|trouble| trouble.reason == NodeReason::StoreFull) && self.make_room() {
            saved = self.state.save_plan(wanted).map_err(|error| Trouble::from(&error));
        }
        match saved {
            Ok(()) => {
                if self.keeping.unkept.is_some() {
                    info!("what is wanted could be written");
                }
                self.keeping.is_kept(self.wanted.as_ref());
            }
            Err(trouble) => {
                warn!(reason = trouble.reason.as_str(), "what is wanted is not carried out: {}", trouble.message);
                self.keeping.failed(trouble, self.started.elapsed());
            }
        }
    }

    /// Tries again if it is time.
    pub(super) fn keep_again(&mut self) {
        if self.keeping.due().is_some_and(|again| self.now() >= again) {
            self.keep();
        }
    }

    /// Makes up for a record that was lost, once the API server shows what was reported. Until then it counts as lost.
    ///
    /// # Errors
    /// The kernel does not tell what it runs.
    pub(super) fn make_up_for_record(&mut self, desired: &NodeModulesConfigSpec) -> io::Result<()> {
        let Some(object) = self.reporting.object() else { return Ok(()) };
        let mut record = apply::lock(&self.record);
        if !record.lost {
            return Ok(());
        }
        let reported = object.status.clone().unwrap_or_default();
        let candidates = rebuild::candidates(&record, &reported, &self.before_loss, desired);
        let names = candidates.iter().map(|candidate| (candidate.main().to_owned(), BTreeSet::new())).collect();
        let kernel = observe::kernel(self.kernel.as_ref(), &names, false)?;
        for entry in candidates.iter().filter_map(|candidate| candidate.entry(kernel.running.get(candidate.main()))) {
            warn!(module = %entry.owner(), proved = !entry.unproved, "the record was lost; taken from what was reported");
            record.put(entry);
        }
        (record.lost, record.made_up) = (false, true);
        // Should this fail, a later start makes up for it in the same way.
        if let Err(error) = self.state.save_record(&record) {
            warn!("{}", chain(&error));
        }
        Ok(())
    }
}
