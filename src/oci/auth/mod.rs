//! Who asks.

pub mod credentials;
mod pattern;
