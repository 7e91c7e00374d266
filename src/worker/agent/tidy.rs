//! Keeps unpacked images, and what was generated for modprobe, within bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tracing::{info, warn};

use crate::core::load::LoadIdentity;
use crate::runtime::client::chain;
use crate::worker::plan::{Desired, RunningJob, Wants};
use crate::worker::record::{Entry, Owner, Record};
use crate::worker::store::StateDir;

/// What must stay on the disk.
struct Needed {
    /// Keys of unpacked images.
    trees: BTreeSet<String>,
    /// Keys of what was generated for modprobe.
    generated: BTreeSet<String>,
}

/// What is known of unpacked images.
#[derive(Debug)]
pub(super) struct Tidy {
    release: String,
    /// Bytes that unpacked images may take together.
    limit: u64,
    /// Some may lie there that nobody needs.
    due: bool,
    /// Keys of those that were needed when that was looked at last.
    needed: BTreeSet<String>,
}

impl Tidy {
    /// For a kernel of this release; images may take `limit` bytes together.
    pub(super) fn new(release: &str, limit: u64) -> Self {
        Self { release: release.to_owned(), limit, due: true, needed: BTreeSet::new() }
    }

    /// What is needed may have changed.
    pub(super) fn later(&mut self) {
        self.due = true;
    }

    /// What a wanted entry, one of the record, or a job that runs comes from.
    fn needed(&self, wants: &Wants, record: &Record, running: &BTreeMap<Owner, RunningJob>) -> Needed {
        let loading = running.values().filter_map(|job| job.load.clone().map(Desired::of));
        let wanted: Vec<LoadIdentity> =
            wants.modules.iter().cloned().chain(loading).filter_map(|desired| desired.identity.ok()).collect();
        let generated = wanted.iter().filter_map(|identity| identity.generated_key(&self.release));
        let recorded = record.entries.iter().filter_map(|entry| entry.identity().ok());
        Needed {
            generated: generated.chain(record.entries.iter().filter_map(Entry::generated_key)).collect(),
            trees: wanted.iter().chain(&recorded.collect::<Vec<_>>()).map(|of| of.tree_key(&self.release)).collect(),
        }
    }

    /// Keeps unpacked images within the limit, if it is time. Those that are needed stay.
    pub(super) fn tidy_up(
        &mut self,
        state: &StateDir,
        wants: &Wants,
        record: &Record,
        running: &BTreeMap<Owner, RunningJob>,
    ) {
        if !self.due {
            return;
        }
        let needed = self.needed(wants, record, running);
        for left in self.needed.difference(&needed.trees) {
            if let Err(error) = state.touch_tree(left) {
                warn!("{}", chain(&error));
            }
        }
        if let Err(error) = state.keep_generated(&needed.generated) {
            warn!("{}", chain(&error));
        }
        let aside = set_aside(state, &needed.trees, self.limit);
        if !aside.is_empty() {
            // Gigabytes on a slow disk: nobody waits for that.
            tokio::task::spawn_blocking(move || clear(&aside));
        }
        self.needed = needed.trees;
        self.due = false;
    }

    /// The disk is full: images that nobody needs now go, whatever the limit allows. Tells whether there were any.
    pub(super) fn make_room(
        &self,
        state: &StateDir,
        wants: &Wants,
        record: &Record,
        running: &BTreeMap<Owner, RunningJob>,
    ) -> bool {
        let aside = set_aside(state, &self.needed(wants, record, running).trees, 0);
        clear(&aside);
        !aside.is_empty()
    }
}

fn set_aside(state: &StateDir, needed: &BTreeSet<String>, limit: u64) -> Vec<PathBuf> {
    let aside = state.set_trees_aside(needed, limit).unwrap_or_else(|error| {
        warn!("{}", chain(&error));
        Vec::new()
    });
    if !aside.is_empty() {
        info!(removed = aside.len(), "unpacked images that are not needed are removed");
    }
    aside
}

fn clear(aside: &[PathBuf]) {
    if let Err(error) = StateDir::clear_trees(aside) {
        warn!("{}", chain(&error));
    }
}
