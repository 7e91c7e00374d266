//! The kernel as the worker sees it: a narrow trait, and its refusals in words.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::firmware::SearchPath;
use super::publish::View as Published;
use crate::api::names::NodeReason;
use crate::core::kmod::Identity;
use crate::core::kmod::names::Packing;
use crate::core::kmod::proc_modules::Listed;

/// What proves which file a loaded module is, and how it was set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// Build id and srcversion as `/sys/module` shows them.
    pub identity: Identity,
    /// Readable parameters of those that were asked about.
    pub parameters: BTreeMap<String, String>,
}

/// The kernel did not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{errno}{}", if log.is_empty() { String::new() } else { format!("; the kernel says: {}", log.join(" | ")) })]
pub struct Refused {
    /// Its answer.
    pub errno: Errno,
    /// What it wrote into its log about the module meanwhile.
    pub log: Vec<String>,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self { errno, log: Vec::new() }
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
    /// Hands a module's file to the kernel and waits until its init function has returned.
    fn load(&self, name: &str, file: &Path, packing: Packing, parameters: &str) -> Result<(), Refused>;
    /// Takes a module out of the kernel; never by force, never waiting for its users.
    fn unload(&self, name: &str) -> Result<(), Refused>;
    /// All readable parameters of a loaded module.
    fn parameters(&self, name: &str) -> io::Result<BTreeMap<String, String>>;
    /// Files of a module that the kernel itself came with, in the order of loading: what it needs first, the module last.
    /// Empty if there is none of that name.
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
    /// Puts files there into a folder for a kernel's release, in the place of what was in it; the index is stale then.
    fn publish(&self, release: &str, name: &str, content: &str, files: &[PathBuf]) -> Result<(), Trouble>;
    /// Removes such a folder; the index is stale then.
    fn unpublish(&self, release: &str, name: &str) -> Result<(), Trouble>;
    /// Renews the index.
    fn renew_index(&self, release: &str) -> Result<(), Trouble>;
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
}

/// A refused load in words.
///
/// Source: `load_module` and `module_sig_check` of Linux; the log is looked at where one number means several things.
pub fn load_trouble(name: &str, refused: &Refused) -> Trouble {
    let log = refused.log.join("\n");
    let says = |text: &str| log.contains(text);
    let (reason, what) = match refused.errno {
        Errno::ENOEXEC if says("version magic") => (NodeReason::VermagicMismatch, "it was built for another kernel"),
        Errno::ENOEXEC => (NodeReason::KernelRefused, "the kernel cannot take this file"),
        Errno::ENOENT => (NodeReason::SymbolMissing, "the kernel lacks a symbol that it uses"),
        Errno::EINVAL if says("disagrees about version of symbol") || says("no symbol version") => {
            (NodeReason::SymbolMissing, "the kernel has a symbol that it uses in another version")
        }
        Errno::EINVAL if says("invalid for parameter") => {
            (NodeReason::ParameterRefused, "the kernel refuses the value of a parameter")
        }
        Errno::EINVAL => (NodeReason::KernelRefused, "the kernel refuses a parameter or the module itself"),
        Errno::EKEYREJECTED
        | Errno::ENOKEY
        | Errno::EBADMSG
        | Errno::EKEYREVOKED
        | Errno::EKEYEXPIRED
        | Errno::ENOPKG => (
            NodeReason::SignatureRejected,
            "the kernel does not trust its signature; sign it with a key that the kernel knows",
        ),
        Errno::EPERM | Errno::EACCES => (
            NodeReason::NotPermitted,
            "loading modules is not permitted (lockdown, modules_disabled, or the worker is not privileged)",
        ),
        Errno::ENODEV => (NodeReason::KernelRefused, "it finds no device that it drives"),
        Errno::ENOMEM => (NodeReason::KernelRefused, "the kernel has not enough memory"),
        _ => (NodeReason::KernelRefused, "it refused to start"),
    };
    Trouble::new(reason, format!("module {name} was not loaded, {what}: {refused}"))
}

/// A refused unload in words.
pub fn unload_trouble(name: &str, refused: &Refused) -> Trouble {
    let (reason, what) = match refused.errno {
        Errno::EAGAIN => (NodeReason::InUse, "something uses it"),
        Errno::EBUSY => (NodeReason::InUse, "it is starting or ending, or has no exit function"),
        Errno::EPERM | Errno::EACCES => (
            NodeReason::NotPermitted,
            "unloading modules is not permitted (modules_disabled, or the worker is not privileged)",
        ),
        _ => (NodeReason::KernelRefused, "the kernel refused"),
    };
    Trouble::new(reason, format!("module {name} was not unloaded, {what}: {refused}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_the_kernel_has_a_reason() {
        let table = [
            (Errno::ENOENT, "", NodeReason::SymbolMissing),
            (Errno::EINVAL, "kmm_a: disagrees about version of symbol x", NodeReason::SymbolMissing),
            (Errno::EINVAL, "kmm_a: `abc' invalid for parameter `level'", NodeReason::ParameterRefused),
            (Errno::EINVAL, "", NodeReason::KernelRefused),
            (Errno::ENOEXEC, "kmm_a: version magic '5' should be '6'", NodeReason::VermagicMismatch),
            (Errno::ENOEXEC, "", NodeReason::KernelRefused),
            (Errno::EKEYREJECTED, "", NodeReason::SignatureRejected),
            (Errno::ENOKEY, "", NodeReason::SignatureRejected),
            (Errno::EPERM, "", NodeReason::NotPermitted),
            (Errno::ENODEV, "", NodeReason::KernelRefused),
            (Errno::EIO, "", NodeReason::KernelRefused),
        ];
        for (errno, log, expected) in table {
            let log: Vec<String> = (!log.is_empty()).then(|| log.to_owned()).into_iter().collect();
            assert_eq!(load_trouble("kmm_a", &Refused { errno, log }).reason, expected, "{errno}");
        }
        for (errno, expected) in [
            (Errno::EAGAIN, NodeReason::InUse),
            (Errno::EBUSY, NodeReason::InUse),
            (Errno::EPERM, NodeReason::NotPermitted),
        ] {
            assert_eq!(unload_trouble("kmm_a", &errno.into()).reason, expected, "{errno}");
        }
        let refused = Refused { errno: Errno::ENOENT, log: vec!["kmm_a: Unknown symbol f (err -2)".into()] };
        assert_eq!(
            load_trouble("kmm_a", &refused).message,
            "module kmm_a was not loaded, the kernel lacks a symbol that it uses: \
             ENOENT: No such file or directory; the kernel says: kmm_a: Unknown symbol f (err -2)"
        );
    }
}
