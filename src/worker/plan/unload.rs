//! Entries of the record that are not wanted: taken out by intent, otherwise left and told.

use std::collections::{BTreeMap, BTreeSet};

use super::desired::Desired;
use super::job::{Job, Step};
use super::observed::{KernelView, Observed};
use super::report::{Plan, Report};
use super::{in_tree, upkeep};
use crate::api::names::NodeReason;
use crate::api::{ModuleState, OnRemoval};
use crate::core::kmod::proc_modules::{InitState, Listed};
use crate::core::kmod::{Identity, Sameness, modprobe};
use crate::worker::facts::Trouble;
use crate::worker::record::{Entry, Owner, Record, RecordedModule};

/// Plans for an entry that is not wanted.
pub(super) fn plan(observed: &Observed, entry: &Entry, plan: &mut Plan) {
    let owner = entry.owner();
    if entry.unproved {
        return unproved(observed, entry, plan);
    }
    let loaded = observed.in_kernel(&owner);
    let Some(intent) = observed.intent(&owner, entry.generation()) else {
        // Somebody else took it out, or a Module made again under the name took it over: nothing is left to speak of.
        let speaks = |other: &Entry, name: &str| other.owner() != owner && other.module(name).is_some();
        let entries = &observed.record.entries;
        let mut left = targets(&observed.record, entry, &observed.kernel).into_iter();
        if left.all(|module| entries.iter().any(|other| speaks(other, &module.name)))
            && (loaded.is_none() || is_taken_over(observed, &owner))
        {
            let mut steps: Vec<Step> = heirs(&observed.record, entry, &[]).into_iter().map(Step::write).collect();
            steps.push(Step::Forget(owner.clone()));
            plan.jobs.push(Job { owner, identity: None, steps });
            return;
        }
        let (reason, message) = match entry.spec.policy.unwrap_or_default().on_removal {
            OnRemoval::Unload => {
                (NodeReason::NotWanted, "neither wanted nor to go; it stays loaded until the planner says either")
            }
            OnRemoval::Keep => {
                (NodeReason::Kept, "policy.onRemoval is Keep: it stays loaded until the node boots again")
            }
        };
        plan.reports.push(Report {
            spec: entry.spec.clone(),
            state: ModuleState::Orphaned,
            reason,
            message: message.to_owned(),
            generation: Some(entry.generation()),
            loaded,
        });
        return;
    };
    let tell = |state, trouble: Trouble| Report {
        spec: entry.spec.clone(),
        state,
        reason: trouble.reason,
        message: trouble.message,
        generation: Some(intent),
        loaded: loaded.clone(),
    };
    match removal(&observed.record, entry, &observed.kernel) {
        Err(trouble) => plan.reports.push(tell(ModuleState::UnloadFailed, trouble)),
        Ok(_) if observed.held_back(&owner, None).is_some() => {
            let trouble = observed.held_back(&owner, None).cloned();
            plan.reports.extend(trouble.map(|trouble| tell(ModuleState::UnloadFailed, trouble)));
        }
        Ok(names) => {
            let mut steps: Vec<Step> = modprobe_removes(observed, entry, &names).into_iter().collect();
            // After modprobe these find nothing left to do, or do it.
            steps.extend(unload_steps(&names, &observed.kernel));
            steps.extend(heirs(&observed.record, entry, &names).into_iter().map(Step::write));
            // First, as the node is without it until then.
            if observed.is_removal(&owner, intent) {
                steps.extend(in_tree::after_removal(observed, &entry.spec));
            }
            steps.extend(upkeep::before_forgetting(observed, entry));
            steps.push(Step::Forget(owner.clone()));
            plan.jobs.push(Job { owner, identity: None, steps });
            plan.reports.push(tell(ModuleState::Unloading, Trouble::new(NodeReason::Unloading, String::new())));
        }
    }
}

