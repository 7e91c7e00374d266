//! What may be done to a kernel module in the course of its life on a node; none of it exists in KMM.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::policy;
use super::wire::{is_false, null_as_default, wire_enum};

/// What may be done to a loaded kernel module, and when it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadPolicy {
    /// What happens where another file or other parameters are wanted than are loaded: `Reload` takes the old ones out
    /// and loads the new ones, `OnReboot` keeps the old ones until the node boots again.
    #[serde(default)]
    #[schemars(schema_with = "policy::<OnChange>")]
    pub on_change: OnChange,
    /// What happens where the Module is deleted, loses its `moduleLoader` or does not select the node any more: `Unload`
    /// takes the kernel module out, `Keep` leaves it in the kernel until the node boots again.
    #[serde(default)]
    #[schemars(schema_with = "policy::<OnRemoval>")]
    pub on_removal: OnRemoval,
    /// What happens where somebody else took the kernel module out: `Repair` loads it again, `Report` says so.
    #[serde(default)]
    #[schemars(schema_with = "policy::<OnDrift>")]
    pub on_drift: OnDrift,
    /// What happens where another file, which no Module brought, is loaded under the name: `Report` says so and leaves it,
    /// `Replace` takes it out if nothing uses it.
    #[serde(default)]
    #[schemars(schema_with = "policy::<OnOtherFile>")]
    pub on_other_file: OnOtherFile,
    /// Whether the modules of `inTreeModulesToRemove` that were taken out are loaded again when the kernel module leaves.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "null_as_default")]
    pub restore_in_tree_modules: bool,
    /// Whether a node that boots loads the kernel module from its own store without waiting for the API server.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "null_as_default")]
    pub load_at_boot: bool,
    /// Whether the files are put below the host's `/lib/modules`, so that `modinfo` and `modprobe` on the host find them.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "null_as_default")]
    pub publish_on_host: bool,
}

wire_enum! {
    /// What happens where another file is wanted than is loaded.
    pub enum OnChange {
        /// The old file is taken out and the new one loaded.
        #[default]
        Reload,
        /// The old file stays until the node boots again.
        OnReboot,
    } else OnReboot
}

wire_enum! {
    /// What happens where the Module leaves the node.
    pub enum OnRemoval {
        /// The kernel module is taken out.
        #[default]
        Unload,
        /// The kernel module stays until the node boots again.
        Keep,
    } else Keep
}

wire_enum! {
    /// What happens where somebody else took the kernel module out.
    pub enum OnDrift {
        /// It is loaded again.
        #[default]
        Repair,
        /// It is reported.
        Report,
    } else Report
}

wire_enum! {
    /// What happens where a file that no Module brought is loaded under the name.
    pub enum OnOtherFile {
        /// It is reported and left.
        #[default]
        Report,
        /// It is taken out if nothing uses it, and the Module's file is loaded.
        Replace,
    } else Report
}
