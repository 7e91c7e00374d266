//! ModuleImagesConfig: which images were asked for and what is known of them.

use std::sync::Arc;

use crate::api::{ImageState, ModuleImagesConfig, ModuleImagesConfigSpec};
use crate::core::pin::Known;
use crate::hub::intern;
use crate::runtime::store::Projection;

/// What is read of a ModuleImagesConfig.
#[derive(Debug, PartialEq)]
pub struct Images {
    /// `metadata.uid`.
    pub uid: String,
    /// Kind, name and uid of the controller, or of the first owner if none is the controller.
    pub owner: Option<(String, String, String)>,
    /// It is being deleted.
    pub deleting: bool,
    /// The specification.
    pub spec: ModuleImagesConfigSpec,
    /// `imageRebuildTriggerGeneration` that the facts are of.
    pub trigger: Option<i64>,
    /// What is known, ordered by kernel and image.
    facts: Vec<ImageFact>,
}

/// What is known of one image for one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFact {
    /// The kernel.
    pub kernel: Arc<str>,
    /// The image.
    pub image: Arc<str>,
    /// `sha256:…`, kept also while a later look-up fails.
    pub digest: Option<Arc<str>>,
    /// What the last look-up came to, in one word; empty if the images controller gave none.
    pub reason: Arc<str>,
    /// Why, in one sentence; empty if the images controller gave none.
    pub message: Arc<str>,
}

impl ImageFact {
    fn of(state: &ImageState) -> Option<Self> {
        let kernel = state.kernel_version.as_deref()?;
        let or_empty = |text: &Option<String>| intern::text(text.as_deref().unwrap_or_default());
        Some(Self {
            kernel: intern::text(kernel),
            image: intern::text(&state.image),
            digest: state.digest.as_deref().map(intern::text),
            reason: or_empty(&state.reason),
            message: or_empty(&state.message),
        })
    }
}

impl Images {
    /// What is known of the image for the kernel.
    pub fn fact(&self, kernel: &str, image: &str) -> Option<&ImageFact> {
        let at = self.facts.binary_search_by(|fact| (&*fact.kernel, &*fact.image).cmp(&(kernel, image))).ok()?;
        self.facts.get(at)
    }

    /// What look-ups say of the image for the kernel, with this `imageRebuildTriggerGeneration`.
    pub fn known(&self, kernel: &str, image: &str, trigger: Option<i64>) -> Known {
        let Some(fact) = self.fact(kernel, image).filter(|_| self.trigger == trigger) else { return Known::Pending };
        Known::of(Some(&*fact.reason), fact.digest.as_deref())
    }

    /// Whether the image was asked for, for this kernel.
    pub fn asks_for(&self, kernel: &str, image: &str) -> bool {
        // Written sorted by the planner; a person may have changed it, so order is not relied on.
        self.spec.images.iter().any(|entry| entry.kernel_version == kernel && entry.image == image)
    }

    /// Whether a ManagedClusterModule with this uid controls it.
    pub fn is_owned_by(&self, uid: &str) -> bool {
        self.owner.as_ref().is_some_and(|(_, _, owner)| owner == uid)
    }

    /// Whether it is somebody else's than that of a ManagedClusterModule with this uid. What nobody owns, as after
    /// `kubectl delete --cascade=orphan`, is not.
    pub fn is_foreign_to(&self, uid: &str) -> bool {
        self.owner.is_some() && !self.is_owned_by(uid)
    }

    /// Kernels of which something else is known on the two sides, or of which it is known for another owner or trigger.
    pub fn changed_kernels(old: Option<&Self>, new: Option<&Self>) -> Vec<Arc<str>> {
        let facts = |images: Option<&Self>| images.map(|images| images.facts.clone()).unwrap_or_default();
        let of = |images: Option<&Self>| images.map(|images| (images.owner.clone(), images.trigger));
        let (old_facts, new_facts, all) = (facts(old), facts(new), of(old) != of(new));
        let mut kernels: Vec<Arc<str>> = old_facts
            .iter()
            .filter(|fact| all || !new_facts.contains(fact))
            .chain(new_facts.iter().filter(|fact| all || !old_facts.contains(fact)))
            .map(|fact| Arc::clone(&fact.kernel))
            .collect();
        kernels.sort_unstable();
        kernels.dedup();
        kernels
    }
}

impl Projection for Images {
    type Kind = ModuleImagesConfig;

    fn project(object: ModuleImagesConfig) -> Self {
        let status = object.status.unwrap_or_default();
        let states = status.images_states;
        let mut facts: Vec<ImageFact> = states.iter().filter_map(ImageFact::of).collect();
        facts.sort_by(|a, b| (&a.kernel, &a.image).cmp(&(&b.kernel, &b.image)));
        facts.dedup_by(|a, b| (&a.kernel, &a.image) == (&b.kernel, &b.image));
        let owners = object.metadata.owner_references.unwrap_or_default();
        let at = owners.iter().position(|owner| owner.controller == Some(true)).unwrap_or(0);
        Self {
            uid: object.metadata.uid.unwrap_or_default(),
            owner: owners.into_iter().nth(at).map(|owner| (owner.kind, owner.name, owner.uid)),
            deleting: object.metadata.deletion_timestamp.is_some(),
            spec: object.spec,
            trigger: status.image_rebuild_trigger_generation,
            facts,
        }
    }
}
