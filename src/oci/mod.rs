//! Talking to registries and unpacking images.
//!
//! [`registry::resolve`] turns a tag into a digest, [`pull::pull`] turns a digest into files, [`mirrors::endpoints`] says
//! where a node asks. All take what they need as arguments: the content of the pull secret, the TLS options, the proxies, a
//! deadline. Nothing here remembers anything between two calls, and credentials appear in no error and no log line.

pub mod credentials;
mod download;
pub mod endpoint;
mod fetch;
mod hash;
mod layer;
pub mod mirrors;
mod partial;
mod progress;
pub mod proxies;
pub mod pull;
pub mod registry;
mod session;
mod sources;
mod tree;

#[cfg(test)]
mod tests;
