//! Talking to registries and unpacking images.
//!
//! [`registry::resolve`](http::registry::resolve) turns a tag into a digest, [`pull::pull`] turns a digest into files,
//! [`mirrors::endpoints`](route::mirrors::endpoints) says where a node asks. All take what they need as arguments: the
//! content of the pull secret, the TLS options, the proxies, a deadline. Nothing here remembers anything between two calls but
//! what a caller keeps in [`auth::cache`], and credentials appear in no error and no log line.
//!
//! | Folder or file | Holds | May use |
//! |---|---|---|
//! | `pull` | fetching all of an image, with retries, and proving it | all below |
//! | `unpack` | layers to a folder | `error`, `limits`, `progress` |
//! | `http` | talking to one registry | `route`, `auth`, `error` |
//! | `route` | where to ask: endpoints, mirrors of the node's container runtime, proxies | `auth` |
//! | `auth` | credentials, for which image they are, and where a kubelet has them from | |
//! | `error`, `limits`, `progress` | what all share | |

pub mod auth;
pub mod error;
pub mod http;
pub mod limits;
mod progress;
pub mod pull;
pub mod route;
mod unpack;

#[cfg(test)]
mod tests;
