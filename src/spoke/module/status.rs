//! The status of a Module, from the totals of all nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::api::names::{ConditionType, ImageReason, ModuleReason, ready_label, version_ready_label};
use crate::api::{DaemonSetStatus, FailingNode, ModuleStatus};
use crate::core::conditions::{self, State, Wanted};
use crate::core::label;
use crate::spoke::outcome::Trouble;
use crate::spoke::tally::{Counted, ModuleTotals};
use crate::spoke::view::ModuleFacts;

/// The conditions that this controller writes.
pub(super) const CONDITIONS: [ConditionType; 4] =
    [ConditionType::Covered, ConditionType::ImagesResolved, ConditionType::Progressing, ConditionType::Ready];
/// Most nodes that are named.
const NAMED_NODES: usize = 10;
/// Most causes that are named for which nodes do not get the module.
const NAMED_CAUSES: usize = 5;
/// Longest message about one node, in characters.
const NODE_MESSAGE_MAX: usize = 512;
const SILENT: &str = "no worker has reported since the node started";

/// The status as it should be, `None` if it is already so.
pub(super) fn plan_status(
    counted: &Counted,
    old: &ModuleStatus,
    trigger: Option<i64>,
    now: Timestamp,
) -> Option<ModuleStatus> {
    let (facts, totals) = (counted.facts(), counted.totals());
    let mut new = old.clone();
    // Of nodes that nobody knows there is no number.
    new.module_loader = facts.spec_known.then(|| DaemonSetStatus {
        available_number: Some(number(totals.available)),
        desired_number: Some(number(totals.desired)),
        nodes_matching_selector_number: Some(number(totals.matching)),
    });
    // Nobody counts these pods: what an earlier operator counted is not so any more.
    (new.device_plugin, new.dra) = (None, None);
    new.nodes_failing = failing_nodes(totals);
    new.observed_generation = Some(facts.generation);
    new.rendered_hash.clone_from(&facts.rendered_hash);
    new.image_rebuild_trigger_generation = trigger.or(old.image_rebuild_trigger_generation);
    let (ready, covered) = (ready(facts, totals), covered(facts, totals));
    let because = |of: &Verdict| Verdict { state: State::True, reason: of.reason.clone(), message: of.message.clone() };
    let progress = if is_moving(facts, totals) {
        because(&ready)
    } else if totals.awaiting > 0 {
        because(&covered)
    } else {
        Verdict::new(State::False, ModuleReason::Settled, "nothing is on its way")
    };
    let wanted = [
        (ConditionType::Covered, covered),
        (ConditionType::ImagesResolved, images(facts, totals)),
        (ConditionType::Progressing, progress),
        (ConditionType::Ready, ready),
    ]
    .map(|(type_, is)| Wanted::new(type_.as_str(), is.state, &*is.reason, is.message));
    let _ = conditions::set(&mut new.conditions, &wanted, Some(facts.generation), now);
    (new != *old).then_some(new)
}

/// The status while so many nodes have still to be planned with the Module as it is now, `None` if it is already so.
///
/// Numbers, the generation that they were counted for and the Hub's hash stay as they were told last.
pub(super) fn while_counting(
    facts: &ModuleFacts,
    old: &ModuleStatus,
    nodes: usize,
    now: Timestamp,
) -> Option<ModuleStatus> {
    let mut new = old.clone();
    let message = format!("{nodes} nodes are still to be looked at since the Module changed");
    let (ready, moving) = (ConditionType::Ready.as_str(), ConditionType::Progressing.as_str());
    let wanted = [(moving, State::True), (ready, State::False)]
        .map(|(type_, state)| Wanted::new(type_, state, ModuleReason::NodesNotReady.as_str(), &*message));
    let _ = conditions::set(&mut new.conditions, &wanted, Some(facts.generation), now);
    (new != *old).then_some(new)
}

struct Verdict {
    state: State,
    reason: String,
    message: String,
}

