//! The parts of a Module's specification that concern the kernel module: image, build, signature, modprobe.
//!
//! Source: `api/v1beta1/module_types.go` of KMM.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::LocalObjectReference;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::policy::LoadPolicy;
use super::schema::embedded;
use super::wire::{default_dir_name, empty_as_none, is_false, null_as_default};

/// How a registry is to be talked to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TLSOptions {
    /// The registry may be reached by plain HTTP.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "null_as_default")]
    pub insecure: bool,
    /// Any certificate of the registry is accepted.
    #[serde(
        default,
        rename = "insecureSkipTLSVerify",
        skip_serializing_if = "is_false",
        deserialize_with = "null_as_default"
    )]
    pub insecure_skip_tls_verify: bool,
}

/// One build argument of a Dockerfile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildArg {
    /// Name of the argument.
    pub name: String,
    /// Value of the argument.
    pub value: String,
}

/// Settings of the builder image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KanikoParams {
    /// Tag of the builder image, in place of the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub tag: Option<String>,
}

/// How an image with kernel modules is built in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Build {
    /// Build arguments, besides those that describe kernel and module.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub build_args: Vec<BuildArg>,
    /// ConfigMap that holds the Dockerfile under the key `dockerfile`.
    #[schemars(schema_with = "embedded::<LocalObjectReference>")]
    pub dockerfile_config_map: LocalObjectReference,
    /// How the registries of the base images are talked to.
    #[serde(default, rename = "baseImageRegistryTLS", skip_serializing_if = "Option::is_none")]
    pub base_image_registry_tls: Option<TLSOptions>,
    /// Secrets that the build may read, each below `/run/secrets/<name>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(schema_with = "embedded::<Vec<LocalObjectReference>>")]
    pub secrets: Vec<LocalObjectReference>,
    /// Settings of the builder image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kaniko_params: Option<KanikoParams>,
    /// Labels of the nodes on which the build may run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub selector: BTreeMap<String, String>,
}

/// How the kernel modules in an image are signed in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sign {
    /// Image whose files are signed; not used where a build makes the image.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub unsigned_image: Option<String>,
    /// How the registry of the unsigned image is talked to.
    #[serde(default, rename = "unsignedImageRegistryTLS", skip_serializing_if = "Option::is_none")]
    pub unsigned_image_registry_tls: Option<TLSOptions>,
    /// Secret that holds the private key under the key `key`.
    #[schemars(schema_with = "embedded::<LocalObjectReference>")]
    pub key_secret: LocalObjectReference,
    /// Secret that holds the certificate under the key `cert`.
    #[schemars(schema_with = "embedded::<LocalObjectReference>")]
    pub cert_secret: LocalObjectReference,
    /// Files in the image to be signed: absolute paths, shell patterns allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub files_to_sign: Vec<String>,
}

/// Which image serves which kernel.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KernelMapping {
    /// Image for the kernels of this mapping, template variables allowed; empty means that of the container.
    pub container_image: String,
    /// The one kernel of this mapping. Exactly one of `literal` and `regexp` is set.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub literal: Option<String>,
    /// Regular expression that the kernel's version matches anywhere in it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub regexp: Option<String>,
    /// How the image is built where it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// How the files of the image are signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign: Option<Sign>,
    /// How the registry of the image is talked to; replaces the container's value as a whole.
    #[serde(default, rename = "registryTLS", skip_serializing_if = "Option::is_none")]
    pub registry_tls: Option<TLSOptions>,
    /// Module of the kernel itself to be unloaded first. Deprecated: use `inTreeModulesToRemove`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub in_tree_module_to_remove: Option<String>,
    /// Modules of the kernel itself to be unloaded first. An empty list overrides the container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_tree_modules_to_remove: Option<Vec<String>>,
}

/// Arguments of modprobe for loading and for unloading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModprobeArgs {
    /// Arguments for loading.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(length(min = 1))]
    pub load: Vec<String>,
    /// Arguments for unloading.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(length(min = 1))]
    pub unload: Vec<String>,
}

/// What is loaded from the image, and how.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModprobeSpec {
    /// Name of the kernel module. Required unless `rawArgs` is set.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub module_name: Option<String>,
    /// Parameters of the kernel module, each `name=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub parameters: Vec<String>,
    /// Directory of the image that holds `lib/modules/<kernel>`.
    #[serde(default = "default_dir_name")]
    pub dir_name: String,
    /// Arguments that stand before the module's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<ModprobeArgs>,
    /// Arguments that replace the whole command line; without them the module's name is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_args: Option<ModprobeArgs>,
    /// Directory of the image whose files the kernel finds as firmware while the module is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub firmware_path: Option<String>,
    /// Lines for a file of modprobe.d, for this Module alone. With them, as with `args`, modprobe does the loading.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    #[schemars(length(max = 32768))]
    pub modprobe_config: Option<String>,
    /// Directory of the image, an absolute path, whose files `*.conf` count as files of modprobe.d for this Module alone.
    /// With it, as with `args`, modprobe does the loading.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub modprobed_dir: Option<String>,
    /// Soft dependencies, top module first: each one is loaded after the one that follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_loading_order: Option<Vec<String>>,
}

impl Default for ModprobeSpec {
    /// What the API server makes of an empty object: everything absent, `dirName` at its default.
    fn default() -> Self {
        Self {
            module_name: None,
            parameters: Vec::new(),
            dir_name: default_dir_name(),
            args: None,
            raw_args: None,
            firmware_path: None,
            modprobe_config: None,
            modprobed_dir: None,
            modules_loading_order: None,
        }
    }
}

/// The image that brings the kernel module, and its variants by kernel.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModuleLoaderContainerSpec {
    /// How images are built where a mapping does not say; makes every mapping one that can be built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// How images are signed where a mapping does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign: Option<Sign>,
    /// Image of the mappings that name none, template variables allowed.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub container_image: Option<String>,
    /// When the image is pulled: `Always`, `IfNotPresent` or `Never`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub image_pull_policy: Option<String>,
    /// Which image serves which kernel. The first mapping that fits is taken.
    #[schemars(length(min = 1))]
    pub kernel_mappings: Vec<KernelMapping>,
    /// What is loaded from the image, and how.
    pub modprobe: ModprobeSpec,
    /// How the registry of the images is talked to.
    #[serde(default, rename = "registryTLS", skip_serializing_if = "Option::is_none")]
    pub registry_tls: Option<TLSOptions>,
    /// Version of the module; with it, nodes are upgraded one by one as their version label is changed.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub version: Option<String>,
    /// Module of the kernel itself to be unloaded first. Deprecated: use `inTreeModulesToRemove`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub in_tree_module_to_remove: Option<String>,
    /// Modules of the kernel itself to be unloaded first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_tree_modules_to_remove: Option<Vec<String>>,
}

/// The part of a Module that loads a kernel module.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModuleLoaderSpec {
    /// The image and what is loaded from it.
    pub container: ModuleLoaderContainerSpec,
    /// What may be done to the loaded kernel module, and when it is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<LoadPolicy>,
    /// Service account whose pull secrets serve the image too.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub service_account_name: Option<String>,
}
