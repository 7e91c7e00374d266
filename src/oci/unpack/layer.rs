//! Applying one layer after the other to a folder, as far as they are wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tar::EntryType;

use super::meter::Meter;
use super::paths::{Links, below, follow};
use super::tree::{self, Tree};
use crate::oci::error::PullError;
use crate::oci::limits::{Keep, Limits, Skipped, clean};
use crate::oci::progress::Progress;

/// Deepest path that is written, in folders.
const MAX_DEPTH: usize = 64;
/// Most links that are listed as left out.
const MAX_SKIPPED: usize = 100;
/// Where files lie that only hard links lead to. No image holds a folder of this name, which is that of a whiteout.
const ASIDE: &str = ".wh..aside";
/// Bytes that are written to a file at once.
const BUFFER: usize = 256 << 10;

/// What is on disk after all layers.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) skipped: Vec<Skipped>,
}

/// A wanted path, and where it really is in the image.
#[derive(Debug, Clone)]
struct Root {
    asked: PathBuf,
    real: PathBuf,
}

/// One way through all layers.
pub(super) struct Pass<'a> {
    tree: Tree,
    limits: &'a Limits,
    /// What is written; none of the real paths lies below another.
    roots: Vec<Root>,
    /// Wanted paths whose content is part of one of `roots`.
    aliases: Vec<Root>,
    /// Files elsewhere that wanted ones are hard links to, and where they lie meanwhile.
    aside: BTreeMap<PathBuf, PathBuf>,
    /// Such files that were not known when this pass began.
    missing: BTreeSet<PathBuf>,
    /// A hard link to nothing, in words.
    dangling: Option<String>,
    /// Links that are followed, as an earlier pass found them.
    links: &'a Links,
    /// Links that this one finds, as far as they matter.
    found: Links,
    /// Paths that decide where the wanted ones are.
    deciding: BTreeSet<PathBuf>,
    entries: u64,
    bytes: u64,
    scanned: u64,
    skipped: Vec<Skipped>,
    buffer: Vec<u8>,
}

impl<'a> Pass<'a> {
    /// `targets` are files outside of what is kept that something kept is a hard link to.
    pub(super) fn new(
        out: &Path,
        keep: &Keep,
        limits: &'a Limits,
        links: &'a Links,
        targets: &BTreeSet<PathBuf>,
    ) -> Result<Self, PullError> {
        let mut deciding = BTreeSet::new();
        let mut all = Vec::new();
        for asked in keep.roots() {
            let real = follow(asked, links, &mut deciding).ok_or_else(|| endless(asked))?;
            all.push(Root { asked: asked.clone(), real });
        }
        // The ones that may hold others first; of two equal ones, the one that is no link itself.
        all.sort_by_key(|root| (root.real.components().count(), root.asked != root.real));
        let (mut roots, mut aliases) = (Vec::<Root>::new(), Vec::new());
        for root in all {
            let inside = roots.iter().any(|outer| root.real.starts_with(&outer.real));
            if inside { aliases.push(root) } else { roots.push(root) }
        }
        let mut aside = BTreeMap::new();
        for target in targets {
            let real = follow_above(target, links, &mut deciding).ok_or_else(|| endless(target))?;
            if !roots.iter().any(|root| real.starts_with(&root.real)) {
                let place = Path::new(ASIDE).join(aside.len().to_string());
                aside.entry(real).or_insert(place);
            }
        }
        Ok(Self {
            tree: Tree::create(out.to_owned()).map_err(|error| written(out, error))?,
            limits,
            roots,
            aliases,
            aside,
            missing: BTreeSet::new(),
            dangling: None,
            links,
            found: Links::new(),
            deciding,
            entries: 0,
            bytes: 0,
            scanned: 0,
            skipped: Vec::new(),
            buffer: vec![0; BUFFER],
        })
    }

