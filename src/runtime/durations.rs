//! Durations as metrics.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

/// Histograms of durations in seconds, by label.
pub(super) type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// From what needs no call of the API server to the deadline of one call and beyond.
pub(super) fn durations<L: Clone + std::hash::Hash + Eq>() -> Durations<L> {
    Family::new_with_constructor(|| Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0]))
}
