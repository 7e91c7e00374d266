//! How each cluster stands with each ManagedClusterModule: every way to a [`Standing`], and the counts of them.

mod cluster;
mod gaps;
mod obstacle;
mod report;
mod tally;

pub use cluster::{Nodes, Phase, Standing};
pub use gaps::Gaps;
pub use tally::{Tally, Totals};
