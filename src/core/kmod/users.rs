//! Who uses a module, as far as a running system shows it to people: mounts, open device files, network interfaces.

use std::collections::{BTreeMap, BTreeSet};

use super::kernel_name;

/// Most users of one kind that a sentence names.
const NAMED: usize = 4;

/// A device number: major and minor.
pub type DeviceNumber = (u32, u32);

/// A line of `/proc/<pid>/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mount {
    /// By which open files name it.
    pub id: u64,
    /// Device of the filesystem; major 0 if it is on none.
    pub device: DeviceNumber,
    /// Where it is mounted.
    pub point: String,
    /// Its type.
    pub filesystem: String,
}

/// Reads a table of mounts; lines that do not fit are skipped.
///
/// Source: `Documentation/filesystems/proc.rst` of Linux, 3.5: id, parent, `major:minor`, root, mount point, options,
/// optional fields closed by `-`, type, source, options of the filesystem.
pub fn parse_mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (own, filesystem) = line.split_once(" - ")?;
        let mut fields = own.split(' ');
        let id = fields.next()?.parse().ok()?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        let point = fields.nth(1)?.to_owned();
        let kind = filesystem.split(' ').next()?;
        // `fuse.sshfs` is a type of fuse.
        let filesystem = kind.split('.').next()?.to_owned();
        Some(Mount { id, device, point, filesystem })
    };
    text.lines().filter_map(mount).collect()
}

impl Mount {
    /// Whether asking about a file of it asks nobody outside of this machine and no process in it, who might never answer.
    pub fn is_local(&self) -> bool {
        const WITHOUT_DEVICE: [&str; 8] =
            ["bcachefs", "btrfs", "devpts", "devtmpfs", "overlay", "ramfs", "tmpfs", "zfs"];
        (self.device.0 != 0 && self.filesystem != "fuseblk") || WITHOUT_DEVICE.contains(&self.filesystem.as_str())
    }
}

/// The mount that a file was opened through, from `/proc/<pid>/fdinfo/<fd>`.
pub fn parse_mount_id(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// Names under which drivers have major numbers, from `/proc/devices`: of character devices, then of block devices.
pub fn parse_majors(text: &str) -> (BTreeMap<u32, String>, BTreeMap<u32, String>) {
    let (mut characters, mut blocks) = (BTreeMap::new(), BTreeMap::new());
    let mut is_block = false;
    for line in text.lines() {
        if line.starts_with("Block devices") {
            is_block = true;
        } else if let Some((major, name)) = line.trim().split_once(' ')
            && let Ok(major) = major.parse::<u32>()
        {
            let majors = if is_block { &mut blocks } else { &mut characters };
            majors.insert(major, name.trim().to_owned());
        }
    }
    (characters, blocks)
}

/// Whether a device, or a driver, bears the name of the module, perhaps with a number behind it.
///
/// The kernel tells the module of a device only where a driver of a bus stands behind it; devices of modules such as
/// `loop`, `kvm` or `nvidia` are known by their names alone.
pub fn is_named_after(device: &str, module: &str) -> bool {
    let device = kernel_name(device);
    device.strip_prefix(module).is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Mount points with the type of what is mounted.
    pub mounts: BTreeSet<String>,
    /// Processes with what they have open.
    pub processes: BTreeSet<String>,
    /// Network interfaces that the module drives.
    pub interfaces: BTreeSet<String>,
    /// Devices that are bound to its drivers, with their virtual functions.
    pub devices: BTreeSet<String>,
    /// The search was broken off: there may be more.
    pub incomplete: bool,
}

impl Users {
    /// In words; empty if nothing was found.
    pub fn describe(&self) -> String {
        let kinds = [
            ("mounted", &self.mounts),
            ("open", &self.processes),
            ("network interfaces", &self.interfaces),
            ("bound devices", &self.devices),
        ];
        let mut parts: Vec<String> = Vec::new();
        for (kind, found) in kinds {
            if found.is_empty() {
                continue;
            }
            let named: Vec<&str> = found.iter().take(NAMED).map(String::as_str).collect();
            let more = if found.len() > NAMED { format!(" and {} more", found.len() - NAMED) } else { String::new() };
            parts.push(format!("{kind}: {}{more}", named.join(", ")));
        }
        if self.incomplete && !parts.is_empty() {
            parts.push("there may be more, the search was cut short".to_owned());
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_majors_are_read_and_nonsense_is_skipped() {
        let text = "36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                    37 35 0:31 / /proc rw - proc proc rw\n\
                    38 35 0:40 / /remote rw shared:2 - fuse.sshfs host:/ rw\n\
                    garbage\n1 2 x:y / / rw - ext4 d rw\n1 2 3:4 - ext4\n";
        let mount = |id, device, point: &str, filesystem: &str| Mount {
            id,
            device,
            point: point.into(),
            filesystem: filesystem.into(),
        };
        assert_eq!(
            parse_mounts(text),
            [
                mount(36, (98, 0), "/mnt/a\\040b", "ext3"),
                mount(37, (0, 31), "/proc", "proc"),
                mount(38, (0, 40), "/remote", "fuse")
            ]
        );
        let local: Vec<bool> = parse_mounts(text).iter().map(Mount::is_local).collect();
        assert_eq!(local, [true, false, false]);
        assert!(parse_mounts("1 2 0:5 / /dev rw - devtmpfs udev rw\n")[0].is_local());
        assert!(!parse_mounts("1 2 8:1 / /stick rw - fuseblk /dev/sda1 rw\n")[0].is_local());
        assert_eq!(parse_mount_id("pos:\t0\nflags:\t0100002\nmnt_id:\t38\nino:\t5\n"), Some(38));
        assert_eq!((parse_mount_id("mnt_id:\tx\n"), parse_mount_id("")), (None, None));
        let (characters, blocks) = parse_majors(
            "Character devices:\n  1 mem\n195 nvidia-frontend\nx y\n\nBlock devices:\n  7 loop\n259 blkext\n",
        );
        assert_eq!(characters, BTreeMap::from([(1, "mem".into()), (195, "nvidia-frontend".into())]));
        assert_eq!(blocks, BTreeMap::from([(7, "loop".into()), (259, "blkext".into())]));
    }

    #[test]
    fn a_device_is_known_by_its_modules_name() {
        for (device, module, expected) in [
            ("loop0", "loop", true),
            ("kmm-dev", "kmm_dev", true),
            ("kvm", "kvm", true),
            ("nvidia-uvm", "nvidia", false),
            ("loops", "loop", false),
            ("lo", "loop", false),
        ] {
            assert_eq!(is_named_after(device, module), expected, "{device} {module}");
        }
    }

    #[test]
    fn users_are_told_in_a_sentence_of_bounded_length() {
        assert_eq!(Users::default().describe(), "");
        let many = |kind: &str, count: u32| (0..count).map(|n| format!("{kind}{n}")).collect::<BTreeSet<_>>();
        let users = Users { mounts: many("/m", 1), processes: many("p", 6), ..Users::default() };
        assert_eq!(users.describe(), "mounted: /m0; open: p0, p1, p2, p3 and 2 more");
        let users = Users { interfaces: many("eth", 1), incomplete: true, ..Users::default() };
        assert_eq!(users.describe(), "network interfaces: eth0; there may be more, the search was cut short");
        let users = Users { devices: many("pci", 2), ..Users::default() };
        assert_eq!(users.describe(), "bound devices: pci0, pci1");
        assert_eq!(Users { incomplete: true, ..Users::default() }.describe(), "");
    }
}
