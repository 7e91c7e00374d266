//! From a digest to files on the node.
//!
//! Each layer is first fetched whole into a file and proved by digest and size; only then is anything of it read. It is
//! unpacked while the next one is fetched. What is unpacked lies in a folder of its own beside the destination and takes its
//! name when it is complete and on the disk.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::core::image::{Digest, ImageRef};
use crate::oci::credentials::Credentials;
use crate::oci::download::Blob;
use crate::oci::endpoint::Endpoint;
use crate::oci::fetch::Fetcher;
use crate::oci::layer::{self, Arriving, clean};
use crate::oci::partial::Partial;
use crate::oci::progress::Progress;
use crate::oci::proxies::Proxies;
use crate::oci::registry;
use crate::oci::sources::Sources;

/// Why there is no tree. One variant for one reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry gave no answer; see there.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The image is named by a tag, which may mean something else tomorrow.
    #[error("image {image} is not named by digest: resolve it first")]
    NotPinned {
        /// The image as asked for.
        image: String,
    },
    /// The image has nothing for this machine.
    #[error("the image is not for {wanted}, only for {}", offered.join(", "))]
    PlatformMissing {
        /// The platform of this machine.
        wanted: Platform,
        /// The platforms that the image has, `os/architecture`, in its order.
        offered: Vec<String>,
    },
    /// What came is not what the digest names.
    #[error("{what} has the digest {actual}, not {expected}")]
    DigestMismatch {
        /// Manifest, configuration or layer.
        what: &'static str,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The image holds something that must not be unpacked.
    #[error("the image cannot be unpacked: {}: {why}", path.display())]
    UnsafeImage {
        /// The path inside the image.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The image is larger than the limits allow.
    #[error("the image is too large: more than {limit} {what}")]
    ImageTooLarge {
        /// What there is too much of, in words.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The image breaks its format.
    #[error("the image cannot be read: {why}")]
    InvalidImage {
        /// What is wrong with it.
        why: String,
    },
    /// Several endpoints were asked, or one that is not the registry itself, and none had it.
    #[error("{main} (asked at {at}{others})")]
    Endpoints {
        /// What tells most.
        main: Box<Error>,
        /// Where that was said.
        at: String,
        /// What the others said, each after a semicolon.
        others: String,
    },
    /// The disk has less room than the image needs at least.
    #[error(
        "the image needs {needed} bytes at least, and there is room for {room} in {}, beside a reserve that stays free; \
         make room there",
        folder.display()
    )]
    NoSpace {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that may be used.
        room: u64,
        /// Where.
        folder: PathBuf,
    },
    /// Our own disk.
    #[error("{} cannot be written", path.display())]
    Storage {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The caller has given up; nobody sees this.
    #[error("unpacking was given up")]
    Cancelled,
}

impl Error {
    /// The name of the reason, as it stands in conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Registry(error) => error.reason(),
            Self::NotPinned { .. } => "InvalidReference",
            Self::PlatformMissing { .. } => "PlatformMissing",
            Self::DigestMismatch { .. } => "DigestMismatch",
            Self::UnsafeImage { .. } => "UnsafeImage",
            Self::ImageTooLarge { .. } => "ImageTooLarge",
            Self::InvalidImage { .. } => "InvalidResponse",
            Self::Endpoints { main, .. } => main.reason(),
            Self::NoSpace { .. } => "StoreFull",
            Self::Storage { source, .. } if is_full(source) => "StoreFull",
            Self::Storage { .. } => "StoreFailed",
            Self::Cancelled => "Timeout",
        }
    }
}

/// Whether there was no room to write.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

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
    pub fn new(dir_name: &str, kernels: &[&str], firmware_path: Option<&str>) -> Self {
        let modules = kernels.iter().map(|kernel| Path::new(dir_name).join("lib/modules").join(kernel));
        let roots = modules.chain(firmware_path.map(PathBuf::from)).map(|path| clean(&path)).collect();
        Self { roots }
    }

    pub(crate) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }
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

/// Something below the kept paths that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The path inside the image.
    pub path: PathBuf,
    /// Why it is not there.
    pub why: String,
}

/// What [`pull`] has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledTree {
    /// The digest of the manifest for this platform; for an index it differs from the digest that was asked for.
    pub manifest_digest: Digest,
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Symbolic links that were left out because they lead to something that is not kept; the first hundred.
    pub skipped: Vec<Skipped>,
}

