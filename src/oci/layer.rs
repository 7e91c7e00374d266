//! Applying the layers of an image to a folder, as far as they are wanted.
//!
//! Layers are files whose digest was proved before. They are read once from the lowest to the highest, each as soon as it
//! is there; only the paths that [`Keep`] names are written. Where a folder above them turns out to be a symbolic link of the image (`/lib`
//! mostly), everything is read again with the link followed, until nothing new turns up.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tar::EntryType;
use tokio::sync::mpsc::Receiver;

use crate::oci::progress::Progress;
use crate::oci::pull::{Error, Keep, Limits, Skipped};
use crate::oci::tree::{self, Tree};

/// Most bytes between two entries of an archive: headers, long names, extended attributes.
const HEADER_BYTES: u64 = 1 << 20;
/// Deepest path that is written, in folders.
const MAX_DEPTH: usize = 64;
/// Most links followed on the way to one path, as in the kernel.
const MAX_LINKS: usize = 40;
/// Most times that the layers are read because of links above the wanted paths.
const MAX_PASSES: usize = 8;
/// Most links that are listed as left out.
const MAX_SKIPPED: usize = 100;
/// Largest window of zstd, as a power of two: 32 MiB.
const ZSTD_WINDOW_LOG: u32 = 25;

/// Bytes that are read from a layer, and written to a file, at once.
const BUFFER: usize = 256 << 10;
/// Bytes that a decompressor gives at once where little is asked for, as between files.
const SMALL_BUFFER: usize = 32 << 10;

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
    fn get(&mut self, number: usize) -> Result<PathBuf, Error> {
        loop {
            if let Some(path) = self.here.get(number) {
                return Ok(path.clone());
            }
            self.here.push(self.coming.blocking_recv().ok_or(Error::Cancelled)?);
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

/// Symbolic links above the wanted paths, with the number of the layer that has them.
type Links = BTreeMap<PathBuf, (PathBuf, usize)>;

/// What is on disk after all layers.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) skipped: Vec<Skipped>,
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
) -> Result<Unpacked, Error> {
    let mut links = Links::new();
    for _ in 0..MAX_PASSES {
        let mut pass = Pass::new(out, keep, limits, links)?;
        for number in 0..layers.count {
            pass.layer(number, &layers.get(number)?, progress)?;
        }
        let found = |links: &Links| links.iter().map(|(path, (target, _))| (path.clone(), target.clone())).collect();
        let (used, found): (Vec<_>, Vec<_>) = (found(&pass.links), found(&pass.found));
        if used == found {
            layers.discard();
            return pass.finish();
        }
        links = pass.found;
        std::fs::remove_dir_all(out).map_err(|source| Error::Storage { path: out.to_owned(), source })?;
    }
    Err(unsafe_image(&keep.roots()[0], "too many symbolic links lead to it"))
}

/// A wanted path, and where it really is in the image.
#[derive(Debug, Clone)]
struct Root {
    asked: PathBuf,
    real: PathBuf,
}

struct Pass<'a> {
    tree: Tree,
    limits: &'a Limits,
    /// What is written; none of the real paths lies below another.
    roots: Vec<Root>,
    /// Wanted paths whose content is part of one of `roots`.
    aliases: Vec<Root>,
    links: Links,
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
    fn new(out: &Path, keep: &Keep, limits: &'a Limits, links: Links) -> Result<Self, Error> {
        let mut deciding = BTreeSet::new();
        let mut all = Vec::new();
        for asked in keep.roots() {
            let real = follow(asked, &links, &mut deciding)
                .ok_or_else(|| unsafe_image(asked, "too many symbolic links lead to it"))?;
            all.push(Root { asked: asked.clone(), real });
        }
        // The ones that may hold others first; of two equal ones, the one that is no link itself.
        all.sort_by_key(|root| (root.real.components().count(), root.asked != root.real));
        let (mut roots, mut aliases) = (Vec::<Root>::new(), Vec::new());
        for root in all {
            let inside = roots.iter().any(|outer| root.real.starts_with(&outer.real));
            if inside { aliases.push(root) } else { roots.push(root) }
        }
        Ok(Self {
            tree: Tree::create(out.to_owned()).map_err(|error| written(out, error))?,
            limits,
            roots,
            aliases,
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

    fn layer(&mut self, number: usize, layer: &Path, progress: &Progress) -> Result<(), Error> {
        let storage = |source| Error::Storage { path: layer.to_owned(), source };
        let file = BufReader::with_capacity(BUFFER, File::open(layer).map_err(storage)?);
        let left = self.limits.unpacked_bytes.saturating_sub(self.scanned);
        let meter = Meter { left: Cell::new(left), allowed: Cell::new(HEADER_BYTES), progress };
        let content = decompressed(file).map_err(|error| meter.error(self.limits, number, &error))?;
        let mut archive = tar::Archive::new(Metered { inner: content, meter: &meter });
        self.tree.begin_layer();
        let failed = |error: io::Error| meter.error(self.limits, number, &error);
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            // A sparse file is longer than what the archive holds of it.
            let stored = if entry.header().entry_type().is_gnu_sparse() {
                entry.header().entry_size().map_err(failed)?
            } else {
                entry.size()
            };
            meter.allowed.set(stored.saturating_add(HEADER_BYTES));
            self.entry(number, &mut entry).map_err(|error| match error {
                Failure::Reading(error) => meter.error(self.limits, number, &error),
                Failure::Known(error) => error,
            })?;
        }
        self.scanned += left - meter.left.get();
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
        if self.deciding.contains(&path) {
            self.found.remove(&path);
            if kind == EntryType::Symlink {
                self.found.insert(path.clone(), (PathBuf::from(OsStr::from_bytes(&target)), layer));
            }
        }
        if !is_folder {
            // What was a folder in a lower layer is none any more.
            self.hide(&path)?;
        }
        let Some(out) = self.out(&path) else { return Ok(()) };
        if kind == EntryType::Symlink && self.deciding.contains(&path) {
            return Ok(());
        }
        self.count(&path)?;
        let refused = |why: &str| Failure::Known(unsafe_image(&path, why));
        let written = |error| Failure::Known(written(&path, error));
        match kind {
            _ if is_folder => self.tree.put_folder(&out).map_err(written),
            EntryType::Regular | EntryType::Continuous => self.file(&path, &out, entry),
            EntryType::Symlink => Ok(self.symbolic_link(&path, &out, &target)?),
            EntryType::Link => {
                let target = image_path(&target)?;
                let linked = match self.out(&target) {
                    Some(target) => self.tree.put_hard_link(&out, &target).map_err(written)?,
                    None => false,
                };
                if linked { Ok(()) } else { Err(refused("it is a hard link to something that is not kept")) }
            }
            EntryType::Char | EntryType::Block => Err(refused("it is a device")),
            EntryType::Fifo => Err(refused("it is a pipe")),
            EntryType::GNUSparse => Err(refused("it is a sparse file")),
            _ => Err(refused("it is of a kind that has no place in an image")),
        }
    }

    fn file<R: Read>(&mut self, path: &Path, out: &Path, entry: &mut tar::Entry<'_, R>) -> Result<(), Failure> {
        let size = entry.size();
        let too_large = |what, limit| Failure::Known(Error::ImageTooLarge { what, limit });
        if size > self.limits.file_bytes {
            return Err(too_large("bytes in one file", self.limits.file_bytes));
        }
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.kept_bytes {
            return Err(too_large("bytes to keep", self.limits.kept_bytes));
        }
        if self.bytes > self.limits.disk_bytes {
            let (needed, room, folder) = (self.bytes, self.limits.disk_bytes, self.tree.root().to_owned());
            return Err(Failure::Known(Error::NoSpace { needed, room, folder }));
        }
        let mut file = self.tree.put_file(out).map_err(|error| Failure::Known(written(path, error)))?;
        let mut left = size;
        while left > 0 {
            let read = entry.read(&mut self.buffer).map_err(Failure::Reading)?;
            if read == 0 {
                return Err(Failure::Reading(io::ErrorKind::UnexpectedEof.into()));
            }
            io::Write::write_all(&mut file, &self.buffer[..read])
                .map_err(|source| Failure::Known(Error::Storage { path: out.to_owned(), source }))?;
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
    fn symbolic_link(&mut self, path: &Path, out: &Path, target: &[u8]) -> Result<(), Error> {
        let target = Path::new(OsStr::from_bytes(target));
        let start = if target.is_absolute() { Path::new("") } else { path.parent().unwrap_or(Path::new("")) };
        let meant =
            follow(&clean(&start.join(target.strip_prefix("/").unwrap_or(target))), &self.links, &mut BTreeSet::new());
        match meant.and_then(|meant| self.out(&meant)) {
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

    fn whiteout(&mut self, layer: usize, path: &Path, hidden: &[u8]) -> Result<(), Error> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let is_lower = |found: usize| found < layer;
        if hidden == b".wh..opq" {
            self.found.retain(|link, (_, from)| link == folder || !link.starts_with(folder) || !is_lower(*from));
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
        let hidden = folder.join(OsStr::from_bytes(hidden));
        self.found.retain(|link, (_, from)| !link.starts_with(&hidden) || !is_lower(*from));
        self.hide(&hidden)
    }

    /// Takes away what lower layers have at and below a path of the image.
    fn hide(&mut self, path: &Path) -> Result<(), Error> {
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
        Ok(())
    }

    fn count(&mut self, path: &Path) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::ImageTooLarge { what: "files and folders to keep", limit: self.limits.entries });
        }
        if path.as_os_str().len() as u64 > self.limits.path_bytes {
            return Err(Error::ImageTooLarge { what: "bytes in one path", limit: self.limits.path_bytes });
        }
        if path.components().count() > MAX_DEPTH {
            return Err(Error::ImageTooLarge { what: "folders above one file", limit: MAX_DEPTH as u64 });
        }
        Ok(())
    }

    /// Where a path of the image is written, if at all.
    fn out(&self, path: &Path) -> Option<PathBuf> {
        self.roots.iter().find_map(|root| Some(root.asked.join(path.strip_prefix(&root.real).ok()?)))
    }

    fn finish(mut self) -> Result<Unpacked, Error> {
        for alias in std::mem::take(&mut self.aliases) {
            let Some(target) = self.out(&alias.real).filter(|target| *target != alias.asked) else { continue };
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
    Known(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Known(error)
    }
}

fn unsafe_image(path: &Path, why: &str) -> Error {
    Error::UnsafeImage { path: path.to_owned(), why: why.to_owned() }
}

fn written(path: &Path, error: tree::Error) -> Error {
    match error {
        tree::Error::Blocked(through) => {
            unsafe_image(path, &format!("it lies below {}, which is no folder", through.display()))
        }
        tree::Error::Io(path, source) => Error::Storage { path, source },
    }
}

/// The path inside the image that an archive's name means; a leading slash means the image's own root.
fn image_path(raw: &[u8]) -> Result<PathBuf, Error> {
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

/// A path without `.` and `..`, relative to the image's root, above which there is nothing.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

/// Where `path` leads in the image; every path that was asked on the way goes to `asked`. `None` for endless links.
fn follow(path: &Path, links: &Links, asked: &mut BTreeSet<PathBuf>) -> Option<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let mut so_far = PathBuf::new();
        let mut next = None;
        for part in path.components() {
            let parent = so_far.clone();
            so_far.push(part);
            asked.insert(so_far.clone());
            if let Some((target, _)) = links.get(&so_far) {
                let rest = path.strip_prefix(&so_far).unwrap_or(Path::new(""));
                // An absolute target replaces the parent.
                next = Some(clean(&parent.join(target).join(rest)));
                break;
            }
        }
        match next {
            Some(next) => path = next,
            None => return Some(path),
        }
    }
    None
}

fn decompressed<'a>(mut file: BufReader<File>) -> io::Result<Box<dyn Read + 'a>> {
    // The bytes tell more reliably than media types, which tools that recompress forget to change.
    let start = file.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(BufReader::with_capacity(SMALL_BUFFER, flate2::bufread::MultiGzDecoder::new(file))))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || start.get(1..4) == Some(&[0x2a, 0x4d, 0x18]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        Ok(Box::new(BufReader::with_capacity(SMALL_BUFFER, decoder)))
    } else {
        Ok(Box::new(file))
    }
}

/// Bounds what is read of one layer, whatever its headers claim.
struct Meter<'a> {
    /// Bytes that may still be read of all layers.
    left: Cell<u64>,
    /// Bytes that may be read until the next entry has to appear.
    allowed: Cell<u64>,
    progress: &'a Progress,
}

impl Meter<'_> {
    /// What a failed read means: a limit, or an archive that is broken.
    fn error(&self, limits: &Limits, layer: usize, error: &io::Error) -> Error {
        if self.progress.is_cancelled() {
            Error::Cancelled
        } else if self.left.get() == 0 {
            Error::ImageTooLarge { what: "bytes in all layers", limit: limits.unpacked_bytes }
        } else if self.allowed.get() == 0 {
            Error::ImageTooLarge { what: "bytes in one header", limit: HEADER_BYTES }
        } else {
            Error::InvalidImage { why: format!("layer {layer} is no archive: {error}") }
        }
    }
}

struct Metered<'a, R> {
    inner: R,
    meter: &'a Meter<'a>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let meter = self.meter;
        let most = meter.left.get().min(meter.allowed.get());
        if meter.progress.is_cancelled() || (most == 0 && !buffer.is_empty()) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        meter.left.set(meter.left.get() - read as u64);
        meter.allowed.set(meter.allowed.get() - read as u64);
        meter.progress.add(read);
        Ok(read)
    }
}
