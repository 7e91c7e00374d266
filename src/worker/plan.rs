//! What is to be done, and what is to be reported, given what was observed. Pure: no kernel, no client, no clock.
//!
//! Nothing is unloaded unless an intent says so, and only what the record says that the Module has in the kernel.
//! Carried out in the observed world, the next plan does nothing.

mod checks;
mod hold;
mod in_tree;
mod in_use;
mod loading;
mod together;
mod unloading;
mod upkeep;

pub use checks::enough_memory;
pub use in_use::in_use;
pub use together::{Reach, Running as RunningJob, startable};

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::firmware::{Firmware, View};
use super::kernel::{Running, Trouble};
use super::publish::View as Published;
use super::record::{Entry, Owner, Record};
use super::wanted::{self, LoadIdentity};
use crate::api::names::NodeReason;
use crate::api::{ModuleState, NodeModuleSpec, NodeModulesConfigSpec, UnloadReason};
use crate::core::kmod::gates::Gates;
use crate::core::kmod::names::Packing;
use crate::core::kmod::order::Role;
use crate::core::kmod::proc_modules::Listed;
use crate::core::kmod::{FileFacts, Identity};

/// A file that can be handed to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadFile {
    /// Name as the kernel has it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// How it is packed.
    pub packing: Packing,
    /// Why it is loaded.
    pub role: Role,
    /// What to find again in the kernel.
    pub identity: Identity,
    /// Parameters for it on the kernel's command line, in the kernel's grammar; those of a Module come after them.
    pub preset: String,
    /// What the kernel will look at.
    pub facts: FileFacts,
}

/// Everything that an entry needs in the kernel, in the order of insertion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadSet {
    /// The files.
    pub files: Vec<LoadFile>,
    /// Parameters that the module does not know; the kernel ignores them.
    pub unknown_parameters: Vec<String>,
    /// Its firmware, if the entry asks for any.
    pub firmware: Option<Firmware>,
    /// Those of the files that are of the image.
    pub of_image: Vec<PathBuf>,
    /// What modprobe is told, where it does the loading; the files are then what it said it would insert.
    pub modprobe: Option<Modprobe>,
}

/// What modprobe needs for a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modprobe {
    /// The folder that was generated for it.
    pub folder: PathBuf,
    /// Its command line.
    pub arguments: Vec<String>,
}

/// How far fetching an image and reading its modules is.
#[derive(Clone, Debug, PartialEq)]
pub enum Preparation {
    /// The image is being fetched or read.
    Running,
    /// Its files are on the node and fit this kernel.
    Ready(Arc<LoadSet>),
    /// It failed, and is tried again at this time on the worker's own clock.
    Failed(Trouble, Duration),
}

/// A preparation and what it was for.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// The entry that it was started for.
    pub spec: NodeModuleSpec,
    /// The node's container runtime, by whose mirrors and rules the image is fetched.
    pub runtime: Option<String>,
    /// How far it is.
    pub state: Preparation,
}

/// A job that the kernel refused, or whose result did not last.
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
}

/// What the kernel holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelView {
    /// All loaded modules.
    pub listed: BTreeMap<String, Listed>,
    /// Proof of those that matter.
    pub running: BTreeMap<String, Running>,
    /// What it demands of modules; looked at only while something is about to be loaded.
    pub gates: Gates,
    /// Who uses modules that were to go and could not, in words.
    pub users: BTreeMap<String, String>,
}

/// What the wanted entries are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All there are.
    #[default]
    Everything,
    /// Before the API server has answered, those that are to be loaded at boot ([`KeptPlan::at_boot`]). Whatever they do
    /// not name is left alone and not spoken of.
    ///
    /// [`KeptPlan::at_boot`]: super::kept_plan::KeptPlan::at_boot
    AtBoot,
}

