//! The parts of a Module's specification that run beside the kernel module: device plugin and DRA driver.
//!
//! Source: `api/v1beta1/module_types.go` of KMM.

use k8s_openapi::api::core::v1::{EnvVar, ResourceRequirements, Volume, VolumeMount};
use k8s_openapi::api::resource::v1::{DeviceClassConfiguration, DeviceSelector};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::embedded;
use super::wire::{empty_as_none, null_as_default};

/// A container of a device plugin or DRA driver.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommonContainerSpec {
    /// Arguments of the entrypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub args: Vec<String>,
    /// The entrypoint, in place of the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub command: Vec<String>,
    /// Environment variables, as in a Pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(schema_with = "embedded::<Vec<EnvVar>>")]
    pub env: Vec<EnvVar>,
    /// Image of the container.
    pub image: String,
    /// When the image is pulled: `Always`, `IfNotPresent` or `Never`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub image_pull_policy: Option<String>,
    /// Resources, as in a Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "embedded::<ResourceRequirements>")]
    pub resources: Option<ResourceRequirements>,
    /// Mounts, besides the preset ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(schema_with = "embedded::<Vec<VolumeMount>>")]
    pub volume_mounts: Vec<VolumeMount>,
}

/// The device plugin that runs on nodes with the kernel module loaded.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DevicePluginSpec {
    /// Whether the service account's token is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automount_service_account_token: Option<bool>,
    /// The device plugin's container.
    pub container: CommonContainerSpec,
    /// A container that runs to its end before the device plugin starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_container: Option<CommonContainerSpec>,
    /// Service account of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub service_account_name: Option<String>,
    /// Volumes, besides the preset ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(schema_with = "embedded::<Vec<Volume>>")]
    pub volumes: Vec<Volume>,
}

/// The driver for dynamic resource allocation that runs on nodes with the kernel module loaded.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DRASpec {
    /// Whether the service account's token is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automount_service_account_token: Option<bool>,
    /// The driver's container.
    pub container: CommonContainerSpec,
    /// DeviceClasses that are kept in the cluster for this driver.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub device_classes: Vec<DeviceClassSpec>,
    /// Name of the driver, a DNS subdomain.
    pub driver_name: String,
    /// A container that runs to its end before the driver starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_container: Option<CommonContainerSpec>,
    /// Service account of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    pub service_account_name: Option<String>,
    /// Volumes, besides the preset ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(schema_with = "embedded::<Vec<Volume>>")]
    pub volumes: Vec<Volume>,
}

/// A DeviceClass of a DRA driver.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceClassSpec {
    /// Configuration handed to the driver, as in a DeviceClass.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(schema_with = "embedded::<Vec<DeviceClassConfiguration>>", extend("maxItems" = 32))]
    pub config: Vec<DeviceClassConfiguration>,
    /// Name of the DeviceClass, unique in the cluster.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"))]
    pub name: String,
    /// Which devices belong to the class, as in a DeviceClass.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    #[schemars(schema_with = "embedded::<Vec<DeviceSelector>>", extend("maxItems" = 32))]
    pub selectors: Vec<DeviceSelector>,
}
