//! What follows from the end of a job: what is held against it, and for how long. The same for the worker that stays and
//! for a single pass.

use std::collections::BTreeMap;
use std::time::Duration;

use super::job::{Job, Step};
use super::pause::{self, pause};
use crate::api::names::NodeReason;
use crate::core::kmod::proc_modules::Listed;
use crate::core::load::LoadIdentity;
use crate::worker::facts::Trouble;
use crate::worker::record::Owner;

/// Pause after a load that failed where a module of the kernel itself was loaded again: each try takes it from the node.
const GAVE_WAY: Duration = Duration::from_mins(30);

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps done, in this time.
    Done(Duration),
    /// A step failed; those after it were not begun.
    Failed {
        /// How.
        trouble: Trouble,
        /// A module had left the kernel before.
        left: bool,
    },
    /// The worker is to end; the rest is left for its successor. Nothing has left the kernel.
    Interrupted,
    /// What it was to load is not wanted any more; what made room for it was given back.
    TakenBack,
}

/// A job that the kernel refused, or whose result may not last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What was tried: `None` to unload.
    pub identity: Option<LoadIdentity>,
    /// How it ended.
    pub trouble: Trouble,
    /// Not tried again before this time on the worker's own clock.
    pub retry_at: Duration,
    /// For an unload that something was in the way of: reference counts right after. As soon as they are others it is
    /// tried again.
    pub counts: BTreeMap<String, Option<u32>>,
    /// How often the same was tried in a row, this one included.
    pub tries: u32,
}

/// What is held against jobs, by Module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts(BTreeMap<Owner, Attempt>);

/// What else is to be done after a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AfterJob {
    /// Its files are to be looked at again before it is tried again.
    pub look_again: bool,
    /// The disk is full.
    pub make_room: bool,
}

impl Attempts {
    /// What is held against the jobs of a Module.
    pub fn get(&self, owner: &Owner) -> Option<&Attempt> {
        self.0.get(owner)
    }

    /// For tests that need a moment which the simulated world does not have.
    #[cfg(test)]
    pub(super) fn get_mut(&mut self, owner: &Owner) -> Option<&mut Attempt> {
        self.0.get_mut(owner)
    }

    /// When something may be tried again.
    pub fn due(&self) -> impl Iterator<Item = Duration> {
        self.0.values().map(|attempt| attempt.retry_at)
    }

    /// Forgets what is not to be kept.
    pub(super) fn retain(&mut self, keep: impl Fn(&Owner, &Attempt) -> bool) {
        self.0.retain(|owner, attempt| keep(owner, attempt));
    }

