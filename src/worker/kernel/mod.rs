//! The kernel's modules, as the worker sees them: a narrow trait, and what stands behind it.

pub mod command;
mod kmsg;
pub mod linux;
pub mod modprobe;
pub mod refusal;
pub mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use crate::core::kmod::gates::Gates;
use crate::core::kmod::names::Packing;
use crate::core::kmod::proc_modules::Listed;
use crate::core::kmod::users::Users;
use crate::worker::facts::{Refused, Running, Trouble};

/// Every call about modules that the worker makes to the kernel.
///
/// All of them block. Names are as the kernel has them, with `_`.
pub trait Kernel: Send + Sync + 'static {
    /// Id of the running boot.
    fn boot_id(&self) -> io::Result<String>;
    /// Release of the running kernel, a trailing `+` included.
    fn release(&self) -> io::Result<String>;
    /// The command line that it was started with; empty if it does not say.
    fn command_line(&self) -> String;
    /// All loaded modules.
    fn listed(&self) -> io::Result<BTreeMap<String, Listed>>;
    /// Proof of one loaded module and those of its `parameters` that can be read; `None` if there is no such module.
    fn running(&self, name: &str, parameters: &BTreeSet<String>) -> io::Result<Option<Running>>;
    /// Hands a module's file to the kernel and waits until its init function has returned.
    fn load(&self, name: &str, file: &Path, packing: Packing, parameters: &str) -> Result<(), Refused>;
    /// Takes a module out of the kernel; never by force, never waiting for its users.
    fn unload(&self, name: &str) -> Result<(), Refused>;
    /// All readable parameters of a loaded module.
    fn parameters(&self, name: &str) -> io::Result<BTreeMap<String, String>>;
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
