//! The folder that layers are applied to: written part by part, never through a link, never outside.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::syncfs;

/// Most files and folders that are written to the disk one by one.
const FEW: usize = 100;

/// Why a path could not be written.
#[derive(Debug)]
pub(crate) enum Error {
    /// The image wants to write through something that is no folder.
    Blocked(PathBuf),
    /// The file system refused.
    Io(PathBuf, io::Error),
}

/// A folder that nobody else writes to. Paths are relative to it and hold plain names only.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    /// What the current layer has written; only the rest belongs to lower layers.
    written: HashSet<PathBuf>,
}

impl Tree {
    /// Makes the folder, which must not be there yet.
    pub(crate) fn create(root: PathBuf) -> Result<Self, Error> {
        DirBuilder::new().mode(0o755).create(&root).map_err(|error| Error::Io(root.clone(), error))?;
        Ok(Self { root, written: HashSet::new() })
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Everything written so far now counts as a lower layer.
    pub(crate) fn begin_layer(&mut self) {
        self.written.clear();
    }

    /// A folder at `path`, in place of a link or file of a lower layer; one that is there stays.
    pub(crate) fn put_folder(&mut self, path: &Path) -> Result<(), Error> {
        self.put_folders(path, Some(path))
    }

    /// The folders down to `path`. A link is replaced only at `named`, where the image itself has a folder: elsewhere
    /// the image means something behind the link.
    fn put_folders(&mut self, path: &Path, named: Option<&Path>) -> Result<(), Error> {
        let mut so_far = PathBuf::new();
        for part in path.components() {
            so_far.push(part);
            let full = self.root.join(&so_far);
            match lookup(&full)? {
                Some(metadata) if metadata.is_dir() => {}
                Some(_) if self.written.contains(&so_far) => return Err(Error::Blocked(so_far)),
                Some(metadata) if metadata.is_symlink() && named != Some(so_far.as_path()) => {
                    return Err(Error::Blocked(so_far));
                }
                Some(_) => {
                    fs::remove_file(&full).map_err(|error| Error::Io(full.clone(), error))?;
                    make_folder(&full)?;
                }
                None => make_folder(&full)?,
            }
        }
        self.written.insert(path.to_owned());
        Ok(())
    }

    /// A new file at `path`, in place of whatever is there.
    pub(crate) fn put_file(&mut self, path: &Path) -> Result<File, Error> {
        let full = self.make_room(path)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o644).custom_flags(OFlag::O_NOFOLLOW.bits());
        options.open(&full).map_err(|error| Error::Io(full, error))
    }

    /// A symbolic link at `path` that leads to `target`, which is a path of this tree, too.
    pub(crate) fn put_link(&mut self, path: &Path, target: &Path) -> Result<(), Error> {
        let full = self.make_room(path)?;
        symlink(relative(path, target), &full).map_err(|error| Error::Io(full, error))
    }

    /// A second name for the file at `target`; false when there is no such file.
    pub(crate) fn put_hard_link(&mut self, path: &Path, target: &Path) -> Result<bool, Error> {
        let source = self.root.join(target);
        let is_file = self.is_reachable(target)? && lookup(&source)?.is_some_and(|metadata| metadata.is_file());
        // What makes way for the new name may not be what it is for.
        if !is_file || path.starts_with(target) || target.starts_with(path) {
            return Ok(false);
        }
        let full = self.make_room(path)?;
        fs::hard_link(&source, &full).map_err(|error| Error::Io(full, error))?;
        Ok(true)
    }

