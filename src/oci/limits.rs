//! What of an image is wanted, for which machine, and how much of it at most.

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// An operating system and an architecture as images name them; the operating system is always Linux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The architecture by its name in Go: `amd64`, `arm64`, …
    pub architecture: String,
}

impl Platform {
    /// The platform that this program was built for.
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        Self { architecture: architecture.to_owned() }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)
    }
}

/// The paths of the image that are written; everything below them is, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    roots: Vec<PathBuf>,
}

impl Keep {
    /// `<dir_name>/lib/modules/<kernel>` for every candidate, and the firmware folder.
    ///
    /// Names are cleaned as paths inside the image: `..` cannot leave it. What is not in the image is not missed.
    pub fn new(dir_name: &str, kernels: &[impl AsRef<Path>], firmware_path: Option<&str>) -> Self {
        let modules = kernels.iter().map(|kernel| Path::new(dir_name).join("lib/modules").join(kernel));
        let roots = modules.chain(firmware_path.map(PathBuf::from)).map(|path| clean(&path)).collect();
        Self { roots }
    }

    pub(crate) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }
}

/// Something below the kept paths that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The path inside the image.
    pub path: PathBuf,
    /// Why it is not there.
    pub why: String,
}

/// Bounds of what is fetched and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Layers of the image.
    pub layers: u64,
    /// Bytes of all layers as they are fetched.
    pub fetched_bytes: u64,
    /// Bytes of all layers after decompression, wanted or not.
    pub unpacked_bytes: u64,
    /// Bytes of all files that are kept.
    pub kept_bytes: u64,
    /// Bytes of one file that is kept.
    pub file_bytes: u64,
    /// Files, links and folders that are kept.
    pub entries: u64,
    /// Bytes of one path that is kept.
    pub path_bytes: u64,
    /// Bytes that must be fetched or unpacked within the patience of a pull: over a slow link a large image arrives all
    /// the same, and what only drips holds up nobody for ever.
    pub progress_bytes: u64,
    /// Bytes of the disk that kept files may take.
    pub disk_bytes: u64,
}

impl Default for Limits {
    /// Generous for kernel modules with firmware, and far below what fills a node.
    fn default() -> Self {
        Self {
            layers: 256,
            fetched_bytes: 4 << 30,
            unpacked_bytes: 16 << 30,
            kept_bytes: 2 << 30,
            file_bytes: 1 << 30,
            entries: 50_000,
            path_bytes: 1024,
            progress_bytes: 8 << 20,
            disk_bytes: u64::MAX,
        }
    }
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
