//! Looks through `/proc` and `/sys` for whoever uses a module. Costs time: done only when an unload waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::{major, minor};

use crate::core::kmod::users::{self, DeviceNumber, Mount, Users};

/// Most processes and open files that are looked at, and the longest time for it.
const MAX_PROCESSES: usize = 10_000;
const MAX_FILES: usize = 200_000;
const MAX_TIME: Duration = Duration::from_secs(2);
/// Most folders above a device in which its drivers are looked for.
const MAX_DEPTH: usize = 16;

/// Whoever uses the module, as far as the processes under `proc` show it.
///
/// `filesystems` are types that the module provides besides that of its own name.
pub fn look(proc: &Path, sys: &Path, module: &str, filesystems: &[String]) -> Users {
    let devices = fs::read_to_string(proc.join("devices")).unwrap_or_default();
    let (characters, blocks) = users::parse_majors(&devices);
    let mut search = Search { sys, module, filesystems, characters, blocks, known: BTreeMap::new() };
    let mut found = Users { interfaces: search.interfaces(), devices: search.devices(), ..Users::default() };
    let begun = Instant::now();
    // One table for all processes that see the same mounts; of each, the mounts whose files can be asked about.
    let mut spaces: BTreeMap<PathBuf, BTreeSet<u64>> = BTreeMap::new();
    let mut files = 0;
    for (count, pid) in pids(proc).into_iter().enumerate() {
        let process = proc.join(pid.to_string());
        let Ok(space) = fs::read_link(process.join("ns/mnt")) else { continue };
        let local = spaces.entry(space).or_insert_with(|| {
            let table = users::parse_mounts(&fs::read_to_string(process.join("mountinfo")).unwrap_or_default());
            found.mounts.extend(search.mounts(&table));
            table.iter().filter(|mount| mount.is_local()).map(|mount| mount.id).collect()
        });
        for file in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            files += 1;
            let info = fs::read_to_string(process.join("fdinfo").join(file.file_name())).unwrap_or_default();
            if users::parse_mount_id(&info).is_none_or(|mount| !local.contains(&mount)) {
                continue;
            }
            let Ok(about) = fs::metadata(file.path()) else { continue };
            let kind = about.file_type();
            if (kind.is_char_device() || kind.is_block_device()) && search.is_ours(about.rdev(), kind.is_block_device())
            {
                found.processes.insert(told(&process, pid, &file.path()));
            }
            if files >= MAX_FILES {
                break;
            }
        }
        if count + 1 >= MAX_PROCESSES || files >= MAX_FILES || begun.elapsed() > MAX_TIME {
            found.incomplete = true;
            break;
        }
    }
    found
}

/// All processes, the oldest first.
fn pids(proc: &Path) -> Vec<u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// `name (pid 7) has /dev/x`.
fn told(process: &Path, pid: u32, file: &Path) -> String {
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let path = fs::read_link(file).unwrap_or_else(|_| file.to_owned());
    format!("{} (pid {pid}) has {}", name.trim(), path.display())
}

struct Search<'a> {
    sys: &'a Path,
    module: &'a str,
    filesystems: &'a [String],
    characters: BTreeMap<u32, String>,
    blocks: BTreeMap<u32, String>,
    /// Answers so far: by whether it is a block device, and its number.
    known: BTreeMap<(bool, DeviceNumber), bool>,
}

