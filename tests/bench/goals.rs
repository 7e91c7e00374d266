//! What the product may cost.

/// Time of a manager: at most this much longer than the bare client with the same writes.
pub(crate) const RATIO: f64 = 1.2;
/// The same of a Spoke of full size, where start-up is no part of it.
pub(crate) const SPOKE_RATIO: f64 = 1.1;
/// Writes per object where one cause is there, and writes after a restart where nothing changed.
pub(crate) const WRITES: f64 = 1.0;
pub(crate) const WRITES_AFTER_RESTART: f64 = 0.0;
/// CPU time of a Spoke's manager for each entry of a node that changes, milliseconds.
pub(crate) const CPU_MILLISECONDS: f64 = 1.0;
/// Product image, compressed, MiB.
pub(crate) const IMAGE_MIB: f64 = 24.0;
/// A worker at rest with ten modules, resident, MiB.
pub(crate) const WORKER_MIB: f64 = 10.0;
/// A load: at most so many times the bare system call.
pub(crate) const LOAD_RATIO: f64 = 2.0;
/// Pulling an image of 300 MiB: no slower than the tools, and so much memory, MiB.
pub(crate) const PULL_RATIO: f64 = 1.0;
pub(crate) const PULL_MIB: f64 = 24.0;

const KIB: f64 = 1.0 / 1024.0;

/// Highest memory of a Hub's manager, MiB: a base and a share for each cluster.
pub(crate) fn hub_mib(clusters: usize) -> f64 {
    48.0 + 6.0 * KIB * clusters as f64
}

/// Highest memory of a Spoke's manager, MiB: a base, a share for each node, and one for each Module on it.
pub(crate) fn spoke_mib(nodes: usize, modules: usize) -> f64 {
    let nodes = nodes as f64;
    24.0 + 6.0 * KIB * nodes + KIB * nodes * modules as f64
}
