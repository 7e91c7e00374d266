//! Reads what the plan needs of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use super::apply::RecordStore;
use super::firmware::View;
use super::kernel::Kernel;
use super::plan::{KernelView, Preparation, Prepared};
use super::publish;
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

/// What lies on the host for Modules of which nothing is recorded in this boot: the host may have loaded it by itself.
/// Read only for those that are about to be loaded.
pub fn published_files(
    kernel: &dyn Kernel,
    release: &str,
    record: &Record,
    prepared: &BTreeMap<Owner, Prepared>,
) -> BTreeMap<Owner, BTreeMap<String, Identity>> {
    let ready = prepared.iter().filter(|(_, prepared)| matches!(prepared.state, Preparation::Ready(_)));
    let unrecorded = ready.map(|(owner, _)| owner).filter(|owner| !record.lost && record.entry(owner).is_none());
    unrecorded
        .map(|owner| (owner.clone(), kernel.published_files(release, &publish::folder(owner))))
        .filter(|(_, files)| !files.is_empty())
        .collect()
}

/// Of the folders that were generated for modprobe and are recorded, those that are there.
pub fn generated(record: &Record) -> BTreeSet<PathBuf> {
    let folders = record.entries.iter().filter_map(|entry| entry.generated.clone());
    folders.filter(|folder| folder.join(modprobe::ROOT).is_dir()).collect()
}
