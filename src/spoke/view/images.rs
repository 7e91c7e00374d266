//! ModuleImagesConfigs.

use crate::api::names::ImageReason;
use crate::api::{ImageState, ImageStatus, ModuleImagesConfig, ModuleImagesConfigSpec};
use crate::core::image::{Digest, ImageRef};
use crate::runtime::store::Projection;

/// What is read of a ModuleImagesConfig.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImagesView {
    /// `metadata.uid`.
    pub uid: String,
    /// UID of the controlling owner.
    pub owner: Option<String>,
    /// The whole specification.
    pub spec: ModuleImagesConfigSpec,
    /// What was found out about each image.
    pub states: Vec<ImageState>,
    /// The trigger that was acted upon.
    pub trigger: Option<i64>,
}

impl Projection for ImagesView {
    type Kind = ModuleImagesConfig;

    fn project(images: ModuleImagesConfig) -> Self {
        let status = images.status.unwrap_or_default();
        let owners = images.metadata.owner_references.unwrap_or_default();
        Self {
            uid: images.metadata.uid.unwrap_or_default(),
            owner: owners.into_iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid),
            spec: images.spec,
            states: status.images_states,
            trigger: status.image_rebuild_trigger_generation,
        }
    }
}

/// What is known of the image for one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageFact {
    /// `repository@digest`: what nodes get.
    Pinned(String),
    /// There is no digest, and why.
    Missing {
        /// One word of a closed list.
        reason: &'static str,
        /// One sentence with the image's name.
        message: String,
    },
}

impl ImageFact {
    /// The fact for an image name with all templates resolved and a kernel, from what `images` knows.
    ///
    /// An image that is named by digest needs no look-up.
    pub fn of(image: &str, kernel: &str, images: Option<&ImagesView>) -> Self {
        let reference: ImageRef = match image.parse() {
            Ok(reference) => reference,
            Err(error) => return Self::missing(ImageReason::InvalidReference.as_str(), format!("{error}")),
        };
        if let Some(digest) = reference.digest() {
            return Self::Pinned(reference.with_digest(digest));
        }
        let states = images.map(|images| images.states.as_slice()).unwrap_or_default();
        let state = states
            .iter()
            .find(|state| state.image == image && state.kernel_version.as_deref().is_none_or(|of| of == kernel));
        let Some(state) = state else {
            return Self::missing("Pending", format!("image {image} was not looked up yet"));
        };
        if let Some(digest) = state.digest.as_deref().and_then(|digest| digest.parse::<Digest>().ok()) {
            return Self::Pinned(reference.with_digest(&digest));
        }
        let reason = state.reason.as_deref().and_then(ImageReason::from_name);
        let (reason, fallback) = match (reason, state.status) {
            (Some(reason), _) => (reason.as_str(), reason.as_str()),
            (None, ImageStatus::DoesNotExist) => (ImageReason::NotFound.as_str(), "it is not in the registry"),
            (None, ImageStatus::NeedsBuilding) => ("Pending", "it is to be built"),
            (None, ImageStatus::NeedsSigning) => ("Pending", "it is to be signed"),
            (None, ImageStatus::Exists | ImageStatus::Unknown) => ("Pending", "its digest is not known yet"),
        };
        let message = match state.message.as_deref() {
            Some(message) if message.contains(image) => message.to_owned(),
            Some(message) => format!("image {image}: {message}"),
            None => format!("image {image}: {fallback}"),
        };
        Self::missing(reason, message)
    }

    fn missing(reason: &'static str, message: String) -> Self {
        Self::Missing { reason, message }
    }
}
