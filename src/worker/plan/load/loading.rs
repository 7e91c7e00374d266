//! A wanted entry whose files are there, and what the kernel has of them.

use crate::api::LoadPolicy;
use crate::core::kmod::order::Role;
use crate::core::kmod::proc_modules::InitState;
use crate::core::kmod::{Identity, Sameness};
use crate::worker::plan::desired::Wanted;
use crate::worker::plan::load_set::{LoadFile, LoadSet};
use crate::worker::plan::observed::Observed;
use crate::worker::plan::unload::is_recorded;
use crate::worker::record::{Entry, RecordedModule};

/// A wanted entry whose files are there.
pub(super) struct Loading<'a> {
    pub(super) observed: &'a Observed,
    pub(super) wanted: &'a Wanted,
    pub(super) entry: Option<&'a Entry>,
    pub(super) set: &'a LoadSet,
}

/// What stands under the name of a file in the kernel.
pub(super) enum Found {
    Absent,
    Same,
    Other,
    Passing,
}

impl<'a> Loading<'a> {
    /// Whether what this Module has loaded is to go.
    pub(super) fn is_ordered(&self) -> bool {
        self.entry.is_some_and(|entry| self.observed.intent(&self.wanted.owner, entry.generation()).is_some())
    }

    /// Modules of the image that are only needed, and that this Module has brought as another file, or the host for it.
    ///
    /// Where somebody else has brought one, it is used as it is, like one of the kernel itself.
    pub(super) fn outdated_needs(&self) -> impl Iterator<Item = &str> {
        let of_image = |file: &&LoadFile| file.role == Role::Needed && self.set.of_image.contains(&file.path);
        let brought = |file: &&LoadFile| {
            self.running_other(file).is_some() && (self.brought(&file.name) || self.is_published(&file.name))
        };
        self.set.files.iter().filter(of_image).filter(brought).map(|file| file.name.as_str())
    }

    /// Whether the kernel still runs what this Module has inserted under the name.
    pub(super) fn brought(&self, name: &str) -> bool {
        let known = self.entry.and_then(|entry| entry.module(name));
        known.is_some_and(|module| module.inserted && self.is_still(module))
    }

    /// Whether the kernel runs what was published for this Module, of which nothing is recorded: at the boot the host has
    /// loaded by itself what the Module had before. That a change was to wait for.
    pub(super) fn is_published(&self, name: &str) -> bool {
        let running = self.observed.kernel.running.get(name);
        let published = self.observed.published_files.get(&self.wanted.owner).and_then(|files| files.get(name));
        published.zip(running).is_some_and(|(file, running)| running.identity.compare(file) == Sameness::Same)
    }

    /// What the kernel runs under the name of a file, if that is certainly another one.
    pub(super) fn running_other(&self, file: &LoadFile) -> Option<&Identity> {
        let running = &self.observed.kernel.running.get(&file.name)?.identity;
        (running.compare(&file.identity) == Sameness::Different).then_some(running)
    }

    /// The module itself, as the kernel has it: modprobe may have been given another name for it.
    pub(super) fn main(&self) -> &str {
        let main = self.wanted.identity.main();
        let files = &self.set.files;
        let stands_in = || files.iter().rfind(|file| file.role == Role::Named).map(|file| file.name.as_str());
        if files.iter().any(|file| file.name == main) { main } else { stands_in().unwrap_or(main) }
    }

    pub(super) fn found(&self, file: &LoadFile) -> Found {
        let Some(listed) = self.observed.kernel.listed.get(&file.name) else { return Found::Absent };
        if listed.state != InitState::Live {
            return Found::Passing;
        }
        let Some(running) = self.observed.kernel.running.get(&file.name) else { return Found::Passing };
        match running.identity.compare(&file.identity) {
            Sameness::Same => Found::Same,
            Sameness::Different => Found::Other,
            // Nothing to compare by: it is the same only if it was inserted from the same image.
            Sameness::Unknown => {
                let ours = self.entry.is_some_and(|entry| {
                    entry.module(&file.name).is_some_and(|module| module.inserted)
                        && entry.identity().is_ok_and(|known| known.digest == self.wanted.identity.digest)
                });
                if ours { Found::Same } else { Found::Other }
            }
        }
    }

    pub(super) fn identity_of_main(&self) -> Identity {
        let running = self.observed.kernel.running.get(self.main());
        running.map(|running| running.identity.clone()).unwrap_or_default()
    }

    /// Entries of other Modules that have this module as their own. Whether one only uses it is told by the kernel.
    pub(super) fn others_with(&self, name: &str) -> impl Iterator<Item = &'a Entry> {
        let entries = self.observed.record.entries.iter().filter(|entry| entry.owner() != self.wanted.owner);
        entries.filter(move |entry| entry.owns(name))
    }

    /// Whether the kernel still runs the file that was recorded.
    pub(super) fn is_still(&self, module: &RecordedModule) -> bool {
        let running = self.observed.kernel.running.get(&module.name);
        running.is_some_and(|running| is_recorded(module, &running.identity))
    }

    pub(super) fn policy(&self) -> LoadPolicy {
        self.wanted.spec.policy.unwrap_or_default()
    }
}
