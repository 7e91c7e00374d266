//! The loop: API server, clock and finished tasks in; plans, fetches, jobs and status out.

#[cfg(test)]
mod away;
#[cfg(test)]
mod disk;
mod keeping;
mod reporting;
#[cfg(test)]
mod taken_back;
mod tasks;
mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kube::{Api, Client, ResourceExt};
use kube_runtime::watcher;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::keeping::Keeping;
use self::reporting::Reporting;
use self::tasks::{Backoff, Finished};
use self::users::UsersFound;
use super::fetch::Fetch;
use super::kept_plan::KeptPlan;
use super::kernel::Kernel;
use super::plan::{
    Attempt, KernelView, Observed, Plan, Preparation, Prepared, RunningJob, Scope, in_use, plan, startable,
};
use super::record::{Owner, Record};
use super::state_dir::StateDir;
use super::{Beginning, Error, WorkerSettings, apply, observe, wanted};
use crate::api::{ModuleState, NodeModuleSpec, NodeModulesConfig, NodeModulesConfigSpec};
use crate::runtime::client::chain;
use crate::runtime::guarded::Guarded;
use crate::runtime::memory;
use crate::runtime::watch::watch;

type Watched = Guarded<NodeModulesConfig>;

/// A watch that says nothing for so long is begun anew.
const WATCH_TIMEOUT_SECS: u32 = 120;
/// How long the end of the worker waits for the kernel: less than the DaemonSet's grace period of 30 s.
const LAST_WAIT: Duration = Duration::from_secs(20);
/// How long a load must last before earlier failures are forgotten.
const LASTED: Duration = Duration::from_mins(1);
/// How long the worker rests before it lets go of the code that it ran, and how often it does so again.
const RESTED: Duration = Duration::from_secs(5);
const REST_AGAIN: Duration = Duration::from_mins(1);

/// The worker's state. One task owns it; what takes time runs beside it and comes back as [`Finished`].
pub struct Agent {
    settings: WorkerSettings,
    kernel: Arc<dyn Kernel>,
    fetch: Arc<dyn Fetch>,
    state: Arc<StateDir>,
    client: Client,
    shutdown: CancellationToken,
    boot_id: String,
    release: String,
    /// Start of the worker's own clock.
    started: Instant,
    /// Jobs change it beside the loop.
    record: Arc<Mutex<Record>>,
    /// Jobs that run.
    running: BTreeMap<Owner, RunningJob>,
    /// Tells each of them that what it loads is not wanted any more.
    taken_back: BTreeMap<Owner, CancellationToken>,
    /// What is to be carried out; `None` until the API server or the kept plan said so.
    wanted: Option<KeptPlan>,
    /// A kept plan that waits for its time.
    kept: Option<KeptPlan>,
    /// Whether what is wanted is on the disk.
    keeping: Keeping,
    /// The API server has said in this process what is wanted.
    answered: bool,
    /// Entries of the plan that was kept, where the record was lost.
    before_loss: Vec<NodeModuleSpec>,
    prepared: BTreeMap<Owner, Prepared>,
    /// Number of the latest preparation of each Module; what an earlier one brings is dropped.
    preparing: BTreeMap<Owner, (u64, tokio::task::AbortHandle)>,
    files_read: observe::FilesRead,
    attempts: BTreeMap<Owner, Attempt>,
    backoff: BTreeMap<Owner, Backoff>,
    fetch_backoff: BTreeMap<Owner, Backoff>,
    tasks: JoinSet<Finished>,
    fetches: tasks::Fetches,
    users: UsersFound,
    reporting: Reporting,
    /// What the watch's list has shown so far.
    listing: Listing,
    /// When the code that was run is let go of, if the worker rests until then.
    let_go_at: Duration,
    /// Unpacked images may lie there that nobody needs.
    tidy: bool,
    /// Keys of the unpacked images that were needed when that was looked at last.
    needed_trees: BTreeSet<String>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("settings", &self.settings).field("record", &self.record).finish_non_exhaustive()
    }
}

