//! What is to be told to the kernel and to the host, step by step.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::load_set::LoadFile;
use crate::api::names::NodeReason;
use crate::core::kmod::Identity;
use crate::core::kmod::proc_modules::Listed;
use crate::core::load::LoadIdentity;
use crate::worker::facts::Trouble;
use crate::worker::record::{Entry, Owner};

/// One step of a job. Steps carry all that they need and are not judged again.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Put this into the record.
    Write(Box<Entry>),
    /// Drop this from the record.
    Forget(Owner),
    /// Go on only if so much memory is available, and these files can be read.
    Check {
        /// Memory in bytes.
        memory: u64,
        /// What is about to be loaded.
        files: Vec<PathBuf>,
    },
    /// Take a module out of the kernel, if it still is this file.
    Unload {
        /// Its name.
        name: String,
        /// Which file it was when the plan was made.
        identity: Identity,
    },
    /// Hand a file to the kernel.
    Load {
        /// The file.
        file: LoadFile,
        /// Parameters in the kernel's grammar.
        parameters: String,
    },
    /// Make the search path for firmware hold what the record says.
    Firmware,
    /// Put into the record that this module of the kernel itself makes room for the Module, and how it is set.
    TakeOut {
        /// Its name.
        name: String,
        /// The Module.
        owner: Owner,
        /// Whether it asks for the module to come back.
        restore: bool,
    },
    /// Load a module of the kernel itself again that stands in the record as taken out, unless it is there.
    PutBack(String),
    /// Drop from the record that these modules were taken out.
    ForgetTakenOut(Vec<String>),
    /// Put files below the host's `/lib/modules`.
    Publish {
        /// Release of the kernel.
        release: String,
        /// Name of the folder.
        name: String,
        /// What tells its content from another.
        content: String,
        /// The files.
        files: Vec<PathBuf>,
    },
    /// Remove a folder from there.
    Unpublish {
        /// Release of the kernel.
        release: String,
        /// Name of the folder.
        name: String,
    },
    /// Renew the index of a release.
    Index(String),
    /// Should a later step fail, do this too, as far as it can be done.
    OnFailure(Vec<Step>),
    /// Let modprobe load or remove.
    Modprobe {
        /// Its command line.
        arguments: Vec<String>,
        /// The kernel modules that it is about.
        modules: Vec<String>,
        /// It removes.
        removes: bool,
    },
}

impl Step {
    /// Whether a module gets into the kernel by it.
    pub fn loads(&self) -> bool {
        matches!(self, Self::Load { .. } | Self::Modprobe { removes: false, .. })
    }

    /// Modules that the kernel is to get by it.
    pub fn inserts(&self) -> &[String] {
        match self {
            Self::Load { file, .. } => std::slice::from_ref(&file.name),
            Self::Modprobe { modules, removes: false, .. } => modules,
            _ => &[],
        }
    }

    /// Whether a module leaves the kernel by it.
    pub fn unloads(&self) -> bool {
        matches!(self, Self::Unload { .. } | Self::Modprobe { removes: true, .. })
    }

    /// Put this into the record.
    pub(super) fn write(entry: Entry) -> Self {
        Self::Write(Box::new(entry))
    }
}

/// Steps for one Module, in order; the first failure ends the job. Which jobs may run side by side says [`startable`](super::startable).
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The Module.
    pub owner: Owner,
    /// What is to be loaded; `None` if the job only unloads.
    pub identity: Option<LoadIdentity>,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Job {
    /// Whether a module gets into the kernel by it.
    pub fn loads(&self) -> bool {
        self.steps.iter().any(Step::loads)
    }

    /// Whether a module leaves the kernel by it.
    pub fn unloads(&self) -> bool {
        self.steps.iter().any(Step::unloads)
    }

    /// Reference counts of what it was to unload, if something was in the way of that; otherwise none.
    pub(super) fn counts_after(
        &self,
        trouble: &Trouble,
        listed: &BTreeMap<String, Listed>,
    ) -> BTreeMap<String, Option<u32>> {
        let names = self.steps.iter().filter_map(|step| match step {
            Step::Unload { name, .. } if trouble.reason == NodeReason::InUse => Some(name),
            _ => None,
        });
        counts(listed, names)
    }
}

/// Reference counts of these modules; those that are not loaded have none.
pub(super) fn counts<'a>(
    listed: &BTreeMap<String, Listed>,
    names: impl IntoIterator<Item = &'a String>,
) -> BTreeMap<String, Option<u32>> {
    names.into_iter().map(|name| (name.clone(), listed.get(name).and_then(|listed| listed.refcnt))).collect()
}
