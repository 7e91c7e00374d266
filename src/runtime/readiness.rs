//! What the process still waits for, and which of its watches has fallen silent, by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::time::Instant;

use super::watch::STALE;

/// The gates of a process; ready when all that count are open.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, State>>>);

#[derive(Debug)]
struct State {
    counts: bool,
    open: bool,
    /// What was said last about why it is closed, or failed later.
    reason: String,
    heard: Option<Instant>,
}

impl State {
    fn missing(&self, now: Instant) -> Option<String> {
        let silent = self.heard.map(|heard| now.duration_since(heard)).unwrap_or_default();
        if !self.open {
            Some(self.reason.clone())
        } else if silent > STALE {
            let why = if self.reason.is_empty() { String::new() } else { format!("; {}", self.reason) };
            Some(format!("nothing was heard for {} s{why}", silent.as_secs()))
        } else {
            None
        }
    }
}

impl Readiness {
    /// Adds a gate that is closed until it is opened.
    pub fn gate(&self, name: &str) -> Gate {
        self.add(name, true)
    }

    /// Adds a gate for which nobody waits, for instance that of a watch of a kind that may be missing.
    pub fn optional(&self, name: &str) -> Gate {
        self.add(name, false)
    }

    fn add(&self, name: &str, counts: bool) -> Gate {
        let state = State { counts, open: false, reason: "not there yet".to_owned(), heard: None };
        self.lock().insert(name.to_owned(), state);
        Gate { readiness: self.clone(), name: name.to_owned() }
    }

    /// Name and reason of each gate that is closed, or whose watch has fallen silent, ordered by name; empty means ready.
    pub fn missing(&self) -> Vec<(String, String)> {
        let (gates, now) = (self.lock(), Instant::now());
        let missing = gates.iter().filter(|(_, state)| state.counts);
        missing.filter_map(|(name, state)| Some((name.clone(), state.missing(now)?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long each watch has heard nothing, read when it is asked for.
impl Collector for Readiness {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = Instant::now();
        let silent = |state: &State| Some(now.duration_since(state.heard?));
        let silences: Vec<(String, Duration)> =
            self.lock().iter().filter_map(|(name, state)| Some((name.clone(), silent(state)?))).collect();
        let help = "Time since the API server said something on a watch, news or not";
        let mut metric =
            encoder.encode_descriptor("kmm_watch_silence", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for (name, silence) in silences {
            let watch = name.strip_prefix("watch of ").unwrap_or(&name);
            ConstGauge::new(silence.as_secs_f64()).encode(metric.encode_family(&[("watch", watch)])?)?;
        }
        Ok(())
    }
}

/// One thing that must be there before the process is ready.
#[derive(Clone, Debug)]
pub struct Gate {
    readiness: Readiness,
    name: String,
}

impl Gate {
    /// What it stands for, for instance `watch of nodes`; the name is that of a closed set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It is there. A gate that was open once stays open: what fails later is served from the store and shows in the log, until
    /// it has lasted too long ([`Gate::heard`]).
    pub fn open(&self) {
        self.change(|state| {
            state.open = true;
            state.reason.clear();
        });
    }

    /// It is there no more, and why; for what is missed at once, which a failing watch is not.
    pub fn close(&self, reason: String) {
        self.change(|state| (state.open, state.reason) = (false, reason));
    }

    /// It is not there yet, or fails for the moment, and why.
    pub fn waiting(&self, reason: String) {
        self.change(|state| state.reason = reason);
    }

    /// The API server said something. If it says nothing for longer than [`STALE`] from here on, the process is not ready: what
    /// its stores hold may be of any age.
    pub fn heard(&self) {
        self.change(|state| state.heard = Some(Instant::now()));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.readiness.lock().get_mut(&self.name) {
            change(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::metrics::Metrics;

    #[test]
    fn what_is_missing_is_named_and_an_open_gate_stays_open() {
        let readiness = Readiness::default();
        let (a, b) = (readiness.gate("a"), readiness.gate("b"));
        readiness.optional("c").waiting("no such kind".into());
        a.open();
        a.waiting("failed later".into());
        b.waiting("404".into());
        assert_eq!(readiness.missing(), [("b".to_owned(), "404".to_owned())]);
        b.open();
        assert!(readiness.missing().is_empty());
        a.close("taken away".into());
        assert_eq!(readiness.missing(), [("a".to_owned(), "taken away".to_owned())]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_has_fallen_silent_is_named_until_it_is_heard_again() {
        let (readiness, metrics) = (Readiness::default(), Metrics::default());
        metrics.register(|registry| registry.register_collector(Box::new(readiness.clone())));
        let [nodes, apart] = [readiness.gate("watch of nodes"), readiness.optional("watch of claims")];
        for gate in [&nodes, &apart] {
            gate.heard();
            gate.open();
        }
        readiness.gate("lease").open();
        tokio::time::advance(STALE).await;
        assert!(readiness.missing().is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        nodes.waiting("refused".into());
        let words = format!("nothing was heard for {} s; refused", STALE.as_secs() + 1);
        assert_eq!(readiness.missing(), [("watch of nodes".to_owned(), words)]);
        nodes.heard();
        assert!(readiness.missing().is_empty());
        let text = metrics.encode().unwrap();
        let silences: Vec<_> = text.lines().filter(|line| line.starts_with("kmm_watch_silence")).collect();
        assert_eq!(
            silences,
            [
                format!("kmm_watch_silence_seconds{{watch=\"claims\"}} {}.0", STALE.as_secs() + 1),
                "kmm_watch_silence_seconds{watch=\"nodes\"} 0.0".to_owned(),
            ]
        );
    }
}
