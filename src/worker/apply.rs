//! Carries jobs out. Everything here blocks, and nothing here decides.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use nix::errno::Errno;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::facts::Trouble;
use super::host::firmware;
use super::kernel::Kernel;
use super::kernel::refusal::{load_trouble, unload_trouble};
use super::node::{Hands, Node, lock};
use super::plan::{Job, LoadFile, Outcome, Step, enough_memory};
use super::record::{Record, TakenOut};
use super::store::Store;
use crate::api::names::NodeReason;
use crate::core::kmod::order::Role;
use crate::core::kmod::{Identity, Sameness, names, params};

/// The index of a release is one for all Modules: one step at a time changes what is published.
static PUBLISHING: Mutex<()> = Mutex::new(());

/// Its turn at what all jobs share. Steps that take one end by themselves, whatever the kernel does.
fn turn(turns: &Mutex<()>) -> MutexGuard<'_, ()> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a job on a thread of its own, as the kernel may keep it for ever; `done` takes how it ended.
///
/// # Errors
/// There is no thread for it; nothing was begun.
pub fn begin<S: Store>(
    hands: Hands<S>,
    job: Job,
    shutdown: CancellationToken,
    taken_back: CancellationToken,
    done: impl FnOnce(Outcome) + Send + 'static,
) -> Result<(), Outcome> {
    // Not on the runtime's threads for blocking work: the process could not end before they do.
    let begun = std::thread::Builder::new()
        .name("job".to_owned())
        .spawn(move || done(self::job(hands.node(), &hands.record, &job, &shutdown, &taken_back)));
    begun.map(drop).map_err(|error| {
        let trouble = Trouble::new(NodeReason::KernelRefused, format!("no thread for the job: {error}"));
        Outcome::Failed { trouble, left: false }
    })
}

/// Carries out a job, and keeps `record` and its store up to date. Several threads may do so at the same time for jobs
/// that have nothing in common.
///
/// Between two steps `shutdown` is looked at, until the job has begun to take something out of the kernel: from then on it
/// goes to its end, so that what comes in its place comes. A step that has begun is always finished. Once `taken_back` is
/// told, what the job was to load is not wanted any more: it ends before the next step, as if that had failed. Once the
/// store is given up, nothing more is done.
pub fn job(
    node: Node<'_>,
    record: &Mutex<Record>,
    job: &Job,
    shutdown: &CancellationToken,
    taken_back: &CancellationToken,
) -> Outcome {
    let begun = Instant::now();
    // Modules that the record says are inserted and that the kernel has not got.
    let mut open = BTreeSet::new();
    let outcome = carry_out_steps(node, record, job, shutdown, taken_back, &mut open);
    let took = begun.elapsed();
    let loaded = outcome.is_ok() && job.loads();
    // That this is lost if the write fails harms little: the next look at the kernel completes the entry.
    if loaded || !open.is_empty() {
        let _ = change(node, record, |record| {
            if let Some(entry) = record.entries.iter_mut().find(|entry| entry.owner() == job.owner) {
                entry.modules.iter_mut().filter(|module| open.contains(&module.name)).for_each(|m| m.inserted = false);
                if loaded {
                    entry.took_ms = u64::try_from(took.as_millis()).ok();
                    entry.loaded_at = Some(Timestamp::now());
                    entry.complete = true;
                }
            }
        });
    }
    if let Err(Outcome::Failed { trouble, .. }) = &outcome {
        warn!(module = %job.owner, reason = trouble.reason.as_str(), "{}", trouble.message);
    }
    outcome.map_or_else(|failed| failed, |()| Outcome::Done(took))
}

