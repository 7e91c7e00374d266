//! Entries of a NodeModulesConfig: how one is made from a Module, and when two mean the same file in the kernel.

use crate::api::names::DEFAULT_SERVICE_ACCOUNT;
use crate::api::{ModprobeArgs, ModuleConfig, NodeModuleSpec, NodeModuleStatus, TLSOptions};
use crate::core::taints::effective_tolerations;
use crate::spoke::view::ModuleFacts;

/// The entry by which `module` is wanted with `image`; its generation and the pull secrets of the service account are
/// still open. `None` without `moduleLoader`.
pub fn build_entry(
    module: &ModuleFacts,
    kernel: &str,
    image: String,
    resolved: &crate::core::mapping::Resolved,
) -> Option<NodeModuleSpec> {
    let loader = module.spec.module_loader.as_ref()?;
    let tls = &resolved.registry_tls;
    let policy = loader.container.image_pull_policy.clone();
    Some(NodeModuleSpec {
        config: ModuleConfig {
            container_image: image,
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

/// A kernel's release without one trailing `+`, as mappings and entries name it.
pub fn trimmed(kernel: &str) -> &str {
    kernel.strip_suffix('+').unwrap_or(kernel)
}

/// Whether both configurations put the same file with the same parameters into the kernel.
///
/// What only concerns the way there (repository, pull policy, TLS, credentials) makes no difference.
pub fn same_in_kernel(a: &ModuleConfig, b: &ModuleConfig) -> bool {
    identity(a) == identity(b)
}

type Args<'a> = (&'a [String], &'a [String]);

#[derive(PartialEq)]
struct Identity<'a> {
    digest: &'a str,
    kernel: &'a str,
    module: Option<&'a str>,
    dir: &'a str,
    parameters: &'a [String],
    args: Args<'a>,
    raw_args: Args<'a>,
    firmware: Option<&'a str>,
    modprobe_config: Option<&'a str>,
    order: &'a [String],
    in_tree: Vec<&'a str>,
}

fn args(args: Option<&ModprobeArgs>) -> Args<'_> {
    args.map_or((&[], &[]), |args| (&args.load, &args.unload))
}

fn identity(config: &ModuleConfig) -> Identity<'_> {
    let (image, modprobe) = (config.container_image.as_str(), &config.modprobe);
    let single = config.in_tree_module_to_remove.as_deref();
    Identity {
        digest: image.split_once('@').map_or(image, |(_, digest)| digest),
        kernel: trimmed(&config.kernel_version),
        module: modprobe.module_name.as_deref(),
        dir: &modprobe.dir_name,
        parameters: &modprobe.parameters,
        args: args(modprobe.args.as_ref()),
        raw_args: args(modprobe.raw_args.as_ref()),
        firmware: modprobe.firmware_path.as_deref(),
        modprobe_config: modprobe.modprobe_config.as_deref(),
        order: modprobe.modules_loading_order.as_deref().unwrap_or_default(),
        in_tree: config.in_tree_modules_to_remove.iter().map(String::as_str).chain(single).collect(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ModprobeSpec;

    fn config() -> ModuleConfig {
        ModuleConfig {
            container_image: "registry.example/drivers/gpu@sha256:aa".into(),
            kernel_version: "6.1.0".into(),
            modprobe: ModprobeSpec { module_name: Some("gpu".into()), ..ModprobeSpec::default() },
            ..ModuleConfig::default()
        }
    }

    #[test]
    fn only_what_reaches_the_kernel_makes_a_difference() {
        type Edit = fn(&mut ModuleConfig);
        let table: [(&str, Edit, bool); 14] = [
            ("nothing", |_| {}, true),
            ("another mirror", |c| c.container_image = "other.example/gpu@sha256:aa".into(), true),
            ("pull policy", |c| c.image_pull_policy = "Always".into(), true),
            ("insecure", |c| c.insecure_pull = true, true),
            ("TLS", |c| c.registry_tls = Some(TLSOptions { insecure: true, ..TLSOptions::default() }), true),
            ("trailing plus", |c| c.kernel_version = "6.1.0+".into(), true),
            ("empty order", |c| c.modprobe.modules_loading_order = Some(Vec::new()), true),
            ("digest", |c| c.container_image = "registry.example/drivers/gpu@sha256:bb".into(), false),
            ("kernel", |c| c.kernel_version = "6.1.1".into(), false),
            ("module", |c| c.modprobe.module_name = Some("gpu2".into()), false),
            ("parameters", |c| c.modprobe.parameters = vec!["debug=1".into()], false),
            ("directory", |c| c.modprobe.dir_name = "/lib2".into(), false),
            ("order", |c| c.modprobe.modules_loading_order = Some(vec!["a".into()]), false),
            ("in-tree", |c| c.in_tree_modules_to_remove = vec!["nouveau".into()], false),
        ];
        for (what, edit, same) in table {
            let mut other = config();
            edit(&mut other);
            assert_eq!(same_in_kernel(&config(), &other), same, "{what}");
        }
    }
}