    /// Takes in how a job ended. `listed` is what the kernel holds since then, where it tells.
    ///
    /// A load that went well is held against the next one too, so that a module that leaves again at once is not loaded
    /// over and over; it is forgotten when it has lasted.
    pub fn ended(
        &mut self,
        job: &Job,
        outcome: &Outcome,
        now: Duration,
        listed: Option<&BTreeMap<String, Listed>>,
    ) -> AfterJob {
        let (trouble, left) = match outcome {
            Outcome::Failed { trouble, left } => (trouble.clone(), *left),
            Outcome::Done(_) if job.loads() => {
                let message = "the kernel took it and does not hold it any more";
                (Trouble::new(NodeReason::LoadNotProved, message), false)
            }
            // What leaves by an order has not left by itself.
            Outcome::Done(_) if job.unloads() || job.owner.is_node() => {
                self.0.remove(&job.owner);
                return AfterJob::default();
            }
            Outcome::Done(_) | Outcome::Interrupted | Outcome::TakenBack => return AfterJob::default(),
        };
        let failed = matches!(outcome, Outcome::Failed { .. });
        let after = AfterJob {
            look_again: failed && job.identity.is_some() && trouble.reason != NodeReason::InUse,
            make_room: failed && trouble.reason == NodeReason::StoreFull,
        };
        let before = self.0.get(&job.owner).filter(|known| known.identity == job.identity);
        let tries = before.map_or(0, |known| known.tries);
        let mut pause = pause(pause::FIRST, pause::LONGEST, tries);
        // Only somebody who changes the node's policy helps.
        if trouble.reason == NodeReason::NotPermitted {
            pause = pause::LONGEST;
        }
        let gave_way = left && job.steps.iter().any(|step| matches!(step, Step::OnFailure(_)));
        if gave_way && trouble.reason != NodeReason::InUse {
            pause = pause.max(GAVE_WAY);
        }
        let attempt = Attempt {
            identity: job.identity.clone(),
            retry_at: now.saturating_add(pause),
            counts: listed.map(|listed| job.counts_after(&trouble, listed)).unwrap_or_default(),
            trouble,
            tries: tries.saturating_add(1),
        };
        self.0.insert(job.owner.clone(), attempt);
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::kmod::Identity;
    use crate::core::kmod::order::Role::Named;
    use crate::core::kmod::proc_modules::InitState;
    use crate::core::load;
    use crate::worker::testing::{file, spec};

    const NOW: Duration = Duration::from_secs(100);

    fn job(steps: Vec<Step>, loads: bool) -> Job {
        let spec = spec("gpu", "gpu", 'a', 1);
        let identity = loads.then(|| load::identity(&spec.config).unwrap());
        Job { owner: Owner::of(&spec), identity, steps }
    }

    fn put_back() -> Step {
        Step::OnFailure(vec![Step::PutBack("old".into())])
    }

    fn loading() -> Step {
        Step::Load { file: file("gpu", "1", Named, &[]), parameters: String::new() }
    }

    fn unloading() -> Step {
        Step::Unload { name: "gpu".into(), identity: Identity::default() }
    }

    #[test]
    fn how_long_a_job_is_held_back_depends_on_how_it_ended() {
        use NodeReason::{InUse, KernelRefused, LoadNotProved, NotPermitted, StoreFull};
        let failed = |reason, left| Outcome::Failed { trouble: Trouble::new(reason, "why"), left };
        let done = || Outcome::Done(Duration::from_secs(1));
        let making_room = || job(vec![put_back(), unloading(), loading()], true);
        let (load, unload) = (|| job(vec![loading()], true), || job(vec![unloading()], false));
        let (short, seldom, long) = (Some(pause::FIRST), Some(pause::LONGEST), Some(GAVE_WAY));
        let after = |look_again, make_room| AfterJob { look_again, make_room };
        let nothing = AfterJob::default();
        for (name, job, outcome, reason, pause, expected) in [
            ("loaded", load(), done(), LoadNotProved, short, nothing),
            ("loaded after it made room", making_room(), done(), LoadNotProved, short, nothing),
            ("refused", load(), failed(KernelRefused, false), KernelRefused, short, after(true, false)),
            (
                "refused when room was made",
                making_room(),
                failed(KernelRefused, true),
                KernelRefused,
                long,
                after(true, false),
            ),
            ("refused before", making_room(), failed(KernelRefused, false), KernelRefused, short, after(true, false)),
            ("in use when a part had left", making_room(), failed(InUse, true), InUse, short, nothing),
            (
                "something left, nothing comes back",
                load(),
                failed(KernelRefused, true),
                KernelRefused,
                short,
                after(true, false),
            ),
            ("not permitted", load(), failed(NotPermitted, false), NotPermitted, seldom, after(true, false)),
            ("disk full", load(), failed(StoreFull, false), StoreFull, short, after(true, true)),
            ("not unloaded", unload(), failed(KernelRefused, false), KernelRefused, short, nothing),
            ("unloaded", unload(), done(), KernelRefused, None, nothing),
            ("interrupted", load(), Outcome::Interrupted, KernelRefused, None, nothing),
            ("taken back", making_room(), Outcome::TakenBack, KernelRefused, None, nothing),
        ] {
            let mut attempts = Attempts::default();
            assert_eq!(attempts.ended(&job, &outcome, NOW, None), expected, "{name}");
            let held =
                attempts.get(&job.owner).map(|attempt| (attempt.trouble.reason, attempt.retry_at.saturating_sub(NOW)));
            assert_eq!(held, pause.map(|pause| (reason, pause)), "{name}");
        }
    }

    #[test]
    fn pauses_double_with_every_failure_of_the_same_thing_and_begin_anew_with_another() {
        let failed = Outcome::Failed { trouble: Trouble::new(NodeReason::KernelRefused, "why"), left: false };
        let mut attempts = Attempts::default();
        let mut pause = |job: &Job| {
            attempts.ended(job, &failed, NOW, None);
            attempts.get(&job.owner).unwrap().retry_at.saturating_sub(NOW).as_secs()
        };
        let (load, unload) = (job(vec![loading()], true), job(vec![unloading()], false));
        let pauses: Vec<u64> = [&load, &load, &load, &unload, &load].map(&mut pause).into();
        assert_eq!(pauses, [5, 10, 20, 5, 5]);
        assert_eq!((0..50).map(|_| pause(&load)).last(), Some(300));
        // In a pass that tries nothing twice there is no later.
        attempts.ended(&load, &failed, Duration::MAX, None);
        assert_eq!(attempts.get(&load.owner).unwrap().retry_at, Duration::MAX);
    }

    #[test]
    fn what_was_in_use_is_held_back_by_its_counts_and_nothing_is_held_against_an_unload_that_is_done() {
        let listed = Listed { refcnt: Some(2), holders: vec![], permanent: false, state: InitState::Live };
        let listed = BTreeMap::from([("gpu".to_owned(), listed)]);
        let failed = |reason| Outcome::Failed { trouble: Trouble::new(reason, "why"), left: false };
        let unload = job(vec![unloading()], false);
        let mut attempts = Attempts::default();
        for (reason, counts) in [
            (NodeReason::InUse, BTreeMap::from([("gpu".to_owned(), Some(2))])),
            (NodeReason::KernelRefused, BTreeMap::new()),
        ] {
            attempts.ended(&unload, &failed(reason), NOW, Some(&listed));
            assert_eq!(attempts.get(&unload.owner).unwrap().counts, counts, "{}", reason.as_str());
        }
        attempts.ended(&unload, &Outcome::Done(Duration::ZERO), NOW, Some(&listed));
        assert_eq!(attempts, Attempts::default());
        let node = Job { owner: Owner::node("firmware"), identity: None, steps: vec![Step::Firmware] };
        attempts.ended(&node, &failed(NodeReason::FirmwarePathRefused), NOW, None);
        assert!(attempts.get(&node.owner).is_some());
        attempts.ended(&node, &Outcome::Done(Duration::ZERO), NOW, None);
        assert_eq!(attempts.get(&node.owner), None);
    }
}
