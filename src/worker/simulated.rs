//! A kernel in memory, with faults, and a small world around it in which plans are carried out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use tokio_util::sync::CancellationToken;

use super::apply::{self, Outcome, RecordStore};
use super::firmware::{Firmware, SearchPath};
use super::kernel::{Kernel, Refused, Running, Trouble};
use super::plan::{
    Attempt, Job, LoadFile, LoadSet, Modprobe, Observed, Plan, Preparation, Prepared, RunningJob, Scope, Step, plan,
    startable,
};
use super::publish::View as Published;
use super::record::{Owner, Record};
use super::refusal::{load_trouble, unload_trouble};
use super::{observe, wanted};
use crate::api::names::NodeReason;
use crate::api::{ModprobeSpec, ModuleConfig, NodeModuleSpec, NodeModulesConfigSpec, UnloadIntent, UnloadReason};
use crate::core::kmod::gates::Gates;
use crate::core::kmod::names::Packing;
use crate::core::kmod::order::Role;
use crate::core::kmod::proc_modules::{InitState, Listed};
use crate::core::kmod::users::Users;
use crate::core::kmod::{FileFacts, Identity, modprobe, params};

pub(super) const RELEASE: &str = "6.12.1+";
/// Path of the folder of links to firmware.
pub(super) const OURS: &str = "/state/firmware/search";

/// A loaded module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Loaded {
    pub(super) id: String,
    pub(super) needs: Vec<String>,
    pub(super) parameters: BTreeMap<String, String>,
    /// References besides those of modules that need it.
    pub(super) references: u32,
    pub(super) permanent: bool,
    pub(super) state: Option<InitState>,
}

/// The kernel in memory.
#[derive(Debug, Default)]
pub(super) struct SimulatedKernel {
    modules: Mutex<BTreeMap<String, Loaded>>,
    /// What the next load or unload of a module answers.
    faults: Mutex<BTreeMap<String, Errno>>,
    /// What it demands of modules.
    pub(super) gates: Mutex<Gates>,
    /// Memory that it has, bytes.
    pub(super) memory: Mutex<Option<u64>>,
    /// Files that are not where they were.
    pub(super) lost: Mutex<BTreeSet<PathBuf>>,
    /// Every change that the worker made: `+name` and `-name`.
    calls: Mutex<Vec<String>>,
    /// The search path for firmware; `None` for a kernel without one.
    pub(super) search_path: Mutex<Option<String>>,
    /// What is published on the host.
    pub(super) published: Mutex<Published>,
    /// The files in its folders.
    published_files: Mutex<BTreeMap<(String, String), BTreeMap<String, Identity>>>,
    /// Modules that the kernel itself came with, each with what it needs.
    pub(super) own: Mutex<BTreeMap<String, Vec<String>>>,
    /// A change, and what is told right after it.
    told_after: Mutex<Option<(String, CancellationToken)>>,
}

impl SimulatedKernel {
    pub(super) fn with(&self, change: impl FnOnce(&mut BTreeMap<String, Loaded>)) {
        change(&mut self.modules.lock().unwrap());
    }

    pub(super) fn fail(&self, module: &str, errno: Errno) {
        self.faults.lock().unwrap().insert(module.to_owned(), errno);
    }

    /// Loads and unloads do not return before this is dropped.
    pub(super) fn hold(&self) -> impl Drop {
        self.faults.lock().unwrap()
    }

    pub(super) fn heal(&self) {
        self.faults.lock().unwrap().clear();
    }

    pub(super) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.modules.lock().unwrap().keys().cloned().collect()
    }

    pub(super) fn id(&self, name: &str) -> Option<String> {
        self.modules.lock().unwrap().get(name).map(|loaded| loaded.id.clone())
    }

    /// What is told right after this change.
    pub(super) fn tells_after(&self, call: &str) -> CancellationToken {
        let token = CancellationToken::new();
        *self.told_after.lock().unwrap() = Some((call.to_owned(), token.clone()));
        token
    }

    /// Notes a change.
    fn called(&self, call: String) {
        if let Some((after, token)) = &*self.told_after.lock().unwrap()
            && *after == call
        {
            token.cancel();
        }
        self.calls.lock().unwrap().push(call);
    }

    fn fault(&self, name: &str) -> Result<(), Refused> {
        self.faults.lock().unwrap().get(name).map_or(Ok(()), |errno| Err((*errno).into()))
    }
}

