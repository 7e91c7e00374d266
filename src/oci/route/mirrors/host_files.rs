//! The node's `/etc`, seen through a mount: bounded reads, and links as they lead on the node.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

/// The folder of the node that is mounted.
const ETC: &str = "/etc";
/// Largest file that is read, in bytes; the authorities of a system are a quarter of it at most.
const MAX_FILE: u64 = 2 << 20;
/// Most names of one folder that are looked at.
const MAX_NAMES: usize = 1024;
/// Most links on the way to one file, as in the kernel.
const MAX_LINKS: usize = 40;

/// Reads files by the paths that they have on the node.
#[derive(Debug)]
pub(super) struct HostFiles<'a> {
    mount: &'a Path,
}

impl<'a> HostFiles<'a> {
    /// `mount` is where the node's `/etc` is mounted.
    pub(super) fn new(mount: &'a Path) -> Self {
        Self { mount }
    }

    /// The content of a file; `None` if it is not there.
    ///
    /// **Errors**: also for files that are too large, and for paths that lead out of `/etc`.
    pub(super) fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        missing_is_none(self.open(path))
    }

    fn open(&self, path: &Path) -> io::Result<Vec<u8>> {
        let real = self.real(path)?;
        // Neither a pipe nor a device is ever waited for.
        if !fs::metadata(&real)?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut content = Vec::new();
        File::open(real)?.take(MAX_FILE + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
        }
        Ok(content)
    }

    /// Names of what is in a folder, sorted; none if it is not there.
    pub(super) fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let Some(entries) = missing_is_none(self.real(folder).and_then(fs::read_dir))? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
            if names.len() > MAX_NAMES {
                return Err(io::Error::other(format!("it holds more than {MAX_NAMES} files")));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether there is such a folder.
    pub(super) fn is_folder(&self, path: &Path) -> io::Result<bool> {
        Ok(missing_is_none(self.real(path).and_then(fs::metadata))?.is_some_and(|metadata| metadata.is_dir()))
    }

    /// Where a path of the node is here, links followed as on the node.
    fn real(&self, path: &Path) -> io::Result<PathBuf> {
        let mut left: VecDeque<OsString> = components(path);
        let mut on_node = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                on_node.pop();
                continue;
            }
            on_node.push(&name);
            if on_node == Path::new(ETC) {
                continue;
            }
            let metadata = fs::symlink_metadata(self.here(&on_node)?)?;
            if metadata.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::other("too many symbolic links lead to it"));
                }
                let target = fs::read_link(self.here(&on_node)?)?;
                if target.is_absolute() {
                    on_node = PathBuf::from("/");
                } else {
                    on_node.pop();
                }
                for part in components(&target).into_iter().rev() {
                    left.push_front(part);
                }
            }
        }
        self.here(&on_node)
    }

    fn here(&self, on_node: &Path) -> io::Result<PathBuf> {
        match on_node.strip_prefix(ETC) {
            Ok(below) => Ok(self.mount.join(below)),
            Err(_) => Err(io::Error::other(format!(
                "it is at {} of the node, and the worker sees nothing of the node but {ETC}",
                on_node.display()
            ))),
        }
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn missing_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}
