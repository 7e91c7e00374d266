//! Metrics in the OpenMetrics text format. Labels come from closed sets only.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::durations::{Durations, durations};

/// The process's metrics; clones share the same registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    passes: Family<PassLabels, Counter>,
    durations: Durations<QueueLabels>,
    depth: Family<QueueLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PassLabels {
    controller: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    controller: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let (passes, durations, depth) = (Family::default(), durations(), Family::default());
        let mut registry = Registry::default();
        registry.register("kmm_reconcile", "Passes of a controller over one key, by outcome", Family::clone(&passes));
        registry.register_with_unit(
            "kmm_reconcile_duration",
            "Time that a pass took; those that only waited for a write to be shown are left out",
            Unit::Seconds,
            Family::clone(&durations),
        );
        registry.register("kmm_queue_depth", "Keys that wait to be reconciled", Family::clone(&depth));
        super::writes::register(&mut registry);
        Self { registry: Arc::new(Mutex::new(registry)), passes, durations, depth }
    }
}

impl Metrics {
    /// Adds metrics of an area.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Metrics of the queue of one controller.
    pub fn queue(&self, controller: &'static str) -> QueueMetrics {
        let (passes, durations, depth) = (self.passes.clone(), self.durations.clone(), self.depth.clone());
        QueueMetrics { controller, passes, durations, depth }
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// Formatting failed.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Counters of one controller's queue.
#[derive(Clone, Debug)]
pub struct QueueMetrics {
    controller: &'static str,
    passes: Family<PassLabels, Counter>,
    durations: Durations<QueueLabels>,
    depth: Family<QueueLabels, Gauge>,
}

impl QueueMetrics {
    /// Counters that nobody reads.
    pub fn unregistered(controller: &'static str) -> Self {
        Self { controller, passes: Family::default(), durations: durations(), depth: Family::default() }
    }

    /// The controller's name.
    pub fn name(&self) -> &'static str {
        self.controller
    }

    /// A pass ended; `outcome` is one of a closed list.
    pub(super) fn passed(&self, outcome: &'static str, took: Duration) {
        self.count(outcome);
        let labels = QueueLabels { controller: self.controller };
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A pass ended at once: a write of an earlier one is not shown yet.
    pub(super) fn expecting(&self) {
        self.count("expecting");
    }

    fn count(&self, outcome: &'static str) {
        self.passes.get_or_create(&PassLabels { controller: self.controller, outcome }).inc();
    }

    pub(super) fn depth(&self, keys: usize) {
        let gauge = self.depth.get_or_create(&QueueLabels { controller: self.controller });
        gauge.set(i64::try_from(keys).unwrap_or(i64::MAX));
    }
}