/// What stands in for an entry of a lost record is told until the kernel has no such module any more.
fn unproved(observed: &Observed, entry: &Entry, plan: &mut Plan) {
    let owner = entry.owner();
    let name = entry.identity().map(|identity| identity.main().to_owned()).unwrap_or_default();
    if !observed.kernel.listed.contains_key(&name) {
        let steps = vec![Step::Forget(owner.clone())];
        return plan.jobs.push(Job { owner, identity: None, steps });
    }
    let intent = observed.intent(&owner, entry.generation());
    let message = format!(
        "the worker's record of this boot was lost, and nothing proves that module {name} in the kernel is this Module's; \
         it is not touched: take it out by hand (rmmod {name}), or boot the node"
    );
    plan.reports.push(Report {
        spec: entry.spec.clone(),
        state: if intent.is_some() { ModuleState::UnloadFailed } else { ModuleState::Orphaned },
        reason: NodeReason::RecordLost,
        message,
        generation: Some(intent.unwrap_or(entry.generation())),
        loaded: None,
    });
}

/// The step by which modprobe takes an entry's modules out, where the Module has arguments for that.
///
/// modprobe takes along what a module needed and nothing uses any more. Where that would be something that was not
/// loaded for this entry, or that another Module has, and where what was generated for modprobe is lost, there is no such
/// step: the modules are taken out one by one.
pub(super) fn modprobe_removes(observed: &Observed, entry: &Entry, leaving: &[String]) -> Option<Step> {
    let folder = entry.generated.as_ref().filter(|folder| observed.generated.contains(*folder))?;
    let arguments = modprobe::unload_arguments(&entry.spec.config.modprobe, folder)?;
    let aim = modprobe::aim(&arguments);
    if !aim.removes || leaving.is_empty() {
        return None;
    }
    let owner = entry.owner();
    let others = observed.record.entries.iter().filter(|other| other.owner() != owner);
    let elsewhere: BTreeSet<&str> =
        others.flat_map(|other| &other.modules).map(|module| module.name.as_str()).collect();
    let going = |name: &String| leaving.contains(name) || aim.modules.contains(name);
    let taken_along = |name: &str| {
        let Some(listed) = observed.kernel.listed.get(name) else { return false };
        let holders = listed.holders.iter().filter(|holder| going(holder)).count();
        holders == listed.holders.len() && listed.refcnt.is_some_and(|count| count as usize <= holders)
    };
    let own = entry.modules.iter().map(|module| &module.name);
    let spared = own.chain(aim.modules.iter().filter(|name| elsewhere.contains(name.as_str())));
    if spared.into_iter().any(|name| !leaving.contains(name) && taken_along(name)) {
        return None;
    }
    Some(Step::Modprobe { arguments, modules: leaving.to_vec(), removes: true })
}

/// Whether a wanted Module of the same name, made again, is in the record.
fn is_taken_over(observed: &Observed, owner: &Owner) -> bool {
    let successor = |of: Owner| (&of.namespace, &of.name) == (&owner.namespace, &owner.name) && of.uid != owner.uid;
    let wanted = observed.desired.modules.iter().map(Desired::owner);
    wanted.filter(|of| observed.record.entry(of).is_some()).any(successor)
}

/// One step for each module, in order.
pub(super) fn unload_steps(names: &[String], kernel: &KernelView) -> Vec<Step> {
    names
        .iter()
        .map(|name| {
            let identity = kernel.running.get(name).map(|running| running.identity.clone()).unwrap_or_default();
            Step::Unload { name: name.clone(), identity }
        })
        .collect()
}

/// Modules of an entry that must go with it: in the kernel, still the recorded file, inserted for it or named by it, and
/// not another entry's too.
fn targets<'a>(record: &Record, entry: &'a Entry, kernel: &KernelView) -> Vec<&'a RecordedModule> {
    let owner = entry.owner();
    let elsewhere = |name: &str| record.entries.iter().any(|other| other.owner() != owner && other.owns(name));
    entry
        .modules
        .iter()
        .filter(|module| {
            (module.named || module.inserted)
                && kernel.listed.contains_key(&module.name)
                && kernel
                    .running
                    .get(&module.name)
                    .is_none_or(|running| running.identity.compare(&module.identity) != Sameness::Different)
                && !elsewhere(&module.name)
        })
        .collect()
}

