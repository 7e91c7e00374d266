//! Events out of what workers report: each transition is told once.

use crate::api::names::{EventReason, NodeReason};
use crate::api::{ModuleState, NodeModuleStatus};
use crate::core::load::same_in_kernel;
use crate::runtime::events::Severity;
use crate::spoke::view::{ConfigView, ReportView};

/// Something that happened to a module on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    /// The event's reason.
    pub reason: EventReason,
    /// The Module's namespace.
    pub namespace: String,
    /// The Module's name.
    pub name: String,
    /// The Module's UID, if the worker knows it.
    pub uid: String,
    /// What happened, in one sentence.
    pub note: String,
}

impl Transition {
    /// Whether it is good news.
    pub(crate) fn severity(&self) -> Severity {
        match self.reason {
            EventReason::ModuleLoaded
            | EventReason::ModuleUnloaded
            | EventReason::ModuleKept
            | EventReason::ModuleWaitsForReboot => Severity::Normal,
            _ => Severity::Warning,
        }
    }
}

/// What happened on a node between two reports about the same object. An object that was not known before tells
/// nothing: after a restart of the manager nothing is told again.
pub(crate) fn transitions(node: &str, old: Option<&ConfigView>, new: Option<&ConfigView>) -> Vec<Transition> {
    let (Some(old), Some(new)) = (old, new) else { return Vec::new() };
    if old.uid != new.uid || old.report == new.report {
        return Vec::new();
    }
    let find =
        |report: &'_ ReportView, of: &NodeModuleStatus| report.modules.iter().find(|other| is_same(other, of)).cloned();
    let unloaded = |was: &NodeModuleStatus| {
        transition(EventReason::ModuleUnloaded, was, format!("module unloaded from the kernel of node {node}"))
    };
    // What vanished with a reboot was not unloaded by anybody.
    let one_boot = old.report.boot_id == new.report.boot_id;
    let gone = old.report.modules.iter().filter(|was| one_boot && was_in_kernel(was));
    let mut all: Vec<_> =
        gone.filter(|was| find(&new.report, was).is_none_or(|is| made_room(was, &is))).map(unloaded).collect();
    all.extend(new.report.modules.iter().filter_map(|is| of_state(node, find(&old.report, is).as_ref(), is)));
    all
}

/// Whether what was loaded left for another file, or for other parameters. What a worker tells that knows no times of
/// loads is not clear enough.
fn made_room(was: &NodeModuleStatus, is: &NodeModuleStatus) -> bool {
    let same = match (&was.config, &is.config) {
        (Some(was), Some(is)) => same_in_kernel(was, is),
        (was, is) => was.is_some() == is.is_some(),
    };
    let taken_out = is.reason.as_deref() == Some(NodeReason::Missing.as_str());
    was.load_time.is_some() && was.load_time != is.load_time && !same && !taken_out
}

fn is_same(a: &NodeModuleStatus, b: &NodeModuleStatus) -> bool {
    (&a.namespace, &a.name, &a.module_uid) == (&b.namespace, &b.name, &b.module_uid)
}

fn was_in_kernel(status: &NodeModuleStatus) -> bool {
    matches!(
        status.state,
        Some(ModuleState::Loaded | ModuleState::Unloading | ModuleState::UnloadFailed | ModuleState::Orphaned)
    )
}

fn of_state(node: &str, old: Option<&NodeModuleStatus>, new: &NodeModuleStatus) -> Option<Transition> {
    let key = |status: &NodeModuleStatus| {
        (status.state, status.reason.clone(), status.digest.clone(), status.boot_id.clone(), status.load_time.clone())
    };
    if old.map(key) == Some(key(new)) {
        return None;
    }
    let since = |status: &NodeModuleStatus| (status.boot_id.clone(), status.load_time.clone());
    if new.state == Some(ModuleState::Loaded) && new.load_time.is_some() && old.map(since) == Some(since(new)) {
        // It has been there all along; an order was taken back, for instance.
        return None;
    }
    let is = |reason: NodeReason| new.reason.as_deref() == Some(reason.as_str());
    let (reason, text) = match new.state? {
        ModuleState::Loaded => {
            let took = new.duration.as_deref().map(|time| format!(" in {time}")).unwrap_or_default();
            return Some(transition(
                EventReason::ModuleLoaded,
                new,
                format!("module loaded into the kernel of node {node}{took}"),
            ));
        }
        ModuleState::Failed if is(NodeReason::LoadedOtherFile) => {
            (EventReason::ModuleFileDiffers, "another file is loaded")
        }
        ModuleState::Failed if is(NodeReason::Missing) => (EventReason::ModuleMissing, "module is missing"),
        ModuleState::Failed => (EventReason::ModuleLoadFailed, "module could not be loaded"),
        ModuleState::UnloadFailed if is(NodeReason::InUse) => (EventReason::ModuleInUse, "module is in use"),
        ModuleState::UnloadFailed => (EventReason::ModuleUnloadFailed, "module could not be unloaded"),
        ModuleState::Orphaned if is(NodeReason::Kept) => (EventReason::ModuleKept, "module stays loaded"),
        ModuleState::Pending if is(NodeReason::WaitingForReboot) => {
            (EventReason::ModuleWaitsForReboot, "module is replaced later")
        }
        ModuleState::Orphaned => (EventReason::ModuleOrphaned, "module is loaded and no Module wants it"),
        ModuleState::Pending
        | ModuleState::Pulling
        | ModuleState::Loading
        | ModuleState::Unloading
        | ModuleState::Unknown => return None,
    };
    let why = new.message.as_deref().or(new.reason.as_deref()).unwrap_or_default();
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    Some(transition(reason, new, format!("{text} on node {node}{why}")))
}

