//! The folder of links to firmware, in the worker's state folder.
//!
//! `firmware/search` is a link to `firmware/<name>`, which is complete before the link names it. The folder that it named
//! before stays until the next change, for a driver that is on its way through it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::remove::remove;

const SEARCH: &str = "search";
const UNFINISHED: &str = ".new";
const NEXT: &str = ".search";

/// A folder of links below the state folder; nothing of it need exist.
#[derive(Clone, Debug)]
pub struct FirmwareFolder(PathBuf);

impl FirmwareFolder {
    /// The one at this path.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// What the kernel is to search.
    pub fn search_path(&self) -> PathBuf {
        self.0.join(SEARCH)
    }

    /// Name of the set of links that is searched.
    pub fn merged(&self) -> Option<String> {
        let target = fs::read_link(self.search_path()).ok()?;
        let name = target.to_str()?.to_owned();
        self.0.join(&name).is_dir().then_some(name)
    }

    /// Makes the set of links of that name the one that is searched.
    pub fn merge(&self, name: &str, links: &BTreeMap<String, PathBuf>) -> io::Result<()> {
        let folder = self.0.join(name);
        fs::create_dir_all(&self.0)?;
        if !folder.is_dir() {
            let unfinished = self.0.join(UNFINISHED);
            remove(&unfinished)?;
            fs::create_dir(&unfinished)?;
            for (name, target) in links {
                let link = unfinished.join(name);
                if let Some(parent) = link.parent() {
                    fs::create_dir_all(parent)?;
                }
                symlink(target, &link)?;
            }
            fs::rename(&unfinished, &folder)?;
        }
        let before = self.merged();
        let next = self.0.join(NEXT);
        remove(&next)?;
        symlink(name, &next)?;
        fs::rename(&next, self.search_path())?;
        for found in fs::read_dir(&self.0)? {
            let found = found?.file_name();
            if found != SEARCH && found != name && before.as_deref().is_none_or(|before| found != before) {
                remove(&self.0.join(found))?;
            }
        }
        Ok(())
    }

    /// Removes all of it.
    pub fn unmerge(&self) -> io::Result<()> {
        remove(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_before_during_and_after_every_change() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("v")).unwrap();
        fs::write(tree.join("v/a.bin"), "a").unwrap();
        fs::write(tree.join("v/b.bin"), "b").unwrap();
        let folder = FirmwareFolder::new(root.path().join("state/firmware"));
        assert_eq!(folder.merged(), None);
        folder.unmerge().unwrap();
        let links = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), tree.join(name))).collect();
        folder.merge("one", &links(&["v/a.bin"])).unwrap();
        assert_eq!(folder.merged().as_deref(), Some("one"));
        let open = folder.0.join("one");
        // What a crash left is no hindrance.
        fs::create_dir_all(folder.0.join(".new/v")).unwrap();
        symlink("nowhere", folder.0.join(".search")).unwrap();
        folder.merge("two", &links(&["v/a.bin", "v/b.bin"])).unwrap();
        assert!(open.join("v/a.bin").exists(), "whoever has found the old folder finds his file");
        for (name, content) in [("v/a.bin", "a"), ("v/b.bin", "b")] {
            assert_eq!(fs::read_to_string(folder.search_path().join(name)).unwrap(), content);
        }
        folder.merge("three", &links(&["v/b.bin"])).unwrap();
        assert!(!open.exists() && folder.0.join("two").exists());
        folder.merge("three", &BTreeMap::new()).unwrap();
        assert!(folder.search_path().join("v/b.bin").exists(), "a folder of that name is what it is");
        folder.unmerge().unwrap();
        assert_eq!((folder.merged(), folder.0.exists()), (None, false));
        assert!(tree.join("v/a.bin").exists());
    }
}
