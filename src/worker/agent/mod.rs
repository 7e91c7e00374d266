//! The loop: API server, clock and finished tasks in; plans, fetches, jobs and status out.

mod keeping;
mod reporting;
mod source;
mod tasks;
#[cfg(test)]
mod tests;
mod tidy;
mod tree;
mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kube::{Api, Client};
use kube_runtime::watcher;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::keeping::Keeping;
use self::reporting::Reporting;
use self::source::{Heard, Source, Watched};
use self::tasks::{Finished, Hands, Tasks};
use self::tidy::Tidy;
use self::tree::Tree;
use self::users::UsersFound;
use super::host::Host;
use super::image::fetch::Fetch;
use super::image::prepare::{Places, Target};
use super::kernel::Kernel;
use super::node::lock;
use super::observe::{self, Known};
use super::plan::pause::Unready;
use super::plan::{
    Attempts, Job, LoadSet, Outcome, Preparation, Prepared, Scope, Settled, Wanted, in_use, plan, startable,
};
use super::record::{Owner, rebuild};
use super::settings::WorkerSettings;
use super::start::{Beginning, Error};
use super::store::StateDir;
use crate::api::names::{NodeReason, field_manager};
use crate::api::{NodeModuleSpec, NodeModulesConfig};
use crate::runtime::client::{self, chain};
use crate::runtime::watch::{self, watch};

/// How long the end of the worker waits for the kernel: less than the DaemonSet's grace period of 30 s.
const LAST_WAIT: Duration = Duration::from_secs(20);

/// The worker's state. One task owns it; what takes time runs beside it and comes back as [`Finished`].
pub struct Agent {
    settings: WorkerSettings,
    hands: Hands,
    fetch: Arc<dyn Fetch>,
    client: Client,
    shutdown: CancellationToken,
    boot_id: String,
    release: String,
    /// The kernel's command line, which does not change.
    command_line: String,
    /// Start of the worker's own clock.
    started: Instant,
    source: Source,
    /// Whether what is wanted is on the disk.
    keeping: Keeping,
    /// Entries of the plan that was kept, where the record was lost.
    before_loss: Vec<NodeModuleSpec>,
    prepared: BTreeMap<Owner, Prepared>,
    files_read: observe::FilesRead,
    attempts: Attempts,
    tasks: Tasks,
    users: UsersFound,
    reporting: Reporting,
    tidy: Tidy,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("settings", &self.settings)
            .field("record", &self.hands.record)
            .finish_non_exhaustive()
    }
}

enum Woken {
    Shutdown,
    Watch(Option<Box<Result<watcher::Event<Watched>, watch::Error>>>),
    Task(Result<Finished, tokio::task::JoinError>),
    Time,
}

