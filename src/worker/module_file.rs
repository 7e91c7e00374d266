//! One module's file: read whole, unpacked where it is packed, or for what stands in it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Deref;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use object::ReadCache;

use crate::core::kmod::elf::{self, ModuleFile};
use crate::core::kmod::names::Packing;

/// Largest unpacked module. The largest real ones, of graphics cards, are below 200 MiB with debug information.
pub const MAX_MODULE: u64 = 512 * 1024 * 1024;
/// Memory that xz may take for its dictionary; the kernel's build uses 2 MiB.
const XZ_MEMORY: u64 = 128 * 1024 * 1024;

/// How long a module waits for memory that others take.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Bytes of all modules that are unpacked in memory: together no more than the largest one may have, so that the worker
/// stays within its limit whatever is loaded side by side.
static TAKEN: (Mutex<u64>, Condvar) = (Mutex::new(0), Condvar::new());

/// An unpacked module.
#[derive(Debug)]
pub struct Unpacked {
    content: Vec<u8>,
    _share: Share,
}

impl Deref for Unpacked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.content
    }
}

/// A part of the memory for unpacked modules.
#[derive(Debug)]
struct Share(u64);

impl Share {
    /// Waits for so many bytes.
    fn take(bytes: u64, wait: Duration) -> io::Result<Self> {
        let (taken, freed) = &TAKEN;
        let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let too_many = |taken: &mut u64| taken.saturating_add(bytes) > MAX_MODULE;
        let waited = freed.wait_timeout_while(taken, wait, too_many).unwrap_or_else(PoisonError::into_inner);
        let (mut taken, ended) = waited;
        if ended.timed_out() {
            let why = "modules that are being loaded take the memory that the worker has for them; it is tried again";
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, why));
        }
        *taken += bytes;
        Ok(Self(bytes))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let (taken, freed) = &TAKEN;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_sub(self.0);
        freed.notify_all();
    }
}

/// The module, at most [`MAX_MODULE`] bytes of it. Waits while others take too much memory.
///
/// # Errors
/// `InvalidData` for a packed file that is damaged, `FileTooLarge` above the limit, `OutOfMemory` if others take too much
/// for too long, else what reading gave.
pub fn read(path: &Path, packing: Packing) -> io::Result<Unpacked> {
    // Twice, so that not more is set aside than it takes.
    let length = io::copy(&mut open(path, packing)?.take(MAX_MODULE + 1), &mut io::sink())?;
    if length > MAX_MODULE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_MODULE} bytes unpacked")));
    }
    let share = Share::take(length, LONGEST_WAIT)?;
    let mut content = Vec::with_capacity(usize::try_from(length).map_err(io::Error::other)?);
    open(path, packing)?.take(length).read_to_end(&mut content)?;
    Ok(Unpacked { content, _share: share })
}

/// The file as it is unpacked.
fn open(path: &Path, packing: Packing) -> io::Result<Box<dyn Read>> {
    let file = BufReader::new(File::open(path)?);
    Ok(match packing {
        Packing::Plain => Box::new(file),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Packing::Xz => {
            let stream = liblzma::stream::Stream::new_auto_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(file, stream))
        }
        Packing::Zstd => Box::new(zstd::Decoder::with_buffer(file)?),
    })
}

/// What is in a module's file. Of one that is not packed only the parts are read that tell it.
pub fn read_module(path: &Path, packing: Packing, machine: &str) -> Result<ModuleFile, String> {
    if packing != Packing::Plain {
        let image = read(path, packing).map_err(|error| error.to_string())?;
        return elf::read(&*image, machine).map_err(|error| error.to_string());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length > MAX_MODULE {
        return Err(format!("{length} bytes, more than {MAX_MODULE}"));
    }
    elf::read(&ReadCache::new(file), machine).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn every_packing_gives_the_same_bytes_and_a_cut_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..200_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&content).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&content).unwrap();
        for (packing, packed) in [
            (Packing::Plain, content.clone()),
            (Packing::Gzip, gzip.finish().unwrap()),
            (Packing::Xz, xz.finish().unwrap()),
            (Packing::Zstd, zstd::encode_all(content.as_slice(), 1).unwrap()),
        ] {
            let path = folder.path().join("m");
            fs::write(&path, &packed).unwrap();
            assert!(*read(&path, packing).unwrap() == *content, "{packing:?}");
            if packing != Packing::Plain {
                fs::write(&path, &packed[..packed.len() / 2]).unwrap();
                assert!(read(&path, packing).is_err(), "{packing:?} cut");
                fs::write(&path, b"no such format").unwrap();
                assert!(read(&path, packing).is_err(), "{packing:?} of nonsense");
            }
        }
    }

    #[test]
    fn all_together_take_no_more_than_the_largest_may() {
        let short = Duration::from_millis(50);
        let (most, rest) = (MAX_MODULE - (64 << 20), 32 << 20);
        let first = Share::take(most, LONGEST_WAIT).unwrap();
        let second = Share::take(rest, LONGEST_WAIT).unwrap();
        assert_eq!(Share::take(64 << 20, short).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        let waiting = std::thread::spawn(|| Share::take(MAX_MODULE / 2, LONGEST_WAIT).map(drop));
        std::thread::sleep(short);
        assert!(!waiting.is_finished());
        drop(first);
        waiting.join().unwrap().unwrap();
        drop(second);
    }
}
