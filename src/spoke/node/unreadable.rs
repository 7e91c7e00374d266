//! A node whose NodeModulesConfig was never readable: nothing is written, and every Module that it may name waits.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::names::{ModuleReason, module_in_use_label};
use crate::core::label;
use crate::spoke::outcome::{Outcome, Standing, Trouble};
use crate::spoke::view::{ConfigView, ModuleFacts, NodeView};

use super::observe::{ModuleHere, Want};

/// What the node means for each Module.
pub(super) fn outcomes(
    node: &NodeView,
    config: &ConfigView,
    error: &str,
    modules: &[ModuleHere],
) -> BTreeMap<Arc<str>, Outcome> {
    let message = format!("its NodeModulesConfig cannot be read, and stays as it is: {error}");
    let why = Trouble::new(ModuleReason::Unreadable.as_str(), message);
    let outcome = |module: &ModuleHere| {
        let named = may_name(config, &module.facts);
        let standing = match &module.want {
            Want::Gone(_) if named => Standing::Stuck(Arc::clone(&why)),
            Want::Gone(_) | Want::Evicted | Want::Unclear => Standing::Elsewhere,
            Want::Unmapped(_) | Want::Invalid(_) | Want::NoImage(_) | Want::Here(_) => {
                Standing::Failing(Arc::clone(&why))
            }
        };
        let kernel = node.kernel.as_ref().ok().filter(|_| matches!(module.want, Want::Here(_) | Want::NoImage(_)));
        let holds = named && !node.released && module.want != Want::Evicted;
        (Arc::clone(&module.facts.uid), Outcome { kernel: kernel.cloned(), standing, holds })
    };
    modules.iter().map(outcome).filter(|(_, outcome)| outcome.is_relevant()).collect()
}

/// Whether the object may name the Module, by its labels; of a name that is too long for one they tell nothing.
fn may_name(config: &ConfigView, facts: &ModuleFacts) -> bool {
    let in_use = module_in_use_label(&facts.key.namespace, &facts.key.name);
    config.labels.contains_key(&in_use) || !label::is_key(&in_use)
}
