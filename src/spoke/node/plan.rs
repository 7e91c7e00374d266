//! The whole NodeModulesConfig of one node, from all Modules.
//!
//! Two rules stand above all others. Absence is never an order: only a Module that is there, and that is being deleted,
//! has nothing to load, does not select the node or asks for another file, makes an intent to unload. And whatever
//! cannot be told (no mapping, no digest, a taint, a node that is not ready) leaves an entry as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::names::{NodeReason, ready_label};
use crate::api::{
    LoadPolicy, ModuleConfig, ModuleState, NodeModuleSpec, NodeModuleStatus, NodeModulesConfigSpec, OnChange,
    OnRemoval, UnloadIntent, UnloadReason,
};
use crate::core::taints::{effective_tolerations, first_untolerated};
use crate::spoke::outcome::{Outcome, Standing, Trouble};
use crate::spoke::view::{ConfigView, ModuleFacts, NodeView};

use super::consumers::{Consumer, hold_back};
use super::entry::{Belongs, same_in_kernel};
use super::labels;
use super::standing::standing;

/// What a node's plan is made from.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Name of the node, and of its NodeModulesConfig.
    pub name: String,
    /// The Node, if there is one.
    pub node: Option<Arc<NodeView>>,
    /// The NodeModulesConfig, if there is one.
    pub config: Option<Arc<ConfigView>>,
    /// Every Module of the cluster.
    pub modules: Vec<ModuleHere>,
    /// Pods on the node that use kernel modules, ordered by name.
    pub consumers: Vec<Consumer>,
}

/// One Module, as seen from this node.
#[derive(Clone, Debug)]
pub struct ModuleHere {
    /// The Module.
    pub facts: Arc<ModuleFacts>,
    /// What it wants here.
    pub want: Want,
}

/// What a Module wants on a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Want {
    /// Not to be here.
    Gone(UnloadReason),
    /// To be here, but no mapping fits the kernel.
    Unmapped,
    /// To be here, but the mapping cannot be carried out.
    Invalid(String),
    /// To be here, but the image's digest is not known.
    NoImage(Box<Trouble>),
    /// It cannot be told, because the Module cannot be read.
    Unclear,
    /// To be here, like this; the generation of the entry is still open.
    Here(Box<NodeModuleSpec>),
}

/// What is to be written about a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The NodeModulesConfig.
    pub config: ConfigAction,
    /// Changes of the Node's labels: a value, or `None` for removal. Empty if nothing changes.
    pub labels: BTreeMap<String, Option<String>>,
    /// What the node means for each Module that it concerns, by UID. `None` if the node is gone.
    pub outcomes: Option<BTreeMap<Arc<str>, Outcome>>,
}

/// What happens to the NodeModulesConfig.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfigAction {
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
pub fn plan(observed: &Observed) -> Plan {
    let Some(node) = observed.node.as_deref() else { return without_node(observed.config.as_deref()) };
    // An object of an earlier Node of this name is on its way out and says nothing about this one.
    let foreign = observed.config.as_deref().filter(|config| config.owner.as_ref().is_some_and(|uid| *uid != node.uid));
    let config = if foreign.is_some() { None } else { observed.config.as_deref() };

    let here = Here { node, config };
    let mut drafts: Vec<Draft> = observed.modules.iter().map(|module| here.draft(module)).collect();
    let mut spec = NodeModulesConfigSpec { container_runtime: here.runtime(), ..NodeModulesConfigSpec::default() };
    here.keep_unknown(&observed.modules, &mut drafts, &mut spec);
    spec.modules.extend(drafts.iter().filter_map(|draft| draft.entry.clone()));
    spec.unload.extend(drafts.iter().filter_map(|draft| draft.intent.clone()));
    let held = hold_back(config, &observed.consumers, &mut spec);
    for draft in &mut drafts {
        if let Some(trouble) = held.get(&draft.facts.key) {
            draft.wait(trouble, &spec);
        }
    }
    spec.modules.sort_by(|a, b| (&a.namespace, &a.name, &a.module_uid).cmp(&(&b.namespace, &b.name, &b.module_uid)));
    spec.unload.sort_by(|a, b| (&a.namespace, &a.name, &a.module_uid).cmp(&(&b.namespace, &b.name, &b.module_uid)));

    let outcomes: BTreeMap<_, _> = drafts
        .into_iter()
        .map(|draft| (Arc::clone(&draft.facts.uid), draft.outcome(node)))
        .filter(|(_, outcome)| outcome.is_relevant())
        .collect();
    let action = match foreign {
        Some(foreign) => {
            ConfigAction::Delete { uid: foreign.uid.clone(), resource_version: foreign.resource_version.clone() }
        }
        None => here.config_action(spec.clone()),
    };
    let exists = observed.config.is_some() || matches!(action, ConfigAction::Apply { .. });
    let lost = observed.modules.iter().filter(|module| !matches!(module.want, Want::Gone(_)));
    let lost = lost.map(|module| &*module.facts).filter(|facts| here.may_have_lost(facts));
    let lost = lost.map(|facts| (facts.key.namespace.as_str(), facts.key.name.as_str())).collect();
    let labels = labels::changes(node, config, &spec, &held, &lost, exists);
    Plan { config: action, labels, outcomes: Some(outcomes) }
}

