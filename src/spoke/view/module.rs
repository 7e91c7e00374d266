//! Modules.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use crate::api::names::{DEFAULT_SERVICE_ACCOUNT, MODULE_FINALIZER, RENDERED_HASH_ANNOTATION};
use crate::api::ocm::AppliedManifestWork;
use crate::api::{Module, ModuleSpec, ModuleStatus};
use crate::core::kernel::KernelVersion;
use crate::core::mapping::{Mappings, Resolution};
use crate::core::selector;
use crate::runtime::store::{ObjectKey, Projection};

use super::node::NodeView;

/// What is read of a Module.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleView {
    /// Everything but the status.
    pub facts: Arc<ModuleFacts>,
    /// What was written last.
    pub status: ModuleStatus,
}

/// A Module without its status, with its kernel mappings compiled once.
#[derive(Debug)]
pub struct ModuleFacts {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// `metadata.finalizers`, in order.
    pub finalizers: Vec<String>,
    /// The AppliedManifestWork that owns it, if OCM's agent applied it.
    pub applied_by: Option<AppliedBy>,
    /// The Hub's hash of what it sent, copied into the status.
    pub rendered_hash: Option<String>,
    /// The specification; empty if [`spec_known`](Self::spec_known) is not set.
    pub spec: ModuleSpec,
    /// Whether the specification was ever read. If not, nobody knows which nodes the Module selects.
    pub spec_known: bool,
    /// Why the object cannot be read; the specification is then that of its last readable state.
    pub unreadable: Option<String>,
    mappings: OnceLock<Result<Mappings, String>>,
    resolved: Mutex<HashMap<KernelVersion, Arc<Resolved>>>,
}

impl PartialEq for ModuleFacts {
    /// Equal if the objects say the same; what was compiled from them follows.
    fn eq(&self, other: &Self) -> bool {
        let plain = |facts: &Self| {
            let Self { key, uid, generation, deleting, finalizers, rendered_hash, spec_known, unreadable, .. } = facts;
            let applied_by = facts.applied_by.clone();
            (
                key.clone(),
                uid.clone(),
                *generation,
                (*deleting, *spec_known),
                (finalizers.clone(), applied_by),
                rendered_hash.clone(),
                unreadable.clone(),
            )
        };
        plain(self) == plain(other) && self.spec == other.spec
    }
}

/// An AppliedManifestWork that owns a Module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedBy {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

impl AppliedBy {
    fn of(owners: Option<Vec<OwnerReference>>) -> Option<Self> {
        let is = |owner: &OwnerReference| {
            owner.kind == AppliedManifestWork::kind(&())
                && owner.api_version.starts_with(&format!("{}/", AppliedManifestWork::group(&())))
        };
        owners?.into_iter().find(is).map(|owner| Self { name: owner.name, uid: owner.uid })
    }
}

/// What the kernel mappings of a Module say about one kernel.
#[derive(Debug)]
pub enum Resolved {
    /// This image serves the kernel.
    Image(Box<crate::core::mapping::Resolved>),
    /// No mapping fits.
    Unmapped,
    /// The mappings cannot be carried out for this kernel, and why.
    Invalid(String),
}

impl ModuleFacts {
    /// The facts of a Module as the API server gave it.
    pub fn new(meta: ObjectMeta, spec: ModuleSpec) -> Self {
        Self {
            key: ObjectKey::new(meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default()),
            uid: meta.uid.unwrap_or_default().into(),
            generation: meta.generation.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.unwrap_or_default(),
            applied_by: AppliedBy::of(meta.owner_references),
            rendered_hash: meta.annotations.and_then(|mut all| all.remove(RENDERED_HASH_ANNOTATION)),
            spec,
            spec_known: true,
            unreadable: None,
            mappings: OnceLock::new(),
            resolved: Mutex::default(),
        }
    }

