//! A watch that is patient with a server that refuses it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use futures::Stream;
use kube::core::DeserializeGuard;
use kube::{Api, Resource};
use kube_runtime::WatchStreamExt;
use kube_runtime::utils::Backoff;
use kube_runtime::watcher::{Config, Error, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::queue::backoff;

/// First and longest pause after a failure.
const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);
/// So long after the last failure the next one counts as the first.
const CALM: Duration = Duration::from_mins(2);

/// Watches `api` for ever, with pauses that grow while it fails.
pub fn watch<K>(
    api: Api<DeserializeGuard<K>>,
    config: Config,
) -> impl Stream<Item = Result<Event<DeserializeGuard<K>>, Error>> + Send
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
    K::DynamicType: Default + Eq + std::hash::Hash + Clone,
{
    watcher(api, config).backoff(Patience::default())
}

/// Pauses that double until nothing has failed for a while.
///
/// The usual ones begin anew with every event, and each attempt of a watch begins with one: a watch that is refused for
/// good would ask about every second.
#[derive(Debug)]
struct Patience {
    failures: u32,
    last: Option<Instant>,
    seed: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { failures: 0, last: None, seed: RandomState::new().build_hasher().finish() }
    }
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > CALM) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.last = Some(now);
        Some(backoff(self.failures, FIRST, LONGEST, self.seed.rotate_left(self.failures)))
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_over_events_and_begin_anew_after_a_calm_time() {
        let mut patience = Patience { seed: 0, ..Patience::default() };
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = patience.next().unwrap();
            pauses.push(pause.as_millis());
            tokio::time::advance(pause).await;
            patience.reset();
        }
        assert_eq!(pauses, [800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
        tokio::time::advance(CALM * 2).await;
        assert_eq!(patience.next(), Some(FIRST));
    }
}