impl Verdict {
    fn new(state: State, reason: ModuleReason, message: impl Into<String>) -> Self {
        Self { state, reason: reason.as_str().to_owned(), message: message.into() }
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn failing_nodes(totals: &ModuleTotals) -> Vec<FailingNode> {
    let named = |name: &String, reason: &str, message: &str| FailingNode {
        name: name.clone(),
        reason: reason.to_owned(),
        message: Some(conditions::truncate(message, NODE_MESSAGE_MAX)).filter(|message| !message.is_empty()),
    };
    let of = |(name, trouble): (&String, &Arc<Trouble>)| named(name, &trouble.reason, &trouble.message);
    let mut nodes: Vec<_> = totals.failing.iter().take(NAMED_NODES).map(of).collect();
    nodes.extend(totals.without_image.iter().take(NAMED_NODES).map(of));
    nodes.extend(totals.waiting_for_consumers.iter().take(NAMED_NODES).map(of));
    let silent = totals.silent.iter().take(NAMED_NODES);
    nodes.extend(silent.map(|name| named(name, ModuleReason::NodesSilent.as_str(), SILENT)));
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes.truncate(NAMED_NODES);
    nodes
}

/// `node-1: why` of the first of these, and how many more there are.
fn first(node: Option<(&String, &str)>, count: usize) -> String {
    let Some((name, message)) = node else { return String::new() };
    let more = if count > 1 { format!(" (and {} more nodes)", count - 1) } else { String::new() };
    format!("{name}: {message}{more}")
}

fn troubles(nodes: &BTreeMap<String, Arc<Trouble>>) -> String {
    let text = |(name, trouble): (&'_ String, &'_ Arc<Trouble>)| {
        let why = if trouble.message.is_empty() { &trouble.reason } else { &trouble.message };
        (name.clone(), why.clone())
    };
    let node = nodes.iter().next().map(text);
    first(node.as_ref().map(|(name, why)| (name, why.as_str())), nodes.len())
}

fn ready(facts: &ModuleFacts, totals: &ModuleTotals) -> Verdict {
    let of = format!("{} of {} nodes have the module", totals.available, totals.desired);
    if facts.deleting {
        return deleting(totals);
    }
    let not = |reason, message: String| Verdict::new(State::False, reason, message);
    if let Some(error) = &facts.unreadable {
        let of = if facts.spec_known { of } else { "what nodes have stays".to_owned() };
        return not(ModuleReason::Unreadable, format!("{of}; the object cannot be read: {error}"));
    }
    if facts.spec.module_loader.is_none() && totals.leaving == 0 {
        return Verdict::new(State::True, ModuleReason::NoModuleLoader, "there is nothing to load");
    }
    if let Some(error) = facts.invalid() {
        return not(ModuleReason::InvalidSpec, format!("{of}; {error}"));
    }
    if !totals.failing.is_empty() {
        return not(ModuleReason::NodesFailing, format!("{of}; {}", troubles(&totals.failing)));
    }
    if !totals.without_image.is_empty() {
        return not(ModuleReason::ImagesNotReady, format!("{of}; {}", troubles(&totals.without_image)));
    }
    if !totals.silent.is_empty() {
        let silent = first(totals.silent.first().map(|name| (name, SILENT)), totals.silent.len());
        return Verdict::new(State::Unknown, ModuleReason::NodesSilent, format!("{of}; {silent}"));
    }
    if !totals.waiting_for_consumers.is_empty() {
        let message = format!("{of}; {}", troubles(&totals.waiting_for_consumers));
        return not(ModuleReason::WaitingForConsumers, message);
    }
    let clause = |count: usize, what: &str| if count > 0 { format!("; {count} more {what}") } else { String::new() };
    let waiting = clause(totals.waiting_for_reboot, "run an older file of it until they boot again");
    if totals.available + totals.waiting_for_reboot < totals.desired || totals.leaving > 0 {
        let leaving = clause(totals.leaving, "unload it");
        return not(ModuleReason::NodesNotReady, format!("{of}{leaving}{waiting}"));
    }
    if totals.waiting_for_reboot > 0 {
        return not(ModuleReason::NodesWaitingForReboot, format!("{of}{waiting}"));
    }
    let unlabelled = unlabelled(facts);
    let kept = clause(totals.kept, "keep it until they boot again") + &unlabelled;
    if totals.matching == 0 {
        return Verdict::new(State::True, ModuleReason::NoMatchingNodes, format!("no node matches the selector{kept}"));
    }
    let uncovered = clause(totals.matching.saturating_sub(totals.desired), "match the selector and do not get it");
    let reason = if totals.desired == 0 { uncovered_by(totals) } else { None };
    let reason = reason.unwrap_or(ModuleReason::AllNodesReady);
    Verdict::new(State::True, reason, format!("{of}{uncovered}{kept}"))
}

/// Which labels nodes do not get, and why: pods that select nodes by them would wait for ever.
fn unlabelled(facts: &ModuleFacts) -> String {
    let (namespace, name) = (&facts.key.namespace, &facts.key.name);
    if !label::is_key(&ready_label(namespace, name)) {
        let label =
            "namespace and name together are too long for the label of nodes that have the module, so none has it";
        return format!("; {label}");
    }
    let keyed = label::is_key(&version_ready_label(namespace, name));
    match facts.version().filter(|version| !keyed || !label::is_value(version)) {
        Some(_) if !keyed => {
            "; namespace and name together are too long for the version's label, so no node has it".to_owned()
        }
        Some(version) => {
            format!("; moduleLoader.container.version `{version}` cannot be a label of nodes, so none has it")
        }
        None => String::new(),
    }
}

/// Whether every selected node is one that gets the module.
fn covered(facts: &ModuleFacts, totals: &ModuleTotals) -> Verdict {
    if facts.deleting {
        return Verdict::new(State::False, ModuleReason::Unloading, "it is being deleted");
    }
    if let Some(error) = &facts.unreadable {
        return Verdict::new(State::Unknown, ModuleReason::Unreadable, error);
    }
    if facts.spec.module_loader.is_none() {
        return Verdict::new(State::True, ModuleReason::NoModuleLoader, "there is nothing to load");
    }
    if let Some(error) = facts.invalid() {
        return Verdict::new(State::False, ModuleReason::InvalidSpec, error);
    }
    match uncovered_by(totals) {
        Some(reason) => Verdict::new(State::False, reason, uncovered(totals)),
        None if totals.matching == 0 => {
            Verdict::new(State::True, ModuleReason::NoMatchingNodes, "no node matches the selector")
        }
        None => {
            let message = format!("all of {} matching nodes get the module", totals.matching);
            Verdict::new(State::True, ModuleReason::AllNodesCovered, message)
        }
    }
}

/// Why a matching node does not get the module, the most telling reason of all nodes.
fn uncovered_by(totals: &ModuleTotals) -> Option<ModuleReason> {
    match totals.unmapped.values().sum::<usize>() {
        0 if !totals.without_image.is_empty() => Some(ModuleReason::ImagesNotReady),
        0 if !totals.tainted.is_empty() => Some(ModuleReason::NodesTainted),
        0 => None,
        unmapped if unmapped == totals.matching => Some(ModuleReason::NoMatchingKernel),
        _ => Some(ModuleReason::SomeKernelsUnmapped),
    }
}

/// Kernels without mapping or image, and taints, each with the number of its nodes.
fn uncovered(totals: &ModuleTotals) -> String {
    let told = |(why, nodes): (&'_ Arc<Trouble>, &'_ usize)| (why.message.clone(), *nodes);
    let imageless =
        totals.imageless.iter().map(|(kernel, nodes)| (format!("no image for kernel {}", kernel.trimmed()), *nodes));
    let all: Vec<_> =
        totals.unmapped.iter().map(told).chain(imageless).chain(totals.tainted.iter().map(told)).collect();
    let named = all.iter().take(NAMED_CAUSES).map(|(what, nodes)| format!("{what} ({nodes} nodes)"));
    let more = all.len().saturating_sub(NAMED_CAUSES);
    named.chain((more > 0).then(|| format!("and {more} more causes"))).collect::<Vec<_>>().join("; ")
}

fn deleting(totals: &ModuleTotals) -> Verdict {
    if !totals.failing.is_empty() {
        let message = format!("cannot be unloaded: {}", troubles(&totals.failing));
        return Verdict::new(State::False, ModuleReason::UnloadBlocked, message);
    }
    if !totals.waiting_for_consumers.is_empty() {
        let message = troubles(&totals.waiting_for_consumers);
        return Verdict::new(State::False, ModuleReason::WaitingForConsumers, message);
    }
    let holder = totals.holders.first().map(|name| (name, "waiting for its worker to unload the module"));
    let message = first(holder, totals.holders.len());
    let message = if message.is_empty() { "no node has the module any more".to_owned() } else { message };
    Verdict::new(State::False, ModuleReason::Unloading, message)
}

fn is_moving(facts: &ModuleFacts, totals: &ModuleTotals) -> bool {
    let is_pending = |trouble: &&Arc<Trouble>| trouble.reason == ImageReason::Pending.as_str();
    let pending = totals.without_image.values().filter(is_pending).count();
    let failed = totals.failing.len() + totals.without_image.len() - pending;
    let on_their_way = totals.desired.saturating_sub(totals.available + totals.waiting_for_reboot + failed);
    on_their_way > 0 || totals.leaving > 0 || (facts.deleting && !totals.holders.is_empty())
}

fn images(facts: &ModuleFacts, totals: &ModuleTotals) -> Verdict {
    if facts.spec.module_loader.is_none() && facts.unreadable.is_none() {
        return Verdict::new(State::True, ModuleReason::NoModuleLoader, "no image is needed");
    }
    if let Some(error) = facts.invalid() {
        return Verdict::new(State::False, ModuleReason::InvalidSpec, error);
    }
    if totals.without_image.is_empty() {
        let message = "the digest of every image that is needed is known";
        return Verdict::new(State::True, ModuleReason::ImagesResolved, message);
    }
    let mut verdict = Verdict::new(State::False, ModuleReason::ImagesNotReady, troubles(&totals.without_image));
    // Why the first image is not there tells more.
    if let Some(trouble) = totals.without_image.values().next().filter(|trouble| !trouble.reason.is_empty()) {
        verdict.reason.clone_from(&trouble.reason);
    }
    verdict
}
