//! The record: what is in the kernel on behalf of Modules, in one boot. Data, and what follows from it alone.

pub mod firmware;
pub mod kept_plan;
pub mod published;
pub mod rebuild;

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::NodeModuleSpec;
use crate::core::kmod::Identity;
use crate::core::load::{self, LoadIdentity, Refusal};

/// Version of what is kept on the disk; a higher one in a file is of a later worker.
pub const VERSION: u32 = 1;

/// The Module that an entry belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty where a planner of the old edition did not say.
    pub uid: String,
}

impl Owner {
    /// Nobody: work for the node as a whole, of some kind.
    pub fn node(kind: &str) -> Self {
        Self { uid: kind.to_owned(), ..Self::default() }
    }

    /// Whether this is one of [`node`](Self::node).
    pub fn is_node(&self) -> bool {
        self.namespace.is_empty() && self.name.is_empty()
    }

    /// The Module that a wanted entry belongs to.
    pub fn of(spec: &NodeModuleSpec) -> Self {
        Self {
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            uid: spec.module_uid.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_node() { f.write_str("the node") } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// A kernel module of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedModule {
    /// Name as the kernel has it.
    pub name: String,
    /// The Module names it, so it goes with the Module whoever inserted it; others go only if this worker inserted them.
    pub named: bool,
    /// This worker inserted it, or is about to.
    pub inserted: bool,
    /// Which file it is.
    pub identity: Identity,
    /// Types of filesystems that it provides: by them mounts are known that keep it from leaving.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filesystems: Vec<String>,
}

/// A module of the kernel itself that was taken out to make room for a Module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakenOut {
    /// Name as the kernel has it.
    pub name: String,
    /// The Module that it made room for.
    pub owner: Owner,
    /// Its parameters as `/sys` showed them, in the kernel's grammar.
    pub parameters: String,
    /// Whether that Module asked for it to come back.
    pub restore: bool,
    /// How often loading it again has failed.
    #[serde(default)]
    pub failures: u32,
}

/// Firmware of one Module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Firmware {
    /// Folder of the unpacked image with the files; the same path on the host.
    pub folder: PathBuf,
    /// Files by the names that drivers ask for, each with the SHA-256 of its content.
    pub files: BTreeMap<String, String>,
}

/// What one Module has in the kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The wanted entry that it was loaded for.
    pub spec: NodeModuleSpec,
    /// Its kernel modules in the order of insertion, the module itself as the last of those that are named. They leave in
    /// the other order.
    pub modules: Vec<RecordedModule>,
    /// It was in the kernel before the worker came.
    pub adopted: bool,
    /// The folder that was generated for modprobe, where it did the loading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<PathBuf>,
    /// How long the last load took, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// When that load ended; it tells one load from the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_at: Option<Timestamp>,
    /// Its firmware, if it brings any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// Files of its modules in the unpacked image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// The kernel had all of it since it was written: a module that is missing was taken out by somebody else.
    #[serde(default)]
    pub complete: bool,
    /// The record was lost, and nothing proves that what the kernel has under the name is this Module's: only its
    /// presence counts, and it is not touched.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unproved: bool,
}

impl Entry {
    /// One that has nothing in the kernel yet.
    pub fn of(spec: NodeModuleSpec) -> Self {
        Self {
            spec,
            modules: Vec::new(),
            adopted: false,
            took_ms: None,
            loaded_at: None,
            generated: None,
            complete: false,
            firmware: None,
            files: Vec::new(),
            unproved: false,
        }
    }

    /// The Module that it belongs to.
    pub fn owner(&self) -> Owner {
        Owner::of(&self.spec)
    }

    /// What it was loaded for, as the kernel sees it.
    ///
    /// # Errors
    /// It cannot be carried out as it is written.
    pub fn identity(&self) -> Result<LoadIdentity, Refusal> {
        load::identity(&self.spec.config)
    }

    /// Name of the folder that was generated for modprobe.
    pub fn generated_key(&self) -> Option<String> {
        Some(self.generated.as_ref()?.file_name()?.to_str()?.to_owned())
    }

    /// Generation of the Module for which it was loaded.
    pub fn generation(&self) -> i64 {
        self.spec.generation.unwrap_or(0)
    }

    /// Whether it names or inserted the module: one that it only uses is not its own.
    pub fn owns(&self, name: &str) -> bool {
        self.module(name).is_some_and(|module| module.named || module.inserted)
    }

    /// The module of that name.
    pub fn module(&self, name: &str) -> Option<&RecordedModule> {
        self.modules.iter().find(|module| module.name == name)
    }
}

/// Everything that is in the kernel on behalf of Modules, in one boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Version of the file.
    pub version: u32,
    /// The boot that it speaks of.
    #[serde(rename = "bootID")]
    pub boot_id: String,
    /// One for each Module.
    pub entries: Vec<Entry>,
    /// What the kernel's search path for firmware said before it was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_before: Option<String>,
    /// Modules of the kernel itself that were taken out, in that order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub in_tree: Vec<TakenOut>,
    /// What an earlier worker recorded in this boot may be lost, and was not made up for yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// What was lost was made up for in this boot: there may have been more than what it says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made_up: bool,
}

impl Record {
    /// An empty one for this boot.
    pub fn new(boot_id: impl Into<String>) -> Self {
        Self {
            version: VERSION,
            boot_id: boot_id.into(),
            entries: Vec::new(),
            firmware_before: None,
            in_tree: Vec::new(),
            lost: false,
            made_up: false,
        }
    }

    /// The entry of a Module.
    pub fn entry(&self, owner: &Owner) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.owner() == *owner)
    }

    /// Puts an entry in the place of the one of the same Module.
    pub fn put(&mut self, entry: Entry) {
        let owner = entry.owner();
        match self.entries.iter_mut().find(|known| known.owner() == owner) {
            Some(known) => *known = entry,
            None => self.entries.push(entry),
        }
    }

    /// Remembers a module that is about to be taken out, last of all.
    pub fn take_out(&mut self, taken: TakenOut) {
        self.in_tree.retain(|known| known.name != taken.name);
        self.in_tree.push(taken);
    }

    /// Drops a Module's entry.
    pub fn remove(&mut self, owner: &Owner) {
        self.entries.retain(|entry| entry.owner() != *owner);
    }
}
