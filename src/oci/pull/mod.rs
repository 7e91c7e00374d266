//! From a digest to files on the node.
//!
//! Each layer is first fetched whole into a file and proved by digest and size; only then is anything of it read. It is
//! unpacked while the next one is fetched. What is unpacked lies in a folder of its own beside the destination and takes its
//! name when it is complete and on the disk.

mod download;
mod fetch;
mod partial;
mod sources;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use self::download::Blob;
use self::fetch::Fetcher;
use self::partial::Partial;
use self::sources::Sources;
use crate::core::image::{Digest, ImageRef};
use crate::oci::auth::credentials::Credentials;
use crate::oci::error::{PullError, RegistryError};
use crate::oci::limits::{Keep, Limits, Platform, Skipped};
use crate::oci::progress::Progress;
use crate::oci::route::endpoint::Endpoint;
use crate::oci::route::proxies::Proxies;
use crate::oci::unpack::layer::Unpacked;
use crate::oci::unpack::{self, Arriving};

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
pub async fn pull(request: PullRequest<'_>) -> Result<PulledTree, PullError> {
    let image = request.image;
    let Some(digest) = image.digest() else { return Err(PullError::NotPinned { image: image.to_string() }) };
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
            let unpacked = unpack::unpack(&mut layers, &partial.tree(), &keep, &limits, &progress)?;
            if progress.is_cancelled() {
                return Err(PullError::Cancelled);
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
        let broke_off =
            |error| PullError::Storage { path: request.destination.to_owned(), source: io::Error::other(error) };
        let unpacked = unpacked.unwrap_or_else(|error| Err(broke_off(error)))?;
        let Unpacked { files, bytes, skipped } = unpacked;
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
            return Err(RegistryError::Timeout { image: image.to_string(), after: request.patience }.into());
        }
        before = moved;
    }
}

/// Fetches every layer and hands it on, lowest first.
async fn fetch(fetcher: &mut Fetcher<'_>, layers: &[Blob], arrived: mpsc::Sender<PathBuf>) -> Result<(), PullError> {
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
