//! Reading a layer, whatever it is packed with, and never more of it than is allowed.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::oci::error::PullError;
use crate::oci::limits::Limits;
use crate::oci::progress::Progress;

/// Most bytes between two entries of an archive: headers, long names, extended attributes.
const HEADER_BYTES: u64 = 1 << 20;
/// Largest window of zstd, as a power of two: 32 MiB.
const ZSTD_WINDOW_LOG: u32 = 25;
/// Bytes that are read from a layer at once.
const BUFFER: usize = 256 << 10;
/// Bytes that a decompressor gives at once where little is asked for, as between files.
const SMALL_BUFFER: usize = 32 << 10;

/// Bounds what is read of one layer, whatever its headers claim.
pub(super) struct Meter<'a> {
    /// Bytes that may still be read of all layers.
    left: Cell<u64>,
    /// Bytes that may be read until the next entry has to appear.
    allowed: Cell<u64>,
    /// The error of the disk that ended reading.
    broken: Cell<Option<i32>>,
    progress: &'a Progress,
}

impl<'a> Meter<'a> {
    /// `left` is what all layers may still hold together, unpacked.
    pub(super) fn new(left: u64, progress: &'a Progress) -> Self {
        Self { left: Cell::new(left), allowed: Cell::new(HEADER_BYTES), broken: Cell::new(None), progress }
    }

    /// The content of a layer, unpacked.
    pub(super) fn content<'b>(&'b self, file: File) -> io::Result<impl Read + use<'a, 'b>> {
        let layer = BufReader::with_capacity(BUFFER, Stored { file, broken: &self.broken });
        Ok(Metered { inner: decompressed(layer)?, meter: self })
    }

    /// An entry with so many bytes follows.
    pub(super) fn begin_entry(&self, stored: u64) {
        self.allowed.set(stored.saturating_add(HEADER_BYTES));
    }

    /// What the layers behind this one may hold together.
    pub(super) fn left(&self) -> u64 {
        self.left.get()
    }

    /// What a failed read means: a limit, the disk, or an archive that is broken.
    pub(super) fn error(&self, limits: &Limits, number: usize, layer: &Path, error: &io::Error) -> PullError {
        if self.progress.is_cancelled() {
            PullError::Cancelled
        } else if let Some(errno) = self.broken.get() {
            PullError::Storage { path: layer.to_owned(), source: io::Error::from_raw_os_error(errno) }
        } else if self.left.get() == 0 {
            PullError::ImageTooLarge { what: "bytes in all layers", limit: limits.unpacked_bytes }
        } else if self.allowed.get() == 0 {
            PullError::ImageTooLarge { what: "bytes in one header", limit: HEADER_BYTES }
        } else {
            PullError::InvalidImage { why: format!("layer {number} is no archive: {error}") }
        }
    }
}

fn decompressed<'a>(mut layer: BufReader<Stored<'a>>) -> io::Result<Box<dyn Read + 'a>> {
    // The bytes tell more reliably than media types, which tools that recompress forget to change.
    let start = layer.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(BufReader::with_capacity(SMALL_BUFFER, flate2::bufread::MultiGzDecoder::new(layer))))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || start.get(1..4) == Some(&[0x2a, 0x4d, 0x18]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(layer)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        Ok(Box::new(BufReader::with_capacity(SMALL_BUFFER, decoder)))
    } else {
        Ok(Box::new(layer))
    }
}

/// A layer on our disk, whose faults say nothing about the image.
struct Stored<'a> {
    file: File,
    broken: &'a Cell<Option<i32>>,
}

impl Read for Stored<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.broken.set(error.raw_os_error());
            }
        })
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