/// In the simulated world a file's path says all: `/<id>/<name>/<needs joined by commas>`.
fn path_of(name: &str, id: &str, needs: &[&str]) -> PathBuf {
    PathBuf::from(format!("/{id}/{name}/{}", needs.join(",")))
}

impl Kernel for SimulatedKernel {
    fn boot_id(&self) -> io::Result<String> {
        Ok("boot-1".into())
    }

    fn release(&self) -> io::Result<String> {
        Ok(RELEASE.into())
    }

    fn listed(&self) -> io::Result<BTreeMap<String, Listed>> {
        let modules = self.modules.lock().unwrap();
        let entry = |name: &String, loaded: &Loaded| {
            let holders: Vec<String> =
                modules.iter().filter(|(_, other)| other.needs.contains(name)).map(|(name, _)| name.clone()).collect();
            let refcnt = loaded.references + u32::try_from(holders.len()).unwrap();
            Listed {
                refcnt: Some(refcnt),
                holders,
                permanent: loaded.permanent,
                state: loaded.state.unwrap_or(InitState::Live),
            }
        };
        Ok(modules.iter().map(|(name, loaded)| (name.clone(), entry(name, loaded))).collect())
    }

    fn running(&self, name: &str, parameters: &BTreeSet<String>) -> io::Result<Option<Running>> {
        Ok(self.modules.lock().unwrap().get(name).map(|loaded| Running {
            identity: identity(&loaded.id),
            parameters: loaded
                .parameters
                .iter()
                .filter(|(name, _)| parameters.contains(*name))
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect(),
        }))
    }

    fn readable(&self, file: &Path) -> io::Result<()> {
        self.fault(&file.display().to_string()).map_err(|refused| refused.errno)?;
        if self.lost.lock().unwrap().contains(file) { Err(Errno::ENOENT.into()) } else { Ok(()) }
    }

    fn load(&self, name: &str, file: &Path, _: Packing, parameters: &str) -> Result<(), Refused> {
        self.fault(name)?;
        if self.readable(file).is_err() {
            return Err(Errno::ENOENT.into());
        }
        let parts: Vec<String> = file.iter().skip(1).map(|part| part.to_string_lossy().into_owned()).collect();
        let needs: Vec<String> =
            parts.get(2).map(|needs| needs.split(',').map(ToOwned::to_owned).collect()).unwrap_or_default();
        let (id, needs) = if parts[0] == "own" {
            let own = self.own.lock().unwrap();
            ("own".to_owned(), own.get(name).cloned().unwrap_or_default())
        } else {
            (parts[0].clone(), needs)
        };
        let mut modules = self.modules.lock().unwrap();
        if modules.contains_key(name) {
            return Err(Errno::EEXIST.into());
        }
        if needs.iter().any(|need| !modules.contains_key(need)) {
            return Err(Errno::ENOENT.into());
        }
        let parameters =
            params::decode(parameters).into_iter().map(|(name, value)| (name, value.unwrap_or_default())).collect();
        modules.insert(name.to_owned(), Loaded { id, needs, parameters, ..Loaded::default() });
        self.called(format!("+{name}"));
        Ok(())
    }

    fn unload(&self, name: &str) -> Result<(), Refused> {
        self.fault(name)?;
        let listed = self.listed().unwrap();
        let entry = listed.get(name).ok_or(Errno::ENOENT)?;
        if entry.permanent {
            return Err(Errno::EBUSY.into());
        }
        if entry.refcnt != Some(0) {
            return Err(Errno::EAGAIN.into());
        }
        self.modules.lock().unwrap().remove(name);
        self.called(format!("-{name}"));
        Ok(())
    }

    fn parameters(&self, name: &str) -> io::Result<BTreeMap<String, String>> {
        Ok(self.modules.lock().unwrap().get(name).map(|loaded| loaded.parameters.clone()).unwrap_or_default())
    }

