//! Who asks.

pub mod cache;
pub mod credentials;
pub mod kubelet;
mod pattern;
pub mod provider;
