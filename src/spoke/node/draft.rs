//! What becomes of a Module's part of the NodeModulesConfig, if no pod stands in the way.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;

use crate::api::names::ModuleReason;
use crate::api::{NodeModuleSpec, UnloadReason};
use crate::core::kernel::KernelVersion;
use crate::core::taints::{effective_tolerations, first_untolerated, written};
use crate::spoke::outcome::{Outcome, Standing, Trouble};
use crate::spoke::view::ModuleFacts;

use super::here::{Here, Part, Present};
use super::observe::{ModuleHere, Want};
use super::removal::{kept, removed};
use super::replace::{Situation, next_entry};
use super::share::Share;
use super::standing::standing;

/// What one Module means for the node, and the node for it.
pub(super) struct Draft<'a> {
    /// The Module.
    pub facts: &'a ModuleFacts,
    /// Its part; what it holds goes into the object if no pod stands in the way.
    pub part: Part,
    /// Whether the Module does not want to be here.
    leaves: bool,
    /// Whether the object names the Module now.
    named: bool,
    kernel: Option<KernelVersion>,
}

impl<'a> Draft<'a> {
    /// The draft for one Module.
    pub(super) fn of(here: Here<'a>, module: &'a ModuleHere) -> Self {
        let facts = &*module.facts;
        let present = here.present(facts);
        let part = part(here, facts, &module.want, present);
        let kernel = match (&module.want, &part.standing) {
            (Want::Here(_) | Want::NoImage(_), Standing::Tainted(_)) => None,
            (Want::Here(_) | Want::NoImage(_), _) => here.node.kernel.as_ref().ok().cloned(),
            (Want::Gone(_) | Want::Evicted | Want::Unmapped(_) | Want::Unclear | Want::Invalid(_), _) => None,
        };
        // What is kept by the policy is nobody's any more: its report holds nothing up.
        let reported = present.report.is_some() && part.standing != Standing::Kept;
        let named = present.entry.is_some() || present.intent.is_some() || reported;
        Self { facts, part, leaves: matches!(module.want, Want::Gone(_)), named, kernel }
    }

    /// What the node means for the Module, once `share` is what the object says under its name.
    pub(super) fn outcome(self, here: Here<'_>, share: Option<&Share>, held: Option<&Arc<Trouble>>) -> Outcome {
        let waiting = |why: &Arc<Trouble>| Standing::WaitingForConsumers { leaves: self.leaves, why: Arc::clone(why) };
        let named = self.named || share.is_some_and(|share| share.names(self.facts));
        Outcome {
            kernel: self.kernel,
            holds: !here.node.released && named,
            standing: held.map_or(self.part.standing, waiting),
        }
    }
}

fn part(here: Here<'_>, facts: &ModuleFacts, want: &Want, present: Present<'_>) -> Part {
    match want {
        Want::Gone(reason) => removed(here, facts, *reason, present),
        Want::Evicted => kept(here, facts, present),
        Want::Here(wanted) => match first_placement(here, facts, present) {
            Some(standing) => Part::nothing(standing),
            None => placed(here, facts, wanted, present),
        },
        Want::Unclear => {
            Part { entry: present.entry.cloned(), intent: present.intent.cloned(), standing: Standing::Elsewhere }
        }
        Want::Unmapped(why) => {
            let loaded = here.in_this_boot() && present.report.is_some_and(|report| report.config.is_some());
            let standing = Standing::Unmapped { awaits: !loaded && !present.is_nothing(), why: Arc::clone(why) };
            kept_once_placed(here, facts, present, standing)
        }
        Want::Invalid(why) => {
            let why = Trouble::new(ModuleReason::InvalidSpec.as_str(), why);
            let never = present.is_nothing();
            let standing = if never { Standing::Unmapped { awaits: false, why } } else { Standing::Failing(why) };
            kept_once_placed(here, facts, present, standing)
        }
        Want::NoImage(why) => kept_once_placed(here, facts, present, Standing::NoImage(Arc::clone(why))),
    }
}

/// Leaves what stands as it is where nothing better is known, once the node may have the module at all.
fn kept_once_placed(here: Here<'_>, facts: &ModuleFacts, present: Present<'_>, standing: Standing) -> Part {
    match first_placement(here, facts, present) {
        Some(standing) => Part::nothing(standing),
        None => keep(present, standing),
    }
}

/// Why a node that never had the module does not get it yet; `None` where it may, or already has it.
fn first_placement(here: Here<'_>, facts: &ModuleFacts, present: Present<'_>) -> Option<Standing> {
    if !present.is_nothing() || here.may_have_lost(facts) {
        return None;
    }
    let mut tolerations = effective_tolerations(Some(&facts.spec.tolerations));
    tolerations.extend_from_slice(here.tolerations);
    if let Some(taint) = first_untolerated(&here.node.taints, &tolerations) {
        return Some(Standing::Tainted(tainted(taint)));
    }
    (!facts.has_finalizer()).then_some(Standing::Waiting)
}

fn tainted(taint: &Taint) -> Arc<Trouble> {
    let written = written(taint);
    let message = format!(
        "taint {written} is not tolerated: tolerate it in spec.tolerations, or for every Module with --tolerations \
         (KMM_TOLERATIONS) {written} of the manager"
    );
    Trouble::new(ModuleReason::NodesTainted.as_str(), message)
}

fn placed(here: Here<'_>, facts: &ModuleFacts, wanted: &NodeModuleSpec, present: Present<'_>) -> Part {
    let (entry, intent) = next_entry(&Situation {
        generation: facts.generation,
        wanted,
        present,
        in_this_boot: here.in_this_boot(),
        settled: here.is_settled(),
    });
    let standing = standing(here, &entry, intent.as_ref(), present.report);
    Part { entry: Some(entry), intent, standing }
}

/// Leaves an entry as it is. An intent that is there because the Module was not wanted is withdrawn; one that replaces
/// the file goes on.
fn keep(present: Present<'_>, standing: Standing) -> Part {
    let replacing = present.intent.filter(|intent| present.entry.is_some() && intent.reason == UnloadReason::Changed);
    Part { entry: present.entry.cloned(), intent: replacing.cloned(), standing }
}
