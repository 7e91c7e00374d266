//! Small objects for tests.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::api::names::MODULE_FINALIZER;
use crate::api::{
    KernelMapping, ModprobeSpec, ModuleConfig, ModuleLoaderContainerSpec, ModuleLoaderSpec, ModuleSpec, ModuleState,
    NodeModuleSpec, NodeModuleStatus, NodeModulesConfigSpec,
};

use crate::core::kernel::KernelVersion;

use super::view::{ConfigView, ModuleFacts, NodeView, ReportView};

pub(super) const KERNEL: &str = "6.1.0-1-amd64";
pub(super) const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A node without labels and taints.
pub(super) fn a_node() -> NodeView {
    NodeView {
        uid: "node-uid".into(),
        labels: std::collections::BTreeMap::new(),
        taints: Vec::new(),
        kernel: KernelVersion::parse(KERNEL),
        boot_id: "boot-1".into(),
        runtime: String::new(),
        released: false,
    }
}

/// A Module to be adjusted.
#[derive(Clone, Debug)]
pub(super) struct ModuleBuilder {
    pub(super) meta: ObjectMeta,
    pub(super) spec: ModuleSpec,
}

impl ModuleBuilder {
    pub(super) fn build(self) -> Arc<ModuleFacts> {
        Arc::new(ModuleFacts::new(self.meta, self.spec))
    }

    pub(super) fn deleting(mut self) -> Self {
        self.meta.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        self
    }

    pub(super) fn container(&mut self) -> &mut ModuleLoaderContainerSpec {
        &mut self.spec.module_loader.get_or_insert_default().container
    }
}

/// A Module with finalizer that is wanted on every node, with an image that is pinned.
pub(super) fn a_module(namespace: &str, name: &str, uid: &str) -> ModuleBuilder {
    let container = ModuleLoaderContainerSpec {
        kernel_mappings: vec![KernelMapping {
            regexp: Some("^6\\.1\\.".into()),
            container_image: format!("registry.example/{name}@{DIGEST}"),
            ..KernelMapping::default()
        }],
        modprobe: ModprobeSpec { module_name: Some(name.into()), ..ModprobeSpec::default() },
        ..ModuleLoaderContainerSpec::default()
    };
    ModuleBuilder {
        meta: ObjectMeta {
            namespace: Some(namespace.into()),
            name: Some(name.into()),
            uid: Some(uid.into()),
            generation: Some(1),
            finalizers: Some(vec![MODULE_FINALIZER.into()]),
            ..ObjectMeta::default()
        },
        spec: ModuleSpec {
            module_loader: Some(ModuleLoaderSpec { container, ..ModuleLoaderSpec::default() }),
            ..ModuleSpec::default()
        },
    }
}

/// An entry as it stands in a NodeModulesConfig.
pub(super) fn an_entry(namespace: &str, name: &str, uid: &str) -> NodeModuleSpec {
    NodeModuleSpec {
        config: ModuleConfig {
            container_image: format!("registry.example/{name}@{DIGEST}"),
            kernel_version: KERNEL.into(),
            modprobe: ModprobeSpec { module_name: Some(name.into()), ..ModprobeSpec::default() },
            ..ModuleConfig::default()
        },
        generation: Some(1),
        module_uid: Some(uid.into()),
        name: name.into(),
        namespace: namespace.into(),
        service_account_name: "default".into(),
        tolerations: crate::core::taints::effective_tolerations(None),
        ..NodeModuleSpec::default()
    }
}

/// What a worker says once the entry is loaded.
pub(super) fn loaded(entry: &NodeModuleSpec) -> NodeModuleStatus {
    NodeModuleStatus {
        name: entry.name.clone(),
        namespace: entry.namespace.clone(),
        module_uid: entry.module_uid.clone(),
        config: Some(entry.config.clone()),
        state: Some(ModuleState::Loaded),
        observed_generation: entry.generation,
        boot_id: Some("boot-1".into()),
        ..NodeModuleStatus::default()
    }
}

/// A NodeModulesConfig of [`a_node`] whose worker has seen all of it.
pub(super) fn a_config(entries: Vec<NodeModuleSpec>, reports: Vec<NodeModuleStatus>) -> ConfigView {
    let spec = NodeModulesConfigSpec { modules: entries, unload: Vec::new(), ..NodeModulesConfigSpec::default() };
    ConfigView {
        uid: "config-uid".into(),
        resource_version: "7".into(),
        generation: 3,
        owner: Some("node-uid".into()),
        labels: super::node::labels_of(&spec, &reports),
        spec,
        report: ReportView { boot_id: Some("boot-1".into()), observed_generation: Some(3), modules: reports },
        unreadable: None,
    }
}