fn transition(reason: EventReason, of: &NodeModuleStatus, note: String) -> Transition {
    Transition {
        reason,
        namespace: of.namespace.clone(),
        name: of.name.clone(),
        uid: of.module_uid.clone().unwrap_or_default(),
        note,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;
    use crate::spoke::testing::{a_config, an_entry, loaded};

    fn config(state: Option<ModuleState>, reason: &str) -> ConfigView {
        let entry = an_entry("drivers", "gpu", "u1");
        let mut report = loaded(&entry);
        report.reason = Some(reason.to_owned());
        report.message = Some("because".into());
        report.duration = Some("1.2s".into());
        report.state = state;
        let reports = if state.is_some() { vec![report] } else { Vec::new() };
        a_config(vec![entry], reports)
    }

    #[test]
    fn each_transition_is_told_once() {
        use ModuleState::{Failed, Loaded, Loading, Orphaned, Pending, UnloadFailed};
        let table = [
            ((None, ""), (Some(Loading), ""), None),
            (
                (None, ""),
                (Some(Loaded), ""),
                Some((EventReason::ModuleLoaded, "module loaded into the kernel of node n in 1.2s")),
            ),
            ((Some(Loaded), ""), (Some(Loaded), ""), None),
            (
                (Some(Loading), ""),
                (Some(Failed), "SymbolMissing"),
                Some((EventReason::ModuleLoadFailed, "module could not be loaded on node n: because")),
            ),
            (
                (Some(Loading), ""),
                (Some(Failed), "LoadedOtherFile"),
                Some((EventReason::ModuleFileDiffers, "another file is loaded on node n: because")),
            ),
            (
                (Some(Loaded), ""),
                (Some(UnloadFailed), "InUse"),
                Some((EventReason::ModuleInUse, "module is in use on node n: because")),
            ),
            (
                (Some(Loaded), ""),
                (Some(Orphaned), ""),
                Some((EventReason::ModuleOrphaned, "module is loaded and no Module wants it on node n: because")),
            ),
            (
                (Some(Loaded), ""),
                (Some(Orphaned), "Kept"),
                Some((EventReason::ModuleKept, "module stays loaded on node n: because")),
            ),
            (
                (Some(Loaded), ""),
                (Some(Pending), "WaitingForReboot"),
                Some((EventReason::ModuleWaitsForReboot, "module is replaced later on node n: because")),
            ),
            (
                (Some(Loaded), ""),
                (Some(Failed), "Missing"),
                Some((EventReason::ModuleMissing, "module is missing on node n: because")),
            ),
            (
                (Some(Loaded), ""),
                (None, ""),
                Some((EventReason::ModuleUnloaded, "module unloaded from the kernel of node n")),
            ),
            ((Some(Loading), ""), (None, ""), None),
        ];
        for (old, new, expected) in table {
            let found = transitions("n", Some(&config(old.0, old.1)), Some(&config(new.0, new.1)));
            let found: Vec<_> = found.iter().map(|found| (found.reason, found.note.as_str())).collect();
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{old:?} to {new:?}");
        }
    }

    #[test]
    fn a_load_that_follows_another_at_once_is_told_and_one_that_is_still_there_is_not() {
        let at = |second: i64| Some(MicroTime(Timestamp::from_second(second).unwrap()));
        let of = |state, second, parameter: &str| {
            let mut config = config(Some(state), if state == ModuleState::Loaded { "Loaded" } else { "InUse" });
            let report = &mut config.report.modules[0];
            report.load_time = at(second);
            report.config.as_mut().unwrap().modprobe.parameters = vec![parameter.to_owned()];
            config
        };
        use ModuleState::{Loaded, UnloadFailed};
        let (loaded, unloaded) = (EventReason::ModuleLoaded, EventReason::ModuleUnloaded);
        for (what, old, new, expected) in [
            ("reloaded with another parameter", of(Loaded, 1, "a=1"), of(Loaded, 2, "a=2"), vec![unloaded, loaded]),
            ("taken out by hand and loaded again", of(Loaded, 1, "a=1"), of(Loaded, 2, "a=1"), vec![loaded]),
            ("an order taken back", of(UnloadFailed, 1, "a=1"), of(Loaded, 1, "a=1"), vec![]),
            ("nothing", of(Loaded, 1, "a=1"), of(Loaded, 1, "a=1"), vec![]),
        ] {
            let found: Vec<_> = transitions("n", Some(&old), Some(&new)).iter().map(|found| found.reason).collect();
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn a_new_object_and_a_reboot_tell_nothing_that_did_not_happen() {
        let loaded = config(Some(ModuleState::Loaded), "");
        assert!(transitions("n", None, Some(&loaded)).is_empty());
        let mut rebooted = config(None, "");
        rebooted.report.boot_id = Some("boot-2".into());
        assert!(transitions("n", Some(&loaded), Some(&rebooted)).is_empty());
    }
}
