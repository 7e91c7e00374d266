//! The worker's own files in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::values::OURS;
use crate::api::names::NodeReason;
use crate::worker::facts::Trouble;
use crate::worker::record::Record;
use crate::worker::store::Store;

/// A store that can be full.
#[derive(Debug, Default)]
pub(in crate::worker) struct MemoryStore {
    pub(in crate::worker) full: Mutex<bool>,
    /// Nothing is left of what was generated for modprobe.
    pub(in crate::worker) lost_generated: bool,
    /// Links to firmware, and the name of their set.
    pub(in crate::worker) links: Mutex<Option<(String, BTreeMap<String, PathBuf>)>>,
}

impl Store for MemoryStore {
    fn save(&self, _: &Record) -> Result<(), Trouble> {
        if *self.full.lock().unwrap() { Err(Trouble::new(NodeReason::StoreFailed, "disk full")) } else { Ok(()) }
    }

    fn search_path(&self) -> String {
        OURS.to_owned()
    }

    fn merged(&self) -> Option<String> {
        self.links.lock().unwrap().as_ref().map(|(name, _)| name.clone())
    }

    fn merge(&self, name: &str, links: &BTreeMap<String, PathBuf>) -> Result<(), Trouble> {
        *self.links.lock().unwrap() = Some((name.to_owned(), links.clone()));
        Ok(())
    }

    fn unmerge(&self) -> Result<(), Trouble> {
        *self.links.lock().unwrap() = None;
        Ok(())
    }

    fn is_given_up(&self) -> bool {
        false
    }

    fn is_generated(&self, _: &Path) -> bool {
        !self.lost_generated
    }
}
