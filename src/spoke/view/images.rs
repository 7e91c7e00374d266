//! ModuleImagesConfigs.

use crate::api::names::ImageReason;
use crate::api::{ImageState, ImageStatus, ModuleImagesConfig, ModuleImagesConfigSpec};
use crate::core::image::ImageRef;
use crate::core::pin::{Known, Pinned, pin};
use crate::runtime::store::Projection;

/// What is read of a ModuleImagesConfig.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImagesView {
    /// `metadata.uid`.
    pub uid: String,
    /// UID of the controller, or of the first owner if none is the controller.
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
            owner: owners
                .iter()
                .find(|owner| owner.controller == Some(true))
                .or(owners.first())
                .map(|owner| owner.uid.clone()),
            spec: images.spec,
            states: status.images_states,
            trigger: status.image_rebuild_trigger_generation,
        }
    }
}

/// What is known of the image for one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageFact {
    /// What nodes get.
    Pinned(Pinned),
    /// There is no digest, and why.
    Missing {
        /// One word of a closed list.
        reason: &'static str,
        /// One sentence with the image's name.
        message: String,
    },
}

impl ImageFact {
    /// The fact for an image name with all templates resolved and a kernel, from what `images` knows; `in_use` is what
    /// stands for it so far, image and source.
    ///
    /// An image that is named by digest needs no look-up, and has no source.
    pub fn of(
        image: &str,
        kernel: &str,
        trigger: Option<i64>,
        images: Option<&ImagesView>,
        in_use: Option<(&str, &str)>,
    ) -> Self {
        let reference: ImageRef = match image.parse() {
            Ok(reference) => reference,
            Err(error) => return Self::missing(ImageReason::InvalidReference.as_str(), format!("{error}")),
        };
        let of_trigger = images.filter(|images| images.trigger == trigger);
        let state = of_trigger
            .into_iter()
            .flat_map(|images| &images.states)
            .find(|state| state.image == image && state.kernel_version.as_deref().is_none_or(|of| of == kernel));
        let known = |state: &ImageState| Known::of(state.reason.as_deref(), state.digest.as_deref());
        if let Some(pinned) = pin(&reference, image, trigger, &state.map_or(Known::Pending, known), in_use) {
            return Self::Pinned(pinned);
        }
        let Some(state) = state else {
            return Self::missing("Pending", format!("image {image} was not looked up yet"));
        };
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
