//! Kernel modules for fleets of Kubernetes clusters.

pub mod runtime;
