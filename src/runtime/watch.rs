//! A watch that is patient with a server that refuses it, and not with one that says nothing.
//!
//! Of the watcher of kube-runtime it keeps the configuration and the events. That one waits for a list and for the beginning of
//! a watch without any limit, and tells nobody when it was spoken to last: a connection that is accepted and then ignored, by a
//! load balancer for instance, would leave a store as it is for ever.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use kube::api::{ListParams, WatchParams};
use kube::core::{ObjectList, WatchEvent};
use kube::{Api, Resource, ResourceExt};
use kube_runtime::watcher::{Config, Event};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::client::{ApiError, kind, within};
use super::guarded::Guarded;
use super::queue::backoff;

/// First and longest pause after a failure.
const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);
/// So long after the last failure the next one counts as the first.
const CALM: Duration = Duration::from_mins(2);
/// After this time the server ends a watch, and a new one goes on from there. API servers speak about every minute.
const TIMEOUT_SECS: u32 = 120;
/// A watch that brought nothing for so long is dead: the server would have ended it.
const SILENT: Duration = Duration::from_secs(TIMEOUT_SECS as u64 + 5);
/// Longest time without a word of the server in which nothing has failed twice: a dead watch, the deadline of the next one, and
/// a pause.
pub const STALE: Duration =
    Duration::from_secs(SILENT.as_secs() + super::client::DEADLINE.as_secs() + LONGEST.as_secs());
/// A watch that ends sooner and has brought nothing counts as a failure, else it would be begun as fast as it ends.
const BRIEF: Duration = Duration::from_secs(1);

/// What can go wrong; a watch goes on after all of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A list, or the beginning of a watch.
    #[error(transparent)]
    Call(#[from] ApiError),
    /// The server ended the watch with an error.
    #[error("the watch was ended: {}", status.message)]
    Ended {
        /// What the server said.
        status: Box<kube::core::Status>,
    },
    /// The answer broke off, or a part of it is no event.
    #[error("failed to read a watch")]
    Broken(#[source] Box<kube::Error>),
    /// A list without a version, from which no watch can go on.
    #[error("a list has no resourceVersion")]
    NoVersion,
}

impl Error {
    /// Whether the server only does not remember that far back, which is part of normal life: the next list repairs it.
    pub fn is_expired(&self) -> bool {
        match self {
            Self::Call(ApiError::Call { source, .. }) => {
                matches!(source.as_ref(), kube::Error::Api(status) if status.code == 410)
            }
            Self::Ended { status } => status.code == 410,
            _ => false,
        }
    }
}

/// Watches `api` for ever, with pauses that grow while it fails. Of `config`, selectors and page size count.
///
/// `heard` is called whenever the server has said something, news or not.
pub fn watch<K>(
    api: Api<Guarded<K>>,
    config: Config,
    heard: impl Fn() + Send,
) -> impl Stream<Item = Result<Event<Guarded<K>>, Error>> + Send
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    let list = ListParams {
        limit: config.page_size,
        label_selector: config.label_selector,
        field_selector: config.field_selector,
        ..ListParams::default()
    };
    let watch = Watch { api, list, heard, state: State::Empty, patience: Patience::default(), pause: None };
    stream::unfold(watch, |mut watch| async move {
        let next = watch.next().await;
        Some((next, watch))
    })
}