/// The world as it was seen.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Release of the running kernel.
    pub release: String,
    /// Time on the worker's own clock.
    pub now: Duration,
    /// What the API server, or the kept plan, says.
    pub desired: NodeModulesConfigSpec,
    /// Whether that is all.
    pub scope: Scope,
    /// The record of this boot.
    pub record: Record,
    /// The kernel.
    pub kernel: KernelView,
    /// Preparations by Module.
    pub prepared: BTreeMap<Owner, Prepared>,
    /// Failures by Module.
    pub attempts: BTreeMap<Owner, Attempt>,
    /// The search path for firmware; `None` if nobody asks for firmware.
    pub firmware: Option<View>,
    /// What is published on the host; `None` if it is not to be touched.
    pub published: Option<Published>,
    /// What lies on the host, by kernel module, for Modules of which nothing is recorded in this boot.
    pub published_files: BTreeMap<Owner, BTreeMap<String, Identity>>,
    /// Of the folders that were generated for modprobe and are recorded, those that are there.
    pub generated: BTreeSet<PathBuf>,
    /// Jobs that run now, by Module.
    pub running: BTreeMap<Owner, RunningJob>,
    /// Why what is wanted could not be kept on the node's disk, if it could not.
    pub unkept: Option<Trouble>,
}

/// One step of a job. Steps carry all that they need and are not judged again.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Put this into the record.
    Write(Box<Entry>),
    /// Drop this from the record.
    Forget(Owner),
    /// Go on only if so much memory is available, and these files can be read.
    Check {
        /// Memory in bytes.
        memory: u64,
        /// What is about to be loaded.
        files: Vec<PathBuf>,
    },
    /// Take a module out of the kernel, if it still is this file.
    Unload {
        /// Its name.
        name: String,
        /// Which file it was when the plan was made.
        identity: Identity,
    },
    /// Hand a file to the kernel.
    Load {
        /// The file.
        file: LoadFile,
        /// Parameters in the kernel's grammar.
        parameters: String,
    },
    /// Make the search path for firmware hold what the record says.
    Firmware,
    /// Put into the record that this module of the kernel itself makes room for the Module, and how it is set.
    TakeOut {
        /// Its name.
        name: String,
        /// The Module.
        owner: Owner,
        /// Whether it asks for the module to come back.
        restore: bool,
    },
    /// Load a module of the kernel itself again that stands in the record as taken out, unless it is there.
    PutBack(String),
    /// Drop from the record that these modules were taken out.
    ForgetTakenOut(Vec<String>),
    /// Put files below the host's `/lib/modules`.
    Publish {
        /// Release of the kernel.
        release: String,
        /// Name of the folder.
        name: String,
        /// What tells its content from another.
        content: String,
        /// The files.
        files: Vec<PathBuf>,
    },
    /// Remove a folder from there.
    Unpublish {
        /// Release of the kernel.
        release: String,
        /// Name of the folder.
        name: String,
    },
    /// Renew the index of a release.
    Index(String),
    /// Should a later step fail, do this too, as far as it can be done.
    OnFailure(Vec<Step>),
    /// Let modprobe load or remove.
    Modprobe {
        /// Its command line.
        arguments: Vec<String>,
        /// The kernel modules that it is about.
        modules: Vec<String>,
        /// It removes.
        removes: bool,
    },
}

impl Step {
    /// Whether a module gets into the kernel by it.
    pub fn loads(&self) -> bool {
        matches!(self, Self::Load { .. } | Self::Modprobe { removes: false, .. })
    }

    /// Modules that the kernel is to get by it.
    pub fn inserts(&self) -> &[String] {
        match self {
            Self::Load { file, .. } => std::slice::from_ref(&file.name),
            Self::Modprobe { modules, removes: false, .. } => modules,
            _ => &[],
        }
    }

    /// Whether a module leaves the kernel by it.
    pub fn unloads(&self) -> bool {
        matches!(self, Self::Unload { .. } | Self::Modprobe { removes: true, .. })
    }

    /// Put this into the record.
    fn write(entry: Entry) -> Self {
        Self::Write(Box::new(entry))
    }
}

