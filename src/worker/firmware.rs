//! Firmware of Modules, where the kernel finds it.
//!
//! The kernel has one search path of its own, `/sys/module/firmware_class/parameters/path`, which it looks at before
//! `/lib/firmware`, and which it resolves in the host's root. While any Module brings firmware it names one folder of
//! links: to the files in the unpacked images of all of them, and to what lies where the path pointed before. Nothing is
//! ever written below `/lib/firmware`. When the last Module with firmware has left, the path is what it was.
//!
//! The folder is a function of the record, so whoever comes to it, at whatever point another worker ended, makes it right.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::apply::RecordStore;
use super::kernel::{Kernel, Trouble};
use super::record::{Owner, Record};
use crate::api::names::NodeReason;
use crate::core::hash;

/// Longest search path that the kernel takes. Source: `fw_path_para` in `drivers/base/firmware_loader/main.c` of Linux,
/// 256 bytes with the closing zero.
pub const MAX_PATH: usize = 255;

/// Firmware of one Module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Firmware {
    /// Folder of the unpacked image with the files; the same path on the host.
    pub folder: PathBuf,
    /// Files by the names that drivers ask for, each with the SHA-256 of its content.
    pub files: BTreeMap<String, String>,
}

/// The kernel's search path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchPath {
    /// What it says; empty if nobody set it.
    pub value: String,
    /// Whether it can be written.
    pub writable: bool,
}

/// What was seen of the search path and of the folder of links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The kernel's; `None` if this kernel has none.
    pub kernel: Option<SearchPath>,
    /// The path of the folder of links, whether it is there or not.
    pub ours: String,
    /// Which links the folder holds, if it is there.
    pub merged: Option<String>,
}

impl View {
    /// Why no firmware can be handed to this kernel; `None` if it can.
    pub fn refusal(&self) -> Option<Trouble> {
        let refused = |message: String| Some(Trouble::new(NodeReason::FirmwarePathRefused, message));
        match &self.kernel {
            None => refused(
                "modprobe.firmwarePath cannot be carried out: this kernel has no \
                 /sys/module/firmware_class/parameters/path"
                    .to_owned(),
            ),
            Some(path) if !path.writable => refused(
                "modprobe.firmwarePath cannot be carried out: /sys/module/firmware_class/parameters/path cannot be \
                 written; the worker must be privileged"
                    .to_owned(),
            ),
            Some(_) if self.ours.len() > MAX_PATH => refused(format!(
                "modprobe.firmwarePath cannot be carried out: the kernel takes a search path of {MAX_PATH} bytes, {} \
                 has {}; give the worker a shorter state folder",
                self.ours,
                self.ours.len()
            )),
            Some(_) => None,
        }
    }

    /// Whether search path and links are as the record wants them, as far as this kernel allows.
    pub fn is_right(&self, record: &Record) -> bool {
        let Some(path) = &self.kernel else { return true };
        match merged_name(record) {
            Some(name) => path.value == self.ours && self.merged.as_deref() == Some(name.as_str()),
            None => path.value != self.ours && self.merged.is_none() && record.firmware_before.is_none(),
        }
    }
}

/// A file of `firmware` that another Module has under that name with other content, with that Module; or a file where
/// the other one has a folder.
pub fn conflict<'a>(
    firmware: &Firmware,
    others: impl Iterator<Item = (Owner, &'a Firmware)>,
) -> Option<(String, Owner)> {
    for (owner, other) in others {
        for (name, digest) in &firmware.files {
            let differs = other.files.get(name).is_some_and(|known| known != digest);
            if differs || below(&other.files, name).is_some() || above(&other.files, name).is_some() {
                return Some((name.clone(), owner));
            }
        }
    }
    None
}

/// The first name in the folder `name`.
fn below<'a, V>(names: &'a BTreeMap<String, V>, name: &str) -> Option<&'a String> {
    let folder = format!("{name}/");
    names.range(folder.clone()..).next().map(|(found, _)| found).filter(|found| found.starts_with(&folder))
}

