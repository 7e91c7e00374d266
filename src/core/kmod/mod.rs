//! Knowledge about kernel modules and their files: names, ELF contents, dependencies, what a kernel accepts.
//!
//! Everything here reads bytes or text that somebody else fetched. Bad input is an error value or is skipped,
//! never a panic.

pub mod cmdline;
pub mod elf;
pub mod gates;
pub mod modinfo;
pub mod modprobe;
pub mod modprobe_d;
pub mod modules_dep;
pub mod names;
pub mod order;
pub mod params;
pub mod proc_modules;
pub mod signature;
pub mod users;
pub mod vermagic;

pub use elf::{FileFacts, Identity, ModuleFile, Sameness};
pub use names::kernel_name;