/// Steps for one Module, in order; the first failure ends the job. Which jobs may run side by side says [`startable`].
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The Module.
    pub owner: Owner,
    /// What is to be loaded; `None` if the job only unloads.
    pub identity: Option<LoadIdentity>,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Job {
    /// Whether its files are to be looked at again after it failed with this.
    pub fn needs_another_look(&self, trouble: &Trouble) -> bool {
        self.identity.is_some() && trouble.reason != NodeReason::InUse
    }

    /// Reference counts of what it was to unload, if something was in the way of that; otherwise none.
    pub fn counts_after(&self, trouble: &Trouble, listed: &BTreeMap<String, Listed>) -> BTreeMap<String, Option<u32>> {
        let names = self.steps.iter().filter_map(|step| match step {
            Step::Unload { name, .. } if trouble.reason == NodeReason::InUse => Some(name),
            _ => None,
        });
        counts(listed, names)
    }
}

/// What is true of one Module on this node.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The wanted entry, or the one that was loaded.
    pub spec: NodeModuleSpec,
    /// Where it is on its way.
    pub state: ModuleState,
    /// Why.
    pub reason: NodeReason,
    /// Why, in a sentence; empty if there is nothing to add.
    pub message: String,
    /// Generation that this speaks of: that of the wanted entry, or of the unload intent.
    pub generation: Option<i64>,
    /// What is in the kernel.
    pub loaded: Option<InKernel>,
}

impl Report {
    /// Says besides what is wrong beside the load: the state stays what it is.
    fn add(&mut self, trouble: &Trouble) {
        let before = if self.message.is_empty() { String::new() } else { format!("{}; ", self.message) };
        self.message = format!("{before}{}: {}", trouble.reason.as_str(), trouble.message);
    }
}

/// What a Module has in the kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct InKernel {
    /// Its record.
    pub entry: Entry,
    /// Proof of the module itself.
    pub identity: Identity,
}

/// What to do and what to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Images to fetch and to read.
    pub prepare: Vec<NodeModuleSpec>,
    /// What to tell the kernel.
    pub jobs: Vec<Job>,
    /// What holds now. A Module that is in neither list and not in the kernel is not in here: it is gone.
    pub reports: Vec<Report>,
    /// Modules of which something is to be done that could not be remembered.
    pub held: BTreeSet<Owner>,
    /// Modules with a job that loads what an order has taken back since.
    pub taken_back: BTreeSet<Owner>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_quiet(&self) -> bool {
        self.prepare.is_empty() && self.jobs.is_empty()
    }
}

/// Decides. Never panics, whatever the objects say.
pub fn plan(observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let mut wanted_owners = BTreeSet::new();
    for spec in &observed.desired.modules {
        let owner = Owner::of(spec);
        // A newer intent than the entry: the planner took it back and has not removed the entry yet.
        if observed.intent(&owner, spec.generation.unwrap_or(0)).is_some() || !wanted_owners.insert(owner.clone()) {
            continue;
        }
        match wanted::check(spec, &observed.release) {
            Ok(wanted) => loading::plan(observed, &wanted, &mut plan),
            Err(trouble) => {
                let loaded = observed.in_kernel(&owner);
                plan.reports.push(report(spec, ModuleState::Failed, trouble, loaded));
            }
        }
    }
    for entry in observed.record.entries.iter().filter(|_| observed.scope == Scope::Everything) {
        if !wanted_owners.contains(&entry.owner()) {
            unloading::plan(observed, entry, &mut plan);
        }
    }
    together::wait_for_running(observed, &mut plan);
    upkeep::plan(observed, &mut plan);
    hold::plan(observed, &mut plan);
    together::tell_waiting(observed, &mut plan);
    plan.reports.sort_by_key(|report| Owner::of(&report.spec));
    plan
}

/// Reference counts of these modules; those that are not loaded have none.
pub fn counts<'a>(
    listed: &BTreeMap<String, Listed>,
    names: impl IntoIterator<Item = &'a String>,
) -> BTreeMap<String, Option<u32>> {
    names.into_iter().map(|name| (name.clone(), listed.get(name).and_then(|listed| listed.refcnt))).collect()
}

/// A report on a wanted entry.
fn report(spec: &NodeModuleSpec, state: ModuleState, trouble: Trouble, loaded: Option<InKernel>) -> Report {
    let Trouble { reason, message } = trouble;
    Report { spec: spec.clone(), state, reason, message, generation: spec.generation, loaded }
}

