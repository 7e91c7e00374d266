//! What is said to registries, and what their answers mean.

pub mod registry;
pub(crate) mod session;
