//! One pass without an API server: what asks to be loaded at boot comes from the node's own store into the kernel.
//!
//! For modules that are needed before the kubelet runs. It reads and writes the files of the worker that comes later,
//! fetches nothing, and unloads nothing that it was not told to replace by the Module itself (`inTreeModulesToRemove`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::apply;
use super::facts::Trouble;
use super::host::linux::LinuxHost;
use super::image::prepare::{Places, Target};
use super::kernel::Kernel as _;
use super::kernel::linux::LinuxKernel;
use super::node::Hands;
use super::observe::{self, FilesRead, Known};
use super::plan::pause::Unready;
use super::plan::{
    Attempts, Job, LoadSet, Observed, Outcome, Plan, Prepared, Report, RunningJob, Scope, Wanted, Wants, plan,
    startable,
};
use super::record::Owner;
use super::settings::WorkerSettings;
use super::start::{Beginning, Error};
use super::store::{Holder, StateDir, Store};
use crate::api::ModuleState;
use crate::api::names::NodeReason;

/// How long modules that are starting or ending are waited for.
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
/// something has made room for what is not there yet. A module that the kernel does not finish delays the others by nothing
/// and the end by a minute; the state folder is then left to the worker that comes.
///
/// # Errors
/// The worker's own files, or a kernel that does not tell who it is. A module that cannot be loaded is no error but part
/// of the result.
pub fn run(settings: &WorkerSettings, shutdown: &CancellationToken) -> Result<Pass, Error> {
    let Some(state) = StateDir::open(&settings.state_dir)? else {
        return Ok(Pass::Elsewhere(StateDir::holder(&settings.state_dir)));
    };
    state.sign(true);
    let (kernel, host) = (LinuxKernel::of(settings), LinuxHost::of(settings));
    let Beginning { boot_id, release, record, kept } = Beginning::of(&kernel, &state)?;
    let desired = Arc::new(Wants::from(kept.map(|kept| kept.at_boot()).unwrap_or_default()));
    info!(boot_id, release, asking = desired.modules.len(), "loading what asks to be loaded at boot");
    let (places, command_line) = (Places::new(settings, state.generated()), kernel.command_line());
    let hands = Hands {
        kernel: Arc::new(kernel),
        host: Arc::new(host),
        state: Arc::new(state),
        record: Arc::new(Mutex::new(record)),
    };
    let from_store = |wanted: &Wanted, observed: &Observed| {
        from_store(&places, &hands.state, wanted, &Target::of(observed, &command_line))
    };
    let (reports, hanging) = carry_out(&hands, &from_store, &release, &desired, PATIENCE, shutdown)?;
    if !hanging.is_empty() {
        let modules: Vec<String> = hanging.iter().map(ToString::to_string).collect();
        warn!("jobs that the kernel has not finished are left to it: {}", modules.join(", "));
        hands.state.give_up();
    }
    Ok(told(reports))
}