/// What a list that is not complete yet has shown.
#[derive(Default)]
enum Listing {
    #[default]
    Empty,
    Unreadable,
    Found(Box<NodeModulesConfig>),
}

enum Woken {
    Shutdown,
    Watch(Option<Box<Result<watcher::Event<Watched>, watcher::Error>>>),
    Task(Result<Finished, tokio::task::JoinError>),
    Time,
}

impl Agent {
    /// Reads who the kernel is and what the node's disk remembers.
    pub fn new(
        settings: WorkerSettings,
        kernel: Arc<dyn Kernel>,
        fetch: Arc<dyn Fetch>,
        state: StateDir,
        client: Client,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let Beginning { boot_id, release, record, kept } = Beginning::of(kernel.as_ref(), &state)?;
        match state.sweep_trees() {
            Ok(0) => {}
            Ok(removed) => info!(removed, "removed what an interrupted unpacking left"),
            Err(error) => warn!("{}", chain(&error)),
        }
        let before_loss = kept.as_ref().filter(|_| record.lost).map(|kept| kept.spec.modules.clone());
        info!(node = settings.node_name, boot_id, release, recorded = record.entries.len(), "started");
        Ok(Self {
            settings,
            kernel,
            fetch,
            state: Arc::new(state),
            client,
            shutdown,
            boot_id,
            release,
            started: Instant::now(),
            record: Arc::new(Mutex::new(record)),
            running: BTreeMap::new(),
            taken_back: BTreeMap::new(),
            wanted: None,
            kept,
            keeping: Keeping::default(),
            answered: false,
            before_loss: before_loss.unwrap_or_default(),
            prepared: BTreeMap::new(),
            preparing: BTreeMap::new(),
            files_read: observe::FilesRead::new(),
            attempts: BTreeMap::new(),
            backoff: BTreeMap::new(),
            fetch_backoff: BTreeMap::new(),
            tasks: JoinSet::new(),
            fetches: tasks::Fetches::default(),
            users: UsersFound::default(),
            reporting: Reporting::default(),
            listing: Listing::Empty,
            let_go_at: RESTED,
            tidy: true,
            needed_trees: BTreeSet::new(),
        })
    }

