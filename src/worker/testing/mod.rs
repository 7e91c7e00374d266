//! A small world with a kernel in memory, in which plans are carried out.

mod kernel;
mod store;
mod values;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub(super) use self::kernel::{Loaded, SimulatedKernel};
pub(super) use self::store::MemoryStore;
pub(super) use self::values::{OURS, RELEASE, file, identity, intent, spec};
use super::apply;
use super::facts::Trouble;
use super::kernel::Kernel as _;
use super::node::{Node, lock};
use super::observe::{self, FilesRead, Known};
use super::plan::pause::Unready;
use super::plan::{
    Attempts, LoadFile, LoadSet, Modprobe, Observed, Plan, Prepared, RunningJob, Scope, Settled, Step, Wanted, plan,
    startable,
};
use super::record::{Firmware, Owner, Record};
use crate::api::NodeModulesConfigSpec;
use crate::api::names::NodeReason;
use crate::core::kmod::order::Role;

/// A node.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) kernel: SimulatedKernel,
    pub(super) store: MemoryStore,
    pub(super) record: Record,
    pub(super) desired: NodeModulesConfigSpec,
    pub(super) scope: Scope,
    /// What images hold: files by digest letter and kernel module, or why they cannot be had.
    pub(super) images: BTreeMap<(char, String), Result<Vec<LoadFile>, Unready>>,
    /// Firmware by the path in the image.
    pub(super) firmware: BTreeMap<String, Firmware>,
    pub(super) prepared: BTreeMap<Owner, Prepared>,
    pub(super) attempts: Attempts,
    /// Jobs of an agent that are said to run.
    pub(super) running: BTreeMap<Owner, RunningJob>,
    /// Told to the jobs that are carried out.
    pub(super) taken_back: CancellationToken,
    pub(super) now: Duration,
    /// What is wanted could not be kept.
    pub(super) unkept: Option<Trouble>,
}

impl World {
    pub(super) fn new() -> Self {
        Self { record: Record::new("boot-1"), ..Self::default() }
    }

    pub(super) fn image(&mut self, digest: char, files: Vec<LoadFile>) {
        let main = files.iter().rfind(|file| file.role == Role::Named).unwrap().name.clone();
        self.images.insert((digest, main), Ok(files));
    }