    fn own_module(&self, name: &str) -> io::Result<Vec<PathBuf>> {
        let own = self.own.lock().unwrap();
        let file = |name: &String| PathBuf::from(format!("/own/{name}.ko"));
        Ok(own.get(name).map(|needs| needs.iter().chain([&name.to_owned()]).map(file).collect()).unwrap_or_default())
    }

    fn firmware_path(&self) -> io::Result<Option<SearchPath>> {
        Ok(self.search_path.lock().unwrap().clone().map(|value| SearchPath { value, writable: true }))
    }

    fn set_firmware_path(&self, value: &str) -> Result<(), Refused> {
        self.fault("firmware_class")?;
        *self.search_path.lock().unwrap() = Some(value.to_owned());
        Ok(())
    }

    fn published(&self) -> io::Result<Published> {
        Ok(self.published.lock().unwrap().clone())
    }

    fn published_files(&self, release: &str, name: &str) -> BTreeMap<String, Identity> {
        let folder = (release.to_owned(), name.to_owned());
        self.published_files.lock().unwrap().get(&folder).cloned().unwrap_or_default()
    }

    fn publish(&self, release: &str, name: &str, content: &str, files: &[PathBuf]) -> Result<(), Trouble> {
        let part = |file: &PathBuf, at| file.iter().nth(at).unwrap().to_string_lossy().into_owned();
        let identities = files.iter().map(|file| (part(file, 2), identity(&part(file, 1)))).collect();
        self.published_files.lock().unwrap().insert((release.to_owned(), name.to_owned()), identities);
        let mut published = self.published.lock().unwrap();
        published.stale.insert(release.to_owned());
        published.folders.insert((release.to_owned(), name.to_owned()), content.to_owned());
        Ok(())
    }

    fn unpublish(&self, release: &str, name: &str) -> Result<(), Trouble> {
        let mut published = self.published.lock().unwrap();
        published.stale.insert(release.to_owned());
        let folder = (release.to_owned(), name.to_owned());
        published.folders.remove(&folder);
        self.published_files.lock().unwrap().remove(&folder);
        Ok(())
    }

    fn renew_index(&self, release: &str) -> Result<(), Trouble> {
        self.fault("depmod").map_err(|refused| Trouble::new(NodeReason::NotPublished, refused.to_string()))?;
        self.published.lock().unwrap().stale.remove(release);
        Ok(())
    }

    fn host_folder(&self, path: &Path) -> io::Result<BTreeMap<String, bool>> {
        let there = path == Path::new("/opt/fw");
        Ok(if there { BTreeMap::from([("admin.bin".to_owned(), false)]) } else { BTreeMap::new() })
    }

    /// Loads the paths among the arguments, the words after `--` being parameters of the last; removes as the real one
    /// does, with what nothing uses any more.
    fn modprobe(&self, arguments: &[String], _: &[String], removes: bool) -> Result<(), Trouble> {
        self.calls.lock().unwrap().push("modprobe".into());
        let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
        if !removes {
            for (at, path) in arguments[..end].iter().enumerate() {
                let name = path.split('/').nth(2).unwrap();
                let parameters = if at + 1 == end { arguments[end + 1..].join(" ") } else { String::new() };
                if !self.names().contains(&name.to_owned()) {
                    self.load(name, Path::new(path), Packing::Plain, &parameters)
                        .map_err(|refused| load_trouble(name, None, &refused))?;
                }
            }
            return Ok(());
        }
        for name in modprobe::aim(arguments).modules {
            let Some(loaded) = self.modules.lock().unwrap().get(&name).cloned() else { continue };
            self.unload(&name).map_err(|refused| unload_trouble(&name, &refused))?;
            for need in &loaded.needs {
                let _ = self.unload(need);
            }
        }
        Ok(())
    }

    fn gates(&self) -> Gates {
        self.gates.lock().unwrap().clone()
    }

    fn available_memory(&self) -> Option<u64> {
        *self.memory.lock().unwrap()
    }

