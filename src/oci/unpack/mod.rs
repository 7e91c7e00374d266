//! From layers to a folder.
//!
//! Layers are files whose digest was proved before. They are read once from the lowest to the highest, each as soon as it
//! is there; only the paths that [`Keep`] names are written. Where a folder above them turns out to be a symbolic link of
//! the image (`/lib` mostly), or one of them a hard link to a file elsewhere in it, everything is read again with that in
//! mind, until nothing new turns up.

pub(super) mod layer;
mod meter;
mod paths;
mod tree;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc::Receiver;

use self::layer::{Pass, Unpacked, unsafe_image};
use self::paths::Links;
use crate::oci::error::PullError;
use crate::oci::limits::{Keep, Limits};
use crate::oci::progress::Progress;

/// Most times that the layers are read because of links.
const MAX_PASSES: usize = 8;

/// Layers on their way: unpacking the first does not wait for the last.
#[derive(Debug)]
pub(crate) struct Arriving {
    coming: Receiver<PathBuf>,
    here: Vec<PathBuf>,
    count: usize,
}

impl Arriving {
    /// `count` files will come, lowest layer first.
    pub(crate) fn new(coming: Receiver<PathBuf>, count: usize) -> Self {
        Self { coming, here: Vec::with_capacity(count), count }
    }

    /// A layer; waits until it is there.
    fn get(&mut self, number: usize) -> Result<PathBuf, PullError> {
        loop {
            if let Some(path) = self.here.get(number) {
                return Ok(path.clone());
            }
            self.here.push(self.coming.blocking_recv().ok_or(PullError::Cancelled)?);
        }
    }

    /// Removes the files: what is not there need not be written to the disk.
    fn discard(&self) {
        for path in &self.here {
            // One that is listed twice is gone already; what stays goes with its folder.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Applies `layers`, lowest first, to the new folder `out` and writes it to the disk.
///
/// Ends soon with an error once that is cancelled; tells what it has read.
pub(crate) fn unpack(
    layers: &mut Arriving,
    out: &Path,
    keep: &Keep,
    limits: &Limits,
    progress: &Progress,
) -> Result<Unpacked, PullError> {
    let (mut links, mut targets) = (Links::new(), BTreeSet::new());
    for _ in 0..MAX_PASSES {
        let mut pass = Pass::new(out, keep, limits, &links, &targets)?;
        for number in 0..layers.count {
            pass.layer(number, &layers.get(number)?, progress)?;
        }
        let (found, missing) = pass.unsettled();
        let texts =
            |links: &Links| links.iter().map(|(path, (text, _))| (path.clone(), text.clone())).collect::<Vec<_>>();
        if missing.is_empty() && texts(&links) == texts(&found) {
            layers.discard();
            return pass.finish();
        }
        targets.extend(missing);
        links = found;
        std::fs::remove_dir_all(out).map_err(|source| PullError::Storage { path: out.to_owned(), source })?;
    }
    Err(unsafe_image(&keep.roots()[0], "too many links lead to it"))
}
