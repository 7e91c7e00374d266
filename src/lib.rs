pub mod core;
pub mod oci;
pub mod runtime;
