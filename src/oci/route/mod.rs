//! Where a registry is asked, and on which way.

pub mod endpoint;
pub mod mirrors;
pub mod proxies;
