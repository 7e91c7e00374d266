//! Metrics in the OpenMetrics text format. Labels come from closed sets only.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::client::Class;

/// The process's metrics; clones share the same registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    passes: Family<PassLabels, Counter>,
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
        let (passes, depth) = (Family::default(), Family::default());
        let mut registry = Registry::default();
        registry.register("kmm_reconcile", "Passes of a controller over one key, by outcome", Family::clone(&passes));
        registry.register("kmm_queue_depth", "Keys that wait to be reconciled", Family::clone(&depth));
        Self { registry: Arc::new(Mutex::new(registry)), passes, depth }
    }
}

impl Metrics {
    /// Adds metrics of an area.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Metrics of the queue of one controller.
    pub fn queue(&self, controller: &'static str) -> QueueMetrics {
        QueueMetrics { controller, passes: self.passes.clone(), depth: self.depth.clone() }
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
    depth: Family<QueueLabels, Gauge>,
}

impl QueueMetrics {
    /// Counters that nobody reads.
    pub fn unregistered(controller: &'static str) -> Self {
        Self { controller, passes: Family::default(), depth: Family::default() }
    }

    /// The controller's name.
    pub fn name(&self) -> &'static str {
        self.controller
    }

    pub(super) fn passed(&self) {
        self.count("done");
    }

    pub(super) fn failed(&self, class: Class) {
        self.count(class.as_str());
    }

    fn count(&self, outcome: &'static str) {
        self.passes.get_or_create(&PassLabels { controller: self.controller, outcome }).inc();
    }

    pub(super) fn depth(&self, keys: usize) {
        let gauge = self.depth.get_or_create(&QueueLabels { controller: self.controller });
        gauge.set(i64::try_from(keys).unwrap_or(i64::MAX));
    }
}
