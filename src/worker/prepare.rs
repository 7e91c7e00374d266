//! From an unpacked image to what must be done for an entry: the same for the worker that stays and for a single pass.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::WorkerSettings;
use super::examine::{self, Place};
use super::kernel::Trouble;
use super::modprobe::{self, Program};
use super::plan::LoadSet;
use super::wanted::LoadIdentity;
use crate::api::NodeModuleSpec;

/// Where the host's files are that count when an image is read.
#[derive(Clone, Debug)]
pub struct Host {
    lib_modules: PathBuf,
    proc: PathBuf,
    kmod: Program,
    generated: PathBuf,
}

impl Host {
    /// Those of the settings; what is generated for modprobe goes below `generated`.
    pub fn new(settings: &WorkerSettings, generated: PathBuf) -> Self {
        let (lib_modules, proc) = (settings.lib_modules.clone(), settings.proc.clone());
        Self { lib_modules, proc, kmod: settings.kmod(), generated }
    }

    /// Everything that must be loaded for an entry whose image is unpacked in `tree`. Blocks.
    pub fn load_set(
        &self,
        tree: &Path,
        release: &str,
        loaded: &BTreeSet<String>,
        identity: &LoadIdentity,
        spec: &NodeModuleSpec,
    ) -> Result<LoadSet, Trouble> {
        let place = Place {
            tree,
            host_modules: &self.lib_modules,
            release,
            machine: std::env::consts::ARCH,
            loaded,
            kernel_cmdline: &fs::read_to_string(self.proc.join("cmdline")).unwrap_or_default(),
        };
        match (&identity.by_modprobe, identity.generated_key(release)) {
            (Some(by), Some(key)) => {
                let folder = self.generated.join(key);
                let set = modprobe::prepare(&place, identity, by, &spec.config.modprobe, &self.kmod, &folder)?;
                let files = set.files.iter().map(|file| file.path.clone());
                let of_image = files.filter(|path| path.starts_with(tree)).collect();
                Ok(LoadSet { firmware: examine::firmware(tree, identity)?, of_image, ..set })
            }
            _ => examine::load_set(&place, identity),
        }
    }
}
