//! The world as it was seen, and what the worker itself knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::desired::{Desired, Wanted, Wants};
use super::job::counts;
use super::load_set::LoadSet;
use super::outcome::Attempts;
use super::pause::Unready;
use super::reach::RunningJob;
use crate::api::{NodeModuleSpec, UnloadReason};
use crate::core::kmod::gates::Gates;
use crate::core::kmod::proc_modules::Listed;
use crate::core::kmod::{Identity, Sameness};
use crate::core::load::{self, LoadIdentity};
use crate::worker::facts::{Published, Running, Trouble};
use crate::worker::record::firmware::FirmwareView;
use crate::worker::record::{Entry, Owner, Record};

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
    pub wanted: Wanted,
    /// The node's container runtime, by whose mirrors and rules the image is fetched.
    pub runtime: Option<String>,
    /// How far it is.
    pub state: Preparation,
    /// How often it has failed in a row.
    failures: u32,
}

impl Prepared {
    /// One that begins after `before`.
    pub fn begun(wanted: Wanted, runtime: Option<String>, before: Option<&Self>) -> Self {
        let same = before.filter(|before| before.wanted.identity == wanted.identity);
        Self { failures: same.map_or(0, |before| before.failures), wanted, runtime, state: Preparation::Running }
    }

    /// Takes in what it came to.
    pub fn end(&mut self, result: Result<LoadSet, Unready>, now: Duration) {
        self.state = match result {
            Ok(set) => {
                self.failures = 0;
                Preparation::Ready(Arc::new(set))
            }
            Err(Unready { trouble, again }) => {
                let retry_at = again.at(now, self.failures);
                self.failures = self.failures.saturating_add(1);
                Preparation::Failed(trouble, retry_at)
            }
        };
    }
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
    /// [`KeptPlan::at_boot`]: crate::worker::record::kept_plan::KeptPlan::at_boot
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
    pub desired: Arc<Wants>,
    /// Whether that is all.
    pub scope: Scope,
    /// The record of this boot.
    pub record: Record,
    /// The kernel.
    pub kernel: KernelView,
    /// Preparations by Module.
    pub prepared: BTreeMap<Owner, Prepared>,
    /// Failures by Module.
    pub attempts: Attempts,
    /// The search path for firmware; `None` if nobody asks for firmware.
    pub firmware: Option<FirmwareView>,
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

/// What a Module has in the kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct InKernel {
    /// Its record.
    pub entry: Entry,
    /// Proof of the module itself.
    pub identity: Identity,
}

impl Observed {
    /// Whether the intent of that generation takes the Module from the node, instead of making room for another file.
    pub(super) fn is_removal(&self, owner: &Owner, generation: i64) -> bool {
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
    pub(super) fn intent(&self, owner: &Owner, generation: i64) -> Option<i64> {
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
    pub(super) fn is_taken_back(&self, spec: &NodeModuleSpec) -> bool {
        let covered = |spec: &NodeModuleSpec| self.desired.unload.iter().any(|intent| intent.covers(spec));
        let mut wanted = self
            .desired
            .modules
            .iter()
            .map(|desired| &desired.spec)
            .filter(|wanted| Owner::of(wanted) == Owner::of(spec));
        covered(spec) && wanted.all(covered)
    }

    /// What a Module has in the kernel: its record, if the module itself is there and is the recorded file.
    pub(super) fn in_kernel(&self, owner: &Owner) -> Option<InKernel> {
        let entry = self.record.entry(owner)?;
        let main = entry.modules.iter().rfind(|module| module.named)?;
        let running = self.kernel.running.get(&main.name)?;
        let same = running.identity.compare(&main.identity) != Sameness::Different;
        same.then(|| InKernel { entry: entry.clone(), identity: running.identity.clone() })
    }

    /// A failure of the same job that is too fresh to try again.
    pub(super) fn held_back(&self, owner: &Owner, identity: Option<&LoadIdentity>) -> Option<&Trouble> {
        let attempt = self.attempts.get(owner)?;
        let now = counts(&self.kernel.listed, attempt.counts.keys());
        let held = attempt.identity.as_ref() == identity && self.now < attempt.retry_at && now == attempt.counts;
        held.then_some(&attempt.trouble)
    }

    /// Whether any entry asks for firmware, or one did in this boot.
    pub fn asks_for_firmware(record: &Record, desired: &Wants) -> bool {
        record.firmware_before.is_some()
            || record.entries.iter().any(|entry| entry.firmware.is_some())
            || desired.modules.iter().any(|desired| desired.spec.config.modprobe.firmware_path.is_some())
    }

    /// Names of every kernel module, and for each the parameters, that a plan looks at.
    pub fn interesting(
        record: &Record,
        desired: &Wants,
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
        for Desired { spec, identity } in &desired.modules {
            if let Ok(identity) = identity {
                names.entry(identity.main().to_owned()).or_default().extend(identity.parameter_names());
            }
            for name in load::in_tree(&spec.config) {
                names.entry(name).or_default();
            }
        }
        names
    }
}