    fn users(&self, name: &str, _: &[String]) -> Users {
        Users { mounts: BTreeSet::from([format!("/{name}")]), ..Users::default() }
    }
}

/// The identity of the file with this id; `?` is a file that cannot be told from another.
pub(super) fn identity(id: &str) -> Identity {
    Identity { build_id: (id != "?").then(|| id.to_owned()), srcversion: None }
}

/// A file of an image.
pub(super) fn file(name: &str, id: &str, role: Role, needs: &[&str]) -> LoadFile {
    LoadFile {
        name: name.into(),
        path: path_of(name, id, needs),
        packing: Packing::Plain,
        role,
        identity: identity(id),
        preset: String::new(),
        facts: FileFacts::default(),
    }
}

/// An entry for a Module `drivers/<module>` with uid `uid-<module>`; the digest is made of one letter.
pub(super) fn spec(module: &str, kernel_module: &str, digest: char, generation: i64) -> NodeModuleSpec {
    NodeModuleSpec {
        config: ModuleConfig {
            container_image: format!("registry.example/kmm@sha256:{}", digest.to_string().repeat(64)),
            kernel_version: "6.12.1".into(),
            modprobe: ModprobeSpec { module_name: Some(kernel_module.into()), ..ModprobeSpec::default() },
            ..ModuleConfig::default()
        },
        generation: Some(generation),
        module_uid: Some(format!("uid-{module}")),
        name: module.into(),
        namespace: "drivers".into(),
        service_account_name: "default".into(),
        ..NodeModuleSpec::default()
    }
}

/// An order to unload what a Module has up to a generation.
pub(super) fn intent(module: &str, generation: i64) -> UnloadIntent {
    UnloadIntent {
        generation,
        module_uid: format!("uid-{module}"),
        name: module.into(),
        namespace: "drivers".into(),
        reason: UnloadReason::Changed,
    }
}

/// A store that can be full.
#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    pub(super) full: RefCell<bool>,
    /// Links to firmware, and the name of their set.
    pub(super) links: RefCell<Option<(String, BTreeMap<String, PathBuf>)>>,
}

impl RecordStore for MemoryStore {
    fn save(&self, _: &Record) -> Result<(), Trouble> {
        if *self.full.borrow() { Err(Trouble::new(NodeReason::StoreFailed, "disk full")) } else { Ok(()) }
    }

    fn search_path(&self) -> String {
        OURS.to_owned()
    }

    fn merged(&self) -> Option<String> {
        self.links.borrow().as_ref().map(|(name, _)| name.clone())
    }

    fn merge(&self, name: &str, links: &BTreeMap<String, PathBuf>) -> Result<(), Trouble> {
        *self.links.borrow_mut() = Some((name.to_owned(), links.clone()));
        Ok(())
    }

    fn unmerge(&self) -> Result<(), Trouble> {
        *self.links.borrow_mut() = None;
        Ok(())
    }
}

