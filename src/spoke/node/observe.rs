//! What a node's plan is made from, out of the stores.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{LocalObjectReference, Toleration};

use crate::api::names::ModuleReason;
use crate::api::{NodeModuleSpec, UnloadReason};
use crate::runtime::store::ObjectKey;
use crate::spoke::outcome::{Deletion, Trouble};
use crate::spoke::stores::Stores;
use crate::spoke::tally::Totals;
use crate::spoke::view::{Belongs, ConfigView, ConsumerView, ImageFact, ImagesView, ModuleFacts, NodeView, Resolved};

use super::entry::build_entry;

/// What a node's plan is made from.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// The Node, if there is one.
    pub node: Option<Arc<NodeView>>,
    /// The NodeModulesConfig, if there is one.
    pub config: Option<Arc<ConfigView>>,
    /// Every Module of the cluster.
    pub modules: Vec<ModuleHere>,
    /// Pods on the node that use kernel modules, ordered by name.
    pub consumers: Vec<Consumer>,
    /// Tolerations of every Module of the cluster, besides its own.
    pub tolerations: Arc<[Toleration]>,
}

/// One Module, as seen from this node.
#[derive(Clone, Debug)]
pub(super) struct ModuleHere {
    /// The Module.
    pub facts: Arc<ModuleFacts>,
    /// What it wants here.
    pub want: Want,
}

/// What a Module wants on a node.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Want {
    /// Not to be here.
    Gone(UnloadReason),
    /// Nothing any more, and what is loaded stays: its Hub is lost, and nobody ordered it to go.
    Evicted,
    /// To be here, but no mapping can be carried out for the node's kernel, and why.
    Unmapped(Arc<Trouble>),
    /// To be here, but the Module cannot be carried out on any node, and why.
    Invalid(String),
    /// To be here, but the image's digest is not known.
    NoImage(Arc<Trouble>),
    /// It cannot be told: the Module cannot be read, or nobody knows yet whose wish its deletion is.
    Unclear,
    /// To be here, like this; the generation of the entry is still open.
    Here(Box<NodeModuleSpec>),
}

/// A pod of a Module on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Consumer {
    /// The Module.
    pub module: ObjectKey,
    /// Name of the pod; its namespace is that of the Module.
    pub pod: String,
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// Everything about one node. Only stores are read, and whose wish the deletion of a Module is.
pub(super) fn observe(stores: &Stores, totals: &Totals, tolerations: &Arc<[Toleration]>, name: &str) -> Observed {
    let key = ObjectKey::cluster(name);
    let (node, config) = (stores.nodes.get(&key), stores.configs.get(&key));
    let mut modules = Vec::new();
    if let Some(node) = &node {
        let mut all = Vec::new();
        stores.modules.for_each(|key, module| all.push((key.clone(), Arc::clone(&module.facts))));
        for (key, facts) in all {
            let images = stores.images.get(&key).filter(|images| images.owner.as_deref() == Some(&*facts.uid));
            let standing = config.iter().flat_map(|config| &config.spec.modules).find(|entry| entry.belongs_to(&facts));
            let want = match totals.deletion(&facts) {
                Some(Deletion::Ordered) => {
                    want(&facts, node, images.as_deref(), &stores.pull_secrets(&facts), standing)
                }
                Some(Deletion::Evicted) => Want::Evicted,
                None => Want::Unclear,
            };
            modules.push(ModuleHere { facts, want });
        }
    }
    let consumer = |(key, pod): (ObjectKey, Arc<ConsumerView>)| Consumer {
        module: ObjectKey::new(key.namespace, pod.module.as_str()),
        pod: key.name,
        deleting: pod.deleting,
    };
    let consumers = stores.consumers.on(name).into_iter().map(consumer).collect();
    Observed { node, config, modules, consumers, tolerations: Arc::clone(tolerations) }
}

fn unmapped(reason: ModuleReason, message: String) -> Want {
    Want::Unmapped(Trouble::new(reason.as_str(), message))
}

/// What a Module wants on a node; `pull_secrets` are those of its service account, `standing` is its entry there.
pub(super) fn want(
    module: &ModuleFacts,
    node: &NodeView,
    images: Option<&ImagesView>,
    pull_secrets: &[LocalObjectReference],
    standing: Option<&NodeModuleSpec>,
) -> Want {
    if module.deleting {
        return Want::Gone(UnloadReason::Deleted);
    }
    let selected = module.selects(node);
    if let Some(error) = &module.unreadable {
        return if selected { Want::Invalid(error.clone()) } else { Want::Unclear };
    }
    if module.spec.module_loader.is_none() {
        return Want::Gone(UnloadReason::NoModuleLoader);
    }
    if !selected {
        return Want::Gone(UnloadReason::NotSelected);
    }
    let kernel = match &node.kernel {
        Ok(kernel) => kernel,
        Err(error) => {
            return unmapped(ModuleReason::NoMatchingKernel, format!("the node's kernel is not known: {error}"));
        }
    };
    let Some(resolved) = module.resolve(kernel) else { return Want::Gone(UnloadReason::NoModuleLoader) };
    let image = match &*resolved {
        Resolved::Image(image) => image,
        Resolved::Unmapped => {
            return unmapped(ModuleReason::NoMatchingKernel, format!("no kernel mapping fits {}", kernel.trimmed()));
        }
        Resolved::Invalid(why) if module.invalid().is_none() => {
            return unmapped(ModuleReason::InvalidSpec, format!("kernel {}: {why}", kernel.trimmed()));
        }
        Resolved::Invalid(why) => return Want::Invalid(why.clone()),
    };
    let in_use = standing
        .filter(|entry| entry.config.kernel_version == kernel.trimmed())
        .and_then(|entry| Some((&*entry.config.container_image, entry.image_source.as_deref()?)));
    let trigger = module.spec.image_rebuild_trigger_generation;
    match ImageFact::of(&image.image, kernel.trimmed(), trigger, images, in_use) {
        ImageFact::Missing { reason, message } => Want::NoImage(Trouble::new(reason, message)),
        ImageFact::Pinned(pinned) => match build_entry(module, kernel, pinned, image) {
            Some(entry) => Want::Here(Box::new(NodeModuleSpec { image_pull_secrets: pull_secrets.to_vec(), ..entry })),
            None => Want::Gone(UnloadReason::NoModuleLoader),
        },
    }
}
