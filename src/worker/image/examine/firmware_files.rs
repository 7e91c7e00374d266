//! The firmware files of an unpacked image.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::tree::{MAX_FILES, inside, store_failed};
use crate::api::names::NodeReason;
use crate::core::load::LoadIdentity;
use crate::worker::facts::Trouble;
use crate::worker::record::Firmware;
use crate::worker::store::manifest::sha256;

/// Longest name of a firmware file, folders included; the kernel takes no longer path.
const MAX_NAME: usize = 1024;

/// The firmware of an image, if it is asked for: every file below its folder, by content.
pub fn firmware(tree: &Path, identity: &LoadIdentity) -> Result<Option<Firmware>, Trouble> {
    let Some(path) = identity.firmware_path.as_deref() else { return Ok(None) };
    let folder = inside(tree, path);
    let mut files = BTreeMap::new();
    let missing = |what: &str| {
        let message = format!("the image holds no {what} {path}, which modprobe.firmwarePath names");
        Trouble::new(NodeReason::FirmwareNotFound, message)
    };
    let root = fs::canonicalize(tree).map_err(|error| store_failed(&error))?;
    if !folder.is_dir() {
        return Err(missing("folder"));
    }
    walk_firmware(&root, &folder, "", &mut files).map_err(|error| store_failed(&error))?;
    if files.is_empty() {
        return Err(missing("file in"));
    }
    if files.len() >= MAX_FILES {
        let message =
            format!("modprobe.firmwarePath: there are more than {MAX_FILES} files in {path}; name a smaller folder");
        return Err(Trouble::new(NodeReason::ImageTooLarge, message));
    }
    Ok(Some(Firmware { folder, files }))
}

/// Adds the files below a folder by name and SHA-256; links are followed as long as they stay in the tree `root`.
fn walk_firmware(root: &Path, folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Ok(real) = fs::canonicalize(&path) else { continue };
        let name = format!("{prefix}{name}");
        // A link to a folder above itself has no end.
        let is_circle = || fs::canonicalize(folder).is_ok_and(|folder| folder.starts_with(&real));
        if !real.starts_with(root) || files.len() >= MAX_FILES || name.len() > MAX_NAME {
            continue;
        }
        if real.is_file() {
            files.insert(name, sha256(&real)?);
        } else if real.is_dir() && !is_circle() {
            walk_firmware(root, &path, &format!("{name}/"), files)?;
        }
    }
    Ok(())
}
