//! What a namespace's plan is made from, out of the stores.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::api::names::PULL_SECRETS_ROLE;
use crate::runtime::store::ObjectKey;
use crate::spoke::stores::Stores;
use crate::spoke::view::{ModuleFacts, RoleBindingView, RoleView};

/// What a namespace's plan is made from.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    /// The Modules in the namespace.
    pub modules: Vec<Arc<ModuleFacts>>,
    /// Pull secrets of the service accounts that they name.
    pub pull_secrets: BTreeSet<String>,
    /// Whether the namespace is marked.
    pub marked: bool,
    /// The Role of workers in the namespace.
    pub role: Option<Arc<RoleView>>,
    /// Its binding.
    pub binding: Option<Arc<RoleBindingView>>,
    /// Service account of the workers.
    pub worker: ObjectKey,
}

/// Everything about one namespace. Only stores are read.
pub(super) fn observe(stores: &Stores, worker: &ObjectKey, name: &str) -> Observed {
    let mut modules = Vec::new();
    stores.modules.for_each(|key, module| {
        if key.namespace == name {
            modules.push(Arc::clone(&module.facts));
        }
    });
    let role = ObjectKey::new(name, PULL_SECRETS_ROLE);
    let pull_secrets = modules.iter().flat_map(|module| stores.pull_secrets(module)).map(|secret| secret.name);
    Observed {
        pull_secrets: pull_secrets.collect(),
        modules,
        marked: stores.namespaces.get(&ObjectKey::cluster(name)).is_some(),
        role: stores.roles.get(&role),
        binding: stores.bindings.get(&role),
        worker: worker.clone(),
    }
}
