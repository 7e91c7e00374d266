//! The host of the running kernel, by its mounts.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::unistd::{AccessFlags, access};

use super::Host;
use super::own_module::own_module;
use super::publish::HostModules;
use crate::core::kmod::Identity;
use crate::worker::facts::{Published, Refused, SearchPath, Trouble};
use crate::worker::settings::WorkerSettings;

/// The host under the given mounts of `/proc`, `/sys` and `/lib/modules`.
#[derive(Clone, Debug)]
pub struct LinuxHost {
    proc: PathBuf,
    sys: PathBuf,
    modules: HostModules,
}

impl LinuxHost {
    /// The one that the settings describe.
    pub fn of(settings: &WorkerSettings) -> Self {
        let root = settings.proc.join("1/root");
        let config = ["etc", "run", "usr/local/lib", "lib"].map(|folder| root.join(folder).join("depmod.d"));
        let modules = HostModules {
            read: settings.lib_modules.clone(),
            write: settings.host_modules.clone(),
            kmod: settings.modprobe.clone(),
            config: config.into(),
        };
        Self { proc: settings.proc.clone(), sys: settings.sys.clone(), modules }
    }

    fn firmware_parameter(&self) -> PathBuf {
        self.sys.join("module/firmware_class/parameters/path")
    }

    /// Opens what a path means on the host, links included: for its first process, which the kernel resolves firmware for.
    fn open(&self, path: &Path) -> io::Result<File> {
        let root = self.proc.join("1/root");
        let inside = path.strip_prefix("/").unwrap_or(path);
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        match openat2(File::open(&root)?, inside, how) {
            Ok(found) => Ok(found.into()),
            // Older than 5.6: links that begin at the root are taken for the worker's own then.
            Err(Errno::ENOSYS) => File::open(root.join(inside)),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Host for LinuxHost {
    fn readable(&self, file: &Path) -> io::Result<()> {
        File::open(file).map(drop)
    }

    fn own_module(&self, release: &str, name: &str) -> io::Result<Vec<PathBuf>> {
        own_module(&self.modules.read.join(release), ARCH, name)
    }

    fn firmware_path(&self) -> io::Result<Option<SearchPath>> {
        let parameter = self.firmware_parameter();
        let value = match fs::read(&parameter) {
            Ok(value) => String::from_utf8_lossy(&value).trim_end_matches('\n').to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(SearchPath { value, writable: access(&parameter, AccessFlags::W_OK).is_ok() }))
    }

    fn set_firmware_path(&self, value: &str) -> Result<(), Refused> {
        // A write of nothing never reaches the parameter; a zero byte ends the text where it begins.
        let text = if value.is_empty() { "\0" } else { value };
        let write = || OpenOptions::new().write(true).open(self.firmware_parameter())?.write_all(text.as_bytes());
        write().map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw).into())
    }

    fn published(&self) -> io::Result<Published> {
        self.modules.view()
    }

    fn published_files(&self, release: &str, name: &str) -> BTreeMap<String, Identity> {
        self.modules.files(release, name)
    }

    fn publish(&self, release: &str, name: &str, content: &str, files: &[PathBuf]) -> Result<(), Trouble> {
        self.modules.publish(release, name, content, files)
    }

    fn unpublish(&self, release: &str, name: &str) -> Result<(), Trouble> {
        self.modules.unpublish(release, name)
    }

    fn renew_index(&self, release: &str) -> Result<(), Trouble> {
        self.modules.renew_index(release)
    }

    fn folder(&self, path: &Path) -> io::Result<BTreeMap<String, bool>> {
        let folder = match self.open(path) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
        };
        let mut names = BTreeMap::new();
        for found in fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))? {
            let found = found?;
            let Ok(name) = found.file_name().into_string() else { continue };
            let kind = found.file_type()?;
            let is_folder = kind.is_dir()
                || (kind.is_symlink()
                    && self.open(&path.join(&name)).and_then(|file| file.metadata()).is_ok_and(|meta| meta.is_dir()));
            names.insert(name, is_folder);
        }
        Ok(names)
    }
}
