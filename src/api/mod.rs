//! Wire types of every kind that is read or written, and every name that objects share.
//!
//! The types hold what is on the wire and nothing else: no client, no decision.
//! They read whatever the API server can hand out, objects of the Go implementation of KMM included:
//! absent lists and `null` are empty, empty strings are absent where they mean absent, and values
//! of an enumeration that this version does not know become `Unknown` instead of an error.

pub mod crds;
pub mod managed_cluster_module;
pub mod module;
pub mod module_images_config;
pub mod module_spec;
pub mod names;
pub mod node_modules_config;
pub mod ocm;
pub mod plugins;
pub mod policy;
mod schema;
mod wire;

pub use k8s_openapi::api::core::v1::{LocalObjectReference, Toleration};
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
pub use managed_cluster_module::{
    FailingCluster, ManagedClusterModule, ManagedClusterModuleSpec, ManagedClusterModuleStatus, NodeTotals,
};
pub use module::{DaemonSetStatus, FailingNode, Module, ModuleSpec, ModuleStatus};
pub use module_images_config::{
    ImageState, ImageStatus, ModuleImageSpec, ModuleImagesConfig, ModuleImagesConfigSpec, ModuleImagesConfigStatus,
};
pub use module_spec::{
    Build, BuildArg, KanikoParams, KernelMapping, ModprobeArgs, ModprobeSpec, ModuleLoaderContainerSpec,
    ModuleLoaderSpec, Sign, TLSOptions,
};
pub use node_modules_config::{
    ModuleConfig, ModuleState, NodeModuleSpec, NodeModuleStatus, NodeModulesConfig, NodeModulesConfigSpec,
    NodeModulesConfigStatus, UnloadIntent, UnloadReason,
};
pub use plugins::{CommonContainerSpec, DRASpec, DeviceClassSpec, DevicePluginSpec};
pub use policy::{LoadPolicy, OnChange, OnDrift, OnOtherFile, OnRemoval};
