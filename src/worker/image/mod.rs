//! From a wanted entry to files on the node, and from these to what must be loaded.

mod credentials;
pub mod examine;
pub mod fetch;
pub mod modprobe_folder;
pub mod prepare;
