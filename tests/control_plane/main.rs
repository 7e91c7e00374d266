//! The managers on real API servers, with a real registry, under the RBAC that ships.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/ocm/mod.rs"]
mod ocm;
#[path = "../support/mod.rs"]
mod support;

mod admission;
mod consumers;
mod eviction;
mod hub;
mod hub_bed;
mod images;
mod leading;
mod live_modules;
mod old_faults;
mod policies;
mod service_accounts;
mod spoke;
mod spoke_bed;
mod stolen_token;
mod telling;
