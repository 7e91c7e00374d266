//! An unpacked image as a folder.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::worker::facts::Trouble;

/// Most files that are looked at.
pub(super) const MAX_FILES: usize = 100_000;

/// That it cannot be read.
pub(super) fn store_failed(error: &io::Error) -> Trouble {
    Trouble::of_store(error, format!("the unpacked image cannot be read: {error}"))
}

/// Where a path of the image is in the tree. Cleaned as the unpacking cleans it: nothing leads out of the tree.
pub(in crate::worker::image) fn inside(tree: &Path, path: &str) -> PathBuf {
    let mut found = tree.to_owned();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => found.push(part),
            Component::ParentDir => {
                if found != tree {
                    found.pop();
                }
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    found
}