/// A name that would have to be a folder for `name` to be in it.
fn above<'a, V>(names: &'a BTreeMap<String, V>, name: &str) -> Option<&'a String> {
    name.match_indices('/').find_map(|(at, _)| names.get_key_value(&name[..at])).map(|(found, _)| found)
}

/// The links to the firmware of all recorded Modules. Of two files of one name the first counts: such a pair is not
/// recorded but for a worker that knew less.
fn links(record: &Record) -> BTreeMap<String, PathBuf> {
    let mut links = BTreeMap::new();
    for firmware in record.entries.iter().filter_map(|entry| entry.firmware.as_ref()) {
        for name in firmware.files.keys() {
            if !links.contains_key(name) && below(&links, name).is_none() && above(&links, name).is_none() {
                links.insert(name.clone(), firmware.folder.join(name));
            }
        }
    }
    links
}

/// Adds what lies in a folder of the host under names that are free; a whole folder by one link where that is possible.
fn add_foreign(
    links: &mut BTreeMap<String, PathBuf>,
    prefix: &str,
    folder: &Path,
    list: &dyn Fn(&Path) -> io::Result<BTreeMap<String, bool>>,
) -> io::Result<()> {
    for (name, is_folder) in list(folder)? {
        let full = format!("{prefix}{name}");
        if links.contains_key(&full) {
            continue;
        }
        if below(links, &full).is_none() {
            links.insert(full, folder.join(name));
        } else if is_folder {
            add_foreign(links, &format!("{full}/"), &folder.join(name), list)?;
        }
    }
    Ok(())
}

/// What tells one folder of links from another; `None` if no recorded Module has firmware.
///
/// Of another boot it is another one: what a power cut left is not trusted.
pub fn merged_name(record: &Record) -> Option<String> {
    let links = links(record);
    if links.is_empty() {
        return None;
    }
    let mut text = vec![record.boot_id.clone(), record.firmware_before.clone().unwrap_or_default()];
    text.extend(links.into_iter().flat_map(|(name, target)| [name, target.display().to_string()]));
    let mut name = hash::hash_bytes(text.join("\0").as_bytes());
    name.truncate(16);
    Some(name)
}

