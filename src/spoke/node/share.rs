//! What a NodeModulesConfig says under the name of one Module: of the Module there is, and of earlier ones of its name.

use std::collections::BTreeMap;

use crate::api::{NodeModuleSpec, NodeModulesConfigSpec, UnloadIntent};
use crate::runtime::store::ObjectKey;
use crate::spoke::view::{Belongs, ModuleFacts};

/// What stands under one name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Share {
    /// What is asked for.
    pub modules: Vec<NodeModuleSpec>,
    /// What is ordered.
    pub unload: Vec<UnloadIntent>,
}

impl Share {
    /// Whether nothing stands there.
    pub(super) fn is_empty(&self) -> bool {
        self.modules.is_empty() && self.unload.is_empty()
    }

    /// Whether any of it is this Module's.
    pub(super) fn names(&self, facts: &ModuleFacts) -> bool {
        self.modules.iter().any(|entry| entry.belongs_to(facts))
            || self.unload.iter().any(|intent| *intent.module_uid == *facts.uid)
    }
}

/// A whole specification, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shares(pub(super) BTreeMap<ObjectKey, Share>);

impl Shares {
    /// Those of a specification.
    pub(super) fn of(spec: &NodeModulesConfigSpec) -> Self {
        let mut shares = Self::default();
        spec.modules.iter().for_each(|entry| shares.ask(entry.clone()));
        spec.unload.iter().for_each(|intent| shares.order(intent.clone()));
        shares
    }

    /// What stands under a name.
    pub(super) fn get(&self, module: &ObjectKey) -> Option<&Share> {
        self.0.get(module)
    }

    /// Adds what is asked for.
    pub(super) fn ask(&mut self, entry: NodeModuleSpec) {
        self.of_name(&entry.namespace, &entry.name).modules.push(entry);
    }

    /// Adds what is ordered.
    pub(super) fn order(&mut self, intent: UnloadIntent) {
        self.of_name(&intent.namespace, &intent.name).unload.push(intent);
    }

    fn of_name(&mut self, namespace: &str, name: &str) -> &mut Share {
        self.0.entry(ObjectKey::new(namespace, name)).or_default()
    }

    /// The specification: by namespace, name and UID.
    pub(super) fn spec(&self, container_runtime: Option<String>) -> NodeModulesConfigSpec {
        let mut spec = NodeModulesConfigSpec { container_runtime, ..NodeModulesConfigSpec::default() };
        for share in self.0.values() {
            let (modules, orders) = (spec.modules.len(), spec.unload.len());
            spec.modules.extend_from_slice(&share.modules);
            spec.unload.extend_from_slice(&share.unload);
            spec.modules[modules..].sort_by(|a, b| a.module_uid.cmp(&b.module_uid));
            spec.unload[orders..].sort_by(|a, b| a.module_uid.cmp(&b.module_uid));
        }
        spec
    }
}
