//! The stand-in for OCM's agents: each property that the product has to live with, on real API servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/ocm/mod.rs"]
mod ocm;
#[path = "../support/mod.rs"]
mod support;

mod checker;
mod claims;
mod crds;
mod deletion;
mod fakes;
mod feedback;
mod pure;
mod strategies;
mod works;
mod world;
