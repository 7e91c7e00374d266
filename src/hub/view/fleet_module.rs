//! ManagedClusterModule: what is wanted, on which clusters, and what was last said about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::api::names::{CONFIRM_REMOVAL_ANNOTATION, ClusterReason};
use crate::api::{ManagedClusterModule, ManagedClusterModuleSpec, ManagedClusterModuleStatus, ModuleSpec};
use crate::core::hash::{self, NameForm};
use crate::core::kernel::KernelVersion;
use crate::core::label;
use crate::core::mapping::{Mappings, Resolution, Resolved};
use crate::core::selector;
use crate::runtime::client::chain;
use crate::runtime::store::Projection;

use super::cluster::Cluster;

/// What is read of a ManagedClusterModule.
#[derive(Clone, Debug)]
pub struct FleetModule {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// It is being deleted.
    pub deleting: bool,
    /// A person has confirmed that the present generation may take the module from any number of clusters.
    pub removal_confirmed: bool,
    /// The specification; absent if it could never be read.
    pub spec: Option<Arc<ManagedClusterModuleSpec>>,
    /// Why nothing can be rendered from it.
    pub fault: Option<Fault>,
    /// What the Hub said last.
    pub status: Arc<ManagedClusterModuleStatus>,
    /// Compiled from `spec`; absent without `moduleLoader` or with a fault.
    mappings: Option<Arc<Mappings>>,
}

/// Which specification of which ManagedClusterModule something speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
}

/// Why nothing can be rendered. What was rendered before stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `InvalidSpec` or `Unreadable`.
    pub reason: ClusterReason,
    /// Field, value and what is wrong with it.
    pub message: String,
}

impl PartialEq for FleetModule {
    fn eq(&self, other: &Self) -> bool {
        // `mappings` is a function of `spec`.
        self.wishes_the_same(other) && self.removal_confirmed == other.removal_confirmed && self.status == other.status
    }
}

impl FleetModule {
    /// Whether both want the same, whatever was said about them.
    pub fn wishes_the_same(&self, other: &Self) -> bool {
        self.name == other.name
            && self.uid == other.uid
            && self.generation == other.generation
            && self.deleting == other.deleting
            && self.spec == other.spec
            && self.fault == other.fault
    }

    /// What it wants at present, to be told from what it wanted before and from an earlier one of its name.
    pub fn revision(&self) -> Revision {
        Revision { uid: Arc::clone(&self.uid), generation: self.generation }
    }

    /// Whether a cluster with these labels is selected. Nothing is selected while the specification is unknown.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.spec.as_ref().is_some_and(|spec| selector::matches(Some(&spec.selector), Some(labels)))
    }

    /// Whether a cluster that is there is certainly not selected. Of one that is being deleted, OCM removes the works.
    pub fn has_left(&self, cluster: &Cluster) -> bool {
        self.spec.is_some() && !cluster.deleting && !self.selects(&cluster.labels)
    }

    /// The Module that is wanted, `None` with a fault.
    pub fn module_spec(&self) -> Option<&ModuleSpec> {
        if self.fault.is_some() {
            return None;
        }
        self.spec.as_ref()?.module_spec.as_ref()
    }

    /// `imageRebuildTriggerGeneration`.
    pub fn trigger(&self) -> Option<i64> {
        self.module_spec()?.image_rebuild_trigger_generation
    }

    /// Namespace of the Module on the clusters.
    pub fn spoke_namespace(&self) -> &str {
        self.spec.as_ref().map_or("", |spec| &spec.spoke_namespace)
    }

    /// Whether there are kernel mappings: not without `moduleLoader`, and not with a fault.
    pub fn has_mappings(&self) -> bool {
        self.mappings.is_some()
    }

    /// What the mappings give for a kernel of a cluster, or why nothing: empty where no mapping matches.
    pub fn resolve(&self, kernel: &KernelVersion) -> Result<Resolved, String> {
        let Some(mappings) = &self.mappings else { return Err(String::new()) };
        match mappings.resolve(kernel, &self.name, self.spoke_namespace()) {
            Resolution::Matched(resolved) => Ok(*resolved),
            Resolution::NoMapping => Err(String::new()),
            Resolution::Failed(error) => Err(error.to_string()),
        }
    }

    /// The owner reference on everything that is made for it.
    pub fn owner_reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: "hub.kmm.sigs.x-k8s.io/v1beta1".to_owned(),
            kind: "ManagedClusterModule".to_owned(),
            name: self.name.to_string(),
            uid: self.uid.to_string(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// Value of the label that names it: its name, shortened if it is too long for a label.
    pub fn label_value(&self) -> String {
        hash::bounded_name(&self.name, label::MAX_LENGTH, NameForm::Subdomain)
    }

    fn compile(mut self) -> Self {
        let Some(spec) = &self.spec else { return self };
        let invalid = |message: String| Some(Fault { reason: ClusterReason::InvalidSpec, message });
        if spec.spoke_namespace.is_empty() {
            self.fault = invalid("spec.spokeNamespace is empty".to_owned());
            return self;
        }
        let Some(module) = &spec.module_spec else {
            self.fault = invalid("spec.moduleSpec is missing".to_owned());
            return self;
        };
        if let Some(loader) = &module.module_loader {
            match Mappings::compile(&loader.container) {
                Ok(mappings) => self.mappings = Some(Arc::new(mappings)),
                Err(error) => {
                    self.fault = invalid(format!("spec.moduleSpec.moduleLoader.container: {}", chain(&error)));
                }
            }
        }
        self
    }
}

fn is_removal_confirmed(meta: &ObjectMeta) -> bool {
    let confirmed = meta.annotations.as_ref().and_then(|annotations| annotations.get(CONFIRM_REMOVAL_ANNOTATION));
    confirmed.is_some_and(|generation| generation.trim().parse() == Ok(meta.generation.unwrap_or_default()))
}

impl Projection for FleetModule {
    type Kind = ManagedClusterModule;

    fn project(object: ManagedClusterModule) -> Self {
        let meta = object.metadata;
        let removal_confirmed = is_removal_confirmed(&meta);
        Self {
            name: meta.name.unwrap_or_default().into(),
            uid: meta.uid.unwrap_or_default().into(),
            generation: meta.generation.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            removal_confirmed,
            spec: Some(Arc::new(object.spec)),
            fault: None,
            status: Arc::new(object.status.unwrap_or_default()),
            mappings: None,
        }
        .compile()
    }

    /// What was read last goes on selecting clusters, so that nothing is taken away from them; nothing new is
    /// rendered.
    fn unreadable(meta: &ObjectMeta, error: &str, last: Option<&Self>) -> Option<Self> {
        let uid = meta.uid.as_deref().unwrap_or_default();
        let last = last.filter(|last| &*last.uid == uid);
        Some(Self {
            name: meta.name.as_deref().unwrap_or_default().into(),
            uid: uid.into(),
            generation: meta.generation.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            removal_confirmed: is_removal_confirmed(meta),
            spec: last.and_then(|last| last.spec.clone()),
            fault: Some(Fault { reason: ClusterReason::Unreadable, message: error.to_owned() }),
            status: last.map(|last| Arc::clone(&last.status)).unwrap_or_default(),
            mappings: None,
        })
    }
}
