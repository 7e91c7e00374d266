//! From an unpacked image to what must be done for an entry: the same for the worker that stays and for a single pass.

use std::collections::BTreeSet;
use std::env::consts::ARCH;
use std::path::{Path, PathBuf};

use super::examine::{self, Place};
use super::modprobe_folder;
use crate::worker::facts::Trouble;
use crate::worker::kernel::modprobe::Program;
use crate::worker::plan::{LoadSet, Observed, Wanted};
use crate::worker::settings::WorkerSettings;

/// Where the files of the host are that count when an image is read, and where others are put.
#[derive(Clone, Debug)]
pub struct Places {
    lib_modules: PathBuf,
    kmod: Program,
    generated: PathBuf,
}

/// The kernel that an image is read for.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its release.
    pub release: String,
    /// Its command line.
    pub command_line: String,
    /// Modules that are loaded.
    pub loaded: BTreeSet<String>,
}

impl Target {
    /// The kernel that was observed.
    pub fn of(observed: &Observed, command_line: &str) -> Self {
        let loaded = observed.kernel.listed.keys().cloned().collect();
        Self { release: observed.release.clone(), command_line: command_line.to_owned(), loaded }
    }
}

impl Places {
    /// Those of the settings; what is generated for modprobe goes below `generated`.
    pub fn new(settings: &WorkerSettings, generated: PathBuf) -> Self {
        Self { lib_modules: settings.lib_modules.clone(), kmod: Program::of(settings), generated }
    }

    /// Everything that must be loaded for an entry whose image is unpacked in `tree`. Blocks.
    ///
    /// # Errors
    /// What the image lacks, or what the kernel would refuse of it.
    pub fn load_set(&self, tree: &Path, target: &Target, wanted: &Wanted) -> Result<LoadSet, Trouble> {
        let (identity, spec) = (&wanted.identity, &wanted.spec);
        let place = Place {
            tree,
            host_modules: &self.lib_modules,
            release: &target.release,
            machine: ARCH,
            loaded: &target.loaded,
            kernel_cmdline: &target.command_line,
        };
        match (&identity.by_modprobe, identity.generated_key(&target.release)) {
            (Some(by), Some(key)) => {
                let folder = self.generated.join(key);
                let set = modprobe_folder::prepare(&place, identity, by, &spec.config.modprobe, &self.kmod, &folder)?;
                let files = set.files.iter().map(|file| file.path.clone());
                let of_image = files.filter(|path| path.starts_with(tree)).collect();
                Ok(LoadSet { firmware: examine::firmware(tree, identity)?, of_image, ..set })
            }
            _ => examine::load_set(&place, identity),
        }
    }
}
