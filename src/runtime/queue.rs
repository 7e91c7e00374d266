//! A work queue of keys.
//!
//! A key is in the queue at most once, never runs twice at the same time, and a key that is added
//! while it runs is run once more afterwards. Failures are retried per key with exponential backoff
//! and jitter. One slow or failing key never delays another, up to the number of workers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use super::client::{ApiError, Class, chain};
use super::leading::Leading;
use super::metrics::QueueMetrics;

/// What a key is: small, comparable, printable.
pub trait Key: Clone + Eq + Hash + Ord + Display + Send + Sync + 'static {}
impl<T: Clone + Eq + Hash + Ord + Display + Send + Sync + 'static> Key for T {}

/// How a pass over a key ended, if it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more to do until something changes.
    Done,
    /// Look again after this time, for instance when a retry is due.
    Again(Duration),
    /// A write of an earlier pass is not shown yet: nothing was done. Whatever shows it wakes the key; look again at this moment
    /// at the latest.
    Expecting(Instant),
}

/// A pass that failed. The class decides how it is retried.
pub trait Failure: std::error::Error + Send + 'static {
    /// How to go on.
    fn class(&self) -> Class;
}

impl Failure for ApiError {
    fn class(&self) -> Class {
        ApiError::class(self)
    }
}

type Due = (Instant, u64);

struct Inner<K> {
    due: BTreeMap<Due, K>,
    waiting: HashMap<K, Due>,
    running: HashSet<K>,
    failures: HashMap<K, u32>,
    sequence: u64,
}

/// A queue; clones share the same content.
pub struct Queue<K> {
    inner: Arc<Mutex<Inner<K>>>,
    wake: Arc<Notify>,
    debounce: Duration,
    leading: Option<Leading>,
    metrics: QueueMetrics,
}

impl<K> std::fmt::Debug for Queue<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("debounce", &self.debounce).finish_non_exhaustive()
    }
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            wake: Arc::clone(&self.wake),
            debounce: self.debounce,
            leading: self.leading.clone(),
            metrics: self.metrics.clone(),
        }
    }
}

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_mins(5);

/// Delay before retry number `failures` (from 1): doubling, capped, with up to a quarter of jitter
/// taken from `seed`, so that a fleet of failures does not come back at one moment.
pub fn backoff(failures: u32, first: Duration, last: Duration, seed: u64) -> Duration {
    let doubled = first.saturating_mul(1u32.checked_shl(failures.saturating_sub(1).min(20)).unwrap_or(u32::MAX));
    let base = doubled.min(last);
    base.mul_f64(1.0 - (seed % 1000) as f64 / 4000.0)
}

