//! The running Linux kernel, by system calls, `/proc` and `/sys`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module, init_module};

use super::kmsg::Log;
use super::modprobe::Program;
use super::{Kernel, users};
use crate::core::kmod::gates::{self, Gates};
use crate::core::kmod::names::{self, Packing};
use crate::core::kmod::proc_modules::{self, Listed};
use crate::core::kmod::users::Users;
use crate::core::kmod::{Identity, elf};
use crate::worker::facts::{Refused, Running, Trouble};
use crate::worker::module_file;
use crate::worker::settings::WorkerSettings;

/// Longest value of a parameter that is read; the kernel itself prints at most a page.
const MAX_SYSFS: u64 = 16 * 1024;
/// `MODULE_INIT_COMPRESSED_FILE` of `include/uapi/linux/module.h` of Linux.
const COMPRESSED_FILE: ModuleInitFlags = ModuleInitFlags::from_bits_retain(4);

/// The kernel under the given mounts of `/proc`, `/sys` and `/dev`.
#[derive(Clone, Debug)]
pub struct LinuxKernel {
    proc: PathBuf,
    sys: PathBuf,
    kmsg: PathBuf,
    kmod: Program,
}

impl LinuxKernel {
    /// The one that the settings describe.
    pub fn of(settings: &WorkerSettings) -> Self {
        Self {
            proc: settings.proc.clone(),
            sys: settings.sys.clone(),
            kmsg: settings.kmsg.clone(),
            kmod: Program::of(settings),
        }
    }

    /// Whether the kernel takes files of this packing as they are; it does for the one that its own modules have.
    ///
    /// Source: `Documentation/ABI/testing/sysfs-module` of Linux, `/sys/module/compression`, since 5.17.
    fn unpacks(&self, packing: Packing) -> bool {
        let own = text(&self.sys.join("module/compression"));
        matches!(
            (own.as_deref(), packing),
            (Some("gzip"), Packing::Gzip) | (Some("xz"), Packing::Xz) | (Some("zstd"), Packing::Zstd)
        )
    }

    fn line(&self, path: &str) -> io::Result<String> {
        Ok(fs::read_to_string(self.proc.join(path))?.trim().to_owned())
    }

    /// The kernel's lockdown. Where it is told is mounted for the host; a container's own `/sys` does not have it.
    fn lockdown(&self) -> Option<String> {
        let place = Path::new("kernel/security/lockdown");
        let of_host = self.proc.join("1/root/sys").join(place);
        text(&of_host).or_else(|| text(&self.sys.join(place)))
    }
}

/// Whether it is packed by xz with a checksum that the kernel does not know: it knows CRC32 and none.
///
/// Source: `dec_stream_header` in `lib/xz/xz_dec_stream.c` of Linux, and 2.1.1.2 of the file format of xz.
fn has_other_checksum(file: &Path, packing: Packing) -> bool {
    let mut header = [0; 8];
    packing == Packing::Xz
        && File::open(file).and_then(|mut file| file.read_exact(&mut header)).is_ok()
        && header[7] & 0x0f > 1
}

/// Whether the kernel says by this that it could not unpack a module. Source: `kernel/module/decompress.c` of Linux.
fn is_of_unpacking(message: &str) -> bool {
    ["decompression failed", "decompressor", "compressed module", "ZSTD-compressed data"]
        .iter()
        .any(|words| message.contains(words))
}

/// A file of sysfs; `None` if it is not there or not readable.
fn sysfs(path: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path).ok()?.take(MAX_SYSFS).read_to_end(&mut content).ok()?;
    Some(content)
}

fn text(path: &Path) -> Option<String> {
    let content = String::from_utf8_lossy(&sysfs(path)?).trim().to_owned();
    (!content.is_empty()).then_some(content)
}

fn build_id(notes: &Path) -> Option<String> {
    // The usual name first: reading all notes of a big module is wasteful.
    if let Some(id) = sysfs(&notes.join(".note.gnu.build-id")).and_then(|note| elf::build_id_of_notes(&note)) {
        return Some(id);
    }
    let mut files: Vec<PathBuf> = fs::read_dir(notes).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files.iter().find_map(|file| elf::build_id_of_notes(&sysfs(file)?))
}

impl Kernel for LinuxKernel {
    fn boot_id(&self) -> io::Result<String> {
        self.line("sys/kernel/random/boot_id")
    }

    fn release(&self) -> io::Result<String> {
        self.line("sys/kernel/osrelease")
    }

    fn command_line(&self) -> String {
        self.line("cmdline").unwrap_or_default()
    }

