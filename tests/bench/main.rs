//! `make bench`: what the product costs, against a bare client in the same run.
//!
//! The bare client writes the same objects, with the same number of requests in flight, to the same kind of API
//! server. Times are told as a ratio to it; writes are counted, and their end is taken, in the API server's audit log;
//! memory is the highest resident size of the manager's process.

#![allow(clippy::print_stdout, reason = "the table is what the bench is for")]

#[path = "../support/ocm/mod.rs"]
mod ocm;
#[path = "../support/mod.rs"]
mod support;

mod bare;
mod hub;
mod load;
mod pull;
mod report;
mod spoke;
mod worker;
#[path = "../kernel/world.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod world;

use anyhow::Result;

use report::Report;

/// Clusters of a Hub and nodes of a Spoke, one run each.
const SIZES: [usize; 2] = [200, 1000];
/// Requests in flight of the bare client: as many as the product's queues have workers.
const IN_FLIGHT: usize = 16;
/// Time between two questions whether all objects are there: they cost the API server something too.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(250);
/// Time for a manager to come to rest: an API server that got a kind just now refuses its watches for a second.
const REST: std::time::Duration = std::time::Duration::from_secs(3);

fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = arguments.as_slice()
        && first == pull::CHILD
    {
        return pull::child(rest);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let wanted: Vec<String> = arguments.into_iter().filter(|argument| !argument.starts_with('-')).collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|filter| name.contains(filter.as_str()));
    let mut report = Report::default();
    for size in SIZES {
        if runs(&format!("hub-{size}")) {
            report.add(runtime.block_on(hub::run(size))?);
        }
        if runs(&format!("spoke-{size}")) {
            report.add(runtime.block_on(spoke::run(size))?);
        }
    }
    if runs("worker") {
        report.worker(runtime.block_on(worker::run())?);
    }
    if runs("load") {
        report.load(runtime.block_on(load::run())?);
    }
    if runs("pull") {
        report.pull(runtime.block_on(pull::run())?);
    }
    if runs("image") {
        report.image()?;
    }
    report.print()
}
