//! The status of the node's NodeModulesConfig, from reports.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::plan::Report;
use super::record::Owner;
use crate::api::names::{ConditionType, NodeConfigReason, NodeReason};
use crate::api::{MicroTime, ModuleState, NodeModuleStatus, NodeModulesConfigStatus, Time};
use crate::core::conditions::{self, State};

/// Longest message of an entry, characters: 50 modules must stay far below the size of an object.
const MAX_MESSAGE: usize = 1024;
/// A sentence that alone changed, for instance a reference count, is written at most this often.
const QUIET: SignedDuration = SignedDuration::from_secs(60);

/// What the status says besides its modules.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// The running boot.
    pub boot_id: &'a str,
    /// Release of the running kernel.
    pub release: &'a str,
    /// Generation of the NodeModulesConfig whose orders are in the record and are carried out or reported.
    pub generation: i64,
    /// Why a newer specification could not be read, if it could not.
    pub unreadable: Option<&'a str>,
}

/// The new status, or `None` if the old one says the same.
///
/// Times change only with state or reason.
/// If nothing but sentences changed less than a minute after the last transition or `written`, nothing is written yet.
pub fn status(
    old: &NodeModulesConfigStatus,
    about: &About<'_>,
    reports: &[Report],
    written: Option<Timestamp>,
    now: Timestamp,
) -> Option<NodeModulesConfigStatus> {
    let known: BTreeMap<Owner, &NodeModuleStatus> = old.modules.iter().map(|module| (owner(module), module)).collect();
    let modules =
        reports.iter().map(|report| entry(report, known.get(&Owner::of(&report.spec)).copied(), about, now)).collect();
    let mut new = NodeModulesConfigStatus {
        boot_id: Some(about.boot_id.to_owned()),
        conditions: old.conditions.clone(),
        kernel_version: Some(about.release.to_owned()),
        modules,
        observed_generation: Some(about.generation),
        worker_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
    };
    let ready = ready(reports, about.unreadable);
    let _ = conditions::set(&mut new.conditions, &[ready], Some(about.generation), now);
    if new == *old {
        return None;
    }
    // A clock that was put back says nothing about how long ago it is.
    let recent = written.is_some_and(|at| (SignedDuration::ZERO..QUIET).contains(&now.duration_since(at)));
    (!recent || without_sentences(&new) != without_sentences(old)).then_some(new)
}

fn owner(module: &NodeModuleStatus) -> Owner {
    Owner {
        namespace: module.namespace.clone(),
        name: module.name.clone(),
        uid: module.module_uid.clone().unwrap_or_default(),
    }
}

fn entry(report: &Report, old: Option<&NodeModuleStatus>, about: &About<'_>, now: Timestamp) -> NodeModuleStatus {
    let loaded = report.loaded.as_ref();
    // What is loaded is told as it was loaded; how it was to be fetched belongs to it.
    let spec = loaded.map_or(&report.spec, |loaded| &loaded.entry.spec);
    let reason = report.reason.as_str();
    let same = old.is_some_and(|old| old.state == Some(report.state) && old.reason.as_deref() == Some(reason));
    let since = if same { old.and_then(|old| old.last_transition_time.clone()) } else { None };
    let digest = loaded.and_then(|loaded| loaded.entry.spec.config.container_image.split_once('@'));
    NodeModuleStatus {
        boot_id: loaded.map(|_| about.boot_id.to_owned()),
        build_id: loaded.and_then(|loaded| loaded.identity.build_id.clone()),
        config: loaded.map(|loaded| loaded.entry.spec.config.clone()),
        digest: digest.map(|(_, digest)| digest.to_owned()),
        duration: loaded.and_then(|loaded| loaded.entry.took_ms).map(seconds),
        image_repo_secret: spec.image_repo_secret.clone(),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        load_time: loaded.and_then(|loaded| loaded.entry.loaded_at).and_then(micro),
        message: (!report.message.is_empty()).then(|| conditions::truncate(&report.message, MAX_MESSAGE)),
        module_uid: report.spec.module_uid.clone(),
        name: report.spec.name.clone(),
        namespace: report.spec.namespace.clone(),
        observed_generation: report.generation,
        reason: Some(reason.to_owned()),
        service_account_name: spec.service_account_name.clone(),
        srcversion: loaded.and_then(|loaded| loaded.identity.srcversion.clone()),
        state: Some(report.state),
        tolerations: spec.tolerations.clone(),
        version: spec.version.clone(),
    }
}

/// As exact as it is written: anything finer would look like a change each time.
fn micro(at: Timestamp) -> Option<MicroTime> {
    Timestamp::from_microsecond(at.as_microsecond()).ok().map(MicroTime)
}

