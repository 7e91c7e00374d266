//! Tests of the test bed itself: what the other tests lean on does hold.

#[path = "../support/mod.rs"]
mod support;

mod control_plane;
mod lifecycle;
mod machine;
mod node;
mod pull;
mod registry;