    /// Applies the layer with this number in the file `layer`.
    pub(super) fn layer(&mut self, number: usize, layer: &Path, progress: &Progress) -> Result<(), PullError> {
        let file = File::open(layer).map_err(|source| PullError::Storage { path: layer.to_owned(), source })?;
        let left = self.limits.unpacked_bytes.saturating_sub(self.scanned);
        let meter = Meter::new(left, progress);
        let limits = self.limits;
        let failed = |error: io::Error| meter.error(limits, number, layer, &error);
        let mut archive = tar::Archive::new(meter.content(file).map_err(failed)?);
        self.tree.begin_layer();
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            // A sparse file is longer than what the archive holds of it.
            let stored = if entry.header().entry_type().is_gnu_sparse() {
                entry.header().entry_size().map_err(failed)?
            } else {
                entry.size()
            };
            meter.begin_entry(stored);
            self.entry(number, &mut entry).map_err(|error| match error {
                Failure::Reading(error) => failed(error),
                Failure::Known(error) => error,
            })?;
        }
        self.scanned += left - meter.left();
        Ok(())
    }

    fn entry<R: Read>(&mut self, layer: usize, entry: &mut tar::Entry<'_, R>) -> Result<(), Failure> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        let path = image_path(&raw)?;
        let is_folder = kind == EntryType::Directory || (kind.is_file() && raw.ends_with(b"/"));
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return Ok(self.whiteout(layer, &path, hidden)?);
        }
        let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
        if !is_folder {
            // What was a folder in a lower layer is none any more.
            self.hide(layer, &path)?;
        }
        self.found.remove(&path);
        let out = self.out(&path);
        if kind == EntryType::Symlink && (out.is_some() || self.deciding.contains(&path)) {
            self.found.insert(path.clone(), (PathBuf::from(OsStr::from_bytes(&target)), layer));
        }
        let Some(out) = out else { return Ok(()) };
        if kind == EntryType::Symlink && self.deciding.contains(&path) {
            return Ok(());
        }
        self.count(&path)?;
        let refused = |why: &str| Failure::Known(unsafe_image(&path, why));
        match kind {
            _ if is_folder => self.tree.put_folder(&out).map_err(|error| Failure::Known(written(&path, error))),
            EntryType::Regular | EntryType::Continuous => self.file(&path, &out, entry),
            EntryType::Symlink => Ok(self.symbolic_link(&path, &out, &target)?),
            EntryType::Link => Ok(self.hard_link(layer, &path, &out, &image_path(&target)?)?),
            EntryType::Char | EntryType::Block => Err(refused("it is a device")),
            EntryType::Fifo => Err(refused("it is a pipe")),
            EntryType::GNUSparse => Err(refused("it is a sparse file")),
            _ => Err(refused("it is of a kind that has no place in an image")),
        }
    }

    fn file<R: Read>(&mut self, path: &Path, out: &Path, entry: &mut tar::Entry<'_, R>) -> Result<(), Failure> {
        let size = entry.size();
        let too_large = |what, limit| Failure::Known(PullError::ImageTooLarge { what, limit });
        if size > self.limits.file_bytes {
            return Err(too_large("bytes in one file", self.limits.file_bytes));
        }
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.kept_bytes {
            return Err(too_large("bytes to keep", self.limits.kept_bytes));
        }
        if self.bytes > self.limits.disk_bytes {
            let (needed, room, folder) = (self.bytes, self.limits.disk_bytes, self.tree.root().to_owned());
            return Err(Failure::Known(PullError::NoSpace { needed, room, folder }));
        }
        let mut file = self.tree.put_file(out).map_err(|error| Failure::Known(written(path, error)))?;
        let mut left = size;
        while left > 0 {
            let read = entry.read(&mut self.buffer).map_err(Failure::Reading)?;
            if read == 0 {
                return Err(Failure::Reading(io::ErrorKind::UnexpectedEof.into()));
            }
            io::Write::write_all(&mut file, &self.buffer[..read])
                .map_err(|source| Failure::Known(PullError::Storage { path: out.to_owned(), source }))?;
            left = left.saturating_sub(read as u64);
        }
        if size >= BUFFER as u64 {
            // Begins to write it to the disk while the next one is unpacked; a system that does not loses time only.
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        Ok(())
    }

    /// Keeps a link that leads to something that may be kept, and lists the others: kmod images link to the node's own
    /// modules on purpose, and the folder they mean is not in the image.
    fn symbolic_link(&mut self, path: &Path, out: &Path, target: &[u8]) -> Result<(), PullError> {
        if self.aside.contains_key(path) {
            return Ok(());
        }
        let target = Path::new(OsStr::from_bytes(target));
        let start = if target.is_absolute() { Path::new("") } else { path.parent().unwrap_or(Path::new("")) };
        let meant =
            follow(&clean(&start.join(target.strip_prefix("/").unwrap_or(target))), self.links, &mut BTreeSet::new());
        match meant.and_then(|meant| self.kept(&meant)) {
            Some(inside) if !target.as_os_str().is_empty() => {
                self.tree.put_link(out, &inside).map_err(|error| written(path, error))
            }
            _ => {
                if self.skipped.len() < MAX_SKIPPED {
                    let why = format!("symbolic link to {}, which is not kept", target.display());
                    self.skipped.push(Skipped { path: path.to_owned(), why });
                }
                Ok(())
            }
        }
    }

    /// A second name for what is at `target` now. Where that is nothing that is kept, it is looked for in the next pass.
    fn hard_link(&mut self, layer: usize, path: &Path, out: &Path, target: &Path) -> Result<(), PullError> {
        let real = follow_above(target, self.links, &mut BTreeSet::new()).ok_or_else(|| endless(target))?;
        let Some(place) = self.out(&real) else {
            self.missing.insert(target.to_owned());
            return Ok(());
        };
        if let Some((text, _)) = self.found.get(&real) {
            let text = text.clone();
            self.found.insert(path.to_owned(), (text.clone(), layer));
            return self.symbolic_link(path, out, text.as_os_str().as_bytes());
        }
        if self.tree.put_hard_link(out, &place).map_err(|error| written(path, error))? {
            return Ok(());
        }
        // Perhaps not yet: another pass may follow more links.
        let why = format!("{} is a hard link to {}, where no file is", path.display(), target.display());
        self.dangling.get_or_insert(why);
        Ok(())
    }

    fn whiteout(&mut self, layer: usize, path: &Path, hidden: &[u8]) -> Result<(), PullError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        if hidden == b".wh..opq" {
            self.forget(layer, folder, false)?;
            for root in self.roots.clone() {
                let hidden = if root.real.starts_with(folder) {
                    self.tree.hide_content(&root.asked)
                } else if let Ok(below) = folder.strip_prefix(&root.real) {
                    self.tree.hide_content(&root.asked.join(below))
                } else {
                    Ok(())
                };
                hidden.map_err(|error| written(path, error))?;
            }
            return Ok(());
        }
        // Other names of this kind are bookkeeping of an old storage driver.
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(unsafe_image(path, "it hides a path that has no name"));
        }
        self.hide(layer, &folder.join(OsStr::from_bytes(hidden)))
    }

    /// Takes away what lower layers have at and below a path of the image.
    fn hide(&mut self, layer: usize, path: &Path) -> Result<(), PullError> {
        for root in &self.roots {
            let hidden = if root.real.starts_with(path) {
                self.tree.hide(&root.asked)
            } else if let Ok(below) = path.strip_prefix(&root.real) {
                self.tree.hide(&root.asked.join(below))
            } else {
                Ok(())
            };
            hidden.map_err(|error| written(path, error))?;
        }
        self.skipped.retain(|skipped| !skipped.path.starts_with(path));
        self.forget(layer, path, true)
    }

    /// Takes away the links and the files aside that lower layers have below a path, or at it, too.
    fn forget(&mut self, layer: usize, path: &Path, at_it: bool) -> Result<(), PullError> {
        let is_meant = |found: &PathBuf| at_it || found != path;
        let gone = below(&self.found, path).filter(|(link, (_, from))| is_meant(link) && *from < layer);
        let gone: Vec<PathBuf> = gone.map(|(link, _)| link.clone()).collect();
        for link in gone {
            self.found.remove(&link);
        }
        for (_, place) in below(&self.aside, path).filter(|(file, _)| is_meant(file)) {
            self.tree.hide(place).map_err(|error| written(path, error))?;
        }
        Ok(())
    }

    fn count(&mut self, path: &Path) -> Result<(), PullError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(PullError::ImageTooLarge { what: "files and folders to keep", limit: self.limits.entries });
        }
        if path.as_os_str().len() as u64 > self.limits.path_bytes {
            return Err(PullError::ImageTooLarge { what: "bytes in one path", limit: self.limits.path_bytes });
        }
        if path.components().count() > MAX_DEPTH {
            return Err(PullError::ImageTooLarge { what: "folders above one file", limit: MAX_DEPTH as u64 });
        }
        Ok(())
    }

    /// Where a path of the image is written, if at all.
    fn out(&self, path: &Path) -> Option<PathBuf> {
        self.kept(path).or_else(|| self.aside.get(path).cloned())
    }

    /// Where a path of the image is kept, if at all.
    fn kept(&self, path: &Path) -> Option<PathBuf> {
        self.roots.iter().find_map(|root| Some(root.asked.join(path.strip_prefix(&root.real).ok()?)))
    }

    /// What the next pass has to look for, and the links that it has to follow.
    pub(super) fn unsettled(&mut self) -> (Links, BTreeSet<PathBuf>) {
        let mut found = std::mem::take(&mut self.found);
        found.retain(|link, _| self.deciding.contains(link));
        (found, std::mem::take(&mut self.missing))
    }

    /// Writes everything to the disk, if nothing is left to look for.
    pub(super) fn finish(mut self) -> Result<Unpacked, PullError> {
        if let Some(why) = self.dangling {
            return Err(PullError::InvalidImage { why });
        }
        self.tree.remove(Path::new(ASIDE)).map_err(|error| written(Path::new(""), error))?;
        for alias in std::mem::take(&mut self.aliases) {
            let Some(target) = self.kept(&alias.real).filter(|target| *target != alias.asked) else { continue };
            let failed = |error| written(&alias.asked, error);
            if self.tree.has(&target).map_err(failed)? && !self.tree.has(&alias.asked).map_err(failed)? {
                self.tree.put_link(&alias.asked, &target).map_err(failed)?;
            }
        }
        let (files, bytes) = self.tree.sync().map_err(|error| written(Path::new(""), error))?;
        Ok(Unpacked { files, bytes, skipped: self.skipped })
    }
}