    /// The Module, for an event about it.
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(Module::api_version(&()).into_owned()),
            kind: Some(Module::kind(&()).into_owned()),
            namespace: Some(self.key.namespace.clone()),
            name: Some(self.key.name.clone()),
            uid: Some(self.uid.to_string()),
            ..ObjectReference::default()
        }
    }

    /// Whether the Module stays until every node has lost it.
    pub fn has_finalizer(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == MODULE_FINALIZER)
    }

    /// The service account of the loader; `None` if there is nothing to load.
    pub fn service_account(&self) -> Option<ObjectKey> {
        let name = self.spec.module_loader.as_ref()?.service_account_name.as_deref();
        Some(ObjectKey::new(self.key.namespace.as_str(), name.unwrap_or(DEFAULT_SERVICE_ACCOUNT)))
    }

    /// The version, where it has one.
    pub fn version(&self) -> Option<&str> {
        self.spec.module_loader.as_ref()?.container.version.as_deref()
    }

    /// Whether the Module selects the node. One whose selector nobody knows selects none.
    pub fn selects(&self, node: &NodeView) -> bool {
        self.spec_known && selector::matches(Some(&self.spec.selector), Some(&node.labels))
    }

    /// Whether its files are to lie on the host as well.
    pub fn publishes(&self) -> bool {
        let loader = self.spec.module_loader.as_ref();
        loader.and_then(|loader| loader.policy).is_some_and(|policy| policy.publish_on_host)
    }

    fn mappings(&self) -> Option<&Result<Mappings, String>> {
        let container = &self.spec.module_loader.as_ref()?.container;
        Some(self.mappings.get_or_init(|| Mappings::compile(container).map_err(|error| error.to_string())))
    }

    /// What the mappings say about a kernel; `None` if there is nothing to load. Each kernel is looked up once.
    pub fn resolve(&self, kernel: &KernelVersion) -> Option<Arc<Resolved>> {
        let mappings = self.mappings()?;
        let mut cache = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache.get(kernel) {
            return Some(Arc::clone(known));
        }
        let resolved = Arc::new(match mappings {
            Err(error) => Resolved::Invalid(error.clone()),
            Ok(mappings) => match mappings.resolve(kernel, &self.key.name, &self.key.namespace) {
                Resolution::Matched(resolved) => Resolved::Image(resolved),
                Resolution::NoMapping => Resolved::Unmapped,
                Resolution::Failed(error) => Resolved::Invalid(error.to_string()),
            },
        });
        cache.insert(kernel.clone(), Arc::clone(&resolved));
        Some(resolved)
    }

    /// Why the kernel mappings cannot be carried out at all, or the object cannot be read.
    pub fn invalid(&self) -> Option<&str> {
        if let Some(error) = &self.unreadable {
            return Some(error);
        }
        self.mappings()?.as_ref().err().map(String::as_str)
    }
}

impl Projection for ModuleView {
    type Kind = Module;

    fn project(module: Module) -> Self {
        let mut spec = module.spec;
        // Pods beside the module are none of this controller's business, and can be large.
        spec.device_plugin = None;
        spec.dra = None;
        Self { facts: Arc::new(ModuleFacts::new(module.metadata, spec)), status: module.status.unwrap_or_default() }
    }

    /// A Module that became unreadable keeps the specification of its last readable state, so that nodes keep what
    /// they have; its deletion is seen. One that was never read says nothing of nodes: they keep what they have too.
    fn unreadable(meta: &ObjectMeta, error: &str, last: Option<&Self>) -> Option<Self> {
        let last = last.filter(|last| *last.facts.uid == *meta.uid.as_deref().unwrap_or_default());
        let spec = last.map(|last| last.facts.spec.clone()).unwrap_or_default();
        let mut facts = ModuleFacts::new(meta.clone(), spec);
        facts.spec_known = last.is_some_and(|last| last.facts.spec_known);
        facts.unreadable = Some(error.to_owned());
        Some(Self { facts: Arc::new(facts), status: last.map(|last| last.status.clone()).unwrap_or_default() })
    }
}