/// Seconds with one digit after the point.
fn seconds(millis: u64) -> String {
    let tenths = millis.saturating_add(50) / 100;
    format!("{}.{}s", tenths / 10, tenths % 10)
}

fn ready(reports: &[Report], unreadable: Option<&str>) -> conditions::Wanted {
    let ready = ConditionType::Ready.as_str();
    let name = |report: &Report| Owner::of(&report.spec).to_string();
    if let Some(why) = unreadable {
        let message = format!("the specification cannot be read, the last one that could is kept: {why}");
        return conditions::Wanted::new(ready, State::False, NodeConfigReason::Unreadable.as_str(), message);
    }
    let of = |states: &[ModuleState]| -> Vec<&Report> {
        reports.iter().filter(|report| states.contains(&report.state)).collect()
    };
    let failing = of(&[ModuleState::Failed, ModuleState::UnloadFailed, ModuleState::Unknown]);
    if let Some(first) = failing.first() {
        let more = if failing.len() > 1 { format!(", and {} more", failing.len() - 1) } else { String::new() };
        let message = format!("{}: {}: {}{more}", name(first), first.reason.as_str(), first.message);
        return conditions::Wanted::new(ready, State::False, NodeConfigReason::ModulesFailing.as_str(), message);
    }
    let moving = of(&[ModuleState::Pending, ModuleState::Pulling, ModuleState::Loading, ModuleState::Unloading]);
    let (waiting, moving): (Vec<&Report>, Vec<&Report>) =
        moving.into_iter().partition(|report| report.reason == NodeReason::WaitingForReboot);
    if let Some(first) = moving.first() {
        let message = format!("{}: {}, {} in all", name(first), first.reason.as_str(), moving.len());
        return conditions::Wanted::new(ready, State::False, NodeConfigReason::InProgress.as_str(), message);
    }
    let loaded = of(&[ModuleState::Loaded]).len();
    if let Some(first) = waiting.first() {
        let message =
            format!("{loaded} loaded; {} more, the first is {}: {}", waiting.len(), name(first), first.message);
        return conditions::Wanted::new(ready, State::False, NodeConfigReason::WaitingForReboot.as_str(), message);
    }
    let (kept, orphans): (Vec<&Report>, Vec<&Report>) =
        of(&[ModuleState::Orphaned]).into_iter().partition(|report| report.reason == NodeReason::Kept);
    if let Some(first) = orphans.first() {
        let message =
            format!("{loaded} loaded; {} neither wanted nor to go, the first is {}", orphans.len(), name(first));
        return conditions::Wanted::new(ready, State::True, NodeConfigReason::OrphanedModules.as_str(), message);
    }
    let kept = kept.first().map_or_else(String::new, |first| {
        format!("; {} kept until the node boots again, the first is {}", kept.len(), name(first))
    });
    conditions::Wanted::new(ready, State::True, NodeConfigReason::AllLoaded.as_str(), format!("{loaded} loaded{kept}"))
}

