//! One blob on its way into a file: proved by digest and size, taken up again where it broke off.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_RANGE;
use reqwest::Response;
use tokio::sync::mpsc;

use crate::core::hash::Hasher;
use crate::core::image::Digest;
use crate::oci::error::PullError;
use crate::oci::http::session::{Session, next_piece};
use crate::oci::progress::Progress;

/// Pieces between the network and the disk. Each is what one read from the network gave, some hundred KiB at most.
const PIECES: usize = 8;

/// Something that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// What is there of a blob. It outlives attempts, credentials and endpoints: only the digest counts.
pub(crate) struct Download<'b> {
    what: &'static str,
    blob: &'b Blob,
    path: PathBuf,
    progress: Arc<Progress>,
    written: Option<Written>,
}

/// The beginning of a blob, on disk and in the hash.
struct Written {
    file: File,
    hasher: Hasher,
    size: u64,
}

impl<'b> Download<'b> {
    pub(crate) fn new(what: &'static str, blob: &'b Blob, path: PathBuf, progress: Arc<Progress>) -> Self {
        Self { what, blob, path, progress, written: None }
    }

    /// Where it is, once an attempt succeeded.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are there.
    pub(crate) fn size(&self) -> u64 {
        self.written.as_ref().map_or(0, |written| written.size)
    }

    /// Asks for what is missing.
    pub(crate) async fn attempt(&mut self, session: &mut Session<'_>) -> Result<(), PullError> {
        let (what, digest) = (self.what, &self.blob.digest);
        let from = self.size();
        let mut response = session.blob(digest, from).await?;
        match response.status() {
            // Whoever does not know ranges sends all of it.
            StatusCode::OK => self.written = None,
            StatusCode::PARTIAL_CONTENT if from > 0 && begins_at(&response, from) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                self.written = None;
                return Err(session.unreachable(format!("{what} broke off and could not be taken up again")).into());
            }
            StatusCode::NOT_FOUND => {
                return Err(session.invalid(format!("{what} with the digest {digest} is not there")).into());
            }
            _ => return Err(session.refused(&response).into()),
        }
        self.receive(session, &mut response).await?;
        if self.size() < self.blob.size {
            let why = format!("{what} ended after {} of {} bytes", self.size(), self.blob.size);
            return Err(session.unreachable(why).into());
        }
        let Some(written) = self.written.take() else { return Ok(()) };
        let actual = Digest::of(written.hasher);
        if actual == *digest {
            Ok(())
        } else {
            Err(PullError::DigestMismatch { what, expected: digest.clone(), actual })
        }
    }

    /// Writes and hashes beside the network, on a thread of its own.
    async fn receive(&mut self, session: &Session<'_>, response: &mut Response) -> Result<(), PullError> {
        let failed = |source| PullError::Storage { path: self.path.clone(), source };
        let mut written = match self.written.take() {
            Some(written) => written,
            None => Written {
                file: File::create(&self.path).map_err(failed)?,
                hasher: Hasher::new(self.blob.digest.algorithm()),
                size: 0,
            },
        };
        let room = self.blob.size.saturating_sub(written.size);
        let (pieces, mut arriving) = mpsc::channel::<Bytes>(PIECES);
        let progress = Arc::clone(&self.progress);
        let writing = tokio::task::spawn_blocking(move || {
            while let Some(piece) = arriving.blocking_recv() {
                written.hasher.update(&piece);
                written.file.write_all(&piece)?;
                written.size += piece.len() as u64;
                progress.add(piece.len());
            }
            Ok::<_, io::Error>(written)
        });
        let received = hand_over(session, response, pieces, room).await;
        let written = writing.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(failed)?;
        match received {
            Ok(true) => self.written = Some(written),
            Ok(false) => {
                let why = format!("{} is larger than the {} bytes that the manifest tells", self.what, self.blob.size);
                return Err(session.invalid(why).into());
            }
            Err(error) => {
                self.written = Some(written);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Hands on what comes; false when it is more than there is room for.
async fn hand_over(
    session: &Session<'_>,
    response: &mut Response,
    pieces: mpsc::Sender<Bytes>,
    mut room: u64,
) -> Result<bool, PullError> {
    while let Some(piece) = next_piece(session, response).await? {
        let Some(left) = room.checked_sub(piece.len() as u64) else { return Ok(false) };
        room = left;
        // The other side has gone only with an error of its own, which is told.
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    Ok(true)
}

/// Whether a partial answer is what was asked for.
fn begins_at(response: &Response, from: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    start == Some(from)
}
