//! How an entry of a NodeModulesConfig is made from a Module.

use crate::api::names::DEFAULT_SERVICE_ACCOUNT;
use crate::api::{ModuleConfig, NodeModuleSpec, TLSOptions};
use crate::core::kernel::KernelVersion;
use crate::core::mapping::Resolved;
use crate::core::pin::Pinned;
use crate::core::taints::effective_tolerations;
use crate::spoke::view::ModuleFacts;

/// The entry by which `module` is wanted with `image`; its generation and the pull secrets of the service account are
/// still open. `None` without `moduleLoader`.
pub(super) fn build_entry(
    module: &ModuleFacts,
    kernel: &KernelVersion,
    image: Pinned,
    resolved: &Resolved,
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
            kernel_version: kernel.trimmed().to_owned(),
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