impl Search<'_> {
    fn mounts(&mut self, table: &[Mount]) -> Vec<String> {
        let mut ours = Vec::new();
        for mount in table {
            let provided = crate::core::kmod::kernel_name(&mount.filesystem) == self.module
                || self.filesystems.contains(&mount.filesystem);
            if provided || (mount.device.0 != 0 && self.is_number_ours(mount.device, true)) {
                ours.push(format!("{} ({})", mount.point, mount.filesystem));
            }
        }
        ours
    }

    fn is_ours(&mut self, device: u64, block: bool) -> bool {
        let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
        self.is_number_ours((number(major(device)), number(minor(device))), block)
    }

    fn is_number_ours(&mut self, device: DeviceNumber, block: bool) -> bool {
        if let Some(known) = self.known.get(&(block, device)) {
            return *known;
        }
        let majors = if block { &self.blocks } else { &self.characters };
        let by_major = majors.get(&device.0).is_some_and(|name| users::is_named_after(name, self.module));
        let kind = if block { "block" } else { "char" };
        let folder = fs::canonicalize(self.sys.join("dev").join(kind).join(format!("{}:{}", device.0, device.1)));
        let ours = by_major || folder.is_ok_and(|folder| self.is_driven(&folder));
        self.known.insert((block, device), ours);
        ours
    }

    /// Whether the device, or one that it stands on, is of the module: by its driver, or by its name.
    fn is_driven(&self, folder: &Path) -> bool {
        let named = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(ToOwned::to_owned);
        if named(folder).is_some_and(|name| users::is_named_after(&name, self.module)) {
            return true;
        }
        folder.ancestors().take(MAX_DEPTH).take_while(|above| above.starts_with(self.sys)).any(|above| {
            let driver = above.join("driver/module");
            fs::canonicalize(driver).ok().and_then(|module| named(&module)).as_deref() == Some(self.module)
        })
    }

    /// Devices bound to a driver of the module. Source: `module_add_driver` of Linux, `/sys/module/<name>/drivers`.
    fn devices(&self) -> BTreeSet<String> {
        let list = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
        let drivers = list(&self.sys.join("module").join(self.module).join("drivers"));
        let bound = drivers.flat_map(|driver| list(&driver.path())).filter_map(|entry| {
            // Beside them lie files of the driver, and a link to the module.
            let device = fs::canonicalize(entry.path()).ok()?;
            let name = entry.file_name().into_string().ok()?;
            if !device.starts_with(self.sys.join("devices")) || !device.is_dir() {
                return None;
            }
            let functions = fs::read_to_string(device.join("sriov_numvfs")).unwrap_or_default();
            Some(match functions.trim() {
                "" | "0" => name,
                count => {
                    format!(
                        "{name} with {count} virtual functions, which go with `echo 0 >{}/sriov_numvfs`",
                        device.display()
                    )
                }
            })
        });
        bound.collect()
    }

    fn interfaces(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.sys.join("class/net")).into_iter().flatten().flatten();
        // One that stands on no device is known by its own name alone.
        let ours = entries.filter(|entry| {
            let folders = [entry.path(), entry.path().join("device")];
            folders.iter().any(|folder| fs::canonicalize(folder).is_ok_and(|folder| self.is_driven(&folder)))
        });
        ours.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn users_are_found_by_driver_by_name_and_by_filesystem() {
        let root = tempfile::tempdir().unwrap();
        let (proc, sys) = (root.path().join("proc"), root.path().join("sys"));
        let make = |folder: PathBuf| fs::create_dir_all(folder).unwrap();
        // /dev/null is device 1:3 here and everywhere; in this tree a module drives it.
        let device = sys.join("devices/pci0/0000:01:00.0/things/thing");
        make(device.clone());
        make(sys.join("module/kmm_drv"));
        make(sys.join("drivers/drv"));
        symlink(sys.join("drivers/drv"), sys.join("devices/pci0/0000:01:00.0/driver")).unwrap();
        symlink(sys.join("module/kmm_drv"), sys.join("drivers/drv/module")).unwrap();
        // A module whose driver has two devices, one with virtual functions.
        let bus = sys.join("bus/pci/drivers/nic");
        make(bus.clone());
        make(sys.join("module/kmm_nic/drivers"));
        symlink(&bus, sys.join("module/kmm_nic/drivers/pci:nic")).unwrap();
        symlink(sys.join("module/kmm_nic"), bus.join("module")).unwrap();
        fs::write(bus.join("bind"), "").unwrap();
        for (device, functions) in [("0000:02:00.0", "2\n"), ("0000:02:00.1", "0\n")] {
            make(sys.join("devices/pci0").join(device));
            fs::write(sys.join("devices/pci0").join(device).join("sriov_numvfs"), functions).unwrap();
            symlink(sys.join("devices/pci0").join(device), bus.join(device)).unwrap();
        }
        for folder in ["dev/char", "dev/block", "class/net/eth7", "class/net/dummy0", "class/net/lo"] {
            make(sys.join(folder));
        }
        symlink(&device, sys.join("dev/char/1:3")).unwrap();
        symlink(sys.join("devices/pci0/0000:01:00.0"), sys.join("class/net/eth7/device")).unwrap();
        for pid in ["7", "8"] {
            make(proc.join(pid).join("fd"));
            make(proc.join(pid).join("fdinfo"));
            make(proc.join(pid).join("ns"));
            symlink("mnt:[1]", proc.join(pid).join("ns/mnt")).unwrap();
            let mounts = "1 1 0:9 / /data rw - kmmfs none rw\n2 1 7:1 / /image rw - ext4 /dev/loop1 rw\n\
                          3 1 0:5 / /dev rw - devtmpfs udev rw\n4 1 0:6 / /far rw - nfs4 far:/ rw\n";
            fs::write(proc.join(pid).join("mountinfo"), mounts).unwrap();
            fs::write(proc.join(pid).join("comm"), "reader\n").unwrap();
        }
        make(proc.join("self"));
        symlink("/dev/null", proc.join("7/fd/3")).unwrap();
        symlink("/etc/passwd", proc.join("7/fd/4")).unwrap();
        symlink("/nowhere/at/all", proc.join("8/fd/0")).unwrap();
        // Through a mount of another machine: it is not asked about.
        symlink("/dev/null", proc.join("8/fd/1")).unwrap();
        for (file, mount) in [("7/fdinfo/3", 3), ("7/fdinfo/4", 2), ("8/fdinfo/0", 2), ("8/fdinfo/1", 4)] {
            fs::write(proc.join(file), format!("pos:\t0\nmnt_id:\t{mount}\n")).unwrap();
        }
        fs::write(proc.join("devices"), "Character devices:\n  1 mem\n\nBlock devices:\n  7 loop\n").unwrap();
        let of = |module: &str, filesystems: &[&str]| {
            let filesystems: Vec<String> = filesystems.iter().map(|kind| (*kind).to_owned()).collect();
            look(&proc, &sys, module, &filesystems).describe()
        };
        for (module, filesystems, expected) in [
            ("kmm_drv", vec![], "open: reader (pid 7) has /dev/null; network interfaces: eth7"),
            ("thing", vec![], "open: reader (pid 7) has /dev/null"),
            ("dummy", vec![], "network interfaces: dummy0"),
            ("mem", vec![], "open: reader (pid 7) has /dev/null"),
            ("loop", vec![], "mounted: /image (ext4)"),
            ("kmmfs", vec![], "mounted: /data (kmmfs)"),
            ("other", vec!["kmmfs"], "mounted: /data (kmmfs)"),
            ("nothing", vec![], ""),
        ] {
            assert_eq!(of(module, &filesystems), expected, "{module}");
        }
        let told = of("kmm_nic", &[]);
        assert!(
            told.starts_with("bound devices: 0000:02:00.0 with 2 virtual functions, which go with `echo 0 >"),
            "{told}"
        );
        assert!(told.ends_with("devices/pci0/0000:02:00.0/sriov_numvfs`, 0000:02:00.1"), "{told}");
        assert_eq!(look(&root.path().join("absent"), &sys, "loop", &[]), Users::default());
    }
}