/// Makes links and search path as the record wants them. `change` writes the record.
///
/// What the path said before is in the record before the path is changed. A driver that asks meanwhile finds its file.
pub fn bring(
    kernel: &dyn Kernel,
    store: &dyn RecordStore,
    record: &Record,
    change: &mut dyn FnMut(Option<String>) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let refused = |what: &str, error: &dyn std::fmt::Display| {
        Trouble::new(NodeReason::FirmwarePathRefused, format!("the kernel's search path for firmware {what}: {error}"))
    };
    let path = kernel.firmware_path().map_err(|error| refused("cannot be read", &error))?;
    let ours = store.search_path();
    let set = |value: &str| {
        kernel.set_firmware_path(value).map_err(|error| refused(&format!("cannot be set to `{value}`"), &error))
    };
    let mut links = links(record);
    if links.is_empty() {
        if path.is_some_and(|path| path.value == ours) {
            set(record.firmware_before.as_deref().unwrap_or_default())?;
        }
        store.unmerge()?;
        return if record.firmware_before.is_some() { change(None) } else { Ok(()) };
    }
    let path = path.ok_or_else(|| refused("cannot be set", &"this kernel has none"))?;
    let mut next = record.clone();
    if path.value != ours {
        next.firmware_before = Some(path.value.clone());
        if next.firmware_before != record.firmware_before {
            change(next.firmware_before.clone())?;
        }
    }
    if let Some(before) = next.firmware_before.as_deref().filter(|before| !before.is_empty()) {
        let folder = Path::new("/").join(before);
        add_foreign(&mut links, "", &folder, &|folder| kernel.host_folder(folder))
            .map_err(|error| refused(&format!("was `{before}`, which cannot be looked at"), &error))?;
    }
    store.merge(&merged_name(&next).unwrap_or_default(), &links)?;
    if path.value == ours { Ok(()) } else { set(&ours) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::record::Entry;
    use crate::worker::simulated::spec;

    fn firmware(folder: &str, files: &[(&str, &str)]) -> Firmware {
        let files = files.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect();
        Firmware { folder: folder.into(), files }
    }

    #[test]
    fn the_same_content_is_shared_and_another_is_a_conflict_with_a_name() {
        let owner = Owner { namespace: "drivers".into(), name: "net".into(), uid: "u".into() };
        let other = firmware("/t/b", &[("v/a.bin", "1"), ("v/sub/b.bin", "2"), ("c", "3")]);
        for (files, expected) in [
            (vec![("v/a.bin", "1"), ("v/other.bin", "9")], None),
            (vec![("v/x", "1"), ("v/a.bin", "2")], Some("v/a.bin")),
            (vec![("v/sub", "2")], Some("v/sub")),
            (vec![("c/d.bin", "3")], Some("c/d.bin")),
            (vec![("c.bin", "4"), ("v/su", "1")], None),
        ] {
            let found = conflict(&firmware("/t/a", &files), [(owner.clone(), &other)].into_iter());
            assert_eq!(found, expected.map(|name| (name.to_owned(), owner.clone())), "{files:?}");
        }
    }

    #[test]
    fn links_lead_to_all_modules_and_to_what_was_there_before() {
        let mut record = Record::new("b");
        assert_eq!(merged_name(&record), None);
        for (name, firmware) in [
            ("a", firmware("/t/a/fw", &[("v/a.bin", "1"), ("shared", "2")])),
            ("b", firmware("/t/b/fw", &[("v/b.bin", "3"), ("shared", "2")])),
        ] {
            record.put(Entry { firmware: Some(firmware), ..Entry::of(spec(name, name, 'a', 1)) });
        }
        let mut all = links(&record);
        let list = |folder: &Path| -> io::Result<BTreeMap<String, bool>> {
            let names: &[(&str, bool)] = match folder.to_str() {
                Some("/opt/fw") => &[("v", true), ("w", true), ("shared", false), ("x.bin", false)],
                Some("/opt/fw/v") => &[("a.bin", false), ("old.bin", false), ("deep", true)],
                other => panic!("nobody needs to look into {other:?}"),
            };
            Ok(names.iter().map(|(name, folder)| ((*name).to_owned(), *folder)).collect())
        };
        add_foreign(&mut all, "", Path::new("/opt/fw"), &list).unwrap();
        let all: Vec<String> = all.iter().map(|(name, target)| format!("{name} {}", target.display())).collect();
        assert_eq!(
            all,
            [
                "shared /t/a/fw/shared",
                "v/a.bin /t/a/fw/v/a.bin",
                "v/b.bin /t/b/fw/v/b.bin",
                "v/deep /opt/fw/v/deep",
                "v/old.bin /opt/fw/v/old.bin",
                "w /opt/fw/w",
                "x.bin /opt/fw/x.bin",
            ]
        );
        let name = merged_name(&record);
        record.firmware_before = Some("/opt/fw".into());
        assert_ne!(merged_name(&record), name);
    }

    #[test]
    fn a_kernel_that_cannot_take_a_search_path_is_told_before_anything_is_done() {
        let path = |writable| Some(SearchPath { value: String::new(), writable });
        for (kernel, ours, refused) in
            [(None, 10, true), (path(false), 10, true), (path(true), 256, true), (path(true), 255, false)]
        {
            let view = View { kernel, ours: "x".repeat(ours), merged: None };
            assert_eq!(view.refusal().is_some(), refused, "{view:?}");
        }
    }
}