    fn listed(&self) -> io::Result<BTreeMap<String, Listed>> {
        match fs::read_to_string(self.proc.join("modules")) {
            Ok(table) => Ok(proc_modules::parse(&table)),
            // A kernel without loadable modules has no table of them; a `/proc` that is none has nothing at all.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.proc.join("version").exists() => {
                Ok(BTreeMap::new())
            }
            Err(error) => Err(error),
        }
    }

    fn running(&self, name: &str, parameters: &BTreeSet<String>) -> io::Result<Option<Running>> {
        let module = self.sys.join("module").join(name);
        // Modules that are part of the kernel have a folder too, without state.
        if !names::is_valid(name) || !module.join("initstate").exists() {
            return Ok(None);
        }
        let identity =
            Identity { build_id: build_id(&module.join("notes")), srcversion: text(&module.join("srcversion")) };
        let parameters = parameters
            .iter()
            .filter(|parameter| names::is_valid(parameter))
            .filter_map(|parameter| {
                let value = sysfs(&module.join("parameters").join(parameter))?;
                Some((parameter.clone(), String::from_utf8_lossy(&value).trim_end_matches('\n').to_owned()))
            })
            .collect();
        Ok(Some(Running { identity, parameters }))
    }

    fn load(&self, name: &str, file: &Path, packing: Packing, parameters: &str) -> Result<(), Refused> {
        let parameters = CString::new(parameters).map_err(|_| Errno::EINVAL)?;
        let mut log = Log::open(&self.kmsg);
        let unreadable = |error: io::Error| Refused {
            errno: match error.kind() {
                io::ErrorKind::OutOfMemory => Errno::ENOMEM,
                _ => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            },
            log: Some(vec![format!("{name}: {} cannot be read: {error}", file.display())]),
        };
        let by_memory = || {
            let image = module_file::read(file, packing).map_err(unreadable)?;
            Ok::<_, Refused>(init_module(&image, &parameters))
        };
        // Where the kernel can unpack, it gets the file by descriptor, so that its policies see where it comes from.
        let by_descriptor = |flags| {
            let file = File::open(file).map_err(unreadable)?;
            Ok::<_, Refused>(finit_module(&file, &parameters, flags))
        };
        let answer = match packing {
            Packing::Plain => by_descriptor(ModuleInitFlags::empty())?,
            _ if self.unpacks(packing) => {
                let mut unpacking = Log::open(&self.kmsg);
                match by_descriptor(COMPRESSED_FILE)? {
                    // Of a kind of compression that only looks like the kernel's own. A module's own refusal is none: its
                    // init function must not run again.
                    Err(Errno::EOPNOTSUPP) => by_memory()?,
                    Err(Errno::EINVAL) if has_other_checksum(file, packing) || unpacking.says(is_of_unpacking) => {
                        by_memory()?
                    }
                    answer => answer,
                }
            }
            Packing::Gzip | Packing::Xz | Packing::Zstd => by_memory()?,
        };
        answer.map_err(|errno| Refused { errno, log: log.about(name) })
    }

    fn unload(&self, name: &str) -> Result<(), Refused> {
        let c_name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        let mut log = Log::open(&self.kmsg);
        delete_module(&c_name, DeleteModuleFlags::O_NONBLOCK).map_err(|errno| Refused { errno, log: log.about(name) })
    }

    fn parameters(&self, name: &str) -> io::Result<BTreeMap<String, String>> {
        if !names::is_valid(name) {
            return Ok(BTreeMap::new());
        }
        let files = match fs::read_dir(self.sys.join("module").join(name).join("parameters")) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
        };
        let mut parameters = BTreeMap::new();
        for file in files {
            let file = file?;
            if let (Ok(name), Some(value)) = (file.file_name().into_string(), sysfs(&file.path())) {
                parameters.insert(name, String::from_utf8_lossy(&value).trim_end_matches('\n').to_owned());
            }
        }
        Ok(parameters)
    }

    fn modprobe(&self, arguments: &[String], modules: &[String], removes: bool) -> Result<(), Trouble> {
        let mut log = Log::open(&self.kmsg);
        self.kmod.change(arguments, modules, removes, |module| log.about(module))
    }

    fn gates(&self) -> Gates {
        let module = self.sys.join("module");
        Gates {
            no_modules: !self.proc.join("modules").exists() && self.proc.join("version").exists(),
            disabled: self.line("sys/kernel/modules_disabled").is_ok_and(|value| value == "1"),
            signed_only: gates::signed_only(
                text(&module.join("module/parameters/sig_enforce")).as_deref(),
                self.lockdown().as_deref(),
            ),
            blacklist: gates::blacklist(text(&module.join("kernel/parameters/module_blacklist")).as_deref()),
        }
    }

    fn available_memory(&self) -> Option<u64> {
        gates::available_memory(&fs::read_to_string(self.proc.join("meminfo")).ok()?)
    }

    fn users(&self, name: &str, filesystems: &[String]) -> Users {
        users::look(&self.proc, &self.sys, name, filesystems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::kernel::kmsg::message;

    #[test]
    fn only_a_file_that_the_kernel_could_not_unpack_is_handed_over_again() {
        let folder = tempfile::tempdir().unwrap();
        let of = |check: u8| {
            let path = folder.path().join(format!("{check}.ko.xz"));
            fs::write(&path, [&[0xfd], b"7zXZ\0\0".as_slice(), &[check, 1, 2]].concat()).unwrap();
            path
        };
        for (check, other) in [(0, false), (1, false), (4, true), (10, true)] {
            assert_eq!(has_other_checksum(&of(check), Packing::Xz), other, "{check}");
        }
        assert!(!has_other_checksum(&of(4), Packing::Zstd) && !has_other_checksum(folder.path(), Packing::Xz));
        let said = |record: &str| message(record).is_some_and(is_of_unpacking);
        assert!(said("3,1,9,-;decompression failed with status 6\n"));
        assert!(said("3,1,9,-;module: ZSTD-decompression failed with status 1\n"));
        assert!(!said("3,1,9,-;kmm_a: wrong mode\n") && !said("nonsense"));
    }

    #[test]
    fn proof_is_read_from_the_folders_of_the_module() {
        let root = tempfile::tempdir().unwrap();
        let module = root.path().join("module/kmm_a");
        fs::create_dir_all(module.join("notes")).unwrap();
        fs::create_dir_all(module.join("parameters")).unwrap();
        let kernel = LinuxKernel::of(&WorkerSettings {
            proc: root.path().into(),
            sys: root.path().into(),
            kmsg: root.path().join("kmsg"),
            ..WorkerSettings::new("node")
        });
        let asked = BTreeSet::from(["level".to_owned(), "absent".to_owned(), "../initstate".to_owned()]);
        assert_eq!(kernel.running("kmm_a", &asked).unwrap(), None, "no initstate: part of the kernel");
        fs::write(module.join("initstate"), "live\n").unwrap();
        fs::write(module.join("srcversion"), "S1\n").unwrap();
        fs::write(module.join("parameters/level"), "3\n").unwrap();
        fs::write(module.join("notes/.note.gnu.build-id"), elf::testing::note(&[0xab])).unwrap();
        assert_eq!(
            kernel.running("kmm_a", &asked).unwrap(),
            Some(Running {
                identity: Identity { build_id: Some("ab".into()), srcversion: Some("S1".into()) },
                parameters: BTreeMap::from([("level".into(), "3".into())]),
            })
        );
        fs::rename(module.join("notes/.note.gnu.build-id"), module.join("notes/.note.all")).unwrap();
        assert_eq!(
            kernel.running("kmm_a", &BTreeSet::new()).unwrap().unwrap().identity.build_id.as_deref(),
            Some("ab")
        );
        assert_eq!(kernel.running("../module", &asked).unwrap(), None);
    }

    #[test]
    fn what_the_kernel_demands_is_read_where_it_says_it() {
        let root = tempfile::tempdir().unwrap();
        let kernel = LinuxKernel::of(&WorkerSettings {
            proc: root.path().into(),
            sys: root.path().into(),
            kmsg: root.path().join("kmsg"),
            ..WorkerSettings::new("node")
        });
        assert_eq!(kernel.gates(), Gates::default(), "nothing there: nothing demanded");
        assert_eq!(kernel.available_memory(), None);
        assert!(kernel.listed().is_err(), "no `/proc` at all");
        fs::write(root.path().join("version"), "Linux\n").unwrap();
        assert!(kernel.gates().no_modules && kernel.listed().unwrap().is_empty());
        for (file, content) in [
            ("modules", ""),
            ("sys/kernel/modules_disabled", "1\n"),
            ("module/module/parameters/sig_enforce", "N\n"),
            ("kernel/security/lockdown", "none [integrity] confidentiality\n"),
            ("module/kernel/parameters/module_blacklist", "a,b\n"),
            ("meminfo", "MemAvailable: 4 kB\n"),
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let expected = Gates {
            no_modules: false,
            disabled: true,
            signed_only: Some(gates::SignedOnly::Lockdown("integrity".into())),
            blacklist: vec!["a".into(), "b".into()],
        };
        assert_eq!(kernel.gates(), expected);
        assert_eq!(kernel.available_memory(), Some(4096));
        // What the host shows counts before what a container does.
        let of_host = root.path().join("1/root/sys/kernel/security");
        fs::create_dir_all(&of_host).unwrap();
        fs::write(of_host.join("lockdown"), "none integrity [confidentiality]\n").unwrap();
        assert_eq!(kernel.gates().signed_only, Some(gates::SignedOnly::Lockdown("confidentiality".into())));
    }
}
