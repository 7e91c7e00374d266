//! How the entry of a wanted Module follows from the one that stands, and when the loaded file has to make room.

use crate::api::names::NodeReason;
use crate::api::{ModuleState, NodeModuleSpec, NodeModuleStatus, OnChange, UnloadIntent, UnloadReason};

use super::entry::same_in_kernel;

/// A wanted Module on a node that may have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation<'a> {
    /// Generation of the Module.
    pub generation: i64,
    /// The entry as the Module wants it.
    pub wanted: &'a NodeModuleSpec,
    /// The entry that stands.
    pub entry: Option<&'a NodeModuleSpec>,
    /// The intent that stands.
    pub intent: Option<&'a UnloadIntent>,
    /// What the worker says of the Module.
    pub report: Option<&'a NodeModuleStatus>,
    /// Whether the worker of the present boot has spoken.
    pub in_this_boot: bool,
    /// Whether it has taken the present specification into its record.
    pub settled: bool,
}

/// The next entry, and the intent beside it.
///
/// The generation of an entry is the Module's generation when what reaches the kernel last changed, or one more than
/// that of the entry before if that is not higher: it always rises, so a worker can tell the file that must go (up to
/// the intent's generation) from the one that replaces it (above).
pub(super) fn next_entry(at: &Situation<'_>) -> (NodeModuleSpec, Option<UnloadIntent>) {
    let standing_generation = at.entry.and_then(|entry| entry.generation);
    let same = at.entry.is_some_and(|entry| same_in_kernel(&entry.config, &at.wanted.config));
    // Until the node boots again, nothing that is loaded has to make room.
    let at_once = at.wanted.policy.unwrap_or_default().on_change == OnChange::Reload;
    let replacing = at.intent.filter(|intent| at_once && intent.reason == UnloadReason::Changed && at.entry.is_some());
    let must_go = at.replaced_entry().or_else(|| at.replaced_load()).filter(|_| at_once);

    let (generation, intent) = match must_go {
        Some(up_to) if !(same && replacing.is_some()) || at.is_passed_over() => {
            let known = [standing_generation, at.intent.map(|intent| intent.generation)];
            let up_to = known.into_iter().flatten().fold(up_to, i64::max);
            (at.generation.max(up_to.saturating_add(1)), Some(at.intent_up_to(up_to)))
        }
        _ if same => (standing_generation.unwrap_or(at.generation), replacing.filter(|_| !at.is_replaced()).cloned()),
        _ => {
            let before = standing_generation.max(at.intent.map(|intent| intent.generation));
            (before.map_or(at.generation, |before| at.generation.max(before.saturating_add(1))), replacing.cloned())
        }
    };
    let mut next = at.wanted.clone();
    next.generation = Some(generation);
    (next, intent)
}

impl Situation<'_> {
    /// The generation of a standing entry for the same kernel that another file replaces.
    ///
    /// An entry of the pod-based worker names a tag and has no UID: it is taken over, not replaced.
    fn replaced_entry(&self) -> Option<i64> {
        let entry = self.entry.filter(|entry| entry.module_uid.is_some())?;
        let same_kernel = entry.config.kernel_version == self.wanted.config.kernel_version;
        (same_kernel && !same_in_kernel(&entry.config, &self.wanted.config))
            .then(|| entry.generation.unwrap_or_default())
    }

    /// The generation of a file that the worker says is loaded in this boot, and that is another than the wanted one.
    fn replaced_load(&self) -> Option<i64> {
        let report = self.report.filter(|report| self.in_this_boot && report.module_uid.is_some())?;
        let loaded = report.config.as_ref()?;
        let same_kernel = loaded.kernel_version == self.wanted.config.kernel_version;
        (same_kernel && !same_in_kernel(loaded, &self.wanted.config))
            .then(|| report.observed_generation.unwrap_or_default())
    }

    /// Whether the worker confirmed that the new file has taken the place of the old one.
    fn is_replaced(&self) -> bool {
        let generation = self.entry.and_then(|entry| entry.generation);
        self.settled
            && self.report.is_none_or(|report| {
                report.state == Some(ModuleState::Loaded)
                    && report.observed_generation >= generation
                    && report.config.as_ref().is_some_and(|loaded| same_in_kernel(loaded, &self.wanted.config))
            })
    }

    /// Whether the worker has seen the intent and found that what it loaded is of a later generation: its record can
    /// outlive the object from which generations are known.
    fn is_passed_over(&self) -> bool {
        let other = [NodeReason::LoadedOtherFile.as_str(), NodeReason::LoadedOtherParameters.as_str()];
        self.settled
            && self.report.is_some_and(|report| {
                report.state == Some(ModuleState::Failed)
                    && report.reason.as_deref().is_some_and(|reason| other.contains(&reason))
            })
    }

    fn intent_up_to(&self, generation: i64) -> UnloadIntent {
        UnloadIntent {
            generation,
            module_uid: self.wanted.module_uid.clone().unwrap_or_default(),
            name: self.wanted.name.clone(),
            namespace: self.wanted.namespace.clone(),
            reason: UnloadReason::Changed,
        }
    }
}