/// An error while reading an archive needs the meter to be understood.
enum Failure {
    Reading(io::Error),
    Known(PullError),
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self::Known(error)
    }
}

/// Where `path` leads in the image, itself not followed; every path that was asked on the way goes to `asked`.
fn follow_above(path: &Path, links: &Links, asked: &mut BTreeSet<PathBuf>) -> Option<PathBuf> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Some(path.to_owned()) };
    Some(follow(folder, links, asked)?.join(name))
}

fn endless(path: &Path) -> PullError {
    unsafe_image(path, "too many symbolic links lead to it")
}

pub(super) fn unsafe_image(path: &Path, why: &str) -> PullError {
    PullError::UnsafeImage { path: path.to_owned(), why: why.to_owned() }
}

fn written(path: &Path, error: tree::Error) -> PullError {
    match error {
        tree::Error::Blocked(through) => {
            unsafe_image(path, &format!("it lies below {}, which is no folder", through.display()))
        }
        tree::Error::Io(path, source) => PullError::Storage { path, source },
    }
}

/// The path inside the image that an archive's name means; a leading slash means the image's own root.
fn image_path(raw: &[u8]) -> Result<PathBuf, PullError> {
    let path = Path::new(OsStr::from_bytes(raw));
    if raw.contains(&0) {
        return Err(unsafe_image(path, "its name holds a zero byte"));
    }
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(unsafe_image(path, "its name leads upwards")),
        }
    }
    Ok(plain)
}