enum State<K> {
    /// Nothing is known.
    Empty,
    /// In a list, of which these objects and perhaps further pages are still to come.
    Listing { objects: VecDeque<K>, rest: Rest },
    /// Everything up to this version is known.
    Listed(String),
    /// The server tells what happens after this version.
    Watching { version: String, events: BoxStream<'static, kube::Result<WatchEvent<K>>>, begun: Instant, brought: bool },
}

enum Rest {
    /// From the first page on.
    Everything,
    /// From the page with this token on.
    After(String),
    /// Nothing: this is the version of the list.
    Nothing(String),
}

struct Watch<K, H> {
    api: Api<Guarded<K>>,
    list: ListParams,
    heard: H,
    state: State<Guarded<K>>,
    patience: Patience,
    pause: Option<Duration>,
}

impl<K, H> Watch<K, H>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
    H: Fn() + Send,
{
    async fn next(&mut self) -> Result<Event<Guarded<K>>, Error> {
        loop {
            if let Some(pause) = self.pause.take() {
                tokio::time::sleep(pause).await;
            }
            match self.step().await {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(error) => {
                    self.pause = Some(self.patience.next());
                    if error.is_expired() {
                        self.state = State::Empty;
                    }
                    return Err(error);
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Event<Guarded<K>>>, Error> {
        match &mut self.state {
            State::Empty => {
                self.state = State::Listing { objects: VecDeque::new(), rest: Rest::Everything };
                Ok(Some(Event::Init))
            }
            State::Listing { objects, rest } => {
                if let Some(object) = objects.pop_front() {
                    return Ok(Some(Event::InitApply(object)));
                }
                let token = match rest {
                    Rest::Nothing(version) => {
                        self.state = State::Listed(std::mem::take(version));
                        return Ok(Some(Event::InitDone));
                    }
                    Rest::Everything => None,
                    Rest::After(token) => Some(std::mem::take(token)),
                };
                // Should the page fail, the list begins anew.
                self.state = State::Empty;
                self.list.continue_token = token;
                let page = within(|| format!("list {}s", kind::<K>()), self.api.list(&self.list)).await?;
                (self.heard)();
                self.state = listing(page)?;
                Ok(None)
            }
            State::Listed(version) => {
                let params = WatchParams {
                    label_selector: self.list.label_selector.clone(),
                    field_selector: self.list.field_selector.clone(),
                    timeout: Some(TIMEOUT_SECS),
                    bookmarks: true,
                    send_initial_events: false,
                };
                let call = self.api.watch(&params, version);
                let events = within(|| format!("watch {}s", kind::<K>()), call).await?.boxed();
                (self.heard)();
                let version = std::mem::take(version);
                self.state = State::Watching { version, events, begun: Instant::now(), brought: false };
                Ok(None)
            }
            State::Watching { .. } => self.listen().await,
        }
    }

    async fn listen(&mut self) -> Result<Option<Event<Guarded<K>>>, Error> {
        let State::Watching { version, events, begun, brought } = &mut self.state else { return Ok(None) };
        let Ok(next) = tokio::time::timeout(SILENT, events.next()).await else {
            self.state = State::Listed(std::mem::take(version));
            return Ok(None);
        };
        let Some(next) = next else {
            let brief = !*brought && begun.elapsed() < BRIEF;
            self.pause = brief.then(|| self.patience.next());
            self.state = State::Listed(std::mem::take(version));
            return Ok(None);
        };
        // One event that cannot be read is passed over; a connection that broke ends after it.
        let next = next.map_err(|source| Error::Broken(Box::new(source)))?;
        (self.heard)();
        *brought = true;
        Ok(match next {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                *version = object.resource_version().ok_or(Error::NoVersion)?;
                Some(Event::Apply(object))
            }
            WatchEvent::Deleted(object) => {
                *version = object.resource_version().ok_or(Error::NoVersion)?;
                Some(Event::Delete(object))
            }
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                None
            }
            WatchEvent::Error(status) => {
                self.state = State::Listed(std::mem::take(version));
                return Err(Error::Ended { status });
            }
        })
    }
}

fn listing<K: Clone>(page: ObjectList<K>) -> Result<State<K>, Error> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let rest = match (given(page.metadata.continue_), given(page.metadata.resource_version)) {
        (Some(token), _) => Rest::After(token),
        (None, Some(version)) => Rest::Nothing(version),
        (None, None) => return Err(Error::NoVersion),
    };
    Ok(State::Listing { objects: page.items.into(), rest })
}

/// Pauses that double until nothing has failed for a while.
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

impl Patience {
    fn next(&mut self) -> Duration {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > CALM) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.last = Some(now);
        backoff(self.failures, FIRST, LONGEST, self.seed.rotate_left(self.failures))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::Body;
    use axum::http::{StatusCode, Uri};
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn api(server: Router) -> Api<Guarded<ConfigMap>> {
        Api::default_namespaced(kube::Client::new(server, "default"))
    }

    fn page(version: &str, token: &str, names: &[&str]) -> Body {
        let item = |name: &&str| format!(r#"{{"metadata":{{"name":"{name}","resourceVersion":"1"}}}}"#);
        let items = names.iter().map(item).collect::<Vec<_>>().join(",");
        let metadata = format!(r#"{{"resourceVersion":"{version}","continue":"{token}"}}"#);
        format!(r#"{{"kind":"ConfigMapList","apiVersion":"v1","metadata":{metadata},"items":[{items}]}}"#).into()
    }

    fn event(type_: &str, name: &str, version: &str) -> String {
        let metadata = format!(r#"{{"name":"{name}","resourceVersion":"{version}"}}"#);
        format!(r#"{{"type":"{type_}","object":{{"kind":"ConfigMap","apiVersion":"v1","metadata":{metadata}}}}}"#)
            + "\n"
    }

    /// What a server does with one request; `Stall` answers never.
    enum Answer {
        Stall,
        Fail(u16),
        Page(&'static str, &'static str, &'static [&'static str]),
        /// Events, and whether the connection stays open and silent after them.
        Events(Vec<String>, bool),
    }

    /// Answers requests in this order, and says what was asked. The last answer is given for ever.
    fn scripted(script: Vec<Answer>) -> (Api<Guarded<ConfigMap>>, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (script, seen) = (Arc::new(script), Arc::clone(&asked));
        let server = Router::new().fallback(move |uri: Uri| {
            let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
            async move {
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(uri.query().unwrap_or_default().to_owned());
                    seen.len() - 1
                };
                match &script[number.min(script.len() - 1)] {
                    Answer::Stall => std::future::pending().await,
                    Answer::Fail(code) => {
                        let body = format!(r#"{{"kind":"Status","status":"Failure","message":"no","code":{code}}}"#);
                        (StatusCode::from_u16(*code).unwrap(), body.into())
                    }
                    Answer::Page(version, token, names) => (StatusCode::OK, page(version, token, names)),
                    Answer::Events(events, open) => {
                        let events = stream::iter(events.clone()).map(Ok::<_, std::io::Error>);
                        let body = if *open {
                            Body::from_stream(events.chain(stream::pending()))
                        } else {
                            Body::from_stream(events)
                        };
                        (StatusCode::OK, body)
                    }
                }
            }
        });
        (api(server), asked)
    }

    fn words(event: &Result<Event<Guarded<ConfigMap>>, Error>) -> String {
        let name = |object: &Guarded<ConfigMap>| object.meta().name.clone().unwrap();
        match event {
            Ok(Event::Init) => "init".into(),
            Ok(Event::InitApply(object)) => format!("listed {}", name(object)),
            Ok(Event::InitDone) => "done".into(),
            Ok(Event::Apply(object)) => format!("applied {}", name(object)),
            Ok(Event::Delete(object)) => format!("deleted {}", name(object)),
            Err(error) => super::super::client::chain(error),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_accepts_and_stalls_is_asked_anew_and_nothing_is_lost() {
        let (api, asked) = scripted(vec![
            Answer::Stall,
            Answer::Page("", "next", &["a"]),
            Answer::Stall,
            Answer::Page("", "next", &["a"]),
            Answer::Page("5", "", &["b"]),
            Answer::Stall,
            Answer::Events(vec![event("ADDED", "c", "6"), event("BOOKMARK", "", "8")], true),
            Answer::Events(vec![event("MODIFIED", "a", "9"), event("DELETED", "b", "10")], true),
            Answer::Events(vec![], true),
        ]);
        let heard = Arc::new(Mutex::new(Instant::now()));
        let ear = Arc::clone(&heard);
        let config = Config::default().labels("x=y").page_size(1);
        let mut watch = std::pin::pin!(watch(api, config, move || *ear.lock().unwrap() = Instant::now()));
        let (mut told, begun) = (Vec::new(), Instant::now());
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_mins(5), watch.next()).await {
            told.push(words(&event));
            assert!(heard.lock().unwrap().elapsed() < STALE);
        }
        let stalled = |what: &str| format!("failed to {what} ConfigMaps: no answer from the API server within 30 s");
        let expected = [
            "init",
            &stalled("list"),
            "init",
            "listed a",
            &stalled("list"),
            "init",
            "listed a",
            "listed b",
            "done",
            &stalled("watch"),
            "applied c",
            "applied a",
            "deleted b",
        ];
        assert_eq!(told, expected);
        assert!(begun.elapsed() < Duration::from_secs(700), "{:?}", begun.elapsed());
        let asked = asked.lock().unwrap();
        assert!(asked.iter().all(|query| query.contains("labelSelector=x%3Dy")), "{asked:?}");
        let versions: Vec<_> = asked.iter().filter_map(|query| query.split("resourceVersion=").nth(1)).collect();
        assert_eq!(versions[..4], ["5", "5", "8", "10"], "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_forgot_is_asked_for_a_list_whether_it_says_so_at_once_or_later() {
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"old","code":410}}"#;
        for forgotten in [Answer::Fail(410), Answer::Events(vec![format!("{gone}\n")], true)] {
            let script = vec![
                Answer::Page("5", "", &["a"]),
                forgotten,
                Answer::Page("9", "", &["b"]),
                Answer::Events(vec![], true),
            ];
            let (api, _) = scripted(script);
            let mut watch = std::pin::pin!(watch(api, Config::default(), || {}));
            let mut told = Vec::new();
            while told.iter().filter(|word| *word == "done").count() < 2 {
                let event = watch.next().await.unwrap();
                assert!(event.as_ref().err().is_none_or(Error::is_expired), "{event:?}");
                told.push(words(&event));
            }
            told.retain(|word| !word.contains("old") && !word.contains("watch"));
            assert_eq!(told, ["init", "listed a", "done", "init", "listed b", "done"]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_ends_every_watch_at_once_is_not_asked_as_fast_as_it_does() {
        let (api, asked) = scripted(vec![Answer::Page("5", "", &[]), Answer::Events(vec![], false)]);
        let mut watch = std::pin::pin!(watch(api, Config::default(), || {}));
        let _ = tokio::time::timeout(HOUR, async { while watch.next().await.is_some() {} }).await;
        let asked = asked.lock().unwrap().len();
        assert!((100..170).contains(&asked), "{asked} questions in an hour");
    }

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
                    return (StatusCode::SERVICE_UNAVAILABLE, Body::empty());
                }
                (StatusCode::OK, page("1", "", &[]))
            }
        });
        let heard = AtomicUsize::new(0);
        let count = || {
            heard.fetch_add(1, Ordering::Relaxed);
        };
        let mut watch = std::pin::pin!(watch(api(server), Config::default(), count));
        while !matches!(watch.next().await, Some(Ok(Event::InitDone))) {}
        assert!(begun.elapsed() < HOUR + LONGEST, "{:?}", begun.elapsed());
        assert_eq!(heard.load(Ordering::Relaxed), 1, "a refusal is nothing heard");
        let asked = asked.lock().unwrap();
        let pauses: Vec<Duration> = asked.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
        // Chance shortens a pause by up to a quarter.
        assert!(pauses[10..].iter().all(|pause| (LONGEST * 3 / 4..=LONGEST).contains(pause)), "{pauses:?}");
        assert!(asked.len() < 170, "{} questions", asked.len());
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_while_it_fails_and_begin_anew_after_a_calm_time() {
        let mut patience = Patience { seed: 0, ..Patience::default() };
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = patience.next();
            pauses.push(pause.as_millis());
            tokio::time::advance(pause).await;
        }
        assert_eq!(pauses, [800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
        tokio::time::advance(CALM * 2).await;
        assert_eq!(patience.next(), FIRST);
    }
}
