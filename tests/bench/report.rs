//! The table and the JSON.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::pull::Pulled;
use crate::support::bed::target;

const MIB: f64 = 1024.0 * 1024.0;
/// Goal for time: at most this much longer than the bare client.
const RATIO: f64 = 1.2;
/// Goal for memory: a base and a share for each cluster or node.
const BASE_BYTES: u64 = 48 << 20;
const BYTES_EACH: u64 = 6 << 10;
/// Goal for the product image, compressed.
const IMAGE_BYTES: u64 = 24 << 20;
/// Goal for a worker at rest with ten modules, resident.
const WORKER_BYTES: u64 = 10 << 20;

/// Goal for a load: at most so many times the bare system call.
const LOAD_RATIO: f64 = 2.0;
/// Goals for pulling an image of 300 MiB: no slower than the tools, and so much memory.
const PULL_RATIO: f64 = 1.0;
const PULL_BYTES: u64 = 24 << 20;

/// What one run measured.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub name: String,
    pub objects: usize,
    pub product_seconds: f64,
    pub bare_seconds: f64,
    pub writes_per_object: f64,
    pub writes_after_restart: usize,
    pub peak_memory_bytes: u64,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    runs: Vec<Run>,
    image_bytes: Option<u64>,
    pull_seconds: Option<f64>,
    pull_tools_seconds: Option<f64>,
    pull_peak_memory_bytes: Option<u64>,
    worker_resident_bytes: Option<u64>,
    worker_anonymous_bytes: Option<u64>,
    load_seconds: Option<f64>,
    bare_load_seconds: Option<f64>,
}

fn verdict(good: bool) -> &'static str {
    if good { "ok" } else { "MISSED" }
}

impl Report {
    pub(crate) fn add(&mut self, run: Run) {
        println!("{run:?}");
        self.runs.push(run);
    }

    pub(crate) fn worker(&mut self, (resident, anonymous): (u64, u64)) {
        self.worker_resident_bytes = Some(resident);
        self.worker_anonymous_bytes = Some(anonymous);
    }

    pub(crate) fn load(&mut self, (worker, bare): (f64, f64)) {
        self.load_seconds = Some(worker);
        self.bare_load_seconds = Some(bare);
    }

    pub(crate) fn pull(&mut self, pulled: Pulled) {
        self.pull_seconds = Some(pulled.product_seconds);
        self.pull_tools_seconds = Some(pulled.tools_seconds);
        self.pull_peak_memory_bytes = Some(pulled.peak_memory_bytes);
    }

    /// Compressed size of the product image: all blobs of its OCI layout.
    pub(crate) fn image(&mut self) -> Result<()> {
        let blobs = target().join("image/kmm/blobs/sha256");
        let entries = std::fs::read_dir(&blobs).context("the product image is missing; `make image` builds it")?;
        let sizes = entries.map(|entry| Ok(entry?.metadata()?.len())).collect::<std::io::Result<Vec<u64>>>()?;
        self.image_bytes = Some(sizes.iter().sum());
        Ok(())
    }

    /// Prints the table and writes `bench.json` beside what Cargo makes.
    pub(crate) fn print(&self) -> Result<()> {
        println!(
            "\n| Run | Objects | Time | Bare client | Ratio (≤ {RATIO}) | Writes per object (1) | Writes after restart (0) | Peak memory (≤ 48 MiB + 6 KiB each) |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        for run in &self.runs {
            let ratio = run.product_seconds / run.bare_seconds;
            let limit = BASE_BYTES + BYTES_EACH * run.objects as u64;
            println!(
                "| {} | {} | {:.2} s | {:.2} s | {ratio:.2} {} | {:.3} {} | {} {} | {:.1} MiB {} |",
                run.name,
                run.objects,
                run.product_seconds,
                run.bare_seconds,
                verdict(ratio <= RATIO),
                run.writes_per_object,
                verdict((run.writes_per_object - 1.0).abs() < f64::EPSILON),
                run.writes_after_restart,
                verdict(run.writes_after_restart == 0),
                run.peak_memory_bytes as f64 / MIB,
                verdict(run.peak_memory_bytes <= limit),
            );
        }
        if let (Some(resident), Some(anonymous)) = (self.worker_resident_bytes, self.worker_anonymous_bytes) {
            println!(
                "\nWorker at rest with ten modules: {:.1} MiB resident (≤ 10 MiB) {}, {:.1} MiB of it anonymous",
                resident as f64 / MIB,
                verdict(resident <= WORKER_BYTES),
                anonymous as f64 / MIB,
            );
        }
        if let (Some(worker), Some(bare)) = (self.load_seconds, self.bare_load_seconds) {
            let ratio = worker / bare;
            println!(
                "\nFrom the plan seen to a module of 4 MiB live, in an emulated machine: {:.0} ms, bare `finit_module` \
                 {:.0} ms, ratio {ratio:.2} (≤ {LOAD_RATIO}) {}",
                worker * 1e3,
                bare * 1e3,
                verdict(ratio <= LOAD_RATIO)
            );
        }
        if let (Some(product), Some(tools), Some(peak)) =
            (self.pull_seconds, self.pull_tools_seconds, self.pull_peak_memory_bytes)
        {
            println!(
                "\nPull and unpack of 300 MiB: {product:.2} s, skopeo and tar {tools:.2} s, ratio {:.2} (≤ {PULL_RATIO:.1}) {}, \
                 peak {:.1} MiB (≤ 24 MiB) {}",
                product / tools,
                verdict(product / tools <= PULL_RATIO),
                peak as f64 / MIB,
                verdict(peak <= PULL_BYTES),
            );
        }
        if let Some(bytes) = self.image_bytes {
            println!(
                "\nProduct image: {:.1} MiB compressed (≤ 24 MiB) {}",
                bytes as f64 / MIB,
                verdict(bytes <= IMAGE_BYTES)
            );
        }
        let file = target().join("bench.json");
        std::fs::write(&file, serde_json::to_vec_pretty(self)?)?;
        println!("\nThe same as JSON: {}", file.display());
        Ok(())
    }
}
