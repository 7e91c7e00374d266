//! How the entry of a wanted Module follows from the one that stands, and when the loaded file has to make room.

use crate::api::names::NodeReason;
use crate::api::{ModuleState, NodeModuleSpec, OnChange, UnloadIntent, UnloadReason};
use crate::core::load::same_in_kernel;

use super::here::Present;

/// A wanted Module on a node that may have it.
#[derive(Clone, Copy)]
pub(super) struct Situation<'a> {
    /// Generation of the Module.
    pub generation: i64,
    /// The entry as the Module wants it.
    pub wanted: &'a NodeModuleSpec,
    /// What stands.
    pub present: Present<'a>,
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
///
/// | Entry that stands | Loaded in this boot | Intent to make room | Generation of the next entry | Next intent |
/// |---|---|---|---|---|
/// | as wanted | as wanted, or nothing | none | as it stands | none |
/// | as wanted | another file | none | above all that is known | up to all that is known |
/// | as wanted | another file, or not told yet | there | as it stands | as it stands |
/// | as wanted | of a later generation than ordered | there | above all that is known | up to all that is known |
/// | as wanted | as wanted, confirmed | there | as it stands | none |
/// | another file for this kernel | whatever | whatever | above all that is known | up to all that is known |
/// | none, or for another kernel | another file | none | above all that is known | up to all that is known |
/// | for another kernel | nothing | whatever | above all that is known | as it stands |
/// | none | nothing | whatever | above all that is known | none |
///
/// Under the policy `OnReboot` nothing makes room: no intent stays, and an entry that is not as wanted rises above all that
/// is known.
pub(super) fn next_entry(at: &Situation<'_>) -> (NodeModuleSpec, Option<UnloadIntent>) {
    let Present { entry, intent, .. } = at.present;
    let stands = entry.and_then(|entry| entry.generation);
    let known = stands.max(intent.map(|intent| intent.generation));
    let as_wanted = entry.is_some_and(|entry| same_in_kernel(&entry.config, &at.wanted.config));
    // Until the node boots again, nothing that is loaded has to make room.
    let at_once = at.wanted.policy.unwrap_or_default().on_change == OnChange::Reload;
    let making_room = intent.filter(|intent| at_once && intent.reason == UnloadReason::Changed && entry.is_some());
    let must_go = at.replaced_entry().or_else(|| at.replaced_load()).filter(|_| at_once);

    let ordered = as_wanted && making_room.is_some() && !at.is_passed_over();
    if let Some(up_to) = must_go.filter(|_| !ordered) {
        let up_to = known.map_or(up_to, |known| known.max(up_to));
        return (at.entry_of(at.generation.max(up_to.saturating_add(1))), Some(at.intent_up_to(up_to)));
    }
    if as_wanted {
        let intent = making_room.filter(|_| !at.is_replaced());
        return (at.entry_of(stands.unwrap_or(at.generation)), intent.cloned());
    }
    let above = known.map_or(at.generation, |known| at.generation.max(known.saturating_add(1)));
    (at.entry_of(above), making_room.cloned())
}

impl Situation<'_> {
    fn entry_of(&self, generation: i64) -> NodeModuleSpec {
        NodeModuleSpec { generation: Some(generation), ..self.wanted.clone() }
    }

    /// The generation of a standing entry for the same kernel that another file replaces.
    ///
    /// An entry of the pod-based worker names a tag and has no UID: it is taken over, not replaced.
    fn replaced_entry(&self) -> Option<i64> {
        let entry = self.present.entry.filter(|entry| entry.module_uid.is_some())?;
        let same_kernel = entry.config.kernel_version == self.wanted.config.kernel_version;
        (same_kernel && !same_in_kernel(&entry.config, &self.wanted.config))
            .then(|| entry.generation.unwrap_or_default())
    }

    /// The generation of a file that the worker says is loaded in this boot, and that is another than the wanted one.
    fn replaced_load(&self) -> Option<i64> {
        let report = self.present.report.filter(|report| self.in_this_boot && report.module_uid.is_some())?;
        let loaded = report.config.as_ref()?;
        let same_kernel = loaded.kernel_version == self.wanted.config.kernel_version;
        (same_kernel && !same_in_kernel(loaded, &self.wanted.config))
            .then(|| report.observed_generation.unwrap_or_default())
    }

    /// Whether the worker confirmed that the new file has taken the place of the old one.
    fn is_replaced(&self) -> bool {
        let generation = self.present.entry.and_then(|entry| entry.generation);
        self.settled
            && self.present.report.is_none_or(|report| {
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
            && self.present.report.is_some_and(|report| {
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
