//! Everything that an entry needs in the kernel, as its image and the host say.

use std::path::PathBuf;

use crate::core::kmod::names::Packing;
use crate::core::kmod::order::Role;
use crate::core::kmod::{FileFacts, Identity};
use crate::worker::record::Firmware;

/// A file that can be handed to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadFile {
    /// Name as the kernel has it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// How it is packed.
    pub packing: Packing,
    /// Why it is loaded.
    pub role: Role,
    /// What to find again in the kernel.
    pub identity: Identity,
    /// Parameters for it on the kernel's command line, in the kernel's grammar; those of a Module come after them.
    pub preset: String,
    /// What the kernel will look at.
    pub facts: FileFacts,
}

/// Everything that an entry needs in the kernel, in the order of insertion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadSet {
    /// The files.
    pub files: Vec<LoadFile>,
    /// Parameters that the module does not know; the kernel ignores them.
    pub unknown_parameters: Vec<String>,
    /// Its firmware, if the entry asks for any.
    pub firmware: Option<Firmware>,
    /// Those of the files that are of the image.
    pub of_image: Vec<PathBuf>,
    /// What modprobe is told, where it does the loading; the files are then what it said it would insert.
    pub modprobe: Option<Modprobe>,
}

/// What modprobe needs for a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modprobe {
    /// The folder that was generated for it.
    pub folder: PathBuf,
    /// Its command line.
    pub arguments: Vec<String>,
}
