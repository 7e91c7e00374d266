//! What becomes of the ModuleImagesConfig of one ManagedClusterModule. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::observe::Observed;
use crate::api::{ModuleImageSpec, ModuleImagesConfig, ModuleImagesConfigSpec, ModuleSpec};
use crate::core::hash;
use crate::core::mapping::{Mappings, Resolved};
use crate::core::pin::{Known, source_id};
use crate::hub::intern::Sent;
use crate::hub::manifest_work::{owner_reference, resolve};
use crate::hub::view::{FleetModule, Images};

/// Kernels that no cluster has and whose images are remembered: enough for clusters that are silent or on their way from
/// one kernel to the next, and few enough for one object.
const KEPT: usize = 256;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Plan {
    /// Nothing.
    Nothing,
    /// Nothing, because an object of that name is not ours.
    OwnedByOther,
    /// It is to be as given.
    Apply(Box<ModuleImagesConfig>),
    /// It is to go, if it is still the one with this uid.
    Delete {
        /// `metadata.uid`.
        uid: String,
    },
}

/// The plan for the images of one ManagedClusterModule.
///
/// A digest once found is kept while the mappings still give that image for that kernel, although no cluster may have
/// the kernel for a while; of such kernels at most [`KEPT`].
///
/// # Errors
/// Something has no JSON form.
pub(super) fn plan(observed: &Observed) -> Result<Plan, hash::Error> {
    let images = observed.images.as_deref();
    let Some(module) = observed.module.as_deref().filter(|module| !module.deleting) else {
        return Ok(Plan::Nothing);
    };
    if images.is_some_and(|images| images.is_foreign_to(&module.uid)) {
        // That of an earlier ManagedClusterModule of the name is on its way out and wakes this one when it is gone.
        return Ok(Plan::OwnedByOther);
    }
    if images.is_some_and(|images| images.deleting) {
        return Ok(Plan::Nothing);
    }
    let Some(spec) = module.module_spec() else { return Ok(Plan::Nothing) };
    let Some(mappings) = module.mappings() else {
        let ours = images.filter(|images| images.is_owned_by(&module.uid));
        return Ok(ours.map_or(Plan::Nothing, |images| Plan::Delete { uid: images.uid.clone() }));
    };
    let entries = entries(module, mappings, spec, observed, images);
    if images.is_none() && entries.is_empty() {
        return Ok(Plan::Nothing);
    }
    let wanted = requested(spec, entries);
    if let Some(images) = images.filter(|images| images.is_owned_by(&module.uid))
        && hash::content_hash(&images.spec)? == hash::content_hash(&wanted)?
    {
        return Ok(Plan::Nothing);
    }
    Ok(Plan::Apply(Box::new(ModuleImagesConfig {
        metadata: ObjectMeta {
            name: Some(observed.key.name.clone()),
            namespace: Some(observed.key.namespace.clone()),
            uid: images.map(|images| images.uid.clone()),
            owner_references: Some(vec![owner_reference(module)]),
            ..ObjectMeta::default()
        },
        spec: wanted,
        status: None,
    })))
}

/// Tags that name another image than the one that clusters have, for whoever decides whether to follow them.
pub(super) fn moved(observed: &Observed) -> Vec<String> {
    let (Some(module), Some(images)) = (observed.module.as_deref(), observed.images.as_deref()) else {
        return Vec::new();
    };
    let trigger = module.trigger();
    let mut moved = BTreeMap::new();
    for asked in images.spec.images.iter().filter(|_| images.is_owned_by(&module.uid)) {
        let Known::Found(digest) = images.known(&asked.kernel_version, &asked.image, trigger) else { continue };
        let (source, digest) = (source_id(&asked.image, trigger), digest.to_string());
        let other = |sent: &&Sent| {
            *sent.kernel == *asked.kernel_version && *sent.source == *source && !sent.image.ends_with(&digest)
        };
        if let Some(sent) = observed.sent.iter().find(other) {
            moved.insert(&asked.image, (digest, Arc::clone(&sent.image)));
        }
    }
    let note = |(image, (digest, sent)): (&String, (String, Arc<str>))| {
        format!(
            "{image} is {digest} now; clusters that have {sent} keep it until the image or imageRebuildTriggerGeneration \
             of the ManagedClusterModule changes"
        )
    };
    moved.into_iter().map(note).collect()
}

/// Ordered by kernel, then image.
fn entries(
    module: &FleetModule,
    mappings: &Mappings,
    spec: &ModuleSpec,
    observed: &Observed,
    images: Option<&Images>,
) -> Vec<ModuleImageSpec> {
    let dir_name = spec.module_loader.as_ref().map(|loader| loader.container.modprobe.dir_name.as_str());
    let mut entries: BTreeMap<(String, String), ModuleImageSpec> = BTreeMap::new();
    let mut ask = |kernel: &str, resolved: Resolved| {
        let key = (kernel.to_owned(), resolved.image.clone());
        entries.insert(key, entry(kernel, resolved, dir_name.unwrap_or_default()));
    };
    for kernel in &observed.kernels {
        if let Ok(resolved) = resolve(mappings, module, kernel) {
            ask(kernel, resolved);
        }
    }
    let mut kept = 0;
    for (images, asked) in
        images.into_iter().flat_map(|images| images.spec.images.iter().map(move |asked| (images, asked)))
    {
        let kernel = &*asked.kernel_version;
        let found = || images.fact(kernel, &asked.image).is_some_and(|fact| fact.digest.is_some());
        if observed.kernels.contains(kernel) || kept == KEPT || !found() {
            continue;
        }
        if let Some(resolved) = resolve(mappings, module, kernel).ok().filter(|resolved| resolved.image == asked.image)
        {
            ask(kernel, resolved);
            kept += 1;
        }
    }
    entries.into_values().collect()
}

fn entry(kernel: &str, resolved: Resolved, dir_name: &str) -> ModuleImageSpec {
    ModuleImageSpec {
        build: resolved.build,
        dir_name: dir_name.to_owned(),
        image: resolved.image,
        kernel_version: kernel.to_owned(),
        registry_tls: Some(resolved.registry_tls),
        sign: resolved.sign,
        skip_wait_missing_image: false,
    }
}

fn requested(spec: &ModuleSpec, images: Vec<ModuleImageSpec>) -> ModuleImagesConfigSpec {
    let defaults = ModuleImagesConfigSpec::default();
    let policy = spec.module_loader.as_ref().and_then(|loader| loader.container.image_pull_policy.clone());
    ModuleImagesConfigSpec {
        image_pull_policy: policy.unwrap_or(defaults.image_pull_policy),
        // Service accounts are of the Spokes; the Hub looks images up with its own secrets.
        image_pull_secrets: Vec::new(),
        image_rebuild_trigger_generation: spec.image_rebuild_trigger_generation,
        image_repo_secret: spec.image_repo_secret.clone(),
        images,
        push_built_image: true,
        tolerations: spec.tolerations.clone(),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
