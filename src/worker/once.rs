//! One pass without an API server: what asks to be loaded at boot comes from the node's own store into the kernel.
//!
//! For modules that are needed before the kubelet runs. It reads and writes the files of the worker that comes later,
//! fetches nothing, and unloads nothing that it was not told to replace by the Module itself (`inTreeModulesToRemove`).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::apply::{self, Outcome};
use super::kernel::{Kernel, Trouble};
use super::kernel_linux::LinuxKernel;
use super::plan::{Attempt, Job, LoadSet, Observed, Plan, Preparation, Prepared, Report, Scope, Step, plan, startable};
use super::prepare::Host;
use super::record::{Owner, Record};
use super::state_dir::{Holder, StateDir};
use super::{Beginning, Error, WorkerSettings, observe, wanted};
use crate::api::names::NodeReason;
use crate::api::{ModuleState, NodeModuleSpec, NodeModulesConfigSpec};

/// How long a module that is starting or ending is waited for.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// Nothing is tried twice in one pass.
const NEVER: Duration = Duration::MAX;

/// How a pass ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pass {
    /// A worker of this node has the state folder, and carries out what is kept there itself.
    Elsewhere(Holder),
    /// What the kernel holds now.
    Done {
        /// Modules that asked and are in the kernel.
        loaded: Vec<Owner>,
        /// Modules that asked and are not.
        failed: Vec<(Owner, Trouble)>,
    },
}

/// Carries out the entries of the kept plan that ask for it. Blocks; at `shutdown` it ends between two steps, but not while
/// something has made room for what is not there yet.
///
/// # Errors
/// The worker's own files, or a kernel that does not tell who it is. A module that cannot be loaded is no error but part
/// of the result.
pub fn run(settings: &WorkerSettings, shutdown: &CancellationToken) -> Result<Pass, Error> {
    let Some(state) = StateDir::open(&settings.state_dir)? else {
        return Ok(Pass::Elsewhere(StateDir::holder(&settings.state_dir)));
    };
    state.sign(true);
    let kernel = LinuxKernel::of(settings);
    let Beginning { boot_id, release, record, kept } = Beginning::of(&kernel, &state)?;
    let desired = kept.map(|kept| kept.at_boot()).unwrap_or_default();
    info!(boot_id, release, asking = desired.modules.len(), "loading what asks to be loaded at boot");
    let from_store = |spec: &NodeModuleSpec, observed: &Observed| from_store(settings, &state, spec, observed);
    let reports = carry_out(&kernel, &state, &from_store, Start { release, record, desired }, shutdown)
        .map_err(|source| Error::Kernel { what: "modules", source })?;
    Ok(told(reports))
}

/// What a pass begins with.
struct Start {
    release: String,
    record: Record,
    desired: NodeModulesConfigSpec,
}

fn carry_out(
    kernel: &dyn Kernel,
    store: &dyn apply::RecordStore,
    from_store: &dyn Fn(&NodeModuleSpec, &Observed) -> Result<LoadSet, Trouble>,
    start: Start,
    shutdown: &CancellationToken,
) -> std::io::Result<Vec<Report>> {
    let Start { release, record, desired } = start;
    let record = Mutex::new(record);
    let begun = Instant::now();
    let mut prepared: BTreeMap<Owner, Prepared> = BTreeMap::new();
    let mut attempts: BTreeMap<Owner, Attempt> = BTreeMap::new();
    loop {
        let recorded = apply::lock(&record).clone();
        let names = Observed::interesting(&recorded, &desired, &prepared);
        let firmware = observe::firmware(kernel, store, Observed::asks_for_firmware(&recorded, &desired))?;
        let observed = Observed {
            release: release.clone(),
            now: begun.elapsed(),
            desired: desired.clone(),
            scope: Scope::AtBoot,
            record: recorded,
            kernel: observe::kernel(kernel, &names, true)?,
            prepared: prepared.clone(),
            attempts: attempts.clone(),
            firmware,
            // It knows a part of the wanted entries only.
            published: None,
            published_files: BTreeMap::new(),
            generated: observe::generated(&apply::lock(&record)),
            running: BTreeMap::new(),
            unkept: None,
        };
        let Plan { prepare, jobs, reports, .. } = plan(&observed);
        let rests = prepare.is_empty() && jobs.is_empty();
        let passing = reports.iter().any(|report| report.state == ModuleState::Loading);
        if shutdown.is_cancelled() || (rests && !passing) || begun.elapsed() > PATIENCE {
            return Ok(reports);
        }
        if rests {
            thread::sleep(LOOK);
        }
        for spec in prepare {
            let state = match from_store(&spec, &observed) {
                Ok(set) => Preparation::Ready(set.into()),
                Err(trouble) => Preparation::Failed(trouble, NEVER),
            };
            prepared.insert(Owner::of(&spec), Prepared { spec, runtime: desired.container_runtime.clone(), state });
        }
        let jobs: Vec<Job> = startable(jobs, &observed.record, []).into_iter().map(|(job, _)| job).collect();
        let outcomes = apply::jobs(kernel, store, &record, &jobs, shutdown, &CancellationToken::new());
        for job in jobs {
            let loads = job.steps.iter().any(Step::loads);
            let trouble = match outcomes.get(&job.owner) {
                Some(Outcome::Failed { trouble, .. }) => trouble.clone(),
                Some(Outcome::Done(took)) if loads => {
                    info!(module = %job.owner, took_ms = took.as_millis(), "loaded");
                    Trouble::new(NodeReason::LoadNotProved, "the kernel took it and does not hold it any more")
                }
                Some(Outcome::Done(_) | Outcome::Interrupted | Outcome::TakenBack) | None => continue,
            };
            attempts.insert(
                job.owner,
                Attempt { identity: job.identity, trouble, retry_at: NEVER, counts: BTreeMap::new() },
            );
        }
    }
}