/// What to pull, how, and where to.
#[derive(Debug, Clone, Copy)]
pub struct PullRequest<'a> {
    /// The image, named by digest.
    pub image: &'a ImageRef,
    /// The platform to choose from an index, and that the image must be for.
    pub platform: &'a Platform,
    /// Credentials for the registry.
    pub credentials: &'a Credentials,
    /// Where it is asked for, in this order.
    pub endpoints: &'a [Endpoint],
    /// Proxies on the way.
    pub proxies: &'a Proxies,
    /// The folder to make; it must not exist, its parent must.
    pub destination: &'a Path,
    /// What of the image is wanted.
    pub keep: &'a Keep,
    /// Bounds of all kinds.
    pub limits: Limits,
    /// How long the next [`Limits::progress_bytes`] may take.
    pub patience: Duration,
}

/// Fetches, proves and unpacks an image. Paths below the destination are those of the image.
///
/// The destination appears complete and on the disk, or not at all; leftovers of a crash are removed by the next pull to
/// the same destination. Passing failures of an endpoint are retried a few times, what broke off is
/// taken up where it ended, and the next endpoint is asked for what one does not have. Memory use does not depend on the
/// size of the image. Dropping the future ends everything soon.
pub async fn pull(request: PullRequest<'_>) -> Result<PulledTree, Error> {
    let image = request.image;
    let Some(digest) = image.digest() else { return Err(Error::NotPinned { image: image.to_string() }) };
    let cancel = CancelOnDrop(Arc::default());
    let pulled = async {
        let partial = Arc::new(Partial::create(request.destination)?);
        let sources = Sources::new(image, request.endpoints, request.credentials, request.proxies, request.patience);
        let mut fetcher = Fetcher::new(sources, &request.limits, Arc::clone(&partial), Arc::clone(&cancel.0));
        let found = fetcher.layers(digest, request.platform).await?;
        let needed = found.bytes();
        let mut limits = request.limits;
        if let Some(room) = partial.room(needed)? {
            limits.disk_bytes = limits.disk_bytes.min(room.saturating_sub(needed));
        }
        let (arrived, arriving) = mpsc::channel(found.layers.len().max(1));
        let mut layers = Arriving::new(arriving, found.layers.len());
        let (keep, progress, destination) =
            (request.keep.clone(), Arc::clone(&cancel.0), request.destination.to_owned());
        // The thread has a share in the folder: it is not removed before the thread is done with it.
        let mut unpacking = tokio::task::spawn_blocking(move || {
            let unpacked = layer::unpack(&mut layers, &partial.tree(), &keep, &limits, &progress)?;
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            partial.publish(&destination)?;
            Ok(unpacked)
        });
        let fetching = fetch(&mut fetcher, &found.layers, arrived);
        let unpacked = tokio::select! {
            fetched = fetching => {
                if fetched.is_err() {
                    cancel.0.cancel();
                }
                let unpacked = (&mut unpacking).await;
                fetched?;
                unpacked
            }
            unpacked = &mut unpacking => unpacked,
        };
        let unpacked = unpacked
            .unwrap_or_else(|error| Err(Error::InvalidImage { why: format!("unpacking broke off: {error}") }))?;
        let layer::Unpacked { files, bytes, skipped } = unpacked;
        Ok(PulledTree { manifest_digest: found.manifest_digest, files, bytes, skipped })
    };
    let mut pulled = std::pin::pin!(pulled);
    let mut before = 0;
    loop {
        if let Ok(pulled) = tokio::time::timeout(request.patience, &mut pulled).await {
            return pulled;
        }
        let moved = cancel.0.moved();
        if moved - before < request.limits.progress_bytes {
            return Err(registry::Error::Timeout { image: image.to_string(), after: request.patience }.into());
        }
        before = moved;
    }
}

/// Fetches every layer and hands it on, lowest first.
async fn fetch(fetcher: &mut Fetcher<'_>, layers: &[Blob], arrived: mpsc::Sender<PathBuf>) -> Result<(), Error> {
    for layer in layers {
        let path = fetcher.layer(layer).await?;
        // Nobody waits any more: unpacking failed, which is told.
        if arrived.send(path).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Tells the unpacking thread that nobody waits any more.
struct CancelOnDrop(Arc<Progress>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
