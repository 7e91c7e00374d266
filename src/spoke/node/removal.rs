//! What becomes of the part of a Module that does not want to be on the node.

use crate::api::names::NodeReason;
use crate::api::{LoadPolicy, ModuleState, OnRemoval, UnloadIntent, UnloadReason};
use crate::spoke::outcome::{Standing, Trouble};
use crate::spoke::view::ModuleFacts;

use super::here::{Here, Part, Present};

/// The part of a Module that does not want to be on the node.
pub(super) fn removed(here: Here<'_>, facts: &ModuleFacts, reason: UnloadReason, present: Present<'_>) -> Part {
    match on_removal(here, facts, present) {
        Some(OnRemoval::Keep) => kept(here, facts, present),
        Some(OnRemoval::Unload) => unloaded(here, facts, reason, present),
        None => asked(here, facts, reason, present),
    }
}

/// What the policy says of a Module that leaves the node; `None` if nobody here knows it.
///
/// It is the Module's, as it is now. A Module without `moduleLoader` has none any more: then that of its entry
/// counts, and after that what the worker says of its record.
fn on_removal(here: Here<'_>, facts: &ModuleFacts, present: Present<'_>) -> Option<OnRemoval> {
    let of = |policy: Option<LoadPolicy>| policy.unwrap_or_default().on_removal;
    if let Some(loader) = &facts.spec.module_loader {
        return Some(of(loader.policy));
    }
    if let Some(entry) = present.entry {
        return Some(of(entry.policy));
    }
    let report = present.report.filter(|_| here.is_settled())?;
    let kept =
        report.state == Some(ModuleState::Orphaned) && report.reason.as_deref() == Some(NodeReason::Kept.as_str());
    Some(if kept { OnRemoval::Keep } else { OnRemoval::Unload })
}

/// The kernel module stays: nothing is asked for and nothing ordered.
pub(super) fn kept(here: Here<'_>, facts: &ModuleFacts, present: Present<'_>) -> Part {
    if let Some(entry) = present.entry.filter(|_| facts.spec.module_loader.is_none() && !here.is_settled()) {
        // Nothing but the worker's record will know the policy, so it has to be there first.
        return Part { entry: Some(entry.clone()), intent: None, standing: Standing::Leaving };
    }
    Part::nothing(if present.is_nothing() { Standing::Elsewhere } else { Standing::Kept })
}

/// The kernel module must go: ordered until the worker of this boot confirms that nothing of it is left.
fn unloaded(here: Here<'_>, facts: &ModuleFacts, reason: UnloadReason, present: Present<'_>) -> Part {
    if is_over(here, facts, present) {
        return Part::nothing(Standing::Elsewhere);
    }
    let intent = match present {
        // What is loaded may be of a later generation than was known: the intent must cover it.
        Present { entry: None, intent: Some(intent), report }
            if report.is_none_or(|report| report.observed_generation <= Some(intent.generation)) =>
        {
            intent.clone()
        }
        _ => order(facts, reason, known(present).map_or(facts.generation, |known| known.max(facts.generation))),
    };
    Part { entry: None, intent: Some(intent), standing: leaving(here, present) }
}

/// Nobody here knows the policy, and without `moduleLoader` there is no entry any more: the worker is asked what it has
/// and whether its record keeps it. The answer decides.
fn asked(here: Here<'_>, facts: &ModuleFacts, reason: UnloadReason, present: Present<'_>) -> Part {
    if is_over(here, facts, present) {
        return Part::nothing(Standing::Elsewhere);
    }
    match present.intent {
        Some(intent) => Part { entry: None, intent: Some(intent.clone()), standing: leaving(here, present) },
        None if present.report.is_some() => Part::nothing(Standing::Leaving),
        None => {
            let question = order(facts, reason, UnloadIntent::QUESTION);
            Part { entry: None, intent: Some(question), standing: leaving(here, present) }
        }
    }
}

/// Whether nothing of the Module is left: the worker confirmed it, or there never was anything.
fn is_over(here: Here<'_>, facts: &ModuleFacts, present: Present<'_>) -> bool {
    match (present.entry, present.intent, present.report) {
        (None, Some(_), None) => here.is_settled(),
        (None, None, None) => !here.may_have_lost(facts),
        _ => false,
    }
}

/// The latest generation that is known of what is loaded.
fn known(present: Present<'_>) -> Option<i64> {
    let entry = present.entry.and_then(|entry| entry.generation);
    let report = present.report.and_then(|report| report.observed_generation);
    entry.max(present.intent.map(|intent| intent.generation)).max(report)
}

fn order(facts: &ModuleFacts, reason: UnloadReason, generation: i64) -> UnloadIntent {
    UnloadIntent {
        generation,
        module_uid: facts.uid.to_string(),
        name: facts.key.name.clone(),
        namespace: facts.key.namespace.clone(),
        reason,
    }
}

fn leaving(here: Here<'_>, present: Present<'_>) -> Standing {
    match present.report.filter(|_| here.in_this_boot()) {
        Some(report) if report.state == Some(ModuleState::UnloadFailed) => {
            let why = report.reason.clone().unwrap_or_else(|| "UnloadFailed".to_owned());
            Standing::Stuck(Trouble::new(why, report.message.clone().unwrap_or_default()))
        }
        Some(_) | None => Standing::Leaving,
    }
}
