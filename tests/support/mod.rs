//! The test bed: real control planes, registries, kernels and nodes, made and driven from Rust.
//!
//! A test crate takes it in with `#[path = "../support/mod.rs"] mod support;`. The parts are made once by
//! `hack/testbed/setup`; Cargo's runner (`hack/testbed/run`) gives each test binary namespaces of its own, so
//! addresses are fixed, beds side by side do not meet, and nothing outlives the test binary.
//!
//! | Part | Start | Costs |
//! |---|---|---|
//! | [`control_plane::ControlPlane`] | `ControlPlane::start(ControlPlaneOptions::default())`, or `ControlPlane::shared()` and a `namespace()` of one's own | 5 s, 0.3–0.5 GB |
//! | [`manager::Manager`] | `manager::install(&cluster, Edition::Hub)`, then `Manager::start(&cluster, Edition::Hub)` | 3 s |
//! | [`registry::Registry`] | `Registry::start(RegistryOptions::default())`, `Registry::shared()` | 0.1 s |
//! | [`faulty::FaultyRegistry`] | `FaultyRegistry::start(&registry)`, then `set(Fault::…)` at any time | nothing |
//! | [`kmods`] | `kmods::for_kernel(release)`: real `.ko` files, compiled once per kernel | 10 s once |
//! | [`images`] | `Image::new().layer(…)`, `push(&registry, repo, tag)`; `images::kmod_image(…)` | milliseconds |
//! | [`kernel_vm::KernelVm`] | `KernelVm::start(KernelVmOptions { .. })`: a kernel with a shell | 4 s, 1 CPU |
//! | [`node::Node`] | `Node::start(&control_plane, NodeOptions { .. })`: kernel, containerd, kubelet, Ready | 20–40 s, 1 CPU |
//!
//! Both machines give `exec`, `put`, `reboot`, `reboot_into`, `power_cut`, `stop`, `console_tail` (see
//! [`machine::Machine`]). Whatever was started ends when its value is dropped; values in statics end with the process.
//! Clients must not be shared between tests: a `kube::Client` lives on the runtime of the test that made it.
//!
//! Every wait polls a condition and ends with an error that says what was waited for and shows the end of the
//! log of the process that is to blame.
// Every test crate uses another part of the harness.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs, missing_debug_implementations)]

pub mod asking;
pub mod audit;
pub mod bed;
pub mod control_plane;
pub mod faulty;
pub mod images;
pub mod kernel_vm;
pub mod kmods;
pub mod kubelet;
pub mod machine;
pub mod manager;
pub mod node;
pub mod pki;
pub mod process;
pub mod registry;

pub use bed::{Bed, Kernel, bed};

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The host as machines see it; control planes and registries listen here.
pub const HOST: &str = "172.30.0.1";

/// Asks `probe` until it gives a value, every 100 ms, at most for `limit`.
///
/// The error names `what` was waited for and the last reason that the probe gave for not being there yet.
pub async fn eventually<T, F, Fut>(limit: Duration, what: &str, probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    eventually_every(Duration::from_millis(100), limit, what, probe).await
}

/// As [`eventually`], with another pause between two questions.
pub async fn eventually_every<T, F, Fut>(pause: Duration, limit: Duration, what: &str, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let start = Instant::now();
    let mut last = String::from("not yet");
    loop {
        match tokio::time::timeout(limit.saturating_sub(start.elapsed()), probe()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => last = format!("{error:#}"),
            Err(_) => last.push_str("; the last question was not answered"),
        }
        if start.elapsed() >= limit {
            bail!("waited {:.0} s for {what}: {last}", limit.as_secs_f64());
        }
        tokio::time::sleep(pause).await;
    }
}