/// Carries out the steps of a job. `open` is what the record says is inserted since then and the kernel has not got.
fn carry_out_steps(
    node: Node<'_>,
    record: &Mutex<Record>,
    job: &Job,
    shutdown: &CancellationToken,
    taken_back: &CancellationToken,
    open: &mut BTreeSet<String>,
) -> Result<(), Outcome> {
    // What leaves is recorded afterwards: where nothing can be recorded, nothing leaves.
    if job.unloads()
        && let Err(trouble) = change(node, record, |_| {})
    {
        return Err(Outcome::Failed { trouble, left: false });
    }
    let mut undo: &[Step] = &[];
    let (mut leaves, mut left) = (false, false);
    for step in &job.steps {
        if node.store.is_given_up() || (!leaves && shutdown.is_cancelled()) {
            return Err(Outcome::Interrupted);
        }
        if taken_back.is_cancelled() {
            info!(module = %job.owner, "not loaded: an order has taken it back");
            let failed = roll_back(node, record, undo);
            return Err(failed.map_or(Outcome::TakenBack, |trouble| Outcome::Failed { trouble, left }));
        }
        leaves |= step.unloads();
        if let Step::OnFailure(steps) = step {
            undo = steps;
            continue;
        }
        let carried_out = carry_out_step(node, record, step, open);
        if let Err(mut trouble) = carried_out {
            // Another worker has the node by now: what is to follow, it decides.
            if node.store.is_given_up() {
                return Err(Outcome::Interrupted);
            }
            if let Some(more) = roll_back(node, record, undo) {
                trouble.message = format!("{}; {}", trouble.message, more.message);
            }
            return Err(Outcome::Failed { trouble, left });
        }
        left |= step.unloads();
        if matches!(step, Step::Write(entry) if entry.owner() == job.owner) {
            *open = job.steps.iter().flat_map(Step::inserts).cloned().collect();
        }
    }
    Ok(())
}

/// Carries out all that can be, and says what could not.
fn roll_back(node: Node<'_>, record: &Mutex<Record>, undo: &[Step]) -> Option<Trouble> {
    let none = &mut BTreeSet::new();
    let failed = undo.iter().filter_map(|step| carry_out_step(node, record, step, none).err());
    failed.reduce(|first, more| Trouble { message: format!("{}; {}", first.message, more.message), ..first })
}

fn carry_out_step(
    node: Node<'_>,
    record: &Mutex<Record>,
    step: &Step,
    open: &mut BTreeSet<String>,
) -> Result<(), Trouble> {
    match step {
        Step::Write(entry) => change(node, record, |record| record.put(entry.as_ref().clone())),
        Step::Forget(owner) => change(node, record, |record| record.remove(owner)),
        Step::Check { memory, files } => {
            for file in files {
                node.host.readable(file).map_err(|error| {
                    Trouble::of_store(&error, format!("{} cannot be read: {error}", file.display()))
                })?;
            }
            enough_memory(*memory, node.kernel.available_memory())
        }
        Step::Unload { name, identity } => unload(node.kernel, name, identity),
        Step::Load { file, parameters } => {
            if load(node.kernel, file, parameters)? {
                open.remove(&file.name);
            }
            Ok(())
        }
        Step::Modprobe { arguments, modules, removes } => {
            info!(?arguments, "running modprobe");
            let answer = node.kernel.modprobe(arguments, modules, *removes);
            // How far it came is not known from its answer.
            match node.kernel.listed() {
                Ok(listed) => open.retain(|name| !listed.contains_key(name)),
                Err(_) => open.clear(),
            }
            answer
        }
        Step::Firmware => firmware(node, record),
        Step::TakeOut { name, owner, restore } => {
            let parameters = params::encode_shown(&node.kernel.parameters(name).unwrap_or_default());
            let (name, owner, restore) = (name.clone(), owner.clone(), *restore);
            // Also one that cannot be asked for its parameters.
            let taken = TakenOut { name, owner, parameters, restore, failures: 0 };
            change(node, record, |record| record.take_out(taken))
        }
        Step::PutBack(name) => put_back(node, record, name),
        Step::ForgetTakenOut(names) => {
            change(node, record, |record| record.in_tree.retain(|taken| !names.contains(&taken.name)))
        }
        Step::Publish { release, name, content, files } => {
            let _turn = turn(&PUBLISHING);
            node.host.publish(release, name, content, files)
        }
        Step::Unpublish { release, name } => {
            let _turn = turn(&PUBLISHING);
            node.host.unpublish(release, name)
        }
        Step::Index(release) => {
            let _turn = turn(&PUBLISHING);
            node.host.renew_index(release)
        }
        Step::OnFailure(_) => Ok(()),
    }
}

/// Writes the record; it changes in memory only if it did on the disk.
fn change(node: Node<'_>, record: &Mutex<Record>, change: impl FnOnce(&mut Record)) -> Result<(), Trouble> {
    let mut record = lock(record);
    let mut next = record.clone();
    change(&mut next);
    node.store.save(&next)?;
    *record = next;
    Ok(())
}

