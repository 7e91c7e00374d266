//! Kernel modules for fleets of Kubernetes clusters.

pub mod core;
pub mod runtime;