impl Agent {
    /// Reads who the kernel is and what the node's disk remembers.
    ///
    /// # Errors
    /// The worker's own files, or a kernel that does not tell who it is.
    pub fn new(
        settings: WorkerSettings,
        kernel: Arc<dyn Kernel>,
        host: Arc<dyn Host>,
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
            tidy: Tidy::new(&release, settings.store_limit),
            command_line: kernel.command_line(),
            settings,
            hands: Hands { kernel, host, state: Arc::new(state), record: Arc::new(Mutex::new(record)) },
            fetch,
            client,
            shutdown,
            boot_id,
            release,
            started: Instant::now(),
            source: Source::new(kept),
            keeping: Keeping::default(),
            before_loss: before_loss.unwrap_or_default(),
            prepared: BTreeMap::new(),
            files_read: observe::FilesRead::new(),
            attempts: Attempts::default(),
            tasks: Tasks::default(),
            users: UsersFound::default(),
            reporting: Reporting::default(),
        })
    }

    /// Runs until shutdown.
    pub async fn run(mut self) -> Result<(), Error> {
        let api: Api<Watched> = Api::all(self.client.clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.settings.node_name));
        let mut watch = std::pin::pin!(watch(api, config, || {}));
        let mut look = tokio::time::interval(self.settings.look_every);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shutdown = self.shutdown.clone();
        loop {
            let wake = self.next_wake();
            let woken = tokio::select! {
                biased;
                () = shutdown.cancelled() => Woken::Shutdown,
                Some(done) = self.tasks.next() => Woken::Task(done),
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
        let fetches = self.prepared.values().filter_map(|prepared| match &prepared.state {
            Preparation::Failed(_, retry_at) => Some(*retry_at),
            Preparation::Running | Preparation::Ready(_) => None,
        });
        let kept = self.source.waits().then_some(self.settings.kept_plan_after);
        let due = self
            .attempts
            .due()
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
        match self.source.hear(event) {
            Some(Heard::Object(object)) => {
                self.reporting.unreadable = None;
                self.want(Some(*object));
            }
            Some(Heard::Nothing) => {
                self.reporting.unreadable = None;
                self.want(None);
            }
            Some(Heard::Unreadable(why)) => {
                let name = &self.settings.node_name;
                warn!("NodeModulesConfig {name} cannot be read and the last one is kept: {why}");
                self.reporting.unreadable = Some(why);
            }
            None => {}
        }
    }

    /// Makes the specification what is wanted, and keeps it on the disk. Nothing of it is carried out before it is there.
    fn want(&mut self, object: Option<NodeModulesConfig>) {
        let first = self.source.wanted().is_none();
        let change = self.source.want(object.as_ref());
        match object {
            Some(object) => self.reporting.know(object),
            None => self.reporting.forget(),
        }
        if let Some(kept) = &change.kept {
            self.keeping.is_kept(kept);
        }
        if change.is_new {
            self.tidy.later();
            if !(first && change.kept.as_ref() == self.source.wanted()) {
                self.keep();
            }
        }
    }

    fn use_kept_plan(&mut self) {
        if self.now() >= self.settings.kept_plan_after
            && let Some(kept) = self.source.use_kept_plan()
        {
            self.keeping.is_kept(kept);
        }
    }

    /// Writes what is wanted to the disk.
    fn keep(&mut self) {
        let Some(wanted) = self.source.wanted() else { return };
        let make_room = || make_room(&self.source, &self.tidy, &self.hands, &self.tasks);
        self.keeping.keep(&self.hands.state, wanted, make_room, self.started.elapsed());
    }

    /// Tries again if it is time.
    fn keep_again(&mut self) {
        if self.keeping.due().is_some_and(|again| self.now() >= again) {
            self.keep();
        }
    }

    /// One look at the node and what follows from it.
    fn pass(&mut self) {
        let Some((desired, scope)) = self.source.carried_out() else { return };
        let seen = self.make_up_for_record().and_then(|()| {
            let known = Known {
                release: self.release.clone(),
                now: self.now(),
                desired,
                scope,
                record: self.hands.recorded(),
                prepared: self.prepared.clone(),
                attempts: self.attempts.clone(),
                running: self.tasks.running().clone(),
                users: self.users.told(),
                unkept: self.keeping.trouble(),
            };
            observe::world(self.hands.node(), known, &mut self.files_read)
        });
        let observed = match seen {
            Ok(observed) => observed,
            Err(error) => return warn!("{}", chain(&error)),
        };
        let plan = plan(&observed);
        let settled = Settled::of(&observed, &plan);
        settled.forget(&mut self.prepared, &mut self.attempts);
        self.tasks.keep_preparing(|owner| settled.needs_files(owner));
        for owner in &plan.taken_back {
            self.tasks.take_back(owner);
        }
        let (names, listed) = (in_use(&observed, &plan), &observed.kernel.listed);
        if let Some(looked) = self.users.look(&self.hands.kernel, names, listed, self.started.elapsed()) {
            self.tasks.spawn(async move { Finished::Users(looked.await.unwrap_or_default()) });
        }
        let idle = plan.is_quiet() && self.tasks.prepares_nothing() && self.tasks.running().is_empty();
        let quiet = idle && !self.users.looking();
        for wanted in plan.prepare {
            self.prepare(wanted, observed.desired.container_runtime.clone(), Target::of(&observed, &self.command_line));
        }
        // What is said of a part alone would be read as if it were all.
        if scope == Scope::Everything {
            let generation = self.keeping.generation(self.source.wanted());
            self.reporting.reports(plan.reports, generation, quiet, self.started.elapsed());
        }
        let running = observed.running.values().map(|job| &job.reach);
        for (job, reach) in startable(plan.jobs, &observed.record, running) {
            self.tasks.work(self.hands.clone(), job, reach, self.shutdown.clone(), self.started.elapsed());
        }
        if scope == Scope::Everything {
            self.tidy.tidy_up(&self.hands.state, &observed.desired, &observed.record, self.tasks.running());
        }
    }

    /// Makes up for a record that was lost, once the API server shows what was reported. Until then it counts as lost.
    fn make_up_for_record(&self) -> Result<(), observe::Error> {
        let (Some(object), Some(wanted)) = (self.reporting.object(), self.source.wanted()) else { return Ok(()) };
        let mut record = lock(&self.hands.record);
        if !record.lost {
            return Ok(());
        }
        let reported = object.status.clone().unwrap_or_default();
        let candidates = rebuild::candidates(&record, &reported, &self.before_loss, &wanted.spec);
        let names = candidates.iter().map(|candidate| (candidate.main().to_owned(), BTreeSet::new())).collect();
        let kernel = observe::kernel(self.hands.kernel.as_ref(), &names, false)?;
        for entry in candidates.iter().filter_map(|candidate| candidate.entry(kernel.running.get(candidate.main()))) {
            warn!(module = %entry.owner(), proved = !entry.unproved, "the record was lost; taken from what was reported");
            record.put(entry);
        }
        (record.lost, record.made_up) = (false, true);
        // Should this fail, a later start makes up for it in the same way.
        if let Err(error) = self.hands.state.save_record(&record) {
            warn!("{}", chain(&error));
        }
        Ok(())
    }

    /// Starts to fetch and to read the image of an entry.
    fn prepare(&mut self, wanted: Wanted, runtime: Option<String>, target: Target) {
        let before = self.prepared.get(&wanted.owner);
        let begun = Prepared::begun(wanted.clone(), runtime.clone(), before);
        self.prepared.insert(wanted.owner.clone(), begun);
        let places = Places::new(&self.settings, self.hands.state.generated());
        let record = self.hands.recorded();
        let doubtful = self.attempts.get(&wanted.owner).is_some();
        let tree = Tree::of(&self.hands.state, wanted.identity.tree_key(&self.release), &record, doubtful);
        self.tasks.prepare(wanted, runtime, target, tree, Arc::clone(&self.fetch), places);
    }

    /// Takes in what a task came to.
    ///
    /// # Errors
    /// A job broke off: what it has done is not known to this process any more.
    fn finish(&mut self, finished: Finished) -> Result<(), Error> {
        match finished {
            Finished::Prepared { number, owner, result } => {
                if self.tasks.prepared(number, &owner) {
                    self.prepared(&owner, *result);
                }
            }
            Finished::Worked { job, outcome } => {
                self.tasks.worked(&job.owner);
                let outcome = outcome.ok_or_else(|| Error::Job(job.owner.clone()))?;
                self.worked(&job, &outcome);
                self.tidy.later();
            }
            Finished::Users(looked) => self.users.found(looked),
            Finished::Written(result) => self.reporting.written(result.map(|object| *object), self.started.elapsed()),
        }
        Ok(())
    }

    fn prepared(&mut self, owner: &Owner, result: Result<LoadSet, Unready>) {
        match &result {
            Ok(set) if !set.unknown_parameters.is_empty() => {
                let unknown = set.unknown_parameters.join(", ");
                info!(module = %owner, "parameters that the module does not know: {unknown}");
            }
            Err(unready) if unready.trouble.reason == NodeReason::StoreFull => {
                make_room(&self.source, &self.tidy, &self.hands, &self.tasks);
            }
            Ok(_) | Err(_) => {}
        }
        self.tidy.later();
        let now = self.now();
        if let Some(prepared) = self.prepared.get_mut(owner) {
            prepared.end(result, now);
        }
    }

    fn worked(&mut self, job: &Job, outcome: &Outcome) {
        if let Outcome::Done(took) = outcome {
            let took_ms = took.as_millis();
            if job.loads() {
                info!(module = %job.owner, took_ms, "loaded");
            } else if job.unloads() {
                info!(module = %job.owner, took_ms, "unloaded");
            }
        }
        let listed = self.hands.kernel.listed().ok();
        let after = self.attempts.ended(job, outcome, self.now(), listed.as_ref());
        if after.make_room {
            make_room(&self.source, &self.tidy, &self.hands, &self.tasks);
        }
        if after.look_again {
            self.prepared.remove(&job.owner);
        }
    }

    /// Starts to write the status if there is something new to say.
    fn write_status(&mut self) {
        let wanted = self.source.wanted().map(|wanted| wanted.uid.as_str());
        let now = self.started.elapsed();
        let Some(body) = self.reporting.next_write((&self.boot_id, &self.release), wanted, now) else { return };
        let api: Api<NodeModulesConfig> = Api::all(self.client.clone());
        let name = self.settings.node_name.clone();
        self.tasks.spawn(async move {
            let written = client::apply_status(&api, &name, field_manager::WORKER, &body).await;
            Finished::Written(written.map(Box::new))
        });
    }

    /// Waits for the kernel to finish what it has begun, for as long as it is known to be patient; everything else is
    /// dropped.
    ///
    /// A job that hangs in the kernel keeps the process until the kernel lets it go. The state folder is left to another
    /// worker, which finds in the kernel what the job comes to.
    async fn end(mut self) -> Result<(), Error> {
        self.tasks.keep_preparing(|_| false);
        let deadline = Instant::now() + LAST_WAIT;
        while !self.tasks.running().is_empty() {
            match tokio::time::timeout_at(deadline, self.tasks.next()).await {
                Ok(Some(Ok(finished))) => self.finish(finished)?,
                Ok(Some(Err(error))) if error.is_cancelled() => {}
                Ok(Some(Err(error))) => return Err(Error::Task(error)),
                Ok(None) => break,
                Err(_) => {
                    let modules: Vec<String> = self.tasks.running().keys().map(ToString::to_string).collect();
                    warn!("jobs that the kernel has not finished are left to it: {}", modules.join(", "));
                    self.hands.state.give_up();
                    break;
                }
            }
        }
        info!("ended; what is loaded stays loaded");
        Ok(())
    }
}

/// The disk is full: images that nobody needs go. Tells whether there were any.
fn make_room(source: &Source, tidy: &Tidy, hands: &Hands, tasks: &Tasks) -> bool {
    let Some((wants, Scope::Everything)) = source.carried_out() else { return false };
    tidy.make_room(&hands.state, &wants, &hands.recorded(), tasks.running())
}
