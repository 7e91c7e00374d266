//! The status of the node's NodeModulesConfig, from reports.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::plan::Report;
use super::record::Owner;
use crate::api::names::{ConditionType, NodeConfigReason};
use crate::api::{ModuleState, NodeModuleStatus, NodeModulesConfigStatus, Time};
use crate::core::conditions::{self, State};

/// Longest message of an entry, characters: 50 modules must stay far below the size of an object.
const MAX_MESSAGE: usize = 1024;
/// A sentence that alone changed, for instance a reference count, is written at most this often.
const QUIET: SignedDuration = SignedDuration::from_secs(60);

/// What the status says besides its modules.
#[derive(Clone, Debug)]
pub struct Node<'a> {
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
    node: &Node<'_>,
    reports: &[Report],
    written: Option<Timestamp>,
    now: Timestamp,
) -> Option<NodeModulesConfigStatus> {
    let known: BTreeMap<Owner, &NodeModuleStatus> = old.modules.iter().map(|module| (owner(module), module)).collect();
    let modules = reports.iter().map(|report| entry(report, known.get(&Owner::of(&report.spec)).copied(), node, now)).collect();
    let mut new = NodeModulesConfigStatus {
        boot_id: Some(node.boot_id.to_owned()),
        conditions: old.conditions.clone(),
        kernel_version: Some(node.release.to_owned()),
        modules,
        observed_generation: Some(node.generation),
        worker_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
    };
    let ready = ready(reports, node.unreadable);
    let _ = conditions::set(&mut new.conditions, &[ready], Some(node.generation), now);
    if new == *old {
        return None;
    }
    let recent = written.is_some_and(|at| now.duration_since(at) < QUIET);
    (!recent || without_sentences(&new) != without_sentences(old)).then_some(new)
}

fn owner(module: &NodeModuleStatus) -> Owner {
    Owner {
        namespace: module.namespace.clone(),
        name: module.name.clone(),
        uid: module.module_uid.clone().unwrap_or_default(),
    }
}

fn entry(report: &Report, old: Option<&NodeModuleStatus>, node: &Node<'_>, now: Timestamp) -> NodeModuleStatus {
    let loaded = report.loaded.as_ref();
    // What is loaded is told as it was loaded; how it was to be fetched belongs to it.
    let spec = loaded.map_or(&report.spec, |loaded| &loaded.entry.spec);
    let reason = report.reason.as_str();
    let same = old.is_some_and(|old| old.state == Some(report.state) && old.reason.as_deref() == Some(reason));
    let since = if same { old.and_then(|old| old.last_transition_time.clone()) } else { None };
    let digest = loaded.and_then(|loaded| loaded.entry.spec.config.container_image.split_once('@'));
    NodeModuleStatus {
        boot_id: loaded.map(|_| node.boot_id.to_owned()),
        build_id: loaded.and_then(|loaded| loaded.identity.build_id.clone()),
        config: loaded.map(|loaded| loaded.entry.spec.config.clone()),
        digest: digest.map(|(_, digest)| digest.to_owned()),
        duration: loaded.and_then(|loaded| loaded.entry.took_ms).map(seconds),
        image_repo_secret: spec.image_repo_secret.clone(),
        last_transition_time: Some(since.unwrap_or(Time(now))),
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
    let of = |states: &[ModuleState]| -> Vec<&Report> { reports.iter().filter(|report| states.contains(&report.state)).collect() };
    let failing = of(&[ModuleState::Failed, ModuleState::UnloadFailed, ModuleState::Unknown]);
    if let Some(first) = failing.first() {
        let more = if failing.len() > 1 { format!(", and {} more", failing.len() - 1) } else { String::new() };
        let message = format!("{}: {}: {}{more}", name(first), first.reason.as_str(), first.message);
        return conditions::Wanted::new(ready, State::False, NodeConfigReason::ModulesFailing.as_str(), message);
    }
    let moving = of(&[ModuleState::Pending, ModuleState::Pulling, ModuleState::Loading, ModuleState::Unloading]);
    if let Some(first) = moving.first() {
        let message = format!("{}: {}, {} in all", name(first), first.reason.as_str(), moving.len());
        return conditions::Wanted::new(ready, State::False, NodeConfigReason::InProgress.as_str(), message);
    }
    let loaded = of(&[ModuleState::Loaded]).len();
    let orphans = of(&[ModuleState::Orphaned]);
    if let Some(first) = orphans.first() {
        let message = format!("{loaded} loaded; {} neither wanted nor to go, the first is {}", orphans.len(), name(first));
        return conditions::Wanted::new(ready, State::True, NodeConfigReason::OrphanedModules.as_str(), message);
    }
    conditions::Wanted::new(ready, State::True, NodeConfigReason::AllLoaded.as_str(), format!("{loaded} loaded"))
}

/// All that must be told at once. The sentences of entries go into the condition's, so that is left out as well.
fn without_sentences(status: &NodeModulesConfigStatus) -> NodeModulesConfigStatus {
    let mut bare = status.clone();
    bare.modules.iter_mut().for_each(|module| module.message = None);
    bare.conditions.iter_mut().for_each(|condition| condition.message.clear());
    bare
}