/// What holds at the end, and whose jobs the kernel has not finished.
fn carry_out<S: Store>(
    hands: &Hands<S>,
    from_store: &dyn Fn(&Wanted, &Observed) -> Result<LoadSet, Trouble>,
    release: &str,
    desired: &Arc<Wants>,
    patience: Duration,
    shutdown: &CancellationToken,
) -> Result<(Vec<Report>, Vec<Owner>), observe::Error> {
    let begun = Instant::now();
    let mut prepared: BTreeMap<Owner, Prepared> = BTreeMap::new();
    let (mut attempts, mut read) = (Attempts::default(), FilesRead::new());
    let mut running: BTreeMap<Owner, RunningJob> = BTreeMap::new();
    let (ends, ended) = mpsc::channel::<(Job, Outcome)>();
    loop {
        let known = Known {
            release: release.to_owned(),
            now: begun.elapsed(),
            desired: Arc::clone(desired),
            scope: Scope::AtBoot,
            record: hands.recorded(),
            prepared: prepared.clone(),
            attempts: attempts.clone(),
            running: running.clone(),
            ..Known::default()
        };
        let observed = observe::world(hands.node(), known, &mut read)?;
        let Plan { prepare, jobs, reports, .. } = plan(&observed);
        let rests = prepare.is_empty() && jobs.is_empty();
        let passing = reports.iter().any(|report| report.state == ModuleState::Loading);
        let over = running.is_empty() && (shutdown.is_cancelled() || (rests && !passing));
        if over || begun.elapsed() > patience {
            return Ok((reports, running.into_keys().collect()));
        }
        let wait = if prepare.is_empty() { LOOK } else { Duration::ZERO };
        for wanted in prepare {
            let found = from_store(&wanted, &observed);
            let mut preparation = Prepared::begun(wanted, desired.container_runtime.clone(), None);
            preparation.end(found.map_err(Unready::from), NEVER);
            prepared.insert(preparation.wanted.owner.clone(), preparation);
        }
        // Side by side: one that the kernel never finishes must not keep out what comes after it.
        let jobs = if shutdown.is_cancelled() { Vec::new() } else { jobs };
        for (job, reach) in startable(jobs, &observed.record, observed.running.values().map(|job| &job.reach)) {
            running.insert(job.owner.clone(), RunningJob::of(&job, reach, begun.elapsed()));
            let (given, end) = (job.clone(), ends.clone());
            let done = move |outcome| drop(end.send((given, outcome)));
            if let Err(refused) =
                apply::begin(hands.clone(), job.clone(), shutdown.clone(), CancellationToken::new(), done)
            {
                let _ = ends.send((job, refused));
            }
        }
        let first = ended.recv_timeout(wait).ok();
        for (job, outcome) in first.into_iter().chain(ended.try_iter()) {
            if let Outcome::Done(took) = &outcome
                && job.loads()
            {
                info!(module = %job.owner, took_ms = took.as_millis(), "loaded");
            }
            running.remove(&job.owner);
            attempts.ended(&job, &outcome, NEVER, None);
        }
    }
}

