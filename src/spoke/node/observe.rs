//! What a node's plan is made from, out of the stores.

use std::sync::Arc;

use k8s_openapi::api::core::v1::LocalObjectReference;

use crate::api::{NodeModuleSpec, UnloadReason};
use crate::core::selector;
use crate::runtime::store::ObjectKey;
use crate::spoke::Stores;
use crate::spoke::outcome::Trouble;
use crate::spoke::view::{ConsumerView, ImageFact, ImagesView, ModuleFacts, NodeView, Resolved};

use super::consumers::Consumer;
use super::entry::{Belongs, build_entry, trimmed};
use super::plan::{ModuleHere, Observed, Want};

/// Everything about one node. Only stores are read.
pub fn observe(stores: &Stores, name: &str) -> Observed {
    let key = ObjectKey::cluster(name);
    let (node, config) = (stores.nodes.get(&key), stores.configs.get(&key));
    let mut modules = Vec::new();
    if let Some(node) = &node {
        let mut all = Vec::new();
        stores.modules.for_each(|key, module| all.push((key.clone(), Arc::clone(&module.facts))));
        for (key, facts) in all {
            let images = stores.images.get(&key).filter(|images| images.owner.as_deref() == Some(&*facts.uid));
            let standing = config.iter().flat_map(|config| &config.spec.modules).find(|entry| entry.belongs_to(&facts));
            let want = want(&facts, node, images.as_deref(), &stores.pull_secrets(&facts), standing);
            modules.push(ModuleHere { facts, want });
        }
    }
    let consumer = |(key, pod): (ObjectKey, Arc<ConsumerView>)| Consumer {
        module: ObjectKey::new(key.namespace, pod.module.as_str()),
        pod: key.name,
        deleting: pod.deleting,
    };
    let consumers = stores.consumers.on(name).into_iter().map(consumer).collect();
    Observed { name: name.to_owned(), node, config, modules, consumers }
}

/// Whether the Module selects the node. One whose selector nobody knows selects none.
pub fn selects(module: &ModuleFacts, node: &NodeView) -> bool {
    module.spec_known && selector::matches(Some(&module.spec.selector), Some(&node.labels))
}

/// What a Module wants on a node; `pull_secrets` are those of its service account, `standing` is its entry there.
pub fn want(
    module: &ModuleFacts,
    node: &NodeView,
    images: Option<&ImagesView>,
    pull_secrets: &[LocalObjectReference],
    standing: Option<&NodeModuleSpec>,
) -> Want {
    if module.deleting {
        return Want::Gone(UnloadReason::Deleted);
    }
    let selected = selects(module, node);
    if let Some(error) = &module.unreadable {
        return if selected { Want::Invalid(error.clone()) } else { Want::Unclear };
    }
    if module.spec.module_loader.is_none() {
        return Want::Gone(UnloadReason::NoModuleLoader);
    }
    if !selected {
        return Want::Gone(UnloadReason::NotSelected);
    }
    let Some(resolved) = module.resolve(&node.kernel) else { return Want::Gone(UnloadReason::NoModuleLoader) };
    let image = match &*resolved {
        Resolved::Image(image) => image,
        Resolved::Unmapped => return Want::Unmapped,
        Resolved::Invalid(why) => return Want::Invalid(why.clone()),
    };
    let kernel = trimmed(&node.kernel);
    let in_use = standing
        .filter(|entry| entry.config.kernel_version == kernel)
        .and_then(|entry| Some((&*entry.config.container_image, entry.image_source.as_deref()?)));
    match ImageFact::of(&image.image, kernel, module.spec.image_rebuild_trigger_generation, images, in_use) {
        ImageFact::Missing { reason, message } => Want::NoImage(Trouble::new(reason, message)),
        ImageFact::Pinned(pinned) => match build_entry(module, &node.kernel, pinned, image) {
            Some(entry) => Want::Here(Box::new(NodeModuleSpec { image_pull_secrets: pull_secrets.to_vec(), ..entry })),
            None => Want::Gone(UnloadReason::NoModuleLoader),
        },
    }
}
