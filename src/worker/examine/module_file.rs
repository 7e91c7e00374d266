//! One module's file.

use std::fs::File;
use std::path::Path;

use object::ReadCache;

use crate::core::kmod::elf::{self, ModuleFile};
use crate::core::kmod::names::Packing;
use crate::worker::unpack::{self, MAX_MODULE};

/// What is in a module's file. Of one that is not packed only the parts are read that tell it.
pub(in crate::worker) fn read_module(path: &Path, packing: Packing, machine: &str) -> Result<ModuleFile, String> {
    if packing != Packing::Plain {
        let image = unpack::read(path, packing).map_err(|error| error.to_string())?;
        return elf::read(image.as_slice(), machine).map_err(|error| error.to_string());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length > MAX_MODULE {
        return Err(format!("{length} bytes, more than {MAX_MODULE}"));
    }
    elf::read(&ReadCache::new(file), machine).map_err(|error| error.to_string())
}