/// A node that is gone loads nothing. Its object goes by its owner reference; one that has no owner would stay for ever.
fn without_node(config: Option<&ConfigView>) -> Plan {
    let action = match config {
        Some(config) if config.owner.is_none() => {
            ConfigAction::Delete { uid: config.uid.clone(), resource_version: config.resource_version.clone() }
        }
        Some(_) | None => ConfigAction::Nothing,
    };
    Plan { config: action, labels: BTreeMap::new(), outcomes: None }
}

/// The node and what stands about it.
#[derive(Clone, Copy)]
struct Here<'a> {
    node: &'a NodeView,
    config: Option<&'a ConfigView>,
}

/// What becomes of one Module's part.
struct Draft<'a> {
    facts: &'a ModuleFacts,
    entry: Option<NodeModuleSpec>,
    intent: Option<UnloadIntent>,
    standing: Standing,
    /// Whether the Module does not want to be here.
    leaves: bool,
    /// Whether the object names the Module now.
    named: bool,
    kernel: Option<Arc<str>>,
}

impl Draft<'_> {
    /// The Module's part is what `spec` says of it, until its pods have left.
    fn wait(&mut self, trouble: &Trouble, spec: &NodeModulesConfigSpec) {
        self.entry = spec.modules.iter().find(|entry| entry.belongs_to(self.facts)).cloned();
        self.intent = spec.unload.iter().find(|intent| *intent.module_uid == *self.facts.uid).cloned();
        self.standing = Standing::WaitingForConsumers { leaves: self.leaves, why: Box::new(trouble.clone()) };
    }

    fn outcome(self, node: &NodeView) -> Outcome {
        Outcome {
            kernel: self.kernel,
            standing: self.standing,
            holds: !node.released && (self.named || self.entry.is_some() || self.intent.is_some()),
            saw_deletion: self.facts.deleting,
        }
    }
}

impl<'a> Here<'a> {
    /// The node's container runtime; while a kubelet that starts anew has not told it, the one that was known.
    fn runtime(self) -> Option<String> {
        let told = Some(&self.node.runtime).filter(|runtime| !runtime.is_empty());
        told.or(self.config.and_then(|config| config.spec.container_runtime.as_ref())).cloned()
    }

