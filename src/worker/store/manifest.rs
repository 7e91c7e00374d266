//! What was unpacked of an image, written down right after it: by this a file that a disk has damaged is known.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::core::hash::{Algorithm, Hasher};

/// Beside the folders of the image.
const NAME: &str = ".kmm-files.json";

/// One file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    size: u64,
    sha256: String,
}

type Files = BTreeMap<String, Listed>;

/// Writes down what is in the folder; on return it is on the disk.
pub fn write(tree: &Path) -> io::Result<()> {
    let beside = tree.join(format!("{NAME}.new"));
    let mut out = File::create(&beside)?;
    out.write_all(&serde_json::to_vec(&files(tree)?)?)?;
    out.sync_all()?;
    fs::rename(&beside, tree.join(NAME))?;
    File::open(tree)?.sync_all()
}

/// How what is in the folder differs from what was unpacked; `None` if it does not.
///
/// # Errors
/// The folder, or the list of what was unpacked, cannot be read.
pub fn damage(tree: &Path) -> io::Result<Option<String>> {
    let listed: Files = serde_json::from_slice(&fs::read(tree.join(NAME))?)?;
    for (name, known) in &listed {
        let path = tree.join(name);
        // A disk that cannot be read now is not mended by another copy on it.
        let size = match fs::symlink_metadata(&path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(format!("{name} is missing"))),
            Err(error) => return Err(error),
        };
        if size != known.size {
            return Ok(Some(format!("{name} has {size} bytes and was unpacked with {}", known.size)));
        }
        if sha256(&path)? != known.sha256 {
            return Ok(Some(format!("{name} has other bytes than were unpacked")));
        }
    }
    Ok(None)
}

fn files(tree: &Path) -> io::Result<Files> {
    let (mut files, mut open) = (Files::new(), vec![String::new()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(tree.join(&folder))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(format!("{folder}{name}/"));
            } else if kind.is_file() && !(folder.is_empty() && name.starts_with(NAME)) {
                let listed = Listed { size: entry.metadata()?.len(), sha256: sha256(&entry.path())? };
                files.insert(format!("{folder}{name}"), listed);
            }
        }
    }
    Ok(files)
}

/// SHA-256 of a file's content, in hex.
pub fn sha256(path: &Path) -> io::Result<String> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Hasher::new(Algorithm::Sha256), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_disk_does_to_a_file_is_seen() {
        type Fault = fn(&Path);
        let faults: [(&str, Fault, bool); 6] = [
            ("none", |_| {}, false),
            ("a file more", |tree| fs::write(tree.join("opt/more"), "").unwrap(), false),
            ("missing", |tree| fs::remove_file(tree.join("opt/a.ko")).unwrap(), true),
            ("cut", |tree| fs::write(tree.join("opt/a.ko"), "on").unwrap(), true),
            ("empty", |tree| fs::write(tree.join("opt/deep/b.ko"), "").unwrap(), true),
            ("other bytes", |tree| fs::write(tree.join("opt/deep/b.ko"), "\0\0\0").unwrap(), true),
        ];
        for (name, fault, damaged) in faults {
            let tree = tempfile::tempdir().unwrap();
            fs::create_dir_all(tree.path().join("opt/deep")).unwrap();
            fs::write(tree.path().join("opt/a.ko"), "one").unwrap();
            fs::write(tree.path().join("opt/deep/b.ko"), "two").unwrap();
            assert!(damage(tree.path()).is_err(), "nothing is known");
            write(tree.path()).unwrap();
            write(tree.path()).unwrap();
            fault(tree.path());
            assert_eq!(damage(tree.path()).unwrap().is_some(), damaged, "{name}");
        }
    }
}