/// All that must be told at once. The sentences of entries go into the condition's, so that is left out as well.
fn without_sentences(status: &NodeModulesConfigStatus) -> NodeModulesConfigStatus {
    let mut bare = status.clone();
    bare.modules.iter_mut().for_each(|module| module.message = None);
    bare.conditions.iter_mut().for_each(|condition| condition.message.clear());
    bare
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::kmod::Identity;
    use crate::worker::plan::InKernel;
    use crate::worker::record::Entry;
    use crate::worker::testing::spec;

    const ABOUT: About<'static> = About { boot_id: "boot-1", release: "6.12.1+", generation: 7, unreadable: None };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn loaded() -> Report {
        let spec = spec("gpu", "gpu", 'a', 3);
        let loaded_at = Timestamp::from_nanosecond(1_700_000_000_123_456_789).ok();
        let entry = Entry { took_ms: Some(1234), loaded_at, complete: true, ..Entry::of(spec.clone()) };
        let identity = Identity { build_id: Some("abc".into()), srcversion: None };
        Report {
            spec,
            state: ModuleState::Loaded,
            reason: NodeReason::Loaded,
            message: String::new(),
            generation: Some(3),
            loaded: Some(InKernel { entry, identity }),
        }
    }

    fn failed(message: &str) -> Report {
        let (state, reason, loaded) = (ModuleState::UnloadFailed, NodeReason::InUse, loaded());
        Report { state, reason, message: message.into(), ..loaded }
    }

    fn ready(status: &NodeModulesConfigStatus) -> String {
        let ready = &status.conditions[0];
        format!("{} {} {}", ready.status, ready.reason, ready.message)
    }

    #[test]
    fn a_loaded_module_is_told_with_its_proof_and_the_same_is_not_told_twice() {
        let status = status(&NodeModulesConfigStatus::default(), &ABOUT, &[loaded()], None, at(0)).unwrap();
        let module = &status.modules[0];
        assert_eq!(status.observed_generation, Some(7));
        assert_eq!(status.boot_id.as_deref(), Some("boot-1"));
        assert_eq!(module.config, Some(loaded().spec.config));
        assert_eq!(module.build_id.as_deref(), Some("abc"));
        assert_eq!(module.duration.as_deref(), Some("1.2s"));
        assert_eq!(module.digest, Some(format!("sha256:{}", "a".repeat(64))));
        assert_eq!(module.boot_id.as_deref(), Some("boot-1"));
        assert_eq!(ready(&status), "True AllLoaded 1 loaded");
        // As it comes back from the API server.
        let told: NodeModulesConfigStatus = serde_json::from_value(serde_json::to_value(&status).unwrap()).unwrap();
        assert_eq!(super::status(&told, &ABOUT, &[loaded()], None, at(500)), None);
    }

    #[test]
    fn times_change_with_state_or_reason_only() {
        let first = status(&NodeModulesConfigStatus::default(), &ABOUT, &[failed("one")], None, at(0)).unwrap();
        let second = status(&first, &ABOUT, &[failed("two")], None, at(100)).unwrap();
        assert_eq!(second.modules[0].last_transition_time, Some(Time(at(0))));
        assert_eq!(second.modules[0].message.as_deref(), Some("two"));
        let third = status(&second, &ABOUT, &[loaded()], None, at(200)).unwrap();
        assert_eq!(third.modules[0].last_transition_time, Some(Time(at(200))));
    }

    #[test]
    fn a_sentence_that_alone_changes_waits_a_minute_and_everything_else_does_not() {
        let first = status(&NodeModulesConfigStatus::default(), &ABOUT, &[failed("one")], None, at(0)).unwrap();
        assert_eq!(status(&first, &ABOUT, &[failed("two")], Some(at(0)), at(59)), None);
        assert!(status(&first, &ABOUT, &[failed("two")], Some(at(0)), at(60)).is_some());
        assert!(status(&first, &ABOUT, &[failed("two")], Some(at(50)), at(1)).is_some(), "the clock was put back");
        let next = About { generation: 8, ..ABOUT };
        assert!(status(&first, &next, &[failed("two")], Some(at(0)), at(1)).is_some());
        assert!(status(&first, &ABOUT, &[loaded()], Some(at(0)), at(1)).is_some());
        assert!(status(&first, &ABOUT, &[], Some(at(0)), at(1)).is_some());
    }

    #[test]
    fn the_condition_names_the_first_that_is_not_as_wanted() {
        let of = |reports: &[Report], about: &About<'_>| {
            ready(&status(&NodeModulesConfigStatus::default(), about, reports, None, at(0)).unwrap())
        };
        let state = |state, reason| Report { state, reason, ..loaded() };
        let pulling = state(ModuleState::Pulling, NodeReason::Pulling);
        let orphan = state(ModuleState::Orphaned, NodeReason::NotWanted);
        let kept = state(ModuleState::Orphaned, NodeReason::Kept);
        let waiting = Report { message: "why".into(), ..state(ModuleState::Pending, NodeReason::WaitingForReboot) };
        let unreadable = About { unreadable: Some("no field x"), ..ABOUT };
        for (reports, about, expected) in [
            (vec![], &ABOUT, "True AllLoaded 0 loaded"),
            (
                vec![loaded(), failed("busy"), failed("busy"), pulling.clone()],
                &ABOUT,
                "False ModulesFailing drivers/gpu: InUse: busy, and 1 more",
            ),
            (vec![loaded(), pulling, orphan.clone()], &ABOUT, "False InProgress drivers/gpu: Pulling, 1 in all"),
            (
                vec![loaded(), orphan],
                &ABOUT,
                "True OrphanedModules 1 loaded; 1 neither wanted nor to go, the first is drivers/gpu",
            ),
            (
                vec![loaded(), kept.clone()],
                &ABOUT,
                "True AllLoaded 1 loaded; 1 kept until the node boots again, the first is drivers/gpu",
            ),
            (
                vec![loaded(), kept, waiting],
                &ABOUT,
                "False WaitingForReboot 1 loaded; 1 more, the first is drivers/gpu: why",
            ),
            (
                vec![loaded()],
                &unreadable,
                "False Unreadable the specification cannot be read, the last one that could is kept: no field x",
            ),
        ] {
            assert_eq!(of(&reports, about), expected);
        }
    }

    #[test]
    fn a_long_message_is_cut() {
        let status =
            status(&NodeModulesConfigStatus::default(), &ABOUT, &[failed(&"x".repeat(100_000))], None, at(0)).unwrap();
        assert_eq!(status.modules[0].message.as_ref().unwrap().chars().count(), MAX_MESSAGE);
    }
}