    fn entries(self) -> &'a [NodeModuleSpec] {
        self.config.map(|config| config.spec.modules.as_slice()).unwrap_or_default()
    }

    fn intents(self) -> &'a [UnloadIntent] {
        self.config.map(|config| config.spec.unload.as_slice()).unwrap_or_default()
    }

    fn reports(self) -> &'a [NodeModuleStatus] {
        self.config.map(|config| config.report.modules.as_slice()).unwrap_or_default()
    }

    /// Whether a worker of the node's present boot has spoken.
    fn in_this_boot(self) -> bool {
        self.config.is_some_and(|config| {
            !self.node.boot_id.is_empty() && config.report.boot_id.as_deref() == Some(self.node.boot_id.as_str())
        })
    }

    /// Whether the worker of the present boot has taken the present specification into its record.
    fn is_settled(self) -> bool {
        self.in_this_boot()
            && self.config.is_some_and(|config| config.report.observed_generation == Some(config.generation))
    }

    fn draft(self, module: &'a ModuleHere) -> Draft<'a> {
        let facts = &*module.facts;
        let entry = self.entries().iter().find(|entry| entry.belongs_to(facts));
        let intent = self.intents().iter().find(|intent| *intent.module_uid == *facts.uid);
        let report = self.reports().iter().find(|report| report.belongs_to(facts));
        let ordered = entry.is_some() || intent.is_some();
        let (entry, intent, stand) = match &module.want {
            Want::Gone(reason) => match self.on_removal(facts, entry, report) {
                Some(OnRemoval::Keep) => self.kept(facts, entry, intent, report),
                on_removal => self.gone(facts, *reason, on_removal.is_none(), entry, intent, report),
            },
            Want::Here(wanted) => self.wanted(facts, wanted, entry, intent, report),
            Want::Unclear => (entry.cloned(), intent.cloned(), Standing::Elsewhere),
            Want::Unmapped if entry.is_none() && report.is_none() => (None, None, Standing::Unmapped),
            Want::Unmapped => {
                let message = format!("no kernel mapping fits {}; what is loaded stays", self.node.kernel);
                keep(entry, intent, Standing::Failing(Trouble::new("NoMatchingKernel", message)))
            }
            Want::Invalid(why) => keep(entry, intent, Standing::Failing(Trouble::new("InvalidSpec", why))),
            Want::NoImage(trouble) => match self.first_placement(facts, entry, intent, report) {
                Some(standing) => (None, None, standing),
                None => keep(entry, intent, Standing::NoImage(trouble.clone())),
            },
        };
        let kernel = match (&module.want, &stand) {
            (Want::Here(_) | Want::NoImage(_), Standing::Tainted) => None,
            (Want::Here(_) | Want::NoImage(_), _) => Some(Arc::clone(&self.node.kernel)),
            (Want::Gone(_) | Want::Unmapped | Want::Unclear | Want::Invalid(_), _) => None,
        };
        // What is kept by the policy is nobody's any more: its report holds nothing up.
        let named = ordered || report.is_some_and(|_| stand != Standing::Kept);
        let leaves = matches!(module.want, Want::Gone(_));
        Draft { facts, entry, intent, standing: stand, leaves, named, kernel }
    }

    /// Why a node that never had the module does not get it yet; `None` where it may, or already has it.
    fn first_placement(
        self,
        facts: &ModuleFacts,
        entry: Option<&NodeModuleSpec>,
        intent: Option<&UnloadIntent>,
        report: Option<&NodeModuleStatus>,
    ) -> Option<Standing> {
        if entry.is_some() || intent.is_some() || report.is_some() || self.may_have_lost(facts) {
            return None;
        }
        let tolerations = effective_tolerations(Some(&facts.spec.tolerations));
        if first_untolerated(&self.node.taints, &tolerations).is_some() {
            return Some(Standing::Tainted);
        }
        (!self.node.ready || !facts.has_finalizer()).then_some(Standing::Waiting)
    }

    fn wanted(
        self,
        facts: &ModuleFacts,
        wanted: &NodeModuleSpec,
        entry: Option<&NodeModuleSpec>,
        intent: Option<&UnloadIntent>,
        report: Option<&NodeModuleStatus>,
    ) -> (Option<NodeModuleSpec>, Option<UnloadIntent>, Standing) {
        if let Some(standing) = self.first_placement(facts, entry, intent, report) {
            return (None, None, standing);
        }
        let (next, intent) = super::replace::next_entry(&super::replace::Situation {
            generation: facts.generation,
            wanted,
            entry,
            intent,
            report,
            in_this_boot: self.in_this_boot(),
            settled: self.is_settled(),
        });
        let standing = standing(self.node, self.config, &next, intent.as_ref(), report, self.in_this_boot());
        (Some(next), intent, standing)
    }

    /// What the policy says of a Module that leaves the node; `None` if nobody here knows it.
    ///
    /// It is the Module's, as it is now. A Module without `moduleLoader` has none any more: then that of its entry
    /// counts, and after that what the worker says of its record.
    fn on_removal(
        self,
        facts: &ModuleFacts,
        entry: Option<&NodeModuleSpec>,
        report: Option<&NodeModuleStatus>,
    ) -> Option<OnRemoval> {
        let of = |policy: Option<LoadPolicy>| policy.unwrap_or_default().on_removal;
        if let Some(loader) = &facts.spec.module_loader {
            return Some(of(loader.policy));
        }
        if let Some(entry) = entry {
            return Some(of(entry.policy));
        }
        let report = report.filter(|_| self.is_settled())?;
        let kept =
            report.state == Some(ModuleState::Orphaned) && report.reason.as_deref() == Some(NodeReason::Kept.as_str());
        Some(if kept { OnRemoval::Keep } else { OnRemoval::Unload })
    }

    /// A Module that leaves the node and whose kernel module stays: nothing is asked for and nothing ordered.
    fn kept(
        self,
        facts: &ModuleFacts,
        entry: Option<&NodeModuleSpec>,
        intent: Option<&UnloadIntent>,
        report: Option<&NodeModuleStatus>,
    ) -> (Option<NodeModuleSpec>, Option<UnloadIntent>, Standing) {
        if let Some(entry) = entry.filter(|_| facts.spec.module_loader.is_none() && !self.is_settled()) {
            // Nothing but the worker's record will know the policy, so it has to be there first.
            return (Some(entry.clone()), None, Standing::Leaving);
        }
        let here = entry.is_some() || intent.is_some() || report.is_some();
        (None, None, if here { Standing::Kept } else { Standing::Elsewhere })
    }

    fn gone(
        self,
        facts: &ModuleFacts,
        reason: UnloadReason,
        unclear: bool,
        entry: Option<&NodeModuleSpec>,
        intent: Option<&UnloadIntent>,
        report: Option<&NodeModuleStatus>,
    ) -> (Option<NodeModuleSpec>, Option<UnloadIntent>, Standing) {
        let standing = match report.filter(|_| self.in_this_boot()) {
            Some(report) if report.state == Some(ModuleState::UnloadFailed) => {
                let why = report.reason.clone().unwrap_or_else(|| "UnloadFailed".to_owned());
                Standing::Stuck(Trouble::new(why, report.message.clone().unwrap_or_default()))
            }
            Some(_) | None => Standing::Leaving,
        };
        let intent = match (entry, intent) {
            (None, Some(_)) if self.is_settled() && report.is_none() => None,
            (None, Some(intent)) if unclear => Some(intent.clone()),
            // What is loaded may be of a later generation than was known: the intent must cover it.
            (None, Some(intent)) if report.is_none_or(|r| r.observed_generation <= Some(intent.generation)) => {
                Some(intent.clone())
            }
            (None, None) if report.is_none() && !self.may_have_lost(facts) => None,
            // The worker will say whether its record keeps it.
            (None, None) if unclear && report.is_some() => return (None, None, Standing::Leaving),
            (entry, intent) => {
                let generations = [
                    entry.and_then(|e| e.generation),
                    intent.map(|i| i.generation),
                    report.and_then(|r| r.observed_generation),
                ];
                Some(UnloadIntent {
                    // Up to none at first where the policy is not known: the worker will say what it has, and whether its
                    // record keeps it.
                    generation: generations
                        .into_iter()
                        .flatten()
                        .fold(if unclear { 0 } else { facts.generation }, i64::max),
                    module_uid: facts.uid.to_string(),
                    name: facts.key.name.clone(),
                    namespace: facts.key.namespace.clone(),
                    reason,
                })
            }
        };
        let standing = if intent.is_some() { standing } else { Standing::Elsewhere };
        (None, intent, standing)
    }

    /// Whether the Node's label says that the module was loaded, while the object that would say more was lost and its
    /// worker has not spoken since. A worker that finds nothing to unload confirms that at once.
    fn may_have_lost(self, facts: &ModuleFacts) -> bool {
        let (namespace, name) = (&facts.key.namespace, &facts.key.name);
        !self.is_settled()
            && self.node.labels.contains_key(&ready_label(namespace, name))
            && !self.entries().iter().any(|entry| (&entry.namespace, &entry.name) == (namespace, name))
    }

    /// Entries and intents of Modules that are not there: a Module whose object vanished without having been
    /// deleted in order keeps what it has; an intent that was written stays until it is confirmed.
    ///
    /// A Module made again under the same name takes the entry over; if it brings another file, that is the wish to
    /// have the old one replaced, now or, by its policy, at the next boot.
    fn keep_unknown(self, modules: &[ModuleHere], drafts: &mut [Draft<'_>], spec: &mut NodeModulesConfigSpec) {
        let known: BTreeSet<&str> = modules.iter().map(|module| &*module.facts.uid).collect();
        for entry in self.entries() {
            if modules.iter().any(|module| entry.belongs_to(&module.facts)) {
                continue;
            }
            match (successor(drafts, &entry.namespace, &entry.name), &entry.module_uid) {
                (None, _) => spec.modules.push(entry.clone()),
                (Some(next), Some(uid)) if replaces(next, &entry.config) => {
                    spec.unload.push(replaced(next, uid, entry.generation));
                }
                (Some(_), _) => {}
            }
        }
        // So does one whose entry is gone already, because the policy kept its kernel module.
        for report in self.reports().iter().filter(|_| self.in_this_boot()) {
            let (Some(uid), Some(loaded)) = (&report.module_uid, &report.config) else { continue };
            let standing = self.entries().iter().any(|entry| entry.module_uid.as_ref() == Some(uid));
            if known.contains(uid.as_str()) || standing {
                continue;
            }
            if let Some(next) = successor(drafts, &report.namespace, &report.name)
                && next.config.kernel_version == loaded.kernel_version
                && replaces(next, loaded)
            {
                spec.unload.push(replaced(next, uid, report.observed_generation));
            }
        }
        for intent in self.intents().iter().filter(|intent| !known.contains(intent.module_uid.as_str())) {
            let reported =
                self.reports().iter().any(|report| report.module_uid.as_deref() == Some(intent.module_uid.as_str()));
            let confirmed = self.is_settled() && !reported;
            let repeated = spec.unload.iter().any(|other| other.module_uid == intent.module_uid);
            if !confirmed && !repeated {
                spec.unload.push(intent.clone());
            }
        }
    }

    fn config_action(self, spec: NodeModulesConfigSpec) -> ConfigAction {
        let empty = spec.modules.is_empty() && spec.unload.is_empty();
        let labels = labels::of_config(&spec, self.reports());
        match self.config {
            None if empty => ConfigAction::Nothing,
            Some(config) if empty && config.report.modules.is_empty() => {
                ConfigAction::Delete { uid: config.uid.clone(), resource_version: config.resource_version.clone() }
            }
            Some(config)
                if config.spec == spec
                    && config.owner.as_deref() == Some(self.node.uid.as_str())
                    && labels::ours(&config.labels) == labels =>
            {
                ConfigAction::Nothing
            }
            config => {
                let present = config.map(|config| labels::ours(&config.labels)).unwrap_or_default();
                ConfigAction::Apply {
                    resource_version: config.map(|config| config.resource_version.clone()),
                    owner: self.node.uid.clone(),
                    stale_labels: present.into_keys().filter(|key| !labels.contains_key(key)).collect(),
                    labels,
                    spec,
                }
            }
        }
    }
}

/// The entry of a Module that was made again under this name.
fn successor<'a>(drafts: &'a [Draft<'_>], namespace: &str, name: &str) -> Option<&'a NodeModuleSpec> {
    let mut entries = drafts.iter().filter_map(|draft| draft.entry.as_ref());
    entries.find(|entry| (entry.namespace.as_str(), entry.name.as_str()) == (namespace, name))
}

/// Whether the entry wants what is loaded replaced at once.
fn replaces(next: &NodeModuleSpec, loaded: &ModuleConfig) -> bool {
    next.policy.unwrap_or_default().on_change == OnChange::Reload && !same_in_kernel(&next.config, loaded)
}

/// The intent by which what an earlier Module of the name has makes room.
fn replaced(next: &NodeModuleSpec, uid: &str, generation: Option<i64>) -> UnloadIntent {
    UnloadIntent {
        generation: generation.unwrap_or_default(),
        module_uid: uid.to_owned(),
        name: next.name.clone(),
        namespace: next.namespace.clone(),
        reason: UnloadReason::Changed,
    }
}

/// Leaves an entry as it is. An intent that is there because the Module was not wanted is withdrawn; one that replaces
/// the file goes on.
fn keep(
    entry: Option<&NodeModuleSpec>,
    intent: Option<&UnloadIntent>,
    standing: Standing,
) -> (Option<NodeModuleSpec>, Option<UnloadIntent>, Standing) {
    let replacing = intent.filter(|intent| entry.is_some() && intent.reason == UnloadReason::Changed);
    (entry.cloned(), replacing.cloned(), standing)
}
