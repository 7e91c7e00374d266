//! ModuleImagesConfig: the images of one owner, and what is known of them.
//!
//! Source: `api/v1beta1/moduleimagesconfig_types.go` of KMM; fields that are not there are listed,
//! with the reason for each, in the compatibility test of the CRDs.

// printer columns of one type repeat it, which is what their attribute asks for
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::api::core::v1::{LocalObjectReference, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::module_spec::{Build, Sign, TLSOptions};
use super::schema::{embedded, plain_integer, without_default};
use super::wire::{default_dir_name, default_pull_policy, is_false, null_as_default, pull_policy, wire_enum};

/// Which images are asked for.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "kmm.sigs.x-k8s.io",
    version = "v1beta1",
    kind = "ModuleImagesConfig",
    namespaced,
    doc = "The images of one owner, and what is known of them. Written by the manager.",
    derive = "PartialEq",
    derive = "Default",
    status = "ModuleImagesConfigStatus",
    shortname = "mic",
    category = "kmm",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"ImagesResolved\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"ImagesResolved\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ModuleImagesConfigSpec {
    /// When an image is looked up again.
    #[serde(default = "default_pull_policy", deserialize_with = "pull_policy")]
    pub image_pull_policy: String,
    /// Pull secrets of the owner's service account. They are tried after `imageRepoSecret`; one that does not exist is
    /// passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(schema_with = "embedded::<Vec<LocalObjectReference>>", extend("x-kubernetes-list-type" = "atomic"))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// The owner's value; any change makes the images be looked up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain_integer")]
    pub image_rebuild_trigger_generation: Option<i64>,
    /// Secret with the registry credentials for all images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "embedded::<LocalObjectReference>")]
    pub image_repo_secret: Option<LocalObjectReference>,
    /// The images.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub images: Vec<ModuleImageSpec>,
    /// Whether images that are built or signed are pushed.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "null_as_default")]
    pub push_built_image: bool,
    /// Taints that do not keep the pods of builds off a node.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(schema_with = "embedded::<Vec<Toleration>>")]
    pub tolerations: Vec<Toleration>,
}

impl Default for ModuleImagesConfigSpec {
    /// What the API server makes of an empty object.
    fn default() -> Self {
        Self {
            image_pull_policy: default_pull_policy(),
            image_pull_secrets: Vec::new(),
            image_rebuild_trigger_generation: None,
            image_repo_secret: None,
            images: Vec::new(),
            push_built_image: false,
            tolerations: Vec::new(),
        }
    }
}

/// One image for one kernel.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModuleImageSpec {
    /// How the image is built where it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// Directory of the image that holds `lib/modules/<kernel>`.
    #[serde(default = "default_dir_name")]
    pub dir_name: String,
    /// The image, all template variables resolved.
    pub image: String,
    /// The kernel that the image is for.
    pub kernel_version: String,
    /// How the registry of the image is talked to.
    #[serde(default, rename = "registryTLS", skip_serializing_if = "Option::is_none")]
    pub registry_tls: Option<TLSOptions>,
    /// How the files of the image are signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign: Option<Sign>,
    /// Whether a missing image is reported at once instead of being waited for.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "null_as_default")]
    pub skip_wait_missing_image: bool,
}

impl Default for ModuleImageSpec {
    /// What the API server makes of an empty object.
    fn default() -> Self {
        Self {
            build: None,
            dir_name: default_dir_name(),
            image: String::new(),
            kernel_version: String::new(),
            registry_tls: None,
            sign: None,
            skip_wait_missing_image: false,
        }
    }
}

/// What is known of the images.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["imagesStates"]))]
pub struct ModuleImagesConfigStatus {
    /// What holds of the images as a whole; `ImagesResolved` sums it up.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(
        schema_with = "embedded::<Vec<Condition>>",
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// The last value of `spec.imageRebuildTriggerGeneration` that was acted upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "plain_integer")]
    pub image_rebuild_trigger_generation: Option<i64>,
    /// State of each image. Always written, also when empty: the schema requires it.
    #[serde(default, deserialize_with = "null_as_default")]
    #[schemars(transform = without_default)]
    pub images_states: Vec<ImageState>,
    /// Generation of the ModuleImagesConfig that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// What is known of one image for one kernel.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageState {
    /// What the image resolved to, `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The image, as in the specification.
    pub image: String,
    /// The kernel, as in the specification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
    /// When `status`, `reason` or `digest` changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "embedded::<Time>")]
    pub last_transition_time: Option<Time>,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Why, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `Exists`, `DoesNotExist`, `NeedsBuilding`, `NeedsSigning`, or `Unknown` where it cannot be told.
    #[schemars(with = "String")]
    pub status: ImageStatus,
}

wire_enum! {
    /// What is known of an image.
    pub enum ImageStatus {
        /// It is in the registry.
        Exists,
        /// It is not in the registry and nothing here makes it.
        DoesNotExist,
        /// It is not in the registry and is to be built.
        NeedsBuilding,
        /// Its files are to be signed.
        NeedsSigning,
        /// It cannot be told: the registry refused, failed or did not answer; or a state of another version.
        #[default]
        Unknown,
    }
}
