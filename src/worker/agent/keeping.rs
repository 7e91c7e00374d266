//! Keeps on the disk what is wanted; where that fails it is tried again, more and more seldom.

use std::time::Duration;

use tracing::{info, warn};

use crate::api::names::NodeReason;
use crate::worker::facts::Trouble;
use crate::worker::plan::pause::pause;
use crate::worker::record::kept_plan::KeptPlan;
use crate::worker::store::StateDir;

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
    pub(super) fn is_kept(&mut self, plan: &KeptPlan) {
        self.kept = Some((plan.uid.clone(), plan.generation));
        self.unkept = None;
    }

    /// Writes what is wanted to the disk; where that is full, once more after `make_room` has made some.
    pub(super) fn keep(
        &mut self,
        state: &StateDir,
        wanted: &KeptPlan,
        make_room: impl FnOnce() -> bool,
        now: Duration,
    ) {
        let mut saved = state.save_plan(wanted).map_err(|error| Trouble::from(&error));
        if saved.as_ref().is_err_and(|trouble| trouble.reason == NodeReason::StoreFull) && make_room() {
            saved = state.save_plan(wanted).map_err(|error| Trouble::from(&error));
        }
        match saved {
            Ok(()) => {
                if self.unkept.is_some() {
                    info!("what is wanted could be written");
                }
                self.is_kept(wanted);
            }
            Err(trouble) => {
                warn!(reason = trouble.reason.as_str(), "what is wanted is not carried out: {}", trouble.message);
                self.failed(trouble, now);
            }
        }
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
