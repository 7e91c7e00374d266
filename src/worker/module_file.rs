//! One module's file: read whole, unpacked where it is packed, or for what stands in it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use object::ReadCache;

use crate::core::kmod::elf::{self, ModuleFile};
use crate::core::kmod::names::Packing;

/// Largest unpacked module. The largest real ones, of graphics cards, are below 200 MiB with debug information.
pub const MAX_MODULE: u64 = 512 * 1024 * 1024;
/// Most memory that is set aside before anything is read.
const LARGEST_RESERVE: usize = 64 * 1024 * 1024;
/// Memory that xz may take for its dictionary; the kernel's build uses 2 MiB.
const XZ_MEMORY: u64 = 128 * 1024 * 1024;

/// The module, at most [`MAX_MODULE`] bytes of it.
///
/// # Errors
/// `InvalidData` for a packed file that is damaged, `FileTooLarge` above the limit, else what reading gave.
pub fn read(path: &Path, packing: Packing) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    // Unpacked, modules are three to five times as large; what is set aside and not needed costs nothing.
    let length = file.metadata()?.len().min(MAX_MODULE);
    let length = usize::try_from(if packing == Packing::Plain { length + 1 } else { length.saturating_mul(4) })
        .map_err(io::Error::other)?;
    match packing {
        Packing::Plain => whole(file, length),
        Packing::Gzip => whole(flate2::read::MultiGzDecoder::new(BufReader::new(file)), length),
        Packing::Xz => {
            let stream = liblzma::stream::Stream::new_auto_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
            whole(liblzma::bufread::XzDecoder::new_stream(BufReader::new(file), stream), length)
        }
        Packing::Zstd => whole(zstd::Decoder::with_buffer(BufReader::new(file))?, length),
    }
}

fn whole(mut source: impl Read, expected: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(expected.min(LARGEST_RESERVE));
    source.by_ref().take(MAX_MODULE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_MODULE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_MODULE} bytes unpacked")));
    }
    Ok(content)
}

/// What is in a module's file. Of one that is not packed only the parts are read that tell it.
pub fn read_module(path: &Path, packing: Packing, machine: &str) -> Result<ModuleFile, String> {
    if packing != Packing::Plain {
        let image = read(path, packing).map_err(|error| error.to_string())?;
        return elf::read(image.as_slice(), machine).map_err(|error| error.to_string());
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
            assert!(read(&path, packing).unwrap() == content, "{packing:?}");
            if packing != Packing::Plain {
                fs::write(&path, &packed[..packed.len() / 2]).unwrap();
                assert!(read(&path, packing).is_err(), "{packing:?} cut");
                fs::write(&path, b"no such format").unwrap();
                assert!(read(&path, packing).is_err(), "{packing:?} of nonsense");
            }
        }
    }
}
