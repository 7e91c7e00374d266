//! Firmware of Modules, as the record says that the kernel is to find it. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Firmware, Owner, Record};
use crate::api::names::NodeReason;
use crate::core::hash;
use crate::worker::facts::{SearchPath, Trouble};

/// Longest search path that the kernel takes. Source: `fw_path_para` in `drivers/base/firmware_loader/main.c` of Linux,
/// 256 bytes with the closing zero.
pub const MAX_PATH: usize = 255;

/// What was seen of the search path and of the folder of links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirmwareView {
    /// The kernel's; `None` if this kernel has none.
    pub kernel: Option<SearchPath>,
    /// Why it could not be read, if it could not: nothing is done about it then.
    pub unreadable: Option<String>,
    /// The path of the folder of links, whether it is there or not.
    pub ours: String,
    /// Which links the folder holds, if it is there.
    pub merged: Option<String>,
    /// Links to what lies where the path pointed before, beside those to the firmware of the recorded Modules.
    pub foreign: BTreeMap<String, PathBuf>,
}

impl FirmwareView {
    /// Why no firmware can be handed to this kernel; `None` if it can.
    pub fn refusal(&self) -> Option<Trouble> {
        let refused = |message: String| Some(Trouble::new(NodeReason::FirmwarePathRefused, message));
        if let Some(why) = &self.unreadable {
            return refused(format!(
                "modprobe.firmwarePath cannot be carried out: /sys/module/firmware_class/parameters/path cannot be read: \
                 {why}"
            ));
        }
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
        match merged_name(record, &self.foreign) {
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
pub fn below<'a, V>(names: &'a BTreeMap<String, V>, name: &str) -> Option<&'a String> {
    let folder = format!("{name}/");
    names.range(folder.clone()..).next().map(|(found, _)| found).filter(|found| found.starts_with(&folder))
}

/// A name that would have to be a folder for `name` to be in it.
pub fn above<'a, V>(names: &'a BTreeMap<String, V>, name: &str) -> Option<&'a String> {
    name.match_indices('/').find_map(|(at, _)| names.get_key_value(&name[..at])).map(|(found, _)| found)
}

/// The links to the firmware of all recorded Modules. Of two files of one name the first counts: such a pair is not
/// recorded but for a worker that knew less.
pub fn links(record: &Record) -> BTreeMap<String, PathBuf> {
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

/// What tells one folder of links, with those to `foreign` files, from another; `None` if no recorded Module has firmware.
///
/// Of another boot it is another one: what a power cut left is not trusted.
pub fn merged_name(record: &Record, foreign: &BTreeMap<String, PathBuf>) -> Option<String> {
    let mut links = links(record);
    if links.is_empty() {
        return None;
    }
    links.extend(foreign.iter().map(|(name, target)| (name.clone(), target.clone())));
    let mut text = vec![record.boot_id.clone(), record.firmware_before.clone().unwrap_or_default()];
    text.extend(links.into_iter().flat_map(|(name, target)| [name, target.display().to_string()]));
    let mut name = hash::hash_bytes(text.join("\0").as_bytes());
    name.truncate(16);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_kernel_that_cannot_take_a_search_path_is_told_before_anything_is_done() {
        let path = |writable| Some(SearchPath { value: String::new(), writable });
        for (kernel, ours, refused) in
            [(None, 10, true), (path(false), 10, true), (path(true), 256, true), (path(true), 255, false)]
        {
            let view = FirmwareView { kernel, ours: "x".repeat(ours), ..FirmwareView::default() };
            assert_eq!(view.refusal().is_some(), refused, "{view:?}");
        }
    }
}
