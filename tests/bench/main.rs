//! `make bench`: what the product costs, against a bare client in the same run.
//!
//! The bare client writes the same objects, with the same number of requests in flight, to the same kind of API
//! server. Both take turns, several times; a ratio is that of one turn, and the median counts. How much the machine alone
//! changes a time is seen from the bare client, and a goal that is missed by more fails. Writes are counted, and their end
//! is taken, in the API server's audit log; memory is the highest resident size of the manager's process.

#![allow(clippy::print_stdout, reason = "the table is what the bench is for")]

#[path = "../support/ocm/mod.rs"]
mod ocm;
#[path = "../support/mod.rs"]
mod support;

mod bare;
mod goals;
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

use report::{MEMORY_NOISE, Report};
use spoke::Shape;

/// Clusters of a Hub, and nodes of a Spoke with one Module, a run each.
const SIZES: [usize; 2] = [200, 1000];
/// A Spoke of full size, and one of which memory alone is asked: it would take an hour otherwise.
const FULL: Shape = Shape { nodes: 5000, modules: 10 };
const WIDE: Shape = Shape { nodes: 5000, modules: 50 };
/// Turns of product and bare client.
const TURNS: usize = 3;
/// Requests in flight of the bare client: as many as the product's queues have workers.
const IN_FLIGHT: usize = 16;
/// Time between two questions whether all objects are there: they cost the API server something too.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(250);
/// Time for a manager to come to rest: an API server that got a kind just now refuses its watches for a second.
const REST: std::time::Duration = std::time::Duration::from_secs(3);
const MIB: f64 = 1024.0 * 1024.0;

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
    for clusters in SIZES {
        let name = format!("hub-{clusters}");
        if runs(&name) {
            let turns = (0..TURNS).map(|_| runtime.block_on(hub::run(clusters))).collect::<Result<Vec<_>>>()?;
            hub::judge(&mut report, &name, clusters, &turns);
        }
    }
    for shape in SIZES.map(|nodes| Shape { nodes, modules: 1 }).into_iter().chain([FULL, WIDE]) {
        let name = shape.name();
        if runs(&name) {
            let turns = if shape == WIDE { 1 } else { TURNS };
            let compare = shape != WIDE;
            let turns = (0..turns).map(|_| runtime.block_on(spoke::run(shape, compare))).collect::<Result<Vec<_>>>()?;
            spoke::judge(&mut report, &name, shape, &turns);
        }
    }
    if runs("worker") {
        let (resident, anonymous) = runtime.block_on(worker::run())?;
        let name = "worker at rest, ten modules";
        report.judge(name, "memory", "MiB", vec![resident as f64 / MIB], goals::WORKER_MIB, MEMORY_NOISE);
        report.tell(name, "anonymous memory", "MiB", vec![anonymous as f64 / MIB]);
    }
    if runs("load") {
        let (worker, bare) = runtime.block_on(load::run())?;
        let name = "plan seen to module of 4 MiB live, emulated machine";
        report.compare(name, "`finit_module` alone", &worker, &bare, goals::LOAD_RATIO);
    }
    if runs("pull") {
        let pulled = runtime.block_on(pull::run())?;
        let name = "pull and unpack of 300 MiB";
        report.compare(name, "skopeo and tar", &pulled.product_seconds, &pulled.tools_seconds, goals::PULL_RATIO);
        report.judge(name, "peak memory", "MiB", pulled.peak_mib, goals::PULL_MIB, MEMORY_NOISE);
    }
    if runs("image") {
        let bytes = report::image_bytes()? as f64;
        report.judge("product image", "compressed", "MiB", vec![bytes / MIB], goals::IMAGE_MIB, 0.0);
    }
    report.end()
}