    pub(super) fn node(&self) -> Node<'_> {
        Node { kernel: &self.kernel, host: &self.kernel, store: &self.store }
    }

    pub(super) fn observe(&self) -> Observed {
        let known = Known {
            release: RELEASE.into(),
            now: self.now,
            desired: Arc::new(self.desired.clone().into()),
            scope: self.scope,
            record: self.record.clone(),
            prepared: self.prepared.clone(),
            attempts: self.attempts.clone(),
            running: self.running.clone(),
            users: BTreeMap::new(),
            unkept: self.unkept.clone(),
        };
        observe::world(self.node(), known, &mut FilesRead::new()).unwrap()
    }

    pub(super) fn plan(&self) -> Plan {
        plan(&self.observe())
    }

    /// One round: plans, fetches, carries out. Returns the plan.
    pub(super) fn round(&mut self, shutdown: &CancellationToken) -> Plan {
        let observed = self.observe();
        let plan = plan(&observed);
        Settled::of(&observed, &plan).forget(&mut self.prepared, &mut self.attempts);
        for wanted in &plan.prepare {
            let set = self.load_set(wanted);
            let before = self.prepared.get(&wanted.owner);
            let mut prepared = Prepared::begun(wanted.clone(), self.desired.container_runtime.clone(), before);
            prepared.end(set, self.now);
            self.prepared.insert(wanted.owner.clone(), prepared);
        }
        self.carry_out(&plan, shutdown);
        plan
    }

    /// What the image of an entry holds. What is damaged is fetched again.
    fn load_set(&self, wanted: &Wanted) -> Result<LoadSet, Unready> {
        let identity = &wanted.identity;
        let digest = identity.digest.hex().chars().next().unwrap();
        let image = self.images.get(&(digest, identity.main().to_owned()));
        let none = || Err(Trouble::new(NodeReason::ImageNotFound, "no such image").into());
        let files = image.cloned().unwrap_or_else(none)?;
        let firmware = identity.firmware_path.as_ref().map(|path| self.firmware[path].clone());
        let folder = PathBuf::from(format!("/generated/{}", wanted.spec.name));
        let paths = files.iter().map(|file| file.path.display().to_string());
        let words = ["--".to_owned(), identity.parameters.clone()];
        let modprobe =
            identity.by_modprobe.as_ref().map(|_| Modprobe { folder, arguments: paths.chain(words).collect() });
        let of_image = files.iter().map(|file| file.path.clone()).collect();
        self.kernel.lost.lock().unwrap().retain(|lost| files.iter().all(|file| file.path != *lost));
        Ok(LoadSet { files, firmware, of_image, modprobe, ..LoadSet::default() })
    }

    /// Carries out the jobs of a plan.
    pub(super) fn carry_out(&mut self, plan: &Plan, shutdown: &CancellationToken) {
        let record = Mutex::new(std::mem::take(&mut self.record));
        let startable = startable(plan.jobs.clone(), &lock(&record), []);
        for (job, _) in startable {
            let outcome = apply::job(self.node(), &record, &job, shutdown, &self.taken_back);
            let listed = self.kernel.listed().unwrap();
            if self.attempts.ended(&job, &outcome, self.now, Some(&listed)).look_again {
                self.prepared.remove(&job.owner);
            }
        }
        self.record = record.into_inner().unwrap();
    }

    /// Goes on until there is nothing to do, and says what holds: `module state reason`.
    pub(super) fn settle(&mut self) -> Vec<String> {
        let never = CancellationToken::new();
        for _ in 0..20 {
            let plan = self.round(&never);
            if plan.is_quiet() {
                return plan
                    .reports
                    .iter()
                    .map(|report| format!("{} {:?} {}", report.spec.name, report.state, report.reason.as_str()))
                    .collect();
            }
        }
        panic!("no rest after 20 rounds, next is {:#?}", self.plan());
    }

    /// A new process on the same node: only the record and the kernel remain.
    pub(super) fn restart(&mut self) {
        self.prepared.clear();
        self.attempts = Attempts::default();
    }

    /// Time goes on far enough for everything that failed to be tried again.
    pub(super) fn wait(&mut self) {
        self.now += Duration::from_hours(1);
    }

    /// Steps of the next plan, in short.
    pub(super) fn next_steps(&self) -> Vec<String> {
        self.plan()
            .jobs
            .iter()
            .flat_map(|job| &job.steps)
            .map(|step| match step {
                Step::Write(entry) => format!("write {}", entry.spec.name),
                Step::Forget(owner) => format!("forget {}", owner.name),
                Step::Check { memory, .. } => format!("memory {}", memory / 1024 / 1024),
                Step::Unload { name, .. } => format!("unload {name}"),
                Step::Load { file, parameters } => format!("load {} {parameters}", file.name).trim_end().to_owned(),
                Step::Firmware => "firmware".to_owned(),
                Step::TakeOut { name, .. } => format!("take out {name}"),
                Step::PutBack(name) => format!("put back {name}"),
                Step::ForgetTakenOut(names) => format!("forget taken {}", names.join(" ")),
                Step::Publish { name, .. } => format!("publish {name}"),
                Step::Unpublish { name, .. } => format!("unpublish {name}"),
                Step::Index(release) => format!("index {release}"),
                Step::OnFailure(steps) => format!("on failure {} steps", steps.len()),
                Step::Modprobe { modules, removes, .. } => {
                    format!("modprobe {}{}", if *removes { "-r " } else { "" }, modules.join(" "))
                }
            })
            .collect()
    }
}