/// The files of an entry whose image was unpacked on this node before.
fn from_store(
    settings: &WorkerSettings,
    state: &StateDir,
    spec: &NodeModuleSpec,
    observed: &Observed,
) -> Result<LoadSet, Trouble> {
    let identity = wanted::identity(spec)?;
    let tree = state.tree(&identity.tree_key(&observed.release));
    if !tree.is_dir() {
        let message = format!(
            "image {} is not unpacked on this node for kernel {}; the worker fetches it when it runs",
            spec.config.container_image, observed.release
        );
        return Err(Trouble::new(NodeReason::Pending, message));
    }
    let loaded = observed.kernel.listed.keys().cloned().collect();
    Host::new(settings, state.generated()).load_set(&tree, &observed.release, &loaded, &identity, spec)
}

fn told(reports: Vec<Report>) -> Pass {
    let (mut loaded, mut failed) = (Vec::new(), Vec::new());
    for report in reports {
        let owner = Owner::of(&report.spec);
        if report.state == ModuleState::Loaded {
            loaded.push(owner);
        } else {
            let message = if report.message.is_empty() { "it was not finished".to_owned() } else { report.message };
            failed.push((owner, Trouble::new(report.reason, message)));
        }
    }
    Pass::Done { loaded, failed }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::api::LoadPolicy;
    use crate::core::kmod::order::Role::{Named, Needed};
    use crate::worker::kept_plan::KeptPlan;
    use crate::worker::simulated::{Loaded, MemoryStore, RELEASE, SimulatedKernel, file, intent, spec};

    fn asking(module: &str, digest: char) -> NodeModuleSpec {
        let policy = LoadPolicy { load_at_boot: true, ..LoadPolicy::default() };
        NodeModuleSpec { policy: Some(policy), ..spec(module, module, digest, 2) }
    }

    /// The pass over a plan, with the image `a` in the store: what is loaded, and what is not and why.
    fn pass(kernel: &SimulatedKernel, store: &MemoryStore, spec: NodeModulesConfigSpec) -> (Vec<String>, Vec<String>) {
        let from_store = |spec: &NodeModuleSpec, _: &Observed| {
            if !spec.config.container_image.contains("aaaa") {
                return Err(Trouble::new(NodeReason::Pending, "not in the store"));
            }
            let files = vec![file("base", "b1", Needed, &[]), file(&spec.name, "m1", Named, &["base"])];
            Ok(LoadSet { files, ..LoadSet::default() })
        };
        let desired = KeptPlan::new("uid", 7, spec).at_boot();
        let start = Start { release: RELEASE.into(), record: Record::new("boot-1"), desired };
        let reports = carry_out(kernel, store, &from_store, start, &CancellationToken::new()).unwrap();
        let Pass::Done { loaded, failed } = told(reports) else { panic!("the lock is not part of this") };
        let failed = failed.into_iter().map(|(owner, trouble)| format!("{} {}", owner.name, trouble.reason.as_str()));
        (loaded.into_iter().map(|owner| owner.name).collect(), failed.collect())
    }

    #[test]
    fn only_what_asks_is_loaded_and_each_thing_is_tried_once() {
        let kernel = SimulatedKernel::default();
        let modules = vec![asking("gpu", 'a'), spec("net", "net", 'a', 1), asking("far", 'b'), asking("bad", 'a')];
        kernel.fail("bad", Errno::ENODEV);
        let desired = NodeModulesConfigSpec { modules, ..NodeModulesConfigSpec::default() };
        let (loaded, failed) = pass(&kernel, &MemoryStore::default(), desired);
        assert_eq!(loaded, ["gpu"]);
        assert_eq!(failed, ["bad KernelRefused", "far Pending"]);
        assert_eq!(kernel.take_calls(), ["+base", "+gpu"]);
    }

    #[test]
    fn a_pass_takes_nothing_out_and_loads_nothing_that_was_taken_back() {
        let kernel = SimulatedKernel::default();
        kernel.with(|modules| {
            modules.insert("net".into(), Loaded { id: "m1".into(), ..Loaded::default() });
            modules.insert("gpu".into(), Loaded { id: "other".into(), ..Loaded::default() });
        });
        let desired = NodeModulesConfigSpec {
            modules: vec![asking("gpu", 'a'), asking("back", 'a')],
            unload: vec![intent("net", 9), intent("back", 2), intent("gpu", 1)],
            ..NodeModulesConfigSpec::default()
        };
        let (loaded, failed) = pass(&kernel, &MemoryStore::default(), desired);
        assert_eq!(loaded, [""; 0]);
        assert_eq!(failed, ["gpu LoadedOtherFile"]);
        assert_eq!(kernel.take_calls(), [""; 0]);
    }

    #[test]
    fn without_a_record_on_the_disk_nothing_is_loaded() {
        let kernel = SimulatedKernel::default();
        let store = MemoryStore::default();
        *store.full.borrow_mut() = true;
        let desired = NodeModulesConfigSpec { modules: vec![asking("gpu", 'a')], ..NodeModulesConfigSpec::default() };
        let (loaded, failed) = pass(&kernel, &store, desired);
        assert_eq!((loaded.as_slice(), failed.as_slice()), ([].as_slice(), ["gpu StoreFailed".to_owned()].as_slice()));
        assert_eq!(kernel.take_calls(), [""; 0]);
    }
}
