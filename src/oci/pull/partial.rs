//! The folder beside a destination in which a pull does its work.

use std::fs::{self, DirBuilder, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::statvfs::statvfs;

use crate::oci::error::PullError;

const SUFFIX: &str = ".partial";
/// What is left free: this part of the disk, at most so many bytes.
const RESERVE_SHARE: u64 = 20;
const MAX_RESERVE: u64 = 1 << 30;

/// A private folder that goes with its owner.
#[derive(Debug)]
pub(crate) struct Partial {
    folder: PathBuf,
}

impl Partial {
    /// Makes the folder and removes those that earlier processes left for the same destination.
    ///
    /// **Errors**: [`PullError::Storage`]; also when the destination is there already.
    pub(crate) fn create(destination: &Path) -> Result<Self, PullError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let failed = |source| PullError::Storage { path: destination.to_owned(), source };
        let (Some(parent), Some(name)) = (destination.parent(), destination.file_name().and_then(|name| name.to_str()))
        else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        match fs::symlink_metadata(destination) {
            Ok(_) => return Err(failed(io::ErrorKind::AlreadyExists.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let prefix = format!(".{name}.");
        let own = format!("{prefix}{:016x}-", process());
        for entry in fs::read_dir(parent).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let leftover = entry.file_name();
            let leftover = leftover.to_string_lossy();
            if leftover.starts_with(&prefix) && leftover.ends_with(SUFFIX) && !leftover.starts_with(&own) {
                fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        let folder = parent.join(format!("{own}{}{SUFFIX}", COUNT.fetch_add(1, Ordering::Relaxed)));
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        Ok(Self { folder })
    }

    /// Where the layer with this place in the order is fetched to.
    pub(crate) fn layer(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where the image is unpacked to.
    pub(crate) fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    /// Bytes that may still be written to the disk, a reserve left for everybody else; `None` where that is not told.
    ///
    /// **Errors**: [`PullError::NoSpace`] when they are fewer than `needed`.
    pub(crate) fn room(&self, needed: u64) -> Result<Option<u64>, PullError> {
        let found = statvfs(&self.folder)
            .map_err(|errno| PullError::Storage { path: self.folder.clone(), source: errno.into() })?;
        // File systems without a size of their own tell zeros.
        if found.blocks() == 0 {
            return Ok(None);
        }
        let free = found.blocks_available().saturating_mul(found.fragment_size());
        let reserve = (found.blocks().saturating_mul(found.fragment_size()) / RESERVE_SHARE).min(MAX_RESERVE);
        let room = free.saturating_sub(reserve);
        if room < needed {
            let folder = self.folder.parent().unwrap_or(Path::new("/")).to_owned();
            return Err(PullError::NoSpace { needed, room, folder });
        }
        Ok(Some(room))
    }

    /// Gives the unpacked tree its name, for good.
    pub(crate) fn publish(&self, destination: &Path) -> Result<(), PullError> {
        let failed = |source| PullError::Storage { path: destination.to_owned(), source };
        fs::rename(self.tree(), destination).map_err(failed)?;
        let parent = destination.parent().unwrap_or(Path::new("/"));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "a folder of a pull stays until the next one");
        }
    }
}

/// A number that no earlier process had: process ids repeat in containers.
fn process() -> u64 {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    *PROCESS.get_or_init(|| RandomState::new().build_hasher().finish())
}
