//! What runs beside the loop: fetching and reading images, and jobs for the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Agent;
use super::users::Looked;
use crate::api::names::NodeReason;
use crate::api::{NodeModuleSpec, NodeModulesConfig};
use crate::runtime::client::{ApiError, chain};
use crate::worker::Error;
use crate::worker::apply::{self, Outcome};
use crate::worker::kernel::Trouble;
use crate::worker::plan::{Attempt, Job, LoadSet, Preparation, Prepared, Reach, RunningJob, Step};
use crate::worker::prepare::Host;
use crate::worker::record::Owner;
use crate::worker::wanted::{self, LoadIdentity};

/// Images that are fetched at the same time.
const FETCHES: usize = 4;
/// First and longest pause after a failure.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(5);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// Pause after a load that failed where a module of the kernel itself was loaded again: each try takes it from the node.
const GAVE_WAY_PAUSE: Duration = Duration::from_mins(30);

/// The end of a task.
pub(super) enum Finished {
    /// An image was fetched and read.
    Prepared { number: u64, spec: Box<NodeModuleSpec>, runtime: Option<String>, result: Result<LoadSet, Trouble> },
    /// A job was carried out; without an outcome it broke off.
    Worked { job: Box<Job>, outcome: Option<Outcome> },
    /// Users of modules that could not go were looked for.
    Users(Vec<Looked>),
    /// A status was written.
    Written(Result<Box<NodeModulesConfig>, ApiError>),
}

/// The pause after so many failures before this one: it doubles with each, up to the longest.
pub(super) fn pause(first: Duration, longest: Duration, failures: u32) -> Duration {
    first.saturating_mul(2u32.saturating_pow(failures)).min(longest)
}

/// Pauses that double with every failure of the same thing.
#[derive(Clone, Debug, Default)]
pub(super) struct Backoff {
    what: Option<LoadIdentity>,
    failures: u32,
}

impl Backoff {
    fn next(&mut self, what: Option<&LoadIdentity>) -> Duration {
        if self.what.as_ref() != what {
            *self = Self { what: what.cloned(), failures: 0 };
        }
        let pause = pause(FIRST_PAUSE, LONGEST_PAUSE, self.failures);
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

/// Keeps fetches few, and two of the same image apart.
#[derive(Debug)]
pub(super) struct Fetches {
    slots: Arc<Semaphore>,
    trees: BTreeMap<String, Arc<Mutex<()>>>,
    number: u64,
}

impl Default for Fetches {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(FETCHES)), trees: BTreeMap::new(), number: 0 }
    }
}

impl Agent {
    /// Starts to fetch the image of an entry, unless it is on the node, as this container runtime would, and to read its
    /// modules.
    pub(super) fn prepare(&mut self, spec: NodeModuleSpec, runtime: Option<String>, loaded: BTreeSet<String>) {
        let Ok(identity) = wanted::identity(&spec) else { return };
        let owner = Owner::of(&spec);
        if let Some((_, task)) = self.preparing.remove(&owner) {
            task.abort();
        }
        self.fetches.number += 1;
        let number = self.fetches.number;
        self.fetches.trees.retain(|_, lock| Arc::strong_count(lock) > 1);
        let key = identity.tree_key(&self.release);
        let turn = Arc::clone(self.fetches.trees.entry(key.clone()).or_default());
        let slots = Arc::clone(&self.fetches.slots);
        let fetch = Arc::clone(&self.fetch);
        let tree = self.state.tree(&key);
        let host = Host::new(&self.settings, self.state.generated());
        let wanted = spec.clone();
        let release = self.release.clone();
        let running = Prepared { spec: spec.clone(), runtime: runtime.clone(), state: Preparation::Running };
        self.prepared.insert(owner.clone(), running);
        let task = self.tasks.spawn(async move {
            let _turn = turn.lock().await;
            let fetched = if tree.is_dir() {
                Ok(())
            } else {
                let _slot = slots.acquire().await;
                fetch.fetch(spec.clone(), runtime.clone(), release.clone(), tree.clone()).await
            };
            let result = match fetched {
                Ok(()) => {
                    tokio::task::spawn_blocking(move || host.load_set(&tree, &release, &loaded, &identity, &wanted))
                        .await
                        .unwrap_or_else(|error| {
                            Err(Trouble::new(
                                NodeReason::InvalidModule,
                                format!("the image could not be read: {error}"),
                            ))
                        })
                }
                Err(trouble) => Err(trouble),
            };
            Finished::Prepared { number, spec: Box::new(spec), runtime, result }
        });
        self.preparing.insert(owner, (number, task));
    }

    /// Starts a job, on a thread of its own: the kernel may keep it for ever.
    pub(super) fn work(&mut self, job: Job, reach: Reach) {
        let kernel = Arc::clone(&self.kernel);
        let state = Arc::clone(&self.state);
        let record = Arc::clone(&self.record);
        let shutdown = self.shutdown.clone();
        let taken_back = CancellationToken::new();
        self.running.insert(job.owner.clone(), RunningJob::of(&job, reach, self.now()));
        self.taken_back.insert(job.owner.clone(), taken_back.clone());
        let (done, ended) = oneshot::channel();
        let given = job.clone();
        // Not on the runtime's threads for blocking work: the process could not end before they do.
        let begun = std::thread::Builder::new().name("job".to_owned()).spawn(move || {
            let jobs = [given];
            let mut outcomes = apply::jobs(kernel.as_ref(), state.as_ref(), &record, &jobs, &shutdown, &taken_back);
            let [given] = jobs;
            if let Some(outcome) = outcomes.remove(&given.owner) {
                let _ = done.send(outcome);
            }
        });
        let refused = begun.err().map(|error| {
            let trouble = Trouble::new(NodeReason::KernelRefused, format!("no thread for the job: {error}"));
            Outcome::Failed { trouble, left: false }
        });
        self.tasks.spawn(async move {
            let outcome = if refused.is_some() { refused } else { ended.await.ok() };
            Finished::Worked { job: Box::new(job), outcome }
        });
    }

