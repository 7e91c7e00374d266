//! Modules of the kernel itself that made room for a Module, and their way back.
//!
//! One comes back when the Module leaves for good, or when what it made room for could not be loaded, if the Module's
//! policy asks for it, and never while another Module wants it gone.

use super::desired::Desired;
use super::job::Step;
use super::observed::Observed;
use crate::api::{NodeModuleSpec, UnloadReason};
use crate::core::load;
use crate::worker::record::{Owner, TakenOut};

/// How often loading one again is tried before the removal of the Module counts as done without it.
const MAX_TRIES: u32 = 3;

/// Whether the policy of the entry asks for them.
fn asks(spec: &NodeModuleSpec) -> bool {
    spec.policy.is_some_and(|policy| policy.restore_in_tree_modules)
}

/// What made room for this Module and for no other one, the last one first.
fn made_room<'a>(observed: &'a Observed, spec: &NodeModuleSpec) -> Vec<&'a TakenOut> {
    let owner = Owner::of(spec);
    let named = load::in_tree(&spec.config);
    let taken = observed.record.in_tree.iter().rev();
    taken
        .filter(|taken| taken.owner == owner || named.contains(&taken.name))
        .filter(|taken| !wants_gone(observed, &owner, &taken.name))
        .collect()
}

/// Whether another Module, wanted or loaded, has the name in its list, or has a module of that name itself.
fn wants_gone(observed: &Observed, owner: &Owner, name: &str) -> bool {
    let wanted = observed.desired.modules.iter().map(|desired| &desired.spec).filter(|spec| {
        let owner = Owner::of(spec);
        observed.intent(&owner, spec.generation.unwrap_or(0)).is_none()
    });
    let recorded = observed.record.entries.iter().map(|entry| &entry.spec);
    let lists = |spec: &NodeModuleSpec| load::in_tree(&spec.config).iter().any(|listed| listed == name);
    wanted.chain(recorded).any(|spec| Owner::of(spec) != *owner && lists(spec))
        || observed.record.entries.iter().any(|entry| entry.owner() != *owner && entry.module(name).is_some())
}

/// Steps after the Module's own modules have left for good.
pub(super) fn after_removal(observed: &Observed, spec: &NodeModuleSpec) -> Vec<Step> {
    let made_room = made_room(observed, spec);
    let back = made_room.iter().filter(|taken| asks(spec) && taken.failures < MAX_TRIES);
    let mut steps: Vec<Step> = back.map(|taken| Step::PutBack(taken.name.clone())).collect();
    if !made_room.is_empty() {
        steps.push(Step::ForgetTakenOut(made_room.iter().map(|taken| taken.name.clone()).collect()));
    }
    steps
}

/// Steps for what made room for a Module that is neither wanted nor recorded any more: it never came to a record, because
/// the worker ended before. An order that only makes room for another file is waited for.
pub(super) fn left_over(observed: &Observed) -> Vec<Step> {
    let belongs = |owner: &Owner| {
        observed.record.entry(owner).is_some()
            || observed.desired.modules.iter().map(Desired::owner).any(|of| of == *owner)
            || observed
                .desired
                .unload
                .iter()
                .any(|intent| intent.module_uid == owner.uid && intent.reason == UnloadReason::Changed)
    };
    let taken = observed.record.in_tree.iter().rev();
    let left: Vec<&TakenOut> =
        taken.filter(|taken| !belongs(&taken.owner) && !wants_gone(observed, &taken.owner, &taken.name)).collect();
    let back = left.iter().filter(|taken| taken.restore && taken.failures < MAX_TRIES);
    let mut steps: Vec<Step> = back.map(|taken| Step::PutBack(taken.name.clone())).collect();
    if !left.is_empty() {
        steps.push(Step::ForgetTakenOut(left.iter().map(|taken| taken.name.clone()).collect()));
    }
    steps
}

/// Steps before `leaving` are taken out to make room for a load.
pub(super) fn before_load(observed: &Observed, spec: &NodeModuleSpec, leaving: &[String]) -> Vec<Step> {
    let owner = Owner::of(spec);
    let mut steps: Vec<Step> = leaving
        .iter()
        .map(|name| Step::TakeOut { name: name.clone(), owner: owner.clone(), restore: asks(spec) })
        .collect();
    if asks(spec) {
        let now = leaving.iter().rev().filter(|name| !wants_gone(observed, &owner, name)).cloned();
        let earlier = made_room(observed, spec).into_iter().map(|taken| taken.name.clone());
        let back: Vec<Step> = now.chain(earlier.filter(|name| !leaving.contains(name))).map(Step::PutBack).collect();
        if !back.is_empty() {
            steps.push(Step::OnFailure(back));
        }
    }
    steps
}
