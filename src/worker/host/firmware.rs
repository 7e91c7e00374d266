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

use super::Host;
use crate::api::names::NodeReason;
use crate::worker::facts::Trouble;
use crate::worker::record::Record;
use crate::worker::record::firmware::{below, links, merged_name};
use crate::worker::store::Store;

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

/// Links to what lies where the search path pointed before it was the worker's, under names that no recorded Module has.
pub fn foreign(host: &dyn Host, record: &Record, before: &str) -> io::Result<BTreeMap<String, PathBuf>> {
    let own = links(record);
    let mut all = own.clone();
    if !own.is_empty() && !before.is_empty() {
        add_foreign(&mut all, "", &Path::new("/").join(before), &|folder| host.folder(folder))?;
    }
    all.retain(|name, _| !own.contains_key(name));
    Ok(all)
}

/// Makes links and search path as the record wants them. `change` writes the record.
///
/// What the path said before is in the record before the path is changed. A driver that asks meanwhile finds its file.
pub fn bring(
    host: &dyn Host,
    store: &dyn Store,
    record: &Record,
    change: &mut dyn FnMut(Option<String>) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let refused = |what: &str, error: &dyn std::fmt::Display| {
        Trouble::new(NodeReason::FirmwarePathRefused, format!("the kernel's search path for firmware {what}: {error}"))
    };
    let path = host.firmware_path().map_err(|error| refused("cannot be read", &error))?;
    let ours = store.search_path();
    let set = |value: &str| {
        host.set_firmware_path(value).map_err(|error| refused(&format!("cannot be set to `{value}`"), &error))
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
    let before = next.firmware_before.as_deref().unwrap_or_default();
    let foreign = foreign(host, &next, before)
        .map_err(|error| refused(&format!("was `{before}`, which cannot be looked at"), &error))?;
    let name = merged_name(&next, &foreign).unwrap_or_default();
    links.extend(foreign);
    store.merge(&name, &links)?;
    if path.value == ours { Ok(()) } else { set(&ours) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::record::{Entry, Firmware};
    use crate::worker::testing::spec;

    fn firmware(folder: &str, files: &[(&str, &str)]) -> Firmware {
        let files = files.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect();
        Firmware { folder: folder.into(), files }
    }

    #[test]
    fn links_lead_to_all_modules_and_to_what_was_there_before() {
        let mut record = Record::new("b");
        assert_eq!(merged_name(&record, &BTreeMap::new()), None);
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
        let name = merged_name(&record, &BTreeMap::new());
        record.firmware_before = Some("/opt/fw".into());
        assert_ne!(merged_name(&record, &BTreeMap::new()), name);
        let foreign = BTreeMap::from([("new.bin".to_owned(), PathBuf::from("/opt/fw/new.bin"))]);
        assert_ne!(merged_name(&record, &foreign), merged_name(&record, &BTreeMap::new()));
    }
}
