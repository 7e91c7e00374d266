//! The kernel as the worker sees it: a narrow trait.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::firmware::SearchPath;
use super::publish::View as Published;
use crate::api::names::NodeReason;
use crate::core::kmod::Identity;
use crate::core::kmod::gates::Gates;
use crate::core::kmod::names::Packing;
use crate::core::kmod::proc_modules::Listed;
use crate::core::kmod::users::Users;
use crate::oci::error::is_full;

/// What proves which file a loaded module is, and how it was set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// Build id and srcversion as `/sys/module` shows them.
    pub identity: Identity,
    /// Readable parameters of those that were asked about.
    pub parameters: BTreeMap<String, String>,
}

/// Most lines of the log that a message repeats.
const MAX_LOG_LINES: usize = 4;

/// The kernel did not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{errno}{}", said(log.as_deref()))]
pub struct Refused {
    /// Its answer.
    pub errno: Errno,
    /// What it wrote into its log about the module meanwhile; `None` if the log cannot be read.
    pub log: Option<Vec<String>>,
}

fn said(log: Option<&[String]>) -> String {
    let lines = log.unwrap_or_default();
    let first = lines.get(..MAX_LOG_LINES.min(lines.len())).unwrap_or_default();
    if first.is_empty() { String::new() } else { format!("; the kernel says: {}", first.join(" | ")) }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self { errno, log: Some(Vec::new()) }
    }
}

/// Every call to the kernel, and to the host around it, that the worker makes.
///
/// All of them block. Names are as the kernel has them, with `_`.
pub trait Kernel: Send + Sync + 'static {
    /// Id of the running boot.
    fn boot_id(&self) -> io::Result<String>;
    /// Release of the running kernel, a trailing `+` included.
    fn release(&self) -> io::Result<String>;
    /// All loaded modules.
    fn listed(&self) -> io::Result<BTreeMap<String, Listed>>;
    /// Proof of one loaded module and those of its `parameters` that can be read; `None` if there is no such module.
    fn running(&self, name: &str, parameters: &BTreeSet<String>) -> io::Result<Option<Running>>;
    /// Whether a module's file can be read.
    fn readable(&self, file: &Path) -> io::Result<()>;
    /// Hands a module's file to the kernel and waits until its init function has returned.
    fn load(&self, name: &str, file: &Path, packing: Packing, parameters: &str) -> Result<(), Refused>;
    /// Takes a module out of the kernel; never by force, never waiting for its users.
    fn unload(&self, name: &str) -> Result<(), Refused>;
    /// All readable parameters of a loaded module.
    fn parameters(&self, name: &str) -> io::Result<BTreeMap<String, String>>;
    /// Files of a module that the kernel itself came with, in the order of loading: what it needs first, the module last.
    /// Empty if there is none of that name. What is published for Modules is none of it, whatever the index says.
    fn own_module(&self, name: &str) -> io::Result<Vec<PathBuf>>;
    /// Where the kernel searches for firmware first; `None` if this kernel cannot be told.
    fn firmware_path(&self) -> io::Result<Option<SearchPath>>;
    /// Tells the kernel where to search for firmware first.
    fn set_firmware_path(&self, value: &str) -> Result<(), Refused>;
    /// Names in a folder of the host, as its first process sees it, each with whether it is a folder, also by way of
    /// links. A folder that is not there is empty.
    fn host_folder(&self, path: &Path) -> io::Result<BTreeMap<String, bool>>;
    /// What of Modules is below the host's `/lib/modules`.
    fn published(&self) -> io::Result<Published>;
    /// Which file of which module lies in such a folder of a kernel's release; those that cannot be read are left out.
    fn published_files(&self, release: &str, name: &str) -> BTreeMap<String, Identity>;
    /// Puts files there into a folder for a kernel's release, in the place of what was in it; the index is stale then.
    fn publish(&self, release: &str, name: &str, content: &str, files: &[PathBuf]) -> Result<(), Trouble>;
    /// Removes such a folder; the index is stale then.
    fn unpublish(&self, release: &str, name: &str) -> Result<(), Trouble>;
    /// Renews the index.
    fn renew_index(&self, release: &str) -> Result<(), Trouble>;
    /// Runs modprobe with these arguments and waits for its end; `modules` are those that it is about.
    ///
    /// That it ends well proves nothing about them.
    fn modprobe(&self, arguments: &[String], modules: &[String], removes: bool) -> Result<(), Trouble>;
    /// What it demands of every module now.
    fn gates(&self) -> Gates;
    /// Memory that could be had without swapping, bytes; `None` if it does not say.
    fn available_memory(&self) -> Option<u64>;
    /// Whoever uses a module, as far as can be seen; `filesystems` are types that it provides. Takes long.
    fn users(&self, name: &str, filesystems: &[String]) -> Users;
}

/// Why something is not as wanted: one word of the closed list and one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The word.
    pub reason: NodeReason,
    /// The sentence: names the thing, and the way out where there is one.
    pub message: String,
}

impl Trouble {
    /// Both parts together.
    pub fn new(reason: NodeReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// That one of the worker's own files could not be read or written.
    pub fn of_store(error: &io::Error, message: impl Into<String>) -> Self {
        Self::new(if is_full(error) { NodeReason::StoreFull } else { NodeReason::StoreFailed }, message)
    }

    /// Whether the worker's own files are what is in the way.
    pub fn is_of_store(&self) -> bool {
        matches!(self.reason, NodeReason::StoreFull | NodeReason::StoreFailed)
    }
}
