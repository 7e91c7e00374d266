//! Reads what the plan needs of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use super::apply::RecordStore;
use super::firmware::View;
use super::kernel::Kernel;
use super::plan::{KernelView, Preparation, Prepared};
use super::publish::{self, View as Published};
use super::record::{Owner, Record};
use crate::core::kmod::gates::Gates;
use crate::core::kmod::{Identity, modprobe};

/// The loaded modules, and proof of those that matter; `names` are these, each with the parameters to read.
///
/// What the kernel demands of modules is read only when something is `about_to_load`: at rest nobody needs it.
/// A module that comes or goes while it is looked at is listed without proof: the plan takes it for passing.
pub fn kernel(
    kernel: &dyn Kernel,
    names: &BTreeMap<String, BTreeSet<String>>,
    about_to_load: bool,
) -> io::Result<KernelView> {
    let listed = kernel.listed()?;
    let mut running = BTreeMap::new();
    for (name, parameters) in names.iter().filter(|(name, _)| listed.contains_key(*name)) {
        if let Some(found) = kernel.running(name, parameters)? {
            running.insert(name.clone(), found);
        }
    }
    let gates = if about_to_load { kernel.gates() } else { Gates::default() };
    Ok(KernelView { listed, running, gates, users: BTreeMap::new() })
}

/// The search path for firmware. The kernel is asked only if somebody asks for firmware or the folder of links is there.
pub fn firmware(kernel: &dyn Kernel, store: &dyn RecordStore, asked: bool) -> io::Result<Option<View>> {
    let merged = store.merged();
    if !asked && merged.is_none() {
        return Ok(None);
    }
    Ok(Some(View { kernel: kernel.firmware_path()?, ours: store.search_path(), merged }))
}

/// Files that were read in folders on the host, by the Module, with what told the folder's content from another.
pub type FilesRead = BTreeMap<Owner, (String, BTreeMap<String, Identity>)>;

/// What lies on the host for Modules of which nothing is recorded in this boot: the host may have loaded it by itself.
/// Read only for those that are about to be loaded, and again only when the folder has another content than what was `read`.
/// Where the record was lost, that nothing is recorded says nothing.
pub fn published_files(
    kernel: &dyn Kernel,
    release: &str,
    published: Option<&Published>,
    record: &Record,
    prepared: &BTreeMap<Owner, Prepared>,
    read: &mut FilesRead,
) -> BTreeMap<Owner, BTreeMap<String, Identity>> {
    let ready = prepared.iter().filter(|(_, prepared)| matches!(prepared.state, Preparation::Ready(_)));
    let unrecorded =
        ready.map(|(owner, _)| owner).filter(|owner| !record.lost && !record.made_up && record.entry(owner).is_none());
    let folders = unrecorded.filter_map(|owner| {
        let name = publish::folder(owner);
        let content = published?.folders.get(&(release.to_owned(), name.clone()))?;
        let known = read.get(owner).filter(|(known, _)| known == content).cloned();
        let found = known.unwrap_or_else(|| (content.clone(), kernel.published_files(release, &name)));
        Some((owner.clone(), found))
    });
    *read = folders.collect();
    read.iter().map(|(owner, (_, files))| (owner.clone(), files.clone())).collect()
}

/// Of the folders that were generated for modprobe and are recorded, those that are there.
pub fn generated(record: &Record) -> BTreeSet<PathBuf> {
    let folders = record.entries.iter().filter_map(|entry| entry.generated.clone());
    folders.filter(|folder| folder.join(modprobe::ROOT).is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::core::kmod::order::Role::Named;
    use crate::worker::record::Entry;
    use crate::worker::simulated::{RELEASE, World, file, spec};

    #[test]
    fn what_lies_on_the_host_is_read_once_and_only_where_the_record_knows_that_it_is_of_nobody() {
        let mut world = World::new();
        world.image('a', vec![file("gpu", "gpu1", Named, &[])]);
        let wanted = spec("gpu", "gpu", 'a', 1);
        world.desired.modules = vec![wanted.clone()];
        world.round(&tokio_util::sync::CancellationToken::new());
        let mut read = FilesRead::new();
        let mut found = |world: &World, record: &Record| {
            let published = world.kernel.published().unwrap();
            let prepared = &world.prepared;
            let found =
                published_files(&world.kernel, RELEASE, Some(&published), record, prepared, &mut read).into_values();
            found.flat_map(|files| files.values().map(Identity::describe).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        let publish = |content: &str, id: &str| {
            let path = file("gpu", id, Named, &[]).path;
            world.kernel.publish(RELEASE, "drivers.gpu", content, slice::from_ref(&path)).unwrap();
        };
        let record = Record::new("boot-1");
        assert_eq!(found(&world, &record), [""; 0]);
        publish("one", "old");
        assert_eq!(found(&world, &record), ["build id old"]);
        publish("one", "never read");
        assert_eq!(found(&world, &record), ["build id old"]);
        publish("two", "new");
        assert_eq!(found(&world, &record), ["build id new"]);
        assert_eq!(found(&world, &Record { lost: true, ..record.clone() }), [""; 0]);
        assert_eq!(found(&world, &Record { made_up: true, ..record.clone() }), [""; 0]);
        let entries = vec![Entry::of(wanted)];
        assert_eq!(found(&world, &Record { entries, ..record }), [""; 0]);
    }
}