    /// Removes `path` and everything below it, if it is there.
    pub(crate) fn remove(&mut self, path: &Path) -> Result<(), Error> {
        let full = self.root.join(path);
        match fs::remove_dir_all(&full) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Io(full, error)),
            _ => Ok(()),
        }
    }

    /// Takes away what lower layers have at and below `path`; empty folders above it stay.
    pub(crate) fn hide(&mut self, path: &Path) -> Result<(), Error> {
        if self.is_reachable(path)? { self.hide_reachable(path) } else { Ok(()) }
    }

    /// Takes away what lower layers have below `path`.
    pub(crate) fn hide_content(&mut self, path: &Path) -> Result<(), Error> {
        let full = self.root.join(path);
        if !self.is_reachable(path)? || !lookup(&full)?.is_some_and(|metadata| metadata.is_dir()) {
            return Ok(());
        }
        for entry in fs::read_dir(&full).map_err(|error| Error::Io(full.clone(), error))? {
            let entry = entry.map_err(|error| Error::Io(full.clone(), error))?;
            self.hide_reachable(&path.join(entry.file_name()))?;
        }
        Ok(())
    }

    fn hide_reachable(&mut self, path: &Path) -> Result<(), Error> {
        let full = self.root.join(path);
        let Some(metadata) = lookup(&full)? else { return Ok(()) };
        if metadata.is_dir() {
            self.hide_content(path)?;
            let is_empty = fs::read_dir(&full).map_err(|error| Error::Io(full.clone(), error))?.next().is_none();
            if is_empty && !path.as_os_str().is_empty() && !self.written.contains(path) {
                fs::remove_dir(&full).map_err(|error| Error::Io(full, error))?;
            }
        } else if !self.written.contains(path) {
            fs::remove_file(&full).map_err(|error| Error::Io(full, error))?;
        }
        Ok(())
    }

    /// Whether something is at `path`, itself not followed.
    pub(crate) fn has(&self, path: &Path) -> Result<bool, Error> {
        Ok(self.is_reachable(path)? && lookup(&self.root.join(path))?.is_some())
    }

    /// Whether every folder above `path` is there and no link.
    fn is_reachable(&self, path: &Path) -> Result<bool, Error> {
        let mut full = self.root.clone();
        for part in path.parent().into_iter().flat_map(Path::components) {
            full.push(part);
            if !lookup(&full)?.is_some_and(|metadata| metadata.is_dir()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn make_room(&mut self, path: &Path) -> Result<PathBuf, Error> {
        if let Some(parent) = path.parent() {
            self.put_folders(parent, None)?;
        }
        let full = self.root.join(path);
        let removed = match lookup(&full)? {
            Some(metadata) if metadata.is_dir() => fs::remove_dir_all(&full),
            Some(_) => fs::remove_file(&full),
            None => Ok(()),
        };
        removed.map_err(|error| Error::Io(full.clone(), error))?;
        self.written.insert(path.to_owned());
        Ok(full)
    }

    /// Writes everything to the disk. Returns the number of regular files and their bytes.
    ///
    /// A few files are written one by one: what others have to write on this disk is not waited for.
    pub(crate) fn sync(&self) -> Result<(u64, u64), Error> {
        let failed = |path: &Path, error| Error::Io(path.to_owned(), error);
        let (mut to_sync, mut folders, mut files, mut bytes) = (Vec::new(), vec![self.root.clone()], 0, 0);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(|error| failed(&folder, error))? {
                let entry = entry.map_err(|error| failed(&folder, error))?;
                let metadata = entry.metadata().map_err(|error| failed(&folder, error))?;
                if metadata.is_dir() {
                    folders.push(entry.path());
                } else if metadata.is_file() {
                    files += 1;
                    bytes += metadata.len();
                    to_sync.push(entry.path());
                }
            }
            to_sync.push(folder);
        }
        if to_sync.len() > FEW {
            let root = File::open(&self.root).map_err(|error| failed(&self.root, error))?;
            syncfs(&root).map_err(|errno| failed(&self.root, errno.into()))?;
        } else {
            for path in &to_sync {
                File::open(path).and_then(|file| file.sync_all()).map_err(|error| failed(path, error))?;
            }
        }
        Ok((files, bytes))
    }
}

fn make_folder(full: &Path) -> Result<(), Error> {
    DirBuilder::new().mode(0o755).create(full).map_err(|error| Error::Io(full.to_owned(), error))
}

fn lookup(full: &Path) -> Result<Option<fs::Metadata>, Error> {
    match fs::symlink_metadata(full) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(Error::Io(full.to_owned(), error)),
    }
}

/// What a link at `path` must hold to lead to `target`.
fn relative(path: &Path, target: &Path) -> PathBuf {
    let from: Vec<Component<'_>> = path.parent().into_iter().flat_map(Path::components).collect();
    let to: Vec<Component<'_>> = target.components().collect();
    let common = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
    let mut link: PathBuf = from[common..].iter().map(|_| Component::ParentDir).collect();
    link.extend(&to[common..]);
    if link.as_os_str().is_empty() { PathBuf::from(".") } else { link }
}
