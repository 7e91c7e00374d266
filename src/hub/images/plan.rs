//! What becomes of the ModuleImagesConfig of one ManagedClusterModule. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::observe::Observed;
use crate::api::{ModuleImageSpec, ModuleImagesConfig, ModuleImagesConfigSpec, ModuleSpec};
use crate::core::hash;
use crate::core::kernel::KernelVersion;
use crate::core::mapping::Resolved;
use crate::core::pin::{KEPT, Known, source_id};
use crate::hub::view::{FleetModule, Images};

/// Tags that a sentence names.
const NAMED: usize = 3;

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
    if !module.has_mappings() {
        let ours = images.filter(|images| images.is_owned_by(&module.uid));
        return Ok(ours.map_or(Plan::Nothing, |images| Plan::Delete { uid: images.uid.clone() }));
    }
    let entries = entries(module, spec, observed, images);
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
            owner_references: Some(vec![module.owner_reference()]),
            ..ObjectMeta::default()
        },
        spec: wanted,
        status: None,
    })))
}

/// Tags that name another image than the one that clusters have, in one sentence for whoever decides whether to follow
/// them; `None` if there are none.
pub(super) fn moved(observed: &Observed) -> Option<String> {
    let (module, images) = (observed.module.as_deref()?, observed.images.as_deref()?);
    let trigger = module.trigger();
    let mut moved = BTreeSet::new();
    for sent in observed.sent.iter().filter(|_| images.is_owned_by(&module.uid)) {
        let Ok(resolved) = module.resolve(&sent.kernel) else { continue };
        if let Known::Found(digest) = images.known(sent.kernel.as_str(), &resolved.image, trigger)
            && *sent.source == *source_id(&resolved.image, trigger)
            // A tag, which the older edition has sent, is about to be replaced.
            && sent.image.contains('@')
            && !sent.image.ends_with(&digest.to_string())
        {
            moved.insert(format!("{} is {digest} now, clusters have {}", resolved.image, sent.image));
        }
    }
    let first: Vec<&str> = moved.iter().take(NAMED).map(String::as_str).collect();
    let more = if moved.len() > NAMED { format!("; and {} more", moved.len() - NAMED) } else { String::new() };
    let until =
        "what is in use stays until the image or imageRebuildTriggerGeneration of the ManagedClusterModule changes";
    (!moved.is_empty()).then(|| format!("{until}: {}{more}", first.join("; ")))
}

/// Ordered by kernel, then image.
fn entries(
    module: &FleetModule,
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
        if let Ok(resolved) = module.resolve(kernel) {
            ask(kernel.as_str(), resolved);
        }
    }
    if let Some(images) = images {
        let found = |asked: &&ModuleImageSpec| {
            let known = images.known(&asked.kernel_version, &asked.image, module.trigger());
            matches!(known, Known::Found(_))
        };
        let kept = images.spec.images.iter().filter(found).filter_map(|asked| {
            let kernel = KernelVersion::parse(&asked.kernel_version).ok()?;
            let resolved = module.resolve(&kernel).ok()?;
            (!observed.kernels.contains(&kernel) && resolved.image == asked.image).then_some((kernel, resolved))
        });
        kept.take(KEPT).for_each(|(kernel, resolved)| ask(kernel.as_str(), resolved));
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