/// A node.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) kernel: SimulatedKernel,
    pub(super) store: MemoryStore,
    pub(super) record: Record,
    pub(super) desired: NodeModulesConfigSpec,
    pub(super) scope: Scope,
    /// What images hold: files by digest letter and kernel module, or why they cannot be had.
    pub(super) images: BTreeMap<(char, String), Result<Vec<LoadFile>, Trouble>>,
    /// Firmware by the path in the image.
    pub(super) firmware: BTreeMap<String, Firmware>,
    pub(super) prepared: BTreeMap<Owner, Prepared>,
    pub(super) attempts: BTreeMap<Owner, Attempt>,
    /// Jobs of an agent that are said to run.
    pub(super) running: BTreeMap<Owner, RunningJob>,
    /// Told to the jobs that are carried out.
    pub(super) taken_back: CancellationToken,
    pub(super) now: Duration,
    /// Nothing is left of what was generated for modprobe.
    pub(super) lost_generated: bool,
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

    pub(super) fn observe(&self) -> Observed {
        let names = Observed::interesting(&self.record, &self.desired, &self.prepared);
        Observed {
            release: RELEASE.into(),
            now: self.now,
            desired: self.desired.clone(),
            scope: self.scope,
            record: self.record.clone(),
            kernel: observe::kernel(&self.kernel, &names, true).unwrap(),
            prepared: self.prepared.clone(),
            attempts: self.attempts.clone(),
            firmware: {
                let asked = Observed::asks_for_firmware(&self.record, &self.desired);
                observe::firmware(&self.kernel, &self.store, asked).unwrap()
            },
            published: Some(self.kernel.published().unwrap()),
            published_files: {
                let published = self.kernel.published().unwrap();
                let (record, prepared, read) = (&self.record, &self.prepared, &mut BTreeMap::new());
                observe::published_files(&self.kernel, RELEASE, Some(&published), record, prepared, read)
            },
            generated: self
                .record
                .entries
                .iter()
                .filter_map(|entry| entry.generated.clone())
                .filter(|_| !self.lost_generated)
                .collect(),
            running: self.running.clone(),
            unkept: self.unkept.clone(),
        }
    }

    pub(super) fn plan(&self) -> Plan {
        plan(&self.observe())
    }

    /// One round: plans, fetches, carries out. Returns the plan.
    pub(super) fn round(&mut self, shutdown: &CancellationToken) -> Plan {
        let plan = self.plan();
        for spec in &plan.prepare {
            let identity = wanted::identity(spec).unwrap();
            let digest = identity.digest.hex().chars().next().unwrap();
            let state = match self.images.get(&(digest, identity.main().to_owned())) {
                Some(Ok(files)) => {
                    let firmware = identity.firmware_path.as_ref().map(|path| self.firmware[path].clone());
                    let folder = PathBuf::from(format!("/generated/{}", spec.name));
                    let paths = files.iter().map(|file| file.path.display().to_string());
                    let words = ["--".to_owned(), identity.parameters.clone()];
                    let modprobe = identity
                        .by_modprobe
                        .as_ref()
                        .map(|_| Modprobe { folder, arguments: paths.chain(words).collect() });
                    let of_image = files.iter().map(|file| file.path.clone()).collect();
                    // What is damaged is fetched again.
                    self.kernel.lost.lock().unwrap().retain(|lost| files.iter().all(|file| file.path != *lost));
                    let files = files.clone();
                    Preparation::Ready(Arc::new(LoadSet { files, firmware, of_image, modprobe, ..LoadSet::default() }))
                }
                Some(Err(trouble)) => Preparation::Failed(trouble.clone(), self.now + Duration::from_secs(5)),
                None => Preparation::Failed(
                    Trouble::new(NodeReason::ImageNotFound, "no such image"),
                    self.now + Duration::from_secs(5),
                ),
            };
            let runtime = self.desired.container_runtime.clone();
            self.prepared.insert(Owner::of(spec), Prepared { spec: spec.clone(), runtime, state });
        }
        self.carry_out(&plan, shutdown);
        plan
    }

    /// Carries out the jobs of a plan.
    pub(super) fn carry_out(&mut self, plan: &Plan, shutdown: &CancellationToken) {
        let record = Mutex::new(std::mem::take(&mut self.record));
        let startable: Vec<Job> =
            startable(plan.jobs.clone(), &apply::lock(&record), []).into_iter().map(|(job, _)| job).collect();
        let outcomes = apply::jobs(&self.kernel, &self.store, &record, &startable, shutdown, &self.taken_back);
        self.record = record.into_inner().unwrap();
        for job in &plan.jobs {
            if let Some(Outcome::Failed { trouble, .. }) = outcomes.get(&job.owner) {
                let attempt = Attempt {
                    identity: job.identity.clone(),
                    trouble: trouble.clone(),
                    retry_at: self.now + Duration::from_secs(5),
                    counts: job.counts_after(trouble, &self.kernel.listed().unwrap()),
                };
                self.attempts.insert(job.owner.clone(), attempt);
                if job.needs_another_look(trouble) {
                    self.prepared.remove(&job.owner);
                }
            }
        }
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
        self.attempts.clear();
    }

    /// Time goes on far enough for everything that failed to be tried again.
    pub(super) fn wait(&mut self) {
        self.now += Duration::from_mins(10);
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