impl<K: Key> Queue<K> {
    /// A queue whose keys run `debounce` after they were first added: a burst of events about one
    /// key costs one pass, and no burst can put a key off for longer than that.
    pub fn new(debounce: Duration, metrics: QueueMetrics) -> Self {
        let inner = Inner {
            due: BTreeMap::new(),
            waiting: HashMap::new(),
            running: HashSet::new(),
            failures: HashMap::new(),
            sequence: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)), wake: Arc::new(Notify::new()), debounce, leading: None, metrics }
    }

    /// The queue takes in nothing before this process leads.
    #[must_use]
    pub fn while_leading(mut self, leading: &Leading) -> Self {
        self.leading = Some(leading.clone());
        self
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the key soon.
    pub fn add(&self, key: K) {
        self.add_after(key, self.debounce);
    }

    /// Runs the key after `delay`, or earlier if it is already due earlier.
    pub fn add_after(&self, key: K, delay: Duration) {
        if self.leading.as_ref().is_some_and(|leading| !leading.has_begun()) {
            return;
        }
        {
            let mut inner = self.lock();
            inner.schedule(key, Instant::now() + delay);
            self.metrics.depth(inner.waiting.len());
        }
        self.wake.notify_one();
    }

    /// Number of keys that wait to run, delayed ones included.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs keys with `reconcile` until `shutdown`, at most `workers` at a time; passes under way are
    /// finished.
    pub async fn run<F, Fut, E>(self, workers: usize, shutdown: CancellationToken, reconcile: F)
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Outcome, E>> + Send + 'static,
        E: Failure,
    {
        let mut tasks: JoinSet<(K, Duration, Result<Outcome, E>)> = JoinSet::new();
        loop {
            let next = if tasks.len() < workers.max(1) { self.lock().take(Instant::now()) } else { Next::Wait(None) };
            let until = match next {
                Next::Run(key) => {
                    let span = info_span!("reconcile", controller = self.metrics.name(), key = %key);
                    let work = reconcile(key.clone());
                    let pass = async move {
                        let begun = Instant::now();
                        let result = work.await;
                        (key, begun.elapsed(), result)
                    };
                    tasks.spawn(pass.instrument(span));
                    continue;
                }
                Next::Wait(until) => until,
            };
            let sleep = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.wake.notified() => {}
                () = sleep => {}
                Some(done) = tasks.join_next() => match done {
                    Ok((key, took, result)) => self.finish(key, took, result),
                    // A pass that panics is a defect: end the process loudly instead of losing the key.
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => {}
                },
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    fn finish<E: Failure>(&self, key: K, took: Duration, result: Result<Outcome, E>) {
        let mut inner = self.lock();
        inner.running.remove(&key);
        match result {
            Ok(Outcome::Done) => {
                inner.failures.remove(&key);
                self.metrics.passed("done", took);
            }
            Ok(Outcome::Again(delay)) => {
                inner.failures.remove(&key);
                self.metrics.passed("again", took);
                inner.schedule(key, Instant::now() + delay);
            }
            Ok(Outcome::Expecting(until)) => {
                self.metrics.expecting();
                inner.schedule(key, until);
            }
            Err(error) => {
                let class = error.class();
                self.metrics.passed(class.as_str(), took);
                let failures = inner.failures.entry(key.clone()).or_insert(0);
                *failures += 1;
                let delay = match class {
                    // Somebody else wrote first: what they wrote is on its way to the store.
                    Class::Conflict if *failures <= 5 => FIRST_RETRY,
                    Class::Conflict | Class::Transient | Class::Denied | Class::Invalid => {
                        backoff(*failures, FIRST_RETRY, LAST_RETRY, inner.sequence.wrapping_mul(2_654_435_761))
                    }
                };
                let text = chain(&error);
                if class == Class::Conflict {
                    debug!(controller = self.metrics.name(), %key, error = %text, "conflict, trying again");
                } else {
                    warn!(controller = self.metrics.name(), %key, error = %text, retry_in = ?delay, "failed, trying again");
                }
                inner.schedule(key, Instant::now() + delay);
            }
        }
        self.metrics.depth(inner.waiting.len());
    }
}

enum Next<K> {
    Run(K),
    Wait(Option<Instant>),
}

impl<K: Key> Inner<K> {
    fn schedule(&mut self, key: K, at: Instant) {
        if let Some(due) = self.waiting.get(&key) {
            if due.0 <= at {
                return;
            }
            self.due.remove(due);
        }
        self.sequence = self.sequence.wrapping_add(1);
        let due = (at, self.sequence);
        self.waiting.insert(key.clone(), due);
        self.due.insert(due, key);
    }

    /// The first due key that is not running; a running one stays in the queue for its next turn.
    fn take(&mut self, now: Instant) -> Next<K> {
        let mut found = None;
        for (due, key) in &self.due {
            if due.0 > now {
                if found.is_none() {
                    return Next::Wait(Some(due.0));
                }
                break;
            }
            if !self.running.contains(key) {
                found = Some(*due);
                break;
            }
        }
        let Some(due) = found else { return Next::Wait(None) };
        match self.due.remove(&due) {
            Some(key) => {
                self.waiting.remove(&key);
                self.running.insert(key.clone());
                Next::Run(key)
            }
            None => Next::Wait(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug, thiserror::Error)]
    #[error("no")]
    struct No(Class);
    impl Failure for No {
        fn class(&self) -> Class {
            self.0
        }
    }

    fn queue() -> Queue<String> {
        Queue::new(Duration::from_millis(10), QueueMetrics::unregistered("test"))
    }

    async fn run<F, Fut>(queue: &Queue<String>, workers: usize, seconds: u64, f: F)
    where
        F: Fn(String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Outcome, No>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(queue.clone().run(workers, stop.clone(), f));
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_events_about_one_key_costs_one_pass() {
        let (queue, runs) = (queue(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..100 {
            queue.add("a".into());
        }
        let counter = Arc::clone(&runs);
        run(&queue, 4, 5, move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            async { Ok(Outcome::Done) }
        })
        .await;
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_while_it_runs_runs_once_more_and_never_twice_at_once() {
        let (queue, runs, at_once) = (queue(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        queue.add("a".into());
        let (again, counter, parallel) = (queue.clone(), Arc::clone(&runs), Arc::clone(&at_once));
        run(&queue, 4, 60, move |key| {
            let (again, counter, parallel) = (again.clone(), Arc::clone(&counter), Arc::clone(&parallel));
            async move {
                assert_eq!(parallel.fetch_add(1, Ordering::SeqCst), 0);
                if counter.fetch_add(1, Ordering::SeqCst) == 0 {
                    again.add(key);
                }
                tokio::time::sleep(Duration::from_secs(3)).await;
                parallel.fetch_sub(1, Ordering::SeqCst);
                Ok(Outcome::Done)
            }
        })
        .await;
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_key_is_retried_with_growing_delays_and_delays_nobody() {
        let (queue, bad, good) = (queue(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        queue.add("bad".into());
        queue.add("good".into());
        let (bad_runs, good_runs) = (Arc::clone(&bad), Arc::clone(&good));
        run(&queue, 1, 60, move |key| {
            let failed = key == "bad";
            (if failed { &bad_runs } else { &good_runs }).fetch_add(1, Ordering::SeqCst);
            async move { if failed { Err(No(Class::Transient)) } else { Ok(Outcome::Done) } }
        })
        .await;
        let runs = bad.load(Ordering::SeqCst);
        assert!((7..=11).contains(&runs), "{runs} tries in a minute");
        assert_eq!(good.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_only_waits_takes_in_no_work() {
        let leading = Leading::default();
        let queue = queue().while_leading(&leading);
        queue.add("before".into());
        assert!(queue.is_empty());
        leading.begin();
        queue.clone().add("after".into());
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn backoff_doubles_to_its_cap_and_jitter_only_shortens() {
        let (first, last) = (Duration::from_secs(1), Duration::from_mins(1));
        assert_eq!(backoff(1, first, last, 0), first);
        assert_eq!(backoff(4, first, last, 0), Duration::from_secs(8));
        assert_eq!(backoff(90, first, last, 0), last);
        let jittered = backoff(4, first, last, 999);
        assert!(jittered < Duration::from_secs(8) && jittered >= Duration::from_secs(6));
    }
}
