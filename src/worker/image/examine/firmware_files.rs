//! The firmware files of an unpacked image.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::tree::{MAX_FILES, inside, store_failed};
use crate::api::names::NodeReason;
use crate::core::hash::{Algorithm, Hasher};
use crate::core::load::LoadIdentity;
use crate::worker::facts::Trouble;
use crate::worker::record::Firmware;

/// Longest name of a firmware file, folders included; the kernel takes no longer path.
const MAX_NAME: usize = 1024;

/// The firmware of an image, if it is asked for: every file below its folder, by content.
pub fn firmware(tree: &Path, identity: &LoadIdentity) -> Result<Option<Firmware>, Trouble> {
    let Some(path) = identity.firmware_path.as_deref() else { return Ok(None) };
    let folder = inside(tree, path);
    let missing = |what: &str| {
        let message = format!("the image holds no {what} {path}, which modprobe.firmwarePath names");
        Trouble::new(NodeReason::FirmwareNotFound, message)
    };
    let root = fs::canonicalize(tree).map_err(|error| store_failed(&error))?;
    if !folder.is_dir() {
        return Err(missing("folder"));
    }
    let mut walk = Walk { root, files: BTreeMap::new(), hashes: BTreeMap::new(), seen: 0, open: Vec::new() };
    walk.folder(&folder, "").map_err(|error| store_failed(&error))?;
    if walk.seen > MAX_FILES {
        let message = format!(
            "modprobe.firmwarePath: there are more than {MAX_FILES} files and folders in {path}, links to them counted; \
             name a smaller folder"
        );
        return Err(Trouble::new(NodeReason::ImageTooLarge, message));
    }
    if walk.files.is_empty() {
        return Err(missing("file in"));
    }
    Ok(Some(Firmware { folder, files: walk.files }))
}

/// SHA-256 of a file's content.
fn sha256(path: &Path) -> io::Result<String> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Hasher::new(Algorithm::Sha256), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// The files below a folder; links are followed as long as they stay in the tree.
struct Walk {
    root: PathBuf,
    /// By name, with the SHA-256 of the content.
    files: BTreeMap<String, String>,
    /// Of real files: many links may lead to one.
    hashes: BTreeMap<PathBuf, String>,
    /// Files and folders that were looked at.
    seen: usize,
    /// The real folders on the way down.
    open: Vec<PathBuf>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, prefix: &str) -> io::Result<()> {
        self.open.push(fs::canonicalize(folder)?);
        for entry in fs::read_dir(folder)? {
            self.seen += 1;
            if self.seen > MAX_FILES {
                break;
            }
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let Ok(real) = fs::canonicalize(&path) else { continue };
            let name = format!("{prefix}{name}");
            // A link to a folder on the way down, or above it, has no end.
            let is_circle = || self.open.iter().any(|open| open.starts_with(&real));
            if !real.starts_with(&self.root) || name.len() > MAX_NAME {
                continue;
            }
            if real.is_file() {
                let hash = match self.hashes.get(&real) {
                    Some(hash) => hash.clone(),
                    None => self.hashes.entry(real.clone()).or_insert(sha256(&real)?).clone(),
                };
                self.files.insert(name, hash);
            } else if real.is_dir() && !is_circle() {
                self.folder(&path, &format!("{name}/"))?;
            }
        }
        self.open.pop();
        Ok(())
    }
}
