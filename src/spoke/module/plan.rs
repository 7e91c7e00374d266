//! What belongs to one Module besides nodes: finalizer and ModuleImagesConfig.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::LocalObjectReference;

use crate::api::names::MODULE_FINALIZER;
use crate::api::{ImageStatus, ModuleImageSpec, ModuleImagesConfigSpec, TLSOptions};
use crate::core::image::ImageRef;
use crate::core::kernel::KernelVersion;
use crate::core::pin::KEPT;
use crate::spoke::view::{ImagesView, ModuleFacts, Resolved};

use super::observe::Observed;

/// What is to be written about a Module.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::spoke) struct Plan {
    /// The new list of finalizers, if it changes.
    pub finalizers: Option<Vec<String>>,
    /// The ModuleImagesConfig.
    pub images: ImagesAction,
}

/// What happens to the ModuleImagesConfig.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::spoke) enum ImagesAction {
    /// It is as it should be, or cannot be decided yet.
    Nothing,
    /// It is made.
    Create(Box<ModuleImagesConfigSpec>),
    /// Its specification is replaced.
    Update {
        /// The new one.
        spec: Box<ModuleImagesConfigSpec>,
        /// Nobody owns it, as after `kubectl delete --cascade=orphan`: it becomes the Module's.
        adopt: bool,
    },
    /// It is removed.
    Delete {
        /// `metadata.uid`.
        uid: String,
    },
}

/// The plan for one Module.
pub(in crate::spoke) fn plan(observed: &Observed) -> Plan {
    Plan { finalizers: finalizers(observed), images: images(observed) }
}

fn finalizers(observed: &Observed) -> Option<Vec<String>> {
    let facts = &observed.facts;
    let mut list = facts.finalizers.clone();
    match (facts.deleting, facts.has_finalizer()) {
        (false, false) if facts.unreadable.is_none() => {
            list.push(MODULE_FINALIZER.to_owned());
            Some(list)
        }
        (true, true) if is_over(observed) => {
            list.retain(|finalizer| finalizer != MODULE_FINALIZER);
            Some(list)
        }
        _ => None,
    }
}

/// Whether every node has lost the Module, and each was planned by whoever knew that it must, and whose wish that is.
fn is_over(observed: &Observed) -> bool {
    let free = observed.totals.as_ref().is_some_and(|totals| totals.holders.is_empty());
    free && observed.counted && observed.deletion.is_some()
}

fn images(observed: &Observed) -> ImagesAction {
    let (facts, present) = (&observed.facts, observed.images.as_deref());
    // With the Module goes what it owns. An unreadable Module keeps what it has.
    if facts.deleting || facts.unreadable.is_some() {
        return ImagesAction::Nothing;
    }
    let owner = present.and_then(|images| images.owner.as_deref());
    let foreign = owner.is_some_and(|owner| *owner != *facts.uid);
    let Some(totals) = observed.totals.as_ref().filter(|_| !foreign) else { return ImagesAction::Nothing };
    let wanted = wanted_images(facts, totals.kernels.keys(), present, &observed.pull_secrets);
    match present {
        None if wanted.images.is_empty() => ImagesAction::Nothing,
        None => ImagesAction::Create(Box::new(wanted)),
        Some(_) if wanted.images.is_empty() && owner.is_none() => ImagesAction::Nothing,
        Some(images) if wanted.images.is_empty() => ImagesAction::Delete { uid: images.uid.clone() },
        Some(images) if images.spec == wanted && owner.is_some() => ImagesAction::Nothing,
        Some(_) => ImagesAction::Update { spec: Box::new(wanted), adopt: owner.is_none() },
    }
}

/// The images that these kernels need and whose digest has to be looked up; sorted, each once.
///
/// What was found for kernels that no node has now is kept while it is the image that they would need, of at most
/// [`KEPT`] kernels: a node that is made again runs what it ran.
pub(super) fn wanted_images<'a>(
    facts: &ModuleFacts,
    kernels: impl Iterator<Item = &'a KernelVersion>,
    present: Option<&ImagesView>,
    pull_secrets: &[LocalObjectReference],
) -> ModuleImagesConfigSpec {
    let Some(loader) = &facts.spec.module_loader else { return ModuleImagesConfigSpec::default() };
    let asked = |kernel: &KernelVersion| match &*facts.resolve(kernel)? {
        Resolved::Image(image) if !is_pinned(&image.image) => Some(ModuleImageSpec {
            build: image.build.clone(),
            dir_name: loader.container.modprobe.dir_name.clone(),
            image: image.image.clone(),
            kernel_version: kernel.trimmed().to_owned(),
            registry_tls: Some(image.registry_tls.clone()).filter(|tls| *tls != TLSOptions::default()),
            sign: image.sign.clone(),
            skip_wait_missing_image: false,
        }),
        Resolved::Image(_) | Resolved::Unmapped | Resolved::Invalid(_) => None,
    };
    let mut images: Vec<ModuleImageSpec> = kernels.filter_map(asked).collect();
    let needed: BTreeSet<String> = images.iter().map(|image| image.kernel_version.clone()).collect();
    let found = present
        .filter(|present| present.trigger == facts.spec.image_rebuild_trigger_generation)
        .into_iter()
        .flat_map(|present| &present.states)
        .filter(|state| state.status == ImageStatus::Exists && state.digest.is_some());
    let kept = found.filter_map(|state| {
        let kernel = state.kernel_version.as_deref().filter(|kernel| !needed.contains(*kernel))?;
        asked(&KernelVersion::parse(kernel).ok()?).filter(|image| image.image == state.image)
    });
    images.extend(kept.take(KEPT));
    images.sort_by(|a, b| (&a.kernel_version, &a.image).cmp(&(&b.kernel_version, &b.image)));
    images.dedup_by(|a, b| (&a.kernel_version, &a.image) == (&b.kernel_version, &b.image));
    let default = ModuleImagesConfigSpec::default();
    ModuleImagesConfigSpec {
        image_pull_policy: loader.container.image_pull_policy.clone().unwrap_or(default.image_pull_policy),
        image_pull_secrets: pull_secrets.to_vec(),
        image_rebuild_trigger_generation: facts.spec.image_rebuild_trigger_generation,
        image_repo_secret: facts.spec.image_repo_secret.clone(),
        images,
        push_built_image: true,
        tolerations: facts.spec.tolerations.clone(),
    }
}

/// Whether a look-up can add nothing: the digest is there, or the name is none.
fn is_pinned(image: &str) -> bool {
    image.parse::<ImageRef>().map_or(true, |reference| reference.is_pinned())
}
