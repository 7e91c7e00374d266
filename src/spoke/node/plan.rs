//! The whole NodeModulesConfig of one node, from all Modules.
//!
//! Two rules stand above all others. Absence is never an order: only a Module that is there, and that is being deleted,
//! has nothing to load, does not select the node or asks for another file, makes an intent to unload. And whatever
//! cannot be told (no mapping, no digest, a taint, a node that is not ready) leaves an entry as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::NodeModulesConfigSpec;
use crate::spoke::outcome::Outcome;
use crate::spoke::view::ConfigView;

use super::draft::Draft;
use super::here::Here;
use super::hold_back::hold_back;
use super::labels;
use super::left_behind;
use super::observe::{Observed, Want};
use super::share::Shares;
use super::unreadable;

/// What is to be written about a node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// The NodeModulesConfig.
    pub config: ConfigAction,
    /// `metadata.uid` of the Node, empty if it is gone.
    pub node: String,
    /// Changes of the Node's labels: a value, or `None` for removal. Empty if nothing changes.
    pub labels: BTreeMap<String, Option<String>>,
    /// What the node means for each Module that it concerns, by UID. `None` if the node is gone.
    pub outcomes: Option<BTreeMap<Arc<str>, Outcome>>,
}

/// What happens to the NodeModulesConfig.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ConfigAction {
    /// It is as it should be.
    Nothing,
    /// It is written as a whole.
    Apply {
        /// `metadata.resourceVersion` of the object that was observed, `None` if there was none: if that is not
        /// what the server has, nothing is written.
        resource_version: Option<String>,
        /// UID of the Node that owns it.
        owner: String,
        /// Labels by which people and tools find it.
        labels: BTreeMap<String, String>,
        /// Labels that are there and say something that is not so any more.
        stale_labels: Vec<String>,
        /// The specification.
        spec: NodeModulesConfigSpec,
    },
    /// It is removed if it is still the one that was observed.
    Delete {
        /// `metadata.uid`.
        uid: String,
        /// `metadata.resourceVersion`.
        resource_version: String,
    },
}

/// The plan for one node. Applied, the next plan of the same world is empty.
pub(super) fn plan(observed: &Observed) -> Plan {
    let Some(node) = observed.node.as_deref() else { return without_node(observed.config.as_deref()) };
    // An object of an earlier Node of this name is on its way out and says nothing about this one.
    let foreign = observed.config.as_deref().filter(|config| config.owner.as_ref().is_some_and(|uid| *uid != node.uid));
    let config = if foreign.is_some() { None } else { observed.config.as_deref() };
    if let Some(config) = config
        && let Some(error) = &config.unreadable
    {
        let outcomes = unreadable::outcomes(node, config, error, &observed.modules);
        let (config, labels) = (ConfigAction::Nothing, BTreeMap::new());
        return Plan { config, node: node.uid.clone(), labels, outcomes: Some(outcomes) };
    }
    let here = Here { node, config, tolerations: &observed.tolerations };

    let mut drafts: Vec<Draft> = observed.modules.iter().map(|module| Draft::of(here, module)).collect();
    let mut shares = Shares::default();
    for draft in &mut drafts {
        if let Some(entry) = draft.part.entry.take() {
            shares.ask(entry);
        }
        if let Some(intent) = draft.part.intent.take() {
            shares.order(intent);
        }
    }
    left_behind::keep(here, &observed.modules, &mut shares);
    let held = hold_back(here, &observed.consumers, &mut shares);
    let spec = shares.spec(here.runtime());

    let outcome = |draft: Draft<'_>| {
        let key = &draft.facts.key;
        (Arc::clone(&draft.facts.uid), draft.outcome(here, shares.get(key), held.get(key)))
    };
    let outcomes: BTreeMap<_, _> =
        drafts.into_iter().map(outcome).filter(|(_, outcome)| outcome.is_relevant()).collect();
    let action = match foreign {
        Some(foreign) => {
            ConfigAction::Delete { uid: foreign.uid.clone(), resource_version: foreign.resource_version.clone() }
        }
        None => config_action(here, spec.clone()),
    };
    let exists = observed.config.is_some() || matches!(action, ConfigAction::Apply { .. });
    let lost = observed.modules.iter().filter(|module| !matches!(module.want, Want::Gone(_)));
    let lost = lost.map(|module| &*module.facts).filter(|facts| here.may_have_lost(facts));
    let lost = lost.map(|facts| (facts.key.namespace.as_str(), facts.key.name.as_str())).collect();
    let labels = labels::changes(node, config, &spec, &held, &lost, exists);
    Plan { config: action, node: node.uid.clone(), labels, outcomes: Some(outcomes) }
}

/// A node that is gone loads nothing. Its object goes by its owner reference; one that has no owner would stay for ever.
fn without_node(config: Option<&ConfigView>) -> Plan {
    let action = match config {
        Some(config) if config.owner.is_none() => {
            ConfigAction::Delete { uid: config.uid.clone(), resource_version: config.resource_version.clone() }
        }
        Some(_) | None => ConfigAction::Nothing,
    };
    Plan { config: action, node: String::new(), labels: BTreeMap::new(), outcomes: None }
}

fn config_action(here: Here<'_>, spec: NodeModulesConfigSpec) -> ConfigAction {
    let empty = spec.modules.is_empty() && spec.unload.is_empty();
    let labels = labels::of_config(&spec, here.reports());
    match here.config {
        None if empty => ConfigAction::Nothing,
        Some(config) if empty && config.report.modules.is_empty() => {
            ConfigAction::Delete { uid: config.uid.clone(), resource_version: config.resource_version.clone() }
        }
        Some(config)
            if config.spec == spec
                && config.owner.as_deref() == Some(here.node.uid.as_str())
                && labels::ours(&config.labels) == labels =>
        {
            ConfigAction::Nothing
        }
        config => {
            let present = config.map(|config| labels::ours(&config.labels)).unwrap_or_default();
            ConfigAction::Apply {
                resource_version: config.map(|config| config.resource_version.clone()),
                owner: here.node.uid.clone(),
                stale_labels: present.into_keys().filter(|key| !labels.contains_key(key)).collect(),
                labels,
                spec,
            }
        }
    }
}
