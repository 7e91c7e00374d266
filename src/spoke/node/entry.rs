//! Entries of a NodeModulesConfig: how one is made from a Module, and whose one is.

use crate::api::names::DEFAULT_SERVICE_ACCOUNT;
use crate::api::{ModuleConfig, NodeModuleSpec, NodeModuleStatus, TLSOptions};
pub use crate::core::kernel::trimmed;
pub use crate::core::load::same_in_kernel;
use crate::core::pin::Pinned;
use crate::core::taints::effective_tolerations;
use crate::spoke::view::ModuleFacts;

/// The entry by which `module` is wanted with `image`; its generation and the pull secrets of the service account are
/// still open. `None` without `moduleLoader`.
pub fn build_entry(
    module: &ModuleFacts,
    kernel: &str,
    image: Pinned,
    resolved: &crate::core::mapping::Resolved,
) -> Option<NodeModuleSpec> {
    let loader = module.spec.module_loader.as_ref()?;
    let tls = &resolved.registry_tls;
    let policy = loader.container.image_pull_policy.clone();
    Some(NodeModuleSpec {
        config: ModuleConfig {
            container_image: image.image,
            image_pull_policy: policy.unwrap_or_else(|| ModuleConfig::default().image_pull_policy),
            in_tree_module_to_remove: None,
            in_tree_modules_to_remove: resolved.in_tree_modules_to_remove.clone(),
            insecure_pull: tls.insecure || tls.insecure_skip_tls_verify,
            kernel_version: trimmed(kernel).to_owned(),
            modprobe: loader.container.modprobe.clone(),
            registry_tls: Some(tls.clone()).filter(|tls| *tls != TLSOptions::default()),
        },
        generation: None,
        image_pull_secrets: Vec::new(),
        image_source: Some(image.source).filter(|source| !source.is_empty()),
        image_repo_secret: module.spec.image_repo_secret.clone(),
        module_uid: Some(module.uid.to_string()),
        name: module.key.name.clone(),
        namespace: module.key.namespace.clone(),
        policy: loader.policy,
        service_account_name: loader.service_account_name.clone().unwrap_or_else(|| DEFAULT_SERVICE_ACCOUNT.to_owned()),
        tolerations: effective_tolerations(Some(&module.spec.tolerations)),
        version: loader.container.version.clone(),
    })
}

/// Which Module an entry belongs to: by UID where it has one, else (an object of the pod-based worker) by name.
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