impl Observed {
    /// Whether the intent of that generation takes the Module from the node, instead of making room for another file.
    fn is_removal(&self, owner: &Owner, generation: i64) -> bool {
        self.desired.unload.iter().any(|intent| {
            (&intent.module_uid, &intent.namespace, &intent.name) == (&owner.uid, &owner.namespace, &owner.name)
                && intent.generation == generation
                && matches!(
                    intent.reason,
                    UnloadReason::Deleted | UnloadReason::NoModuleLoader | UnloadReason::NotSelected
                )
        })
    }

    /// The generation of an intent by which what was loaded for `generation` must go.
    fn intent(&self, owner: &Owner, generation: i64) -> Option<i64> {
        self.desired
            .unload
            .iter()
            .filter(|intent| {
                intent.module_uid == owner.uid
                    && intent.namespace == owner.namespace
                    && intent.name == owner.name
                    && intent.generation >= generation
            })
            .map(|intent| intent.generation)
            .max()
    }

    /// Whether the Module is to leave the node with what an entry loads, and no later entry is wanted.
    fn is_taken_back(&self, spec: &NodeModuleSpec) -> bool {
        let covered = |spec: &NodeModuleSpec| self.desired.unload.iter().any(|intent| intent.covers(spec));
        let mut wanted = self.desired.modules.iter().filter(|wanted| Owner::of(wanted) == Owner::of(spec));
        covered(spec) && wanted.all(covered)
    }

    /// What a Module has in the kernel: its record, if the module itself is there and is the recorded file.
    fn in_kernel(&self, owner: &Owner) -> Option<InKernel> {
        let entry = self.record.entry(owner)?;
        let main = entry.modules.iter().rfind(|module| module.named)?;
        let running = self.kernel.running.get(&main.name)?;
        let same = running.identity.compare(&main.identity) != crate::core::kmod::Sameness::Different;
        same.then(|| InKernel { entry: entry.clone(), identity: running.identity.clone() })
    }

    /// A failure of the same job that is too fresh to try again.
    fn held_back(&self, owner: &Owner, identity: Option<&LoadIdentity>) -> Option<&Trouble> {
        let attempt = self.attempts.get(owner)?;
        let now = counts(&self.kernel.listed, attempt.counts.keys());
        let held = attempt.identity.as_ref() == identity && self.now < attempt.retry_at && now == attempt.counts;
        held.then_some(&attempt.trouble)
    }

    /// Whether any entry asks for firmware, or one did in this boot.
    pub fn asks_for_firmware(record: &Record, desired: &NodeModulesConfigSpec) -> bool {
        record.firmware_before.is_some()
            || record.entries.iter().any(|entry| entry.firmware.is_some())
            || desired.modules.iter().any(|spec| spec.config.modprobe.firmware_path.is_some())
    }

    /// Names of every kernel module, and for each the parameters, that a plan looks at.
    pub fn interesting(
        record: &Record,
        desired: &NodeModulesConfigSpec,
        prepared: &BTreeMap<Owner, Prepared>,
    ) -> BTreeMap<String, BTreeSet<String>> {
        let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for module in record.entries.iter().flat_map(|entry| &entry.modules) {
            names.entry(module.name.clone()).or_default();
        }
        for preparation in prepared.values() {
            if let Preparation::Ready(set) = &preparation.state {
                for file in &set.files {
                    names.entry(file.name.clone()).or_default();
                }
            }
        }
        for spec in &desired.modules {
            if let Ok(identity) = wanted::identity(spec) {
                names.entry(identity.main().to_owned()).or_default().extend(identity.parameter_names());
            }
            for name in wanted::in_tree(spec) {
                names.entry(name).or_default();
            }
        }
        names
    }
}

#[cfg(test)]
mod firmware_tests;
#[cfg(test)]
mod host_tests;
#[cfg(test)]
mod in_tree_tests;
#[cfg(test)]
mod needed_tests;
#[cfg(test)]
mod policies;
#[cfg(test)]
mod tests;
