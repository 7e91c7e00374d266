//! Carries jobs out. Everything here blocks, and nothing here decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::kernel::{Kernel, Trouble};
use super::plan::{Job, LoadFile, Step, enough_memory};
use super::record::{Owner, Record, StateDir};
use super::refusal::{load_trouble, unload_trouble};
use crate::api::names::NodeReason;
use crate::core::kmod::order::Role;
use crate::core::kmod::{Identity, Sameness};
use crate::runtime::client::chain;

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps done, in this time.
    Done(Duration),
    /// A step failed; those after it were not begun.
    Failed(Trouble),
    /// The worker is to end; the rest is left for its successor.
    Interrupted,
}

/// Where the record is written to.
pub trait RecordStore {
    /// Replaces the record on the disk.
    fn save(&self, record: &Record) -> Result<(), Trouble>;
}

impl RecordStore for StateDir {
    fn save(&self, record: &Record) -> Result<(), Trouble> {
        self.save_record(record).map_err(|error| Trouble::new(NodeReason::StoreFailed, chain(&error)))
    }
}

/// The record for a moment. A panic elsewhere cannot have left it half changed: it is replaced whole.
pub fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries out all jobs, one after the other, and keeps `record` and its store up to date. Several threads may do so
/// at the same time for jobs that have nothing in common.
///
/// A job that fails does not keep the others from running. Between two steps `shutdown` is looked at; a step that has
/// begun is always finished.
pub fn jobs(
    kernel: &dyn Kernel,
    store: &dyn RecordStore,
    record: &Mutex<Record>,
    jobs: &[Job],
    shutdown: &CancellationToken,
) -> BTreeMap<Owner, Outcome> {
    let mut outcomes = BTreeMap::new();
    for job in jobs {
        let outcome = carry_out(kernel, store, record, job, shutdown);
        if let Outcome::Failed(trouble) = &outcome {
            warn!(module = %job.owner, reason = trouble.reason.as_str(), "{}", trouble.message);
        }
        outcomes.insert(job.owner.clone(), outcome);
    }
    outcomes
}

fn carry_out(
    kernel: &dyn Kernel,
    store: &dyn RecordStore,
    record: &Mutex<Record>,
    job: &Job,
    shutdown: &CancellationToken,
) -> Outcome {
    let begun = Instant::now();
    for step in &job.steps {
        if shutdown.is_cancelled() {
            return Outcome::Interrupted;
        }
        let done = match step {
            Step::Write(entry) => change(store, record, |record| record.put(entry.as_ref().clone())),
            Step::Forget(owner) => change(store, record, |record| record.remove(owner)),
            Step::Memory { bytes } => enough_memory(*bytes, kernel.available_memory()),
            Step::Unload { name, identity } => unload(kernel, name, identity),
            Step::Load { file, parameters } => load(kernel, file, parameters),
            Step::Modprobe { arguments, modules, removes } => {
                info!(?arguments, "running modprobe");
                kernel.modprobe(arguments, modules, *removes)
            }
        };
        if let Err(trouble) = done {
            return Outcome::Failed(trouble);
        }
    }
    let took = begun.elapsed();
    // That this is lost if the write fails harms nobody: the next look at the kernel completes the entry.
    if job.steps.iter().any(Step::loads) {
        let _ = change(store, record, |record| {
            if let Some(entry) = record.entries.iter_mut().find(|entry| entry.owner() == job.owner) {
                entry.took_ms = u64::try_from(took.as_millis()).ok();
                entry.complete = true;
            }
        });
    }
    Outcome::Done(took)
}

/// Writes the record; it changes in memory only if it did on the disk.
fn change(store: &dyn RecordStore, record: &Mutex<Record>, change: impl FnOnce(&mut Record)) -> Result<(), Trouble> {
    let mut record = lock(record);
    let mut next = record.clone();
    change(&mut next);
    store.save(&next)?;
    *record = next;
    Ok(())
}

fn load(kernel: &dyn Kernel, file: &LoadFile, parameters: &str) -> Result<(), Trouble> {
    info!(module = file.name, path = %file.path.display(), parameters, "loading");
    match kernel.load(&file.name, &file.path, file.packing, parameters) {
        Ok(()) => Ok(()),
        // Somebody was faster; the next look at the kernel tells with which file.
        Err(refused) if refused.errno == nix::errno::Errno::EEXIST => Ok(()),
        Err(refused) if file.role == Role::Optional => {
            info!(module = file.name, "left out: {refused}");
            Ok(())
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
        Err(refused) if refused.errno == nix::errno::Errno::ENOENT => Ok(()),
        Err(refused) => Err(unload_trouble(name, &refused)),
    }
}
