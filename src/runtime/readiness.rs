//! What the process still waits for, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The gates of a process; ready when all of them are open.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, Option<String>>>>);

impl Readiness {
    /// Adds a gate that is closed until it is opened.
    pub fn gate(&self, name: &str) -> Gate {
        let gate = Gate { readiness: self.clone(), name: name.to_owned() };
        gate.waiting("not there yet".to_owned());
        gate
    }

    /// Name and reason of each closed gate, ordered by name; empty means ready.
    pub fn missing(&self) -> Vec<(String, String)> {
        self.lock().iter().filter_map(|(name, reason)| Some((name.clone(), reason.clone()?))).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thing that must be there before the process is ready.
#[derive(Clone, Debug)]
pub struct Gate {
    readiness: Readiness,
    name: String,
}

impl Gate {
    /// What it stands for, for instance `watch of nodes`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It is there. A gate that was open once stays open: a watch that fails later is served from
    /// the store and shows in the log.
    pub fn open(&self) {
        self.readiness.lock().insert(self.name.clone(), None);
    }

    /// It is there no more, and why; for what is missed at once, which a failing watch is not.
    pub fn close(&self, reason: String) {
        self.readiness.lock().insert(self.name.clone(), Some(reason));
    }

    /// It is not there yet, and why.
    pub fn waiting(&self, reason: String) {
        let mut gates = self.readiness.lock();
        if gates.get(&self.name) != Some(&None) {
            gates.insert(self.name.clone(), Some(reason));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_an_open_gate_stays_open() {
        let readiness = Readiness::default();
        let (a, b) = (readiness.gate("a"), readiness.gate("b"));
        a.open();
        a.waiting("failed later".into());
        b.waiting("404".into());
        assert_eq!(readiness.missing(), [("b".to_owned(), "404".to_owned())]);
        b.open();
        assert!(readiness.missing().is_empty());
    }
}