/// Other entries with a module that this one inserted and that does not leave: it becomes theirs.
pub(super) fn heirs(record: &Record, entry: &Entry, leaving: &[String]) -> Vec<Entry> {
    let owner = entry.owner();
    let mut heirs = Vec::new();
    for other in record.entries.iter().filter(|other| other.owner() != owner) {
        let mut heir = other.clone();
        for module in heir.modules.iter_mut().filter(|module| !leaving.contains(&module.name)) {
            module.inserted |= entry.module(&module.name).is_some_and(|known| known.inserted);
        }
        if heir != *other {
            heirs.push(heir);
        }
    }
    heirs
}

/// The modules of an entry that are taken out, users first; or why a named one cannot go.
///
/// A module that is only needed, and that something else uses by now, is left where it is.
pub(super) fn removal(record: &Record, entry: &Entry, kernel: &KernelView) -> Result<Vec<String>, Trouble> {
    let targets = targets(record, entry, kernel);
    let mut leaving: BTreeSet<&str> = targets.iter().map(|module| module.name.as_str()).collect();
    loop {
        let stays = targets
            .iter()
            .find(|module| leaving.contains(module.name.as_str()) && blocked(&module.name, &leaving, kernel).is_some());
        let Some(stays) = stays else { break };
        if stays.named {
            let why = blocked(&stays.name, &leaving, kernel).unwrap_or_default();
            return Err(Trouble::new(NodeReason::InUse, why));
        }
        leaving.remove(stays.name.as_str());
    }
    // What came last goes first, as where nothing holds anything the order of loading is the only one that is known.
    let order = targets.iter().rev().map(|module| module.name.as_str()).filter(|name| leaving.contains(name));
    Ok(users_first(order, &kernel.listed))
}

/// Why a module cannot go although all of `leaving` go; `None` if it can.
pub(super) fn blocked(name: &str, leaving: &BTreeSet<&str>, kernel: &KernelView) -> Option<String> {
    let listed = kernel.listed.get(name)?;
    if listed.state != InitState::Live {
        return Some(format!("module {name} is starting or ending"));
    }
    if listed.permanent {
        return Some(format!("module {name} has no exit function; it leaves only by a reboot"));
    }
    let Some(refcnt) = listed.refcnt else {
        return Some("this kernel cannot unload modules; it leaves only by a reboot".to_owned());
    };
    let staying: Vec<&str> =
        listed.holders.iter().map(String::as_str).filter(|holder| !leaving.contains(holder)).collect();
    let going = u32::try_from(listed.holders.len() - staying.len()).unwrap_or(u32::MAX);
    if staying.is_empty() && refcnt <= going {
        return None;
    }
    let holders =
        if staying.is_empty() { String::new() } else { format!(", modules that use it: {}", staying.join(", ")) };
    let users = kernel.users.get(name).filter(|users| !users.is_empty());
    let users = users.map(|users| format!(", {users}")).unwrap_or_default();
    Some(format!(
        "module {name} is in use (reference count {refcnt}{holders}{users}); it goes as soon as nothing uses it"
    ))
}

/// The names, each once, so that each stands before what it uses, and else in the order in which they are given.
pub(super) fn users_first<'a>(
    names: impl IntoIterator<Item = &'a str>,
    listed: &BTreeMap<String, Listed>,
) -> Vec<String> {
    let mut known = BTreeSet::new();
    let mut open: Vec<&str> = names.into_iter().filter(|name| known.insert(*name)).collect();
    let mut ordered = Vec::with_capacity(open.len());
    while !open.is_empty() {
        let free = open.iter().position(|name| {
            listed.get(*name).is_none_or(|entry| !entry.holders.iter().any(|holder| open.contains(&holder.as_str())))
        });
        // Holders form no circle; should a kernel ever show one, it refuses by itself.
        ordered.push(open.remove(free.unwrap_or(0)).to_owned());
    }
    ordered
}

/// Whether the module that runs under this name is the recorded file.
pub(super) fn is_recorded(module: &RecordedModule, running: &Identity) -> bool {
    running.compare(&module.identity) != Sameness::Different
}
