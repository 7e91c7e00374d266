//! Unpacked images on the node's disk: those in use, and others as far as there is room for them.
//!
//! A folder's time of modification says when it was used last. What begins with a dot is being unpacked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Removes what an unpacking left that did not end. To be called while nothing is being unpacked. Returns how many.
pub(super) fn sweep(folder: &Path) -> Result<usize, (PathBuf, io::Error)> {
    let mut removed = 0;
    for (path, name) in entries(folder)? {
        if name.starts_with('.') {
            remove(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Sets the images aside that were not used for longest, until the others take at most `limit` bytes of the disk; never
/// one of `in_use`, whatever they take. Nobody finds them by their names any more; to remove them, which can take long, is
/// left to the caller.
pub(super) fn set_aside(
    folder: &Path,
    in_use: &BTreeSet<String>,
    limit: u64,
) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let (mut total, mut unused, mut aside) = (0_u64, Vec::new(), Vec::new());
    let (used, others): (Vec<_>, Vec<_>) = entries(folder)?
        .into_iter()
        .filter(|(_, name)| !name.starts_with('.'))
        .partition(|(_, name)| in_use.contains(name));
    if others.is_empty() {
        return Ok(aside);
    }
    for (path, _) in used {
        total = total.saturating_add(size(&path)?);
    }
    for (path, name) in others {
        let metadata = fs::symlink_metadata(&path).map_err(|error| (path.clone(), error))?;
        if !metadata.is_dir() {
            remove(&path)?;
            continue;
        }
        let size = size(&path)?;
        total = total.saturating_add(size);
        unused.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), name, size));
    }
    unused.sort();
    for (_, name, size) in unused {
        if total <= limit {
            break;
        }
        aside.extend(take_aside(folder, &name)?);
        total = total.saturating_sub(size);
    }
    Ok(aside)
}

/// Takes the name of one image away. What an interrupted removal left under the same name goes first.
fn take_aside(folder: &Path, name: &str) -> Result<Option<PathBuf>, (PathBuf, io::Error)> {
    let (tree, aside) = (folder.join(name), folder.join(format!(".{name}.dropped")));
    remove(&aside)?;
    match fs::rename(&tree, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err((tree, error)),
        Ok(()) => Ok(Some(aside)),
    }
}

/// Removes one image, whole or not at all.
pub(super) fn drop(folder: &Path, name: &str) -> Result<(), (PathBuf, io::Error)> {
    take_aside(folder, name)?.map_or(Ok(()), |aside| remove(&aside))
}

/// Removes what was set aside.
pub(super) fn clear(aside: &[PathBuf]) -> Result<(), (PathBuf, io::Error)> {
    aside.iter().try_for_each(|path| remove(path))
}

/// Notes that an image is used now.
pub(super) fn touch(tree: &Path) -> io::Result<()> {
    File::open(tree)?.set_modified(SystemTime::now())
}

fn entries(folder: &Path) -> Result<Vec<(PathBuf, String)>, (PathBuf, io::Error)> {
    let failed = |error| (folder.to_owned(), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        found.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
    }
    Ok(found)
}

fn remove(path: &Path) -> Result<(), (PathBuf, io::Error)> {
    super::remove::remove(path).map_err(|error| (path.to_owned(), error))
}

/// Bytes of the disk that a folder and all below it take.
pub(super) fn size(folder: &Path) -> Result<u64, (PathBuf, io::Error)> {
    let mut total = 0_u64;
    for (path, _) in entries(folder)? {
        let metadata = fs::symlink_metadata(&path).map_err(|error| (path.clone(), error))?;
        total = total.saturating_add(metadata.blocks().saturating_mul(512));
        if metadata.is_dir() {
            total = total.saturating_add(size(&path)?);
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MIB: usize = 1 << 20;

    /// Images of a MiB each, the first used longest ago, and something else.
    fn store(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (age, name) in names.iter().rev().enumerate() {
            let tree = folder.path().join(name);
            fs::create_dir_all(tree.join("lib")).unwrap();
            fs::write(tree.join("lib/file"), vec![1; MIB]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(60 * (age as u64 + 1));
            File::open(&tree).unwrap().set_modified(used).unwrap();
        }
        folder
    }

    fn left(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = entries(folder).unwrap().into_iter().map(|(_, name)| name).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_never_what_is_in_use() {
        let cases: [(u64, &[&str], &[&str]); 5] = [
            (100, &["a"], &["a", "b", "c", "d"]),
            (4, &["a"], &["a", "c", "d"]),
            (2, &["a"], &["a"]),
            (0, &["a", "c"], &["a", "c"]),
            (0, &[], &[]),
        ];
        for (limit, in_use, expected) in cases {
            let folder = store(&["a", "b", "c", "d"]);
            let in_use: BTreeSet<String> = in_use.iter().map(|name| (*name).to_owned()).collect();
            let aside = set_aside(folder.path(), &in_use, limit * MIB as u64).unwrap();
            let named = left(folder.path()).into_iter().filter(|name| !name.starts_with('.')).collect::<Vec<_>>();
            assert_eq!(named, expected, "limit {limit} MiB");
            assert_eq!(aside.len(), 4 - expected.len());
            assert!(aside.iter().all(|path| path.join("lib/file").is_file()), "nothing is removed yet");
            clear(&aside).unwrap();
            assert_eq!(left(folder.path()), expected, "limit {limit} MiB");
            assert_eq!(
                set_aside(folder.path(), &in_use, limit * MIB as u64).unwrap(),
                [""; 0].map(PathBuf::from),
                "again"
            );
        }
    }

    #[test]
    fn using_an_image_makes_it_the_last_to_go() {
        let folder = store(&["a", "b", "c"]);
        touch(&folder.path().join("a")).unwrap();
        let aside = set_aside(folder.path(), &BTreeSet::new(), 2 * MIB as u64 - 1).unwrap();
        assert_eq!(aside, [".b.dropped", ".c.dropped"].map(|name| folder.path().join(name)));
        clear(&aside).unwrap();
        assert_eq!(left(folder.path()), ["a"]);
    }

    #[test]
    fn one_image_is_dropped_and_the_others_stay() {
        let folder = store(&["a", "b"]);
        fs::create_dir_all(folder.path().join(".a.dropped/left")).unwrap();
        for _ in 0..2 {
            drop(folder.path(), "a").unwrap();
            assert_eq!(left(folder.path()), ["b"]);
        }
    }

    #[test]
    fn what_is_being_unpacked_stays_until_a_new_start_and_stray_files_go() {
        let folder = store(&["a", ".a.0-0.partial"]);
        fs::write(folder.path().join("stray"), "").unwrap();
        assert_eq!(set_aside(folder.path(), &BTreeSet::new(), u64::MAX).unwrap(), [""; 0].map(PathBuf::from));
        assert_eq!(left(folder.path()), [".a.0-0.partial", "a"]);
        assert_eq!(sweep(folder.path()).unwrap(), 1);
        assert_eq!(left(folder.path()), ["a"]);
    }
}