    /// Runs until shutdown.
    pub async fn run(mut self) -> Result<(), Error> {
        let api: Api<Watched> = Api::all(self.client.clone());
        let config = watcher::Config::default()
            .fields(&format!("metadata.name={}", self.settings.node_name))
            .timeout(WATCH_TIMEOUT_SECS);
        let mut watch = std::pin::pin!(watch(api, config));
        let mut look = tokio::time::interval(self.settings.look_every);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shutdown = self.shutdown.clone();
        loop {
            let wake = self.next_wake();
            let woken = tokio::select! {
                biased;
                () = shutdown.cancelled() => Woken::Shutdown,
                Some(done) = self.tasks.join_next() => Woken::Task(done),
                event = watch.next() => Woken::Watch(event.map(Box::new)),
                _ = look.tick() => Woken::Time,
                () = tokio::time::sleep(wake) => Woken::Time,
            };
            match woken {
                Woken::Shutdown => return self.end().await,
                Woken::Watch(None) => return Err(Error::WatchEnded(self.settings.node_name)),
                Woken::Watch(Some(event)) => match *event {
                    Ok(event) => self.hear(event),
                    Err(error) => warn!("watch: {}", chain(&error)),
                },
                Woken::Task(Ok(finished)) => self.finish(finished)?,
                Woken::Task(Err(error)) if error.is_cancelled() => {}
                Woken::Task(Err(error)) => return Err(Error::Task(error)),
                Woken::Time => {}
            }
            self.use_kept_plan();
            self.keep_again();
            self.pass();
            self.write_status();
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Time until something is due besides the regular look at the kernel.
    fn next_wake(&self) -> Duration {
        let now = self.now();
        let retries = self.attempts.values().map(|attempt| attempt.retry_at);
        let fetches = self.prepared.values().filter_map(|prepared| match &prepared.state {
            Preparation::Failed(_, retry_at) => Some(*retry_at),
            Preparation::Running | Preparation::Ready(_) => None,
        });
        let kept = self.kept.is_some().then_some(self.settings.kept_plan_after);
        let due = retries
            .chain(fetches)
            .chain(kept)
            .chain(self.reporting.due())
            .chain(self.keeping.due())
            .filter(|at| *at > now)
            .min();
        due.map_or(self.settings.look_every, |at| at.saturating_sub(now).max(Duration::from_millis(10)))
    }

    /// Takes in what the API server says.
    fn hear(&mut self, event: watcher::Event<Watched>) {
        match event {
            watcher::Event::Init => self.listing = Listing::Empty,
            watcher::Event::InitApply(object) => {
                self.listing =
                    self.readable(object).map_or(Listing::Unreadable, |object| Listing::Found(Box::new(object)));
            }
            watcher::Event::InitDone => match std::mem::take(&mut self.listing) {
                Listing::Found(object) => self.want(Some(*object)),
                Listing::Empty => {
                    self.reporting.unreadable = None;
                    self.want(None);
                }
                // It is there all the same: it must not be taken for a missing one.
                Listing::Unreadable => {}
            },
            watcher::Event::Apply(object) => {
                if let Some(object) = self.readable(object) {
                    self.want(Some(object));
                }
            }
            watcher::Event::Delete(_) => {
                self.reporting.unreadable = None;
                self.want(None);
            }
        }
    }

    fn readable(&mut self, object: Watched) -> Option<NodeModulesConfig> {
        match object.0 {
            Ok(object) => {
                self.reporting.unreadable = None;
                Some(object)
            }
            Err(error) => {
                warn!(
                    "NodeModulesConfig {} cannot be read and the last one is kept: {}",
                    self.settings.node_name, error.error
                );
                self.reporting.unreadable = Some(error.error);
                None
            }
        }
    }

    /// Makes the specification what is wanted, and keeps it on the disk. Nothing of it is carried out before it is there.
    fn want(&mut self, object: Option<NodeModulesConfig>) {
        let next = if let Some(object) = object {
            let generation = object.metadata.generation.unwrap_or_default();
            let next = KeptPlan::new(object.uid().unwrap_or_default(), generation, object.spec.clone());
            self.reporting.know(object);
            next
        } else {
            self.reporting.forget();
            KeptPlan::new("", 0, NodeModulesConfigSpec::default())
        };
        let kept = self.kept.take();
        if kept.is_some() {
            self.keeping.is_kept(kept.as_ref());
        }
        self.answered = true;
        if self.wanted.as_ref() != Some(&next) {
            info!(
                generation = next.generation,
                modules = next.spec.modules.len(),
                unload = next.spec.unload.len(),
                "wanted"
            );
            let is_kept = self.wanted.is_none() && kept.as_ref() == Some(&next);
            self.wanted = Some(next);
            self.tidy = true;
            if !is_kept {
                self.keep();
            }
        }
    }

    /// The API server did not answer for long enough: what it said last counts.
    fn use_kept_plan(&mut self) {
        if self.wanted.is_none()
            && self.now() >= self.settings.kept_plan_after
            && let Some(kept) = self.kept.take()
        {
            info!(
                generation = kept.generation,
                "no answer from the API server; carrying out the last plan that was kept, apart from its orders to unload"
            );
            self.keeping.is_kept(Some(&kept));
            self.wanted = Some(kept);
        }
    }

    /// What is carried out now: what is wanted, without orders while nobody can take one back, and before that is known
    /// the entries of the kept plan that are to be loaded at boot.
    fn carried_out(&self) -> Option<(NodeModulesConfigSpec, Scope)> {
        if let Some(wanted) = &self.wanted {
            let spec = if self.answered { wanted.spec.clone() } else { wanted.without_orders() };
            return Some((spec, Scope::Everything));
        }
        Some((self.kept.as_ref()?.at_boot(), Scope::AtBoot))
    }

    /// One look at the kernel and what follows from it.
    fn pass(&mut self) {
        let Some((desired, scope)) = self.carried_out() else { return };
        if let Err(error) = self.make_up_for_record(&desired) {
            return warn!("the kernel cannot be looked at: {error}");
        }
        // Before the kernel: what a job does meanwhile is then seen as done and not as undone by somebody else.
        let record = apply::lock(&self.record).clone();
        let names = Observed::interesting(&record, &desired, &self.prepared);
        let about_to_load = self.prepared.values().any(|prepared| matches!(prepared.state, Preparation::Ready(_)));
        let kernel = match observe::kernel(self.kernel.as_ref(), &names, about_to_load) {
            Ok(kernel) => KernelView { users: self.users.told(), ..kernel },
            Err(error) => return warn!("the kernel cannot be looked at: {error}"),
        };
        let asked = Observed::asks_for_firmware(&record, &desired);
        let firmware = match observe::firmware(self.kernel.as_ref(), self.state.as_ref(), asked) {
            Ok(firmware) => firmware,
            Err(error) => return warn!("the search path for firmware cannot be looked at: {error}"),
        };
        let seen = self.kernel.published();
        let published = seen.inspect_err(|error| warn!("/lib/modules cannot be looked at: {error}")).ok();
        let published_files = observe::published_files(
            self.kernel.as_ref(),
            &self.release,
            published.as_ref(),
            &record,
            &self.prepared,
            &mut self.files_read,
        );
        // Of a part of what is wanted nothing can be said about the rest.
        let published = published.filter(|_| scope == Scope::Everything);
        let generated = observe::generated(&record);
        let observed = Observed {
            release: self.release.clone(),
            now: self.now(),
            desired,
            scope,
            record,
            kernel,
            prepared: self.prepared.clone(),
            attempts: self.attempts.clone(),
            firmware,
            published,
            published_files,
            generated,
            running: self.running.clone(),
            unkept: self.keeping.trouble(),
        };
        let plan = plan(&observed);
        self.forget_what_is_over(&observed, &plan);
        for (_, job) in self.taken_back.iter().filter(|(owner, _)| plan.taken_back.contains(*owner)) {
            job.cancel();
        }
        self.look_for_users(in_use(&observed, &plan), &observed.kernel.listed);
        let idle = plan.is_quiet() && self.preparing.is_empty() && self.running.is_empty();
        let quiet = idle && !self.users.looking();
        for spec in plan.prepare {
            let loaded = observed.kernel.listed.keys().cloned().collect();
            self.prepare(spec, observed.desired.container_runtime.clone(), loaded);
        }
        // What is said of a part alone would be read as if it were all.
        if scope == Scope::Everything {
            let generation = self.keeping.generation(self.wanted.as_ref());
            self.reporting.reports(plan.reports, generation, quiet, self.started.elapsed());
        }
        let running = self.running.values().map(|job| &job.reach);
        for (job, reach) in startable(plan.jobs, &observed.record, running) {
            self.work(job, reach);
        }
        if idle && self.tidy && scope == Scope::Everything {
            self.tidy_up(&observed);
        }
        self.rest(quiet);
    }

    /// There is a worker on every node, and nearly always it rests.
    fn rest(&mut self, quiet: bool) {
        let now = self.now();
        if !quiet {
            self.let_go_at = now + RESTED;
        } else if now >= self.let_go_at {
            self.let_go_at = now + REST_AGAIN;
            if let Err(error) = memory::let_go_of_code() {
                debug!("code that was run stays mapped: {error}");
            }
        }
    }

    /// Drops preparations and failures that the plan does not look at any more.
    fn forget_what_is_over(&mut self, observed: &Observed, plan: &Plan) {
        let wanted: BTreeSet<Owner> = observed.desired.modules.iter().map(Owner::of).collect();
        let mut settled = BTreeSet::new();
        for report in &plan.reports {
            let owner = Owner::of(&report.spec);
            let open = plan.held.contains(&owner) || plan.jobs.iter().any(|job| job.owner == owner);
            if report.state == ModuleState::Loaded && !open {
                settled.insert(owner);
            }
        }
        let now = observed.now;
        let recorded: BTreeSet<Owner> = observed.record.entries.iter().map(super::record::Entry::owner).collect();
        self.prepared.retain(|owner, _| wanted.contains(owner) && !settled.contains(owner));
        self.preparing.retain(|owner, (_, task)| {
            let needed = wanted.contains(owner) && !settled.contains(owner);
            if !needed {
                task.abort();
            }
            needed
        });
        self.fetch_backoff.retain(|owner, _| wanted.contains(owner) && !settled.contains(owner));
        self.attempts.retain(|owner, attempt| {
            let known = owner.is_node() || wanted.contains(owner) || recorded.contains(owner);
            known && !(settled.contains(owner) && now > attempt.retry_at + LASTED)
        });
        let attempts = &self.attempts;
        self.backoff.retain(|owner, _| attempts.contains_key(owner));
    }

    /// Keeps unpacked images within the limit. Those that a wanted entry or one of the record came from stay.
    fn tidy_up(&mut self, observed: &Observed) {
        let needed = self.tree_keys(&observed.desired, &observed.record);
        for left in self.needed_trees.difference(&needed) {
            if let Err(error) = self.state.touch_tree(left) {
                warn!("{}", chain(&error));
            }
        }
        self.remove_trees(&needed, self.settings.store_limit);
        self.needed_trees = needed;
        let wanted = observed.desired.modules.iter().filter_map(|spec| wanted::identity(spec).ok());
        let generated = wanted
            .filter_map(|identity| identity.generated_key(&self.release))
            .chain(observed.record.entries.iter().filter_map(super::record::Entry::generated_key))
            .collect();
        if let Err(error) = self.state.keep_generated(&generated) {
            warn!("{}", chain(&error));
        }
        self.tidy = false;
    }

    /// The disk is full: images that nobody needs now go, whatever the limit allows. Tells whether there were any.
    fn make_room(&self) -> bool {
        let Some(wanted) = &self.wanted else { return false };
        let needed = self.tree_keys(&wanted.spec, &apply::lock(&self.record));
        self.remove_trees(&needed, 0)
    }

    fn remove_trees(&self, needed: &BTreeSet<String>, limit: u64) -> bool {
        match self.state.keep_trees(needed, limit) {
            Ok(0) => return false,
            Ok(removed) => info!(removed, "removed unpacked images that are not needed"),
            Err(error) => warn!("{}", chain(&error)),
        }
        true
    }

    fn tree_keys(&self, desired: &NodeModulesConfigSpec, record: &Record) -> BTreeSet<String> {
        let recorded = record.entries.iter().map(|entry| &entry.spec);
        let all = desired.modules.iter().chain(recorded);
        all.filter_map(|spec| Some(wanted::identity(spec).ok()?.tree_key(&self.release))).collect()
    }

    /// Waits for the kernel to finish what it has begun, for as long as it is known to be patient; everything else is
    /// dropped.
    ///
    /// A job that hangs in the kernel keeps the process, and with it the lock of the state folder, until the kernel lets
    /// it go: no other worker begins before.
    async fn end(mut self) -> Result<(), Error> {
        for (_, task) in self.preparing.values() {
            task.abort();
        }
        let deadline = Instant::now() + LAST_WAIT;
        while !self.running.is_empty() {
            match tokio::time::timeout_at(deadline, self.tasks.join_next()).await {
                Ok(Some(Ok(finished))) => self.finish(finished)?,
                Ok(Some(Err(error))) if error.is_cancelled() => {}
                Ok(Some(Err(error))) => return Err(Error::Task(error)),
                Ok(None) => break,
                Err(_) => {
                    let modules: Vec<String> = self.running.keys().map(ToString::to_string).collect();
                    warn!("jobs that the kernel has not finished are left to it: {}", modules.join(", "));
                    break;
                }
            }
        }
        info!("ended; what is loaded stays loaded");
        Ok(())
    }
}
