//! Reads what the plan needs of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::apply::RecordStore;
use super::firmware::View;
use super::kernel::Kernel;
use super::plan::KernelView;

/// The loaded modules, and proof of those that matter; `names` are these, each with the parameters to read.
///
/// A module that comes or goes while it is looked at is listed without proof: the plan takes it for passing.
pub fn kernel(kernel: &dyn Kernel, names: &BTreeMap<String, BTreeSet<String>>) -> io::Result<KernelView> {
    let listed = kernel.listed()?;
    let mut running = BTreeMap::new();
    for (name, parameters) in names.iter().filter(|(name, _)| listed.contains_key(*name)) {
        if let Some(found) = kernel.running(name, parameters)? {
            running.insert(name.clone(), found);
        }
    }
    Ok(KernelView { listed, running })
}

/// The search path for firmware. The kernel is asked only if somebody asks for firmware or the folder of links is there.
pub fn firmware(kernel: &dyn Kernel, store: &dyn RecordStore, asked: bool) -> io::Result<Option<View>> {
    let merged = store.merged();
    if !asked && merged.is_none() {
        return Ok(None);
    }
    Ok(Some(View { kernel: kernel.firmware_path()?, ours: store.search_path(), merged }))
}