/// The kernel has one search path: of two jobs the later one sees what the earlier one has recorded.
fn firmware(node: Node<'_>, record: &Mutex<Record>) -> Result<(), Trouble> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = turn(&TURN);
    let known = lock(record).clone();
    firmware::bring(node.host, node.store, &known, &mut |before| {
        change(node, record, |record| record.firmware_before = before)
    })
}

fn put_back(node: Node<'_>, record: &Mutex<Record>, name: &str) -> Result<(), Trouble> {
    let taken = lock(record).in_tree.iter().find(|taken| taken.name == name).cloned();
    let Some(taken) = taken else { return Ok(()) };
    let why = match load_again(node, &taken) {
        Ok(()) => return Ok(()),
        Err(why) => why,
    };
    change(node, record, |record| {
        record.in_tree.iter_mut().filter(|taken| taken.name == name).for_each(|taken| taken.failures += 1);
    })?;
    let message = format!("module {name}, which the kernel came with and which made room, was not loaded again: {why}");
    Err(Trouble::new(NodeReason::InTreeModuleNotRestored, message))
}

/// Loads what the kernel came with under the name, and what that needs.
fn load_again(Node { kernel, host, .. }: Node<'_>, taken: &TakenOut) -> Result<(), String> {
    let name = taken.name.as_str();
    if kernel.listed().map_err(|error| error.to_string())?.contains_key(name) {
        return Ok(());
    }
    let release = kernel.release().map_err(|error| error.to_string())?;
    let files = host.own_module(&release, name).map_err(|error| error.to_string())?;
    if files.is_empty() {
        return Err("modules.dep of the running kernel names no such module".to_owned());
    }
    info!(module = name, parameters = taken.parameters, "loading again what the kernel came with");
    for file in files {
        let Some((file_name, packing)) = file.to_str().and_then(names::of_file) else { continue };
        let parameters = if file_name == name { taken.parameters.as_str() } else { "" };
        let mut answer = kernel.load(&file_name, &file, packing, parameters);
        // What the kernel shows of a parameter is not always what it takes.
        if !parameters.is_empty() && answer.as_ref().is_err_and(|refused| refused.errno == Errno::EINVAL) {
            warn!(module = name, "it does not take the parameters that it had: {parameters}");
            answer = kernel.load(&file_name, &file, packing, "");
        }
        match answer {
            Ok(()) => {}
            Err(refused) if refused.errno == Errno::EEXIST => {}
            Err(refused) => return Err(load_trouble(&file_name, None, &refused).message),
        }
    }
    Ok(())
}

/// Whether the kernel has got it from this.
fn load(kernel: &dyn Kernel, file: &LoadFile, parameters: &str) -> Result<bool, Trouble> {
    info!(module = file.name, path = %file.path.display(), parameters, "loading");
    match kernel.load(&file.name, &file.path, file.packing, parameters) {
        Ok(()) => Ok(true),
        // Somebody was faster; the next look at the kernel tells with which file.
        Err(refused) if refused.errno == Errno::EEXIST => Ok(false),
        Err(refused) if file.role == Role::Optional => {
            info!(module = file.name, "left out: {refused}");
            Ok(false)
        }
        Err(refused) => {
            let signer = file.facts.signature.as_ref().and_then(|signature| signature.signer.as_deref());
            Err(load_trouble(&file.name, signer, &refused))
        }
    }
}

fn unload(kernel: &dyn Kernel, name: &str, identity: &Identity) -> Result<(), Trouble> {
    let failed = |error: std::io::Error| {
        Trouble::new(NodeReason::KernelRefused, format!("module {name} cannot be looked at: {error}"))
    };
    let Some(running) = kernel.running(name, &BTreeSet::new()).map_err(failed)? else { return Ok(()) };
    if running.identity.compare(identity) == Sameness::Different {
        let message =
            format!("module {name} was replaced meanwhile by {}; it is not touched", running.identity.describe());
        return Err(Trouble::new(NodeReason::LoadedOtherFile, message));
    }
    info!(module = name, "unloading");
    match kernel.unload(name) {
        Ok(()) => Ok(()),
        Err(refused) if refused.errno == Errno::ENOENT => Ok(()),
        Err(refused) => Err(unload_trouble(name, &refused)),
    }
}
