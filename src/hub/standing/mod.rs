//! How each cluster stands with each ManagedClusterModule: every way to a [`Standing`], and the counts of them.

mod cluster;
mod gaps;
mod obstacle;
mod removal;
mod report;
mod tally;
#[cfg(test)]
mod tally_size_tests;

pub use cluster::{Coverage, Phase, Standing};
pub use gaps::Gaps;
pub use removal::{Held, Removal, RemovalGuard, Removals, Side, Turn};
pub use tally::{Tally, Totals};
