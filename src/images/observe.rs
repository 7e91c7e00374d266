//! What a pass over one ModuleImagesConfig looks at.

use std::collections::BTreeMap;
use std::fmt;

use crate::api::names::ImageReason;
use crate::api::{ModuleImagesConfig, ModuleImagesConfigStatus};
use crate::core::image::{Digest, is_never_pulled};
use crate::oci::route::endpoint::RegistryOptions;
use crate::runtime::store::{ObjectKey, Projection};

/// What is read of a ModuleImagesConfig; how images are built and signed is not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImagesView {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// A ManagedClusterModule owns it.
    pub is_of_hub: bool,
    /// It is being deleted: nothing is looked up for it any more.
    pub deleting: bool,
    /// `imagePullPolicy` forbids to ask any registry.
    pub is_never_pulled: bool,
    /// The images that are asked for.
    pub wanted: Vec<WantedImage>,
    /// Name of the pull secret.
    pub secret: Option<String>,
    /// Names of the pull secrets of a service account, tried after it.
    pub pull_secrets: Vec<String>,
    /// `spec.imageRebuildTriggerGeneration`.
    pub trigger: Option<i64>,
    /// What was found out so far.
    pub status: ModuleImagesConfigStatus,
}

/// One image for one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedImage {
    /// The kernel.
    pub kernel: String,
    /// The image, templates resolved.
    pub image: String,
    /// How its registry is talked to.
    pub options: RegistryOptions,
}

impl Projection for ImagesView {
    type Kind = ModuleImagesConfig;

    fn project(object: ModuleImagesConfig) -> Self {
        let wanted = object.spec.images.into_iter().map(|entry| {
            let tls = entry.registry_tls.unwrap_or_default();
            WantedImage {
                kernel: entry.kernel_version,
                image: entry.image,
                options: RegistryOptions {
                    insecure: tls.insecure,
                    insecure_skip_tls_verify: tls.insecure_skip_tls_verify,
                },
            }
        });
        let owners = object.metadata.owner_references.unwrap_or_default();
        Self {
            is_of_hub: owners.iter().any(|owner| owner.kind == "ManagedClusterModule"),
            uid: object.metadata.uid.unwrap_or_default(),
            generation: object.metadata.generation,
            deleting: object.metadata.deletion_timestamp.is_some(),
            is_never_pulled: is_never_pulled(&object.spec.image_pull_policy),
            wanted: wanted.collect(),
            secret: object.spec.image_repo_secret.map(|secret| secret.name).filter(|name| !name.is_empty()),
            pull_secrets: object.spec.image_pull_secrets.into_iter().map(|secret| secret.name).collect(),
            trigger: object.spec.image_rebuild_trigger_generation,
            status: object.status.unwrap_or_default(),
        }
    }
}

/// What a registry is asked: everything that the answer depends on, and nothing else, so that objects and kernels with
/// the same question share one answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Question {
    /// The image as it is written.
    pub image: String,
    /// The pull secret.
    pub secret: Option<ObjectKey>,
    /// The pull secrets of a service account, tried after it; each that cannot be used is passed over.
    pub pull_secrets: Vec<ObjectKey>,
    /// Plain HTTP may be used.
    pub insecure: bool,
    /// Any certificate is accepted.
    pub insecure_skip_tls_verify: bool,
}

impl Question {
    /// How the registry is talked to.
    pub fn options(&self) -> RegistryOptions {
        RegistryOptions { insecure: self.insecure, insecure_skip_tls_verify: self.insecure_skip_tls_verify }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.image)
    }
}

/// What a look-up came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The image is there.
    Found(Digest),
    /// It is not there, or it cannot be told.
    Failed {
        /// One word; [`ImageReason::NotFound`] alone is a proof that the image is missing.
        reason: ImageReason,
        /// One sentence with the image's name.
        message: String,
    },
}

/// Everything that a plan may look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// Which object.
    pub key: ObjectKey,
    /// What the store holds of it.
    pub view: ImagesView,
    /// Answers to questions that were asked for this object, and are still wanted.
    pub answers: BTreeMap<Question, Answer>,
}
