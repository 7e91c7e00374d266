//! An unpacked image while it is looked at: what is damaged on the disk goes, so that it is fetched again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};

use crate::runtime::client::chain;
use crate::worker::facts::Trouble;
use crate::worker::record::Record;
use crate::worker::store::{StateDir, manifest};

/// There is no list of what was unpacked, or none that can be understood.
fn is_no_list(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// An unpacked image.
pub(super) struct Tree {
    state: Arc<StateDir>,
    key: String,
    /// The kernel may ask for firmware in it: it stays, whatever is wrong with it.
    in_use: bool,
    /// The kernel did not take a module of it.
    doubtful: bool,
}

impl Tree {
    /// The one of this key; `doubtful` if the kernel did not take a module of it.
    pub(super) fn of(state: &Arc<StateDir>, key: String, record: &Record, doubtful: bool) -> Self {
        let path = state.tree(&key);
        let mut firmware = record.entries.iter().filter_map(|entry| entry.firmware.as_ref());
        let in_use = firmware.any(|firmware| firmware.folder.starts_with(&path));
        Self { state: Arc::clone(state), key, in_use, doubtful }
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn path(&self) -> PathBuf {
        self.state.tree(&self.key)
    }

    pub(super) fn is_there(&self) -> bool {
        self.path().is_dir()
    }

    /// Notes what has just been unpacked. Blocks.
    pub(super) fn list(path: &Path) -> Result<(), Trouble> {
        manifest::write(path).map_err(|error| {
            Trouble::of_store(&error, format!("the list of unpacked files cannot be written: {error}"))
        })
    }

    /// Itself; without what is on the disk if that is doubtful and proves to be damaged. Blocks.
    pub(super) fn looked_through(self) -> Self {
        if self.doubtful
            && let Ok(Some(what)) = manifest::damage(&self.path())
        {
            self.drop(&what);
        }
        self
    }

    /// What is read of it. If that fails and it is damaged, or nobody knows what was unpacked, it goes. Blocks.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Path) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let path = self.path();
        read(&path).inspect_err(|_| match manifest::damage(&path) {
            Ok(Some(what)) => self.drop(&what),
            Ok(None) => {}
            Err(error) if is_no_list(&error) => self.drop("it is not known what was unpacked"),
            Err(_) => {}
        })
    }

    fn drop(&self, what: &str) {
        if self.in_use || !self.is_there() {
            return;
        }
        match self.state.drop_tree(&self.key) {
            Ok(()) => info!(tree = %self.path().display(), "removed a damaged unpacked image: {what}"),
            Err(error) => warn!("{}", chain(&error)),
        }
    }
}