/// The files of an entry whose image was unpacked on this node before.
fn from_store(places: &Places, state: &StateDir, wanted: &Wanted, target: &Target) -> Result<LoadSet, Trouble> {
    let tree = state.tree(&wanted.identity.tree_key(&target.release));
    if !tree.is_dir() {
        let message = format!(
            "image {} is not unpacked on this node for kernel {}; the worker fetches it when it runs",
            wanted.spec.config.container_image, target.release
        );
        return Err(Trouble::new(NodeReason::Pending, message));
    }
    places.load_set(&tree, target, wanted)
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
    use crate::api::{LoadPolicy, NodeModuleSpec, NodeModulesConfigSpec};
    use crate::core::kmod::order::Role::{Named, Needed};
    use crate::worker::record::Record;
    use crate::worker::record::kept_plan::KeptPlan;
    use crate::worker::testing::{Loaded, MemoryStore, RELEASE, SimulatedKernel, file, intent, spec};

    fn asking(module: &str, digest: char) -> NodeModuleSpec {
        let policy = LoadPolicy { load_at_boot: true, ..LoadPolicy::default() };
        NodeModuleSpec { policy: Some(policy), ..spec(module, module, digest, 2) }
    }

    /// The pass over a plan, with the image `a` in the store: what is loaded, and what is not and why.
    fn pass(
        kernel: &Arc<SimulatedKernel>,
        store: MemoryStore,
        spec: NodeModulesConfigSpec,
    ) -> (Vec<String>, Vec<String>) {
        let from_store = |Wanted { spec, .. }: &Wanted, _: &Observed| {
            if !spec.config.container_image.contains("aaaa") {
                return Err(Trouble::new(NodeReason::Pending, "not in the store"));
            }
            let needs: &[&str] = if spec.name == "free" { &[] } else { &["base"] };
            let base = needs.iter().map(|base| file(base, "b1", Needed, &[]));
            let files = base.chain([file(&spec.name, "m1", Named, needs)]).collect();
            Ok(LoadSet { files, ..LoadSet::default() })
        };
        let desired = Arc::new(KeptPlan::new("uid", 7, spec).at_boot().into());
        let (kernel, record) = (Arc::clone(kernel), Arc::new(Mutex::new(Record::new("boot-1"))));
        let hands = Hands { host: kernel.clone(), kernel, state: Arc::new(store), record };
        let (patience, never) = (Duration::from_secs(2), CancellationToken::new());
        let (reports, hanging) = carry_out(&hands, &from_store, RELEASE, &desired, patience, &never).unwrap();
        let Pass::Done { loaded, failed } = told(reports) else { panic!("the lock is not part of this") };
        assert!(hanging.iter().all(|hanging| failed.iter().any(|(owner, _)| owner == hanging)), "{hanging:?}");
        let failed = failed.into_iter().map(|(owner, trouble)| format!("{} {}", owner.name, trouble.reason.as_str()));
        (loaded.into_iter().map(|owner| owner.name).collect(), failed.collect())
    }

    #[test]
    fn only_what_asks_is_loaded_and_each_thing_is_tried_once() {
        let kernel = Arc::new(SimulatedKernel::default());
        let modules = vec![asking("gpu", 'a'), spec("net", "net", 'a', 1), asking("far", 'b'), asking("bad", 'a')];
        kernel.fail("bad", Errno::ENODEV);
        let desired = NodeModulesConfigSpec { modules, ..NodeModulesConfigSpec::default() };
        let (loaded, failed) = pass(&kernel, MemoryStore::default(), desired);
        assert_eq!(loaded, ["gpu"]);
        assert_eq!(failed, ["bad KernelRefused", "far Pending"]);
        assert_eq!(kernel.take_calls(), ["+base", "+gpu"]);
    }

    #[test]
    fn a_module_that_the_kernel_never_finishes_keeps_out_nothing_that_shares_nothing_with_it() {
        let kernel = Arc::new(SimulatedKernel::default());
        let hanging = kernel.hang("gpu");
        let modules = vec![asking("gpu", 'a'), asking("net", 'a'), asking("free", 'a')];
        let desired = NodeModulesConfigSpec { modules, ..NodeModulesConfigSpec::default() };
        let (loaded, failed) = pass(&kernel, MemoryStore::default(), desired);
        drop(hanging);
        assert_eq!(loaded, ["free"]);
        assert_eq!(failed, ["gpu Loading", "net Pending"]);
    }

    #[test]
    fn a_pass_takes_nothing_out_and_loads_nothing_that_was_taken_back() {
        let kernel = Arc::new(SimulatedKernel::default());
        kernel.with(|modules| {
            modules.insert("net".into(), Loaded { id: "m1".into(), ..Loaded::default() });
            modules.insert("gpu".into(), Loaded { id: "other".into(), ..Loaded::default() });
        });
        let desired = NodeModulesConfigSpec {
            modules: vec![asking("gpu", 'a'), asking("back", 'a')],
            unload: vec![intent("net", 9), intent("back", 2), intent("gpu", 1)],
            ..NodeModulesConfigSpec::default()
        };
        let (loaded, failed) = pass(&kernel, MemoryStore::default(), desired);
        assert_eq!(loaded, [""; 0]);
        assert_eq!(failed, ["gpu LoadedOtherFile"]);
        assert_eq!(kernel.take_calls(), [""; 0]);
    }

    #[test]
    fn without_a_record_on_the_disk_nothing_is_loaded() {
        let kernel = Arc::new(SimulatedKernel::default());
        let store = MemoryStore::default();
        *store.full.lock().unwrap() = true;
        let desired = NodeModulesConfigSpec { modules: vec![asking("gpu", 'a')], ..NodeModulesConfigSpec::default() };
        let (loaded, failed) = pass(&kernel, store, desired);
        assert_eq!((loaded.as_slice(), failed.as_slice()), ([].as_slice(), ["gpu StoreFailed".to_owned()].as_slice()));
        assert_eq!(kernel.take_calls(), [""; 0]);
    }
}
