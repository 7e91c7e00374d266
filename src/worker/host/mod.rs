//! Files of the host around the kernel: a narrow trait, and what stands behind it.

pub mod firmware;
pub mod linux;
mod own_module;
pub mod publish;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::core::kmod::Identity;
use crate::worker::facts::{Published, Refused, SearchPath, Trouble};

/// Every look at files of the host, and every change of them, that the worker makes outside its own folder.
///
/// All of them block. Names of modules are as the kernel has them, with `_`.
pub trait Host: Send + Sync + 'static {
    /// Whether a module's file can be read.
    fn readable(&self, file: &Path) -> io::Result<()>;
    /// Files of a module that the kernel of this release itself came with, in the order of loading: what it needs first,
    /// the module last. Empty if there is none of that name. What is published for Modules is none of it, whatever the
    /// index says.
    fn own_module(&self, release: &str, name: &str) -> io::Result<Vec<PathBuf>>;
    /// Where the kernel searches for firmware first; `None` if this kernel cannot be told.
    fn firmware_path(&self) -> io::Result<Option<SearchPath>>;
    /// Tells the kernel where to search for firmware first.
    fn set_firmware_path(&self, value: &str) -> Result<(), Refused>;
    /// Names in a folder of the host, as its first process sees it, each with whether it is a folder, also by way of
    /// links. A folder that is not there is empty.
    fn folder(&self, path: &Path) -> io::Result<BTreeMap<String, bool>>;
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
}
