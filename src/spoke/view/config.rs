//! NodeModulesConfigs.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::{NodeModuleStatus, NodeModulesConfig, NodeModulesConfigSpec};
use crate::runtime::store::Projection;

/// What is read of a NodeModulesConfig.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigView {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`: precondition of a deletion.
    pub resource_version: String,
    /// `metadata.generation`: rises with every change of the specification.
    pub generation: i64,
    /// UID of the Node that owns it, `None` if no Node does.
    pub owner: Option<String>,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// The whole specification.
    pub spec: NodeModulesConfigSpec,
    /// What the worker said.
    pub report: ReportView,
    /// Why the object cannot be read, if it never could be: then nobody knows what it asks for and orders.
    pub unreadable: Option<String>,
}

/// What a worker said, the conditions apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReportView {
    /// Boot in which it was said; `None` if no worker of ours said anything yet.
    pub boot_id: Option<String>,
    /// Generation of the object that it speaks of.
    pub observed_generation: Option<i64>,
    /// One entry for each module.
    pub modules: Vec<NodeModuleStatus>,
}

impl Projection for ConfigView {
    type Kind = NodeModulesConfig;

    fn project(config: NodeModulesConfig) -> Self {
        let meta = config.metadata;
        let status = config.status.unwrap_or_default();
        let owners = meta.owner_references.unwrap_or_default();
        Self {
            uid: meta.uid.unwrap_or_default(),
            resource_version: meta.resource_version.unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            owner: owners.into_iter().find(|owner| owner.kind == "Node").map(|owner| owner.uid),
            labels: meta.labels.unwrap_or_default(),
            spec: config.spec,
            report: ReportView {
                boot_id: status.boot_id,
                observed_generation: status.observed_generation,
                modules: status.modules,
            },
            unreadable: None,
        }
    }

    /// An object that became unreadable counts as it was. One that never was readable is there all the same.
    fn unreadable(meta: &ObjectMeta, error: &str, last: Option<&Self>) -> Option<Self> {
        if last.is_some_and(|last| last.unreadable.is_none() && Some(&last.uid) == meta.uid.as_ref()) {
            return None;
        }
        let mut view = Self::project(NodeModulesConfig { metadata: meta.clone(), ..NodeModulesConfig::default() });
        view.unreadable = Some(error.to_owned());
        Some(view)
    }
}
