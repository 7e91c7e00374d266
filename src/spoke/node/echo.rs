//! What was written about nodes and has not come back through the watches yet, so that an event that overtakes it does
//! not have it written again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::plan::{ConfigAction, Plan};

/// Longest wait for a watch to show what was written. A watch that lags for longer costs a write that changes nothing.
const LONGEST: Duration = Duration::from_secs(2);

/// The last writes, by node.
#[derive(Debug, Default)]
pub(super) struct Echo(Mutex<HashMap<String, Written>>);

#[derive(Debug)]
struct Written {
    config: ConfigAction,
    labels: BTreeMap<String, Option<String>>,
    until: Instant,
}

impl Echo {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Written>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out of a plan what was written just now. Returns when to look again, if the watches do not speak before.
    pub(super) fn take_out(&self, name: &str, plan: &mut Plan, now: Instant) -> Option<Duration> {
        let mut all = self.lock();
        let written = all.get(name)?;
        let again = written.until.saturating_duration_since(now);
        let (config, labels) = (written.config == plan.config, written.labels == plan.labels);
        if again.is_zero() || !(config && plan.config != ConfigAction::Nothing || labels && !plan.labels.is_empty()) {
            all.remove(name);
            return None;
        }
        if config {
            plan.config = ConfigAction::Nothing;
        }
        if labels {
            plan.labels.clear();
        }
        Some(again)
    }

    /// Takes down what was written, beside what still has to come back.
    pub(super) fn wrote(&self, name: &str, plan: &Plan, now: Instant) {
        if plan.config == ConfigAction::Nothing && plan.labels.is_empty() {
            return;
        }
        let until = now + LONGEST;
        let mut all = self.lock();
        let written = all.entry(name.to_owned()).or_insert_with(|| Written {
            config: ConfigAction::Nothing,
            labels: BTreeMap::new(),
            until,
        });
        if plan.config != ConfigAction::Nothing {
            written.config = plan.config.clone();
        }
        if !plan.labels.is_empty() {
            written.labels = plan.labels.clone();
        }
        written.until = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delete() -> ConfigAction {
        ConfigAction::Delete { uid: "u".into(), resource_version: "1".into() }
    }

    fn plan(config: ConfigAction, labels: &[&str]) -> Plan {
        let labels = labels.iter().map(|key| ((*key).to_owned(), Some(String::new()))).collect();
        Plan { config, node: String::new(), labels, outcomes: None }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_just_now_is_not_written_again_by_an_event_that_overtakes_it() {
        let (echo, start) = (Echo::default(), Instant::now());
        let (whole, nothing) = (plan(delete(), &["a"]), plan(ConfigAction::Nothing, &[]));
        let mut first = whole.clone();
        assert_eq!(echo.take_out("n", &mut first, start), None);
        assert_eq!(first, whole);
        echo.wrote("n", &first, start);
        for shown in [whole.clone(), plan(ConfigAction::Nothing, &["a"]), plan(delete(), &[])] {
            let mut next = shown.clone();
            assert_eq!(echo.take_out("n", &mut next, start), Some(LONGEST), "{shown:?}");
            assert_eq!(next, nothing, "{shown:?}");
        }
        let mut other = plan(delete(), &["b"]);
        assert_eq!(echo.take_out("n", &mut other, start), Some(LONGEST));
        assert_eq!(other, plan(ConfigAction::Nothing, &["b"]), "only what is new is written");
        assert_eq!(echo.take_out("other", &mut whole.clone(), start), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_back_or_never_comes_is_forgotten() {
        let (echo, start, whole) = (Echo::default(), Instant::now(), plan(delete(), &["a"]));
        echo.wrote("n", &whole, start);
        assert_eq!(echo.take_out("n", &mut whole.clone(), start + LONGEST), None, "the watch lags");
        echo.wrote("n", &whole, start);
        assert_eq!(echo.take_out("n", &mut plan(ConfigAction::Nothing, &[]), start), None, "it is there");
        assert!(echo.lock().is_empty());
        let mut again = whole.clone();
        assert_eq!(echo.take_out("n", &mut again, start), None);
        assert_eq!(again, whole, "somebody undid it");
    }
}
