//! Which Module an entry of a NodeModulesConfig belongs to: by UID where it has one, else (an object of the pod-based
//! worker) by name.

use crate::api::{NodeModuleSpec, NodeModuleStatus};

use super::module::ModuleFacts;

/// What names a Module.
pub trait Belongs {
    /// Whether it is that of this Module.
    fn belongs_to(&self, module: &ModuleFacts) -> bool;
}

fn belongs(uid: Option<&str>, namespace: &str, name: &str, module: &ModuleFacts) -> bool {
    match uid.filter(|uid| !uid.is_empty()) {
        Some(uid) => *uid == *module.uid,
        None => namespace == module.key.namespace && name == module.key.name,
    }
}

impl Belongs for NodeModuleSpec {
    fn belongs_to(&self, module: &ModuleFacts) -> bool {
        belongs(self.module_uid.as_deref(), &self.namespace, &self.name, module)
    }
}

impl Belongs for NodeModuleStatus {
    fn belongs_to(&self, module: &ModuleFacts) -> bool {
        belongs(self.module_uid.as_deref(), &self.namespace, &self.name, module)
    }
}
