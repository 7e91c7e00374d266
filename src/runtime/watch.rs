//! A watch that is patient with a server that refuses it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use futures::Stream;
use kube::{Api, Resource};
use kube_runtime::WatchStreamExt;
use kube_runtime::utils::Backoff;
use kube_runtime::watcher::{Config, Error, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::guarded::Guarded;
use super::queue::backoff;

/// First and longest pause after a failure.
const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);
/// So long after the last failure the next one counts as the first.
const CALM: Duration = Duration::from_mins(2);

/// Watches `api` for ever, with pauses that grow while it fails.
pub fn watch<K>(api: Api<Guarded<K>>, config: Config) -> impl Stream<Item = Result<Event<Guarded<K>>, Error>> + Send
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
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::http::StatusCode;
    use futures::StreamExt;
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_away_for_an_hour_is_asked_every_half_minute_and_heard_within_one() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let begun = Instant::now();
        let times = Arc::clone(&asked);
        let server = Router::new().fallback(move || {
            let since = begun.elapsed();
            times.lock().unwrap().push(since);
            async move {
                if since < HOUR {
                    return (StatusCode::SERVICE_UNAVAILABLE, String::new());
                }
                let list =
                    r#"{"apiVersion":"v1","kind":"ConfigMapList","metadata":{"resourceVersion":"1"},"items":[]}"#;
                (StatusCode::OK, list.to_owned())
            }
        });
        let api: Api<Guarded<ConfigMap>> = Api::default_namespaced(kube::Client::new(server, "default"));
        let mut watch = std::pin::pin!(watch(api, Config::default()));
        while !matches!(watch.next().await, Some(Ok(Event::InitDone))) {}
        assert!(begun.elapsed() < HOUR + LONGEST, "{:?}", begun.elapsed());
        let asked = asked.lock().unwrap();
        let pauses: Vec<Duration> = asked.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
        // Chance shortens a pause by up to a quarter.
        assert!(pauses[10..].iter().all(|pause| (LONGEST * 3 / 4..=LONGEST).contains(pause)), "{pauses:?}");
        assert!(asked.len() < 170, "{} questions", asked.len());
    }

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
