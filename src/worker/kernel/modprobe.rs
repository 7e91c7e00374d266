//! kmod's executable, and modprobe's refusals in the worker's words.

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

use super::command::{self, Finished};
use super::refusal::{load_trouble, unload_trouble};
use crate::api::names::NodeReason;
use crate::runtime::client::chain;
use crate::worker::facts::{Refused, Trouble};
use crate::worker::settings::WorkerSettings;

/// Longest time for what changes nothing.
const LOOK_UP: Duration = Duration::from_mins(1);

/// kmod's executable, and how long it may take for a change.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its absolute path; it is called by the names `modprobe` and `depmod`.
    pub path: PathBuf,
    /// Longest time that one load or removal may take.
    pub limit: Duration,
}

impl Program {
    /// The one that the settings name.
    pub fn of(settings: &WorkerSettings) -> Self {
        Self { path: settings.modprobe.clone(), limit: settings.modprobe_limit }
    }

    /// Lets modprobe change the kernel. `log` gives what the kernel says of a module meanwhile.
    pub fn change(
        &self,
        arguments: &[String],
        modules: &[String],
        removes: bool,
        log: impl FnOnce(&str) -> Option<Vec<String>>,
    ) -> Result<(), Trouble> {
        let failed =
            |error: command::Error| Trouble::new(NodeReason::KernelRefused, format!("modprobe: {}", chain(&error)));
        let finished = command::run(&self.path, "modprobe", arguments, self.limit).map_err(failed)?;
        if finished.success { Ok(()) } else { Err(refusal(&finished, modules, removes, log)) }
    }

    /// Runs it by one of its names for what changes nothing in the kernel.
    pub fn look_up(&self, name: &str, arguments: &[String]) -> Result<Finished, Trouble> {
        command::run(&self.path, name, arguments, LOOK_UP)
            .map_err(|error| Trouble::new(NodeReason::StoreFailed, chain(&error)))
    }
}

/// modprobe's refusal in the worker's words. Source: `insmod_insert` and `mod_strerror` in kmod, and strerror(3).
fn refusal(
    finished: &Finished,
    modules: &[String],
    removes: bool,
    log: impl FnOnce(&str) -> Option<Vec<String>>,
) -> Trouble {
    const ERRORS: [(&str, Errno); 14] = [
        ("Exec format error", Errno::ENOEXEC),
        ("Unknown symbol in module", Errno::ENOENT),
        ("Invalid argument", Errno::EINVAL),
        ("Key was rejected by service", Errno::EKEYREJECTED),
        ("Required key not available", Errno::ENOKEY),
        ("Key has been revoked", Errno::EKEYREVOKED),
        ("Key has expired", Errno::EKEYEXPIRED),
        ("Package not installed", Errno::ENOPKG),
        ("Operation not permitted", Errno::EPERM),
        ("Permission denied", Errno::EACCES),
        ("No such device", Errno::ENODEV),
        ("Cannot allocate memory", Errno::ENOMEM),
        ("Resource temporarily unavailable", Errno::EAGAIN),
        ("Device or resource busy", Errno::EBUSY),
    ];
    let said = finished.tail.join(" | ");
    // `could not insert 'kmm_a': …`, `could not remove 'kmm_a': …`, `Module kmm_a is in use.`
    let quoted = said.rsplit_once(": ERROR: could not ").and_then(|(_, rest)| rest.split('\'').nth(1));
    let about = quoted.or(modules.last().map(String::as_str)).unwrap_or_default().to_owned();
    if removes && said.contains(" is in use") {
        return Trouble::new(NodeReason::InUse, format!("module {about} was not unloaded: {said}"));
    }
    if said.contains(" not found in directory ") {
        return Trouble::new(NodeReason::ModuleNotFound, format!("modprobe: {said}"));
    }
    match ERRORS.iter().find(|(words, _)| said.contains(words)) {
        Some((_, errno)) => {
            let refused = Refused { errno: *errno, log: log(&about) };
            let words = if removes { unload_trouble(&about, &refused) } else { load_trouble(&about, None, &refused) };
            Trouble::new(words.reason, format!("{}; modprobe says: {said}", words.message))
        }
        None => Trouble::new(NodeReason::KernelRefused, format!("modprobe left with {}: {said}", finished.how)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(tail: &[&str], removes: bool) -> Trouble {
        let tail = tail.iter().map(|line| (*line).to_owned()).collect();
        let finished = Finished { success: false, how: "exit status: 1".into(), answer: String::new(), tail };
        refusal(&finished, &["kmm_a".into()], removes, |module| {
            Some(vec![format!("{module}: Unknown symbol f (err -2)")])
        })
    }

    #[test]
    fn a_refusal_of_modprobe_has_the_reason_that_the_kernels_own_has() {
        for (said, removes, expected) in [
            ("modprobe: ERROR: could not insert 'kmm_b': Exec format error", false, NodeReason::KernelRefused),
            (
                "modprobe: ERROR: could not insert 'kmm_b': Key was rejected by service",
                false,
                NodeReason::SignatureRejected,
            ),
            (
                "modprobe: ERROR: could not insert 'kmm_b': Unknown symbol in module, or unknown parameter (see dmesg)",
                false,
                NodeReason::SymbolMissing,
            ),
            ("modprobe: ERROR: could not insert 'kmm_b': Operation not permitted", false, NodeReason::NotPermitted),
            ("modprobe: FATAL: Module kmm_b not found in directory /x", false, NodeReason::ModuleNotFound),
            ("modprobe: FATAL: Module kmm_b is in use.", true, NodeReason::InUse),
            ("modprobe: ERROR: something new", false, NodeReason::KernelRefused),
            ("", true, NodeReason::KernelRefused),
        ] {
            assert_eq!(refused(&[said], removes).reason, expected, "{said}");
        }
        let message = refused(&["modprobe: ERROR: could not insert 'kmm_b': No such device"], false).message;
        assert!(message.starts_with("module kmm_b was not loaded"), "{message}");
        assert!(message.contains("kmm_b: Unknown symbol f"), "{message}");
    }
}
