//! Talking to registries and unpacking images.
//!
//! [`registry::resolve`] turns a tag into a digest, [`pull::pull`] turns a digest into files. Both take what they need
//! as arguments: the content of the pull secret, the TLS options, a deadline. Nothing here remembers anything between
//! two calls, and credentials appear in no error and no log line.

pub mod credentials;
mod fetch;
mod hash;
mod layer;
mod partial;
pub mod pull;
pub mod registry;
mod session;
mod tree;

#[cfg(test)]
mod tests;
