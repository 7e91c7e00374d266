//! What every controller needs: clients with deadlines, stores of projected objects, keyed work
//! queues, events, the leader lease, the health server, metrics and an orderly end.
//!
//! Nothing here knows about modules, nodes or clusters.

pub mod client;
pub mod controller;
mod durations;
pub mod error;
pub mod events;
pub mod expectations;
pub mod guarded;
pub mod key;
pub mod leading;
pub mod lease;
pub mod metrics;
pub mod queue;
pub mod readiness;
pub mod serve;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod watch;
pub mod watchdog;
mod writes;