    /// Takes in what a task came to.
    ///
    /// # Errors
    /// A job broke off: what it has done is not known to this process any more.
    pub(super) fn finish(&mut self, finished: Finished) -> Result<(), Error> {
        match finished {
            Finished::Prepared { number, spec, runtime, result } => self.prepared(number, *spec, runtime, result),
            Finished::Worked { job, outcome } => {
                self.running.remove(&job.owner);
                self.taken_back.remove(&job.owner);
                let outcome = outcome.ok_or_else(|| Error::Job(job.owner.clone()))?;
                self.worked(&job, &outcome);
                self.tidy = true;
            }
            Finished::Users(looked) => self.users.found(looked),
            Finished::Written(result) => self.reporting.written(result.map(|object| *object), self.started.elapsed()),
        }
        Ok(())
    }

    fn prepared(
        &mut self,
        number: u64,
        spec: NodeModuleSpec,
        runtime: Option<String>,
        result: Result<LoadSet, Trouble>,
    ) {
        let owner = Owner::of(&spec);
        if self.preparing.get(&owner).is_none_or(|(latest, _)| *latest != number) {
            return;
        }
        self.preparing.remove(&owner);
        let state = match result {
            Ok(set) => {
                if !set.unknown_parameters.is_empty() {
                    info!(module = %owner, "parameters that the module does not know: {}", set.unknown_parameters.join(", "));
                }
                self.fetch_backoff.remove(&owner);
                Preparation::Ready(Arc::new(set))
            }
            Err(trouble) => {
                if trouble.reason == NodeReason::StoreFull {
                    self.make_room();
                }
                let identity = wanted::identity(&spec).ok();
                let pause = self.fetch_backoff.entry(owner.clone()).or_default().next(identity.as_ref());
                Preparation::Failed(trouble, self.now() + pause)
            }
        };
        self.prepared.insert(owner, Prepared { spec, runtime, state });
    }

    /// An unpacked image of which a file is missing goes, so that it is fetched again; not one with firmware that the kernel
    /// may ask for.
    fn drop_damaged_tree(&self, job: &Job) {
        let Some(identity) = &job.identity else { return };
        let key = identity.tree_key(&self.release);
        let tree = self.state.tree(&key);
        let files = job.steps.iter().filter_map(|step| match step {
            Step::Check { files, .. } => Some(files),
            _ => None,
        });
        let missing = |file: &PathBuf| {
            let read = self.kernel.readable(file);
            file.starts_with(&tree) && read.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let record = apply::lock(&self.record).clone();
        let mut firmware = record.entries.iter().filter_map(|entry| entry.firmware.as_ref());
        let asked_for = firmware.any(|firmware| firmware.folder.starts_with(&tree));
        if tree.is_dir() && !asked_for && files.flatten().any(missing) {
            match self.state.drop_tree(&key) {
                Ok(()) => info!(module = %job.owner, tree = %tree.display(), "removed a damaged unpacked image"),
                Err(error) => warn!("{}", chain(&error)),
            }
        }
    }

    fn worked(&mut self, job: &Job, outcome: &Outcome) {
        let loads = job.steps.iter().any(Step::loads);
        let trouble = match outcome {
            Outcome::Failed { trouble, .. } => {
                if trouble.reason == NodeReason::StoreFull {
                    self.make_room();
                }
                if job.needs_another_look(trouble) {
                    self.prepared.remove(&job.owner);
                    self.drop_damaged_tree(job);
                }
                trouble.clone()
            }
            // Held against a module that leaves again at once; forgotten when it has lasted.
            Outcome::Done(took) if loads => {
                info!(module = %job.owner, took_ms = took.as_millis(), "loaded");
                Trouble::new(NodeReason::LoadNotProved, "the kernel took it and does not hold it any more")
            }
            Outcome::Done(_) if job.owner.is_node() => {
                self.attempts.remove(&job.owner);
                self.backoff.remove(&job.owner);
                return;
            }
            Outcome::Done(took) => {
                if job.steps.iter().any(Step::unloads) {
                    info!(module = %job.owner, took_ms = took.as_millis(), "unloaded");
                }
                return;
            }
            Outcome::Interrupted | Outcome::TakenBack => return,
        };
        let mut pause = self.backoff.entry(job.owner.clone()).or_default().next(job.identity.as_ref());
        let left = matches!(outcome, Outcome::Done(_) | Outcome::Failed { left: true, .. });
        let gave_way = left && job.steps.iter().any(|step| matches!(step, Step::OnFailure(_)));
        if gave_way && trouble.reason != NodeReason::InUse {
            pause = pause.max(GAVE_WAY_PAUSE);
        }
        let listed = if trouble.reason == NodeReason::InUse { self.kernel.listed().ok() } else { None };
        let counts = listed.map(|listed| job.counts_after(&trouble, &listed)).unwrap_or_default();
        let attempt = Attempt { identity: job.identity.clone(), trouble, retry_at: self.now() + pause, counts };
        self.attempts.insert(job.owner.clone(), attempt);
    }
}
