//! Questions to registries: each asked once for everybody who wants its answer, a failed one again and again.

use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::observe::{Answer, Question};
use crate::api::names::ImageReason;
use crate::core::image::ImageRef;
use crate::runtime::client::ApiError;
use crate::runtime::metrics::QueueMetrics;
use crate::runtime::queue::{Outcome, Queue, backoff};
use crate::runtime::store::ObjectKey;

/// Requests under way at one moment, to all registries together.
const AT_ONCE: usize = 8;
/// Requests under way at one moment, to one registry.
const AT_ONCE_PER_REGISTRY: usize = 4;
/// Questions that may wait for their turn at one moment; they are cheap.
const WAITING: usize = 4096;
/// And of those for one registry: the others are put off, so that one registry does not take every place.
const WAITING_PER_REGISTRY: usize = 256;
/// For how long.
const PUT_OFF: Duration = Duration::from_secs(1);
/// Registries that are remembered while nobody asks them anything.
const IDLE_REGISTRIES: usize = 256;
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_mins(5);
/// While a pull secret is missing, which is often made after the Module; no registry is asked for it.
const LAST_RETRY_OF_SECRET: Duration = Duration::from_secs(10);
/// The longest time for which a registry can put a question off.
const LONGEST_REST: Duration = Duration::from_hours(1);
/// Answers to a burst of questions become one write.
const GATHER: Duration = Duration::from_millis(300);

/// An answer, and how long the registry wants to be left alone with the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What the look-up came to.
    pub answer: Answer,
    /// From `Retry-After`.
    pub rest: Option<Duration>,
}

/// Whoever can answer a question, within a bounded time.
pub trait Oracle: Send + Sync + 'static {
    /// Asks once.
    fn ask(&self, question: Question) -> Pin<Box<dyn Future<Output = Reply> + Send + '_>>;
}

/// All questions, with who waits for them. Clones share the same content.
#[derive(Clone)]
pub struct Lookups {
    shared: Arc<Shared>,
}

struct Shared {
    table: Mutex<Table>,
    questions: Queue<Question>,
    /// Where objects whose questions were answered are put.
    wake: Queue<ObjectKey>,
    at_once: Semaphore,
    oracle: Box<dyn Oracle>,
}

#[derive(Default)]
struct Table {
    asked: HashMap<Question, Asked>,
    by_object: HashMap<ObjectKey, BTreeSet<Question>>,
    registries: HashMap<String, Arc<Registry>>,
}

#[derive(Default)]
struct Asked {
    /// Each has the answer to what was asked after it came, if there is one.
    waiting: BTreeMap<ObjectKey, Option<Answer>>,
    failures: u32,
    not_before: Option<Instant>,
}

/// One registry must not hold up the others: it gets a share of the requests, and one at a time while it is silent.
struct Registry {
    places: Semaphore,
    share: Semaphore,
    alone: Semaphore,
    silent: AtomicBool,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            places: Semaphore::new(WAITING_PER_REGISTRY),
            share: Semaphore::new(AT_ONCE_PER_REGISTRY),
            alone: Semaphore::new(1),
            silent: AtomicBool::new(false),
        }
    }
}

impl std::fmt::Debug for Lookups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookups").field("questions", &self.lock().asked.len()).finish_non_exhaustive()
    }
}

impl Lookups {
    /// Nothing is asked yet. Objects are put into `wake` when an answer of theirs changes.
    pub fn new(oracle: Box<dyn Oracle>, wake: Queue<ObjectKey>, metrics: QueueMetrics) -> Self {
        let questions = Queue::new(Duration::ZERO, metrics);
        let at_once = Semaphore::new(AT_ONCE);
        Self { shared: Arc::new(Shared { table: Mutex::default(), questions, wake, at_once, oracle }) }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answers that are known to the questions of this object.
    pub fn answers(&self, object: &ObjectKey) -> BTreeMap<Question, Answer> {
        let table = self.lock();
        let questions = table.by_object.get(object).into_iter().flatten();
        questions
            .filter_map(|question| {
                let answer = table.asked.get(question)?.waiting.get(object)?.clone()?;
                Some((question.clone(), answer))
            })
            .collect()
    }

    /// From now on the object wants the answers to exactly these questions. New ones are asked soon, also where
    /// somebody else waits for the next try of the same; answers to dropped ones are forgotten.
    pub fn want(&self, object: &ObjectKey, questions: &BTreeSet<Question>) {
        let mut table = self.lock();
        let before = if questions.is_empty() {
            table.by_object.remove(object).unwrap_or_default()
        } else {
            table.by_object.insert(object.clone(), questions.clone()).unwrap_or_default()
        };
        for dropped in before.difference(questions) {
            if let Entry::Occupied(mut asked) = table.asked.entry(dropped.clone()) {
                asked.get_mut().waiting.remove(object);
                // A rest that the registry asked for outlives those who wait, else dropping a question and asking it
                // again would evade it.
                if asked.get().is_over(Instant::now()) {
                    asked.remove();
                }
            }
        }
        for new in questions.difference(&before) {
            table.asked.entry(new.clone()).or_default().waiting.insert(object.clone(), None);
            self.shared.questions.add(new.clone());
        }
    }

    /// Asks until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let queue = self.shared.questions.clone();
        let work = move |question| {
            let lookups = self.clone();
            async move { Ok::<_, ApiError>(lookups.ask(question).await) }
        };
        queue.run(WAITING, shutdown, work).await;
    }

    async fn ask(&self, question: Question) -> Outcome {
        let registry = match self.due(&question) {
            Due::Nobody => return Outcome::Done,
            Due::Rest(rest) => return Outcome::Again(rest),
            Due::Now(registry) => registry,
        };
        let Ok(_place) = registry.places.try_acquire() else { return Outcome::Again(PUT_OFF) };
        let (reply, asking) = {
            // The semaphores are never closed, so a permit is always given in the end.
            let _share = registry.share.acquire().await;
            let _alone =
                if registry.silent.load(Ordering::Relaxed) { Some(registry.alone.acquire().await) } else { None };
            let _turn = self.shared.at_once.acquire().await;
            let asking = self.waiting_for(&question);
            if asking.is_empty() {
                return Outcome::Done;
            }
            let reply = self.shared.oracle.ask(question.clone()).await;
            let silent =
                matches!(&reply.answer, Answer::Failed { reason: ImageReason::Timeout | ImageReason::Unreachable, .. });
            registry.silent.store(silent, Ordering::Relaxed);
            (reply, asking)
        };
        self.answered(&question, &reply, &asking)
    }

    fn due(&self, question: &Question) -> Due {
        let now = Instant::now();
        let mut table = self.lock();
        let Entry::Occupied(asked) = table.asked.entry(question.clone()) else { return Due::Nobody };
        if asked.get().is_over(now) {
            asked.remove();
            return Due::Nobody;
        }
        if let Some(rest) =
            asked.get().not_before.and_then(|at| at.checked_duration_since(now)).filter(|d| !d.is_zero())
        {
            return Due::Rest(rest);
        }
        if table.registries.len() > IDLE_REGISTRIES {
            table.registries.retain(|_, registry| Arc::strong_count(registry) > 1);
        }
        let name = question.image.parse::<ImageRef>().map(|image| image.registry().to_owned()).unwrap_or_default();
        Due::Now(Arc::clone(table.registries.entry(name).or_default()))
    }

    fn waiting_for(&self, question: &Question) -> Vec<ObjectKey> {
        let table = self.lock();
        table.asked.get(question).map(|asked| asked.waiting.keys().cloned().collect()).unwrap_or_default()
    }

    /// Hands the answer to those who waited when the question was asked; who came later gets the next one.
    fn answered(&self, question: &Question, reply: &Reply, asking: &[ObjectKey]) -> Outcome {
        let mut table = self.lock();
        let Some(asked) = table.asked.get_mut(question) else { return Outcome::Done };
        let mut changed = Vec::new();
        for object in asking {
            if let Some(known) = asked.waiting.get_mut(object)
                && known.as_ref() != Some(&reply.answer)
            {
                *known = Some(reply.answer.clone());
                changed.push(object);
            }
        }
        for object in changed {
            // Answers that are still to come are waited for, briefly: a burst of them becomes one write.
            let open = table.by_object.get(object).into_iter().flatten().any(|question| table.lacks(question, object));
            self.shared.wake.add_after(object.clone(), if open { GATHER } else { Duration::ZERO });
        }
        let Some(asked) = table.asked.get_mut(question) else { return Outcome::Done };
        if matches!(reply.answer, Answer::Found(_)) {
            asked.failures = 0;
            asked.not_before = None;
            return Outcome::Done;
        }
        asked.failures = asked.failures.saturating_add(1);
        let mut seed = DefaultHasher::new();
        (question, asked.failures).hash(&mut seed);
        let waits_for_secret = matches!(reply.answer, Answer::Failed { reason: ImageReason::PullSecretMissing, .. });
        let last = if waits_for_secret { LAST_RETRY_OF_SECRET } else { LAST_RETRY };
        let delay = backoff(asked.failures, FIRST_RETRY, last, seed.finish());
        let rest = reply.rest.map(|rest| rest.min(LONGEST_REST));
        asked.not_before = rest.map(|rest| Instant::now() + rest);
        Outcome::Again(rest.map_or(delay, |rest| rest.max(delay)))
    }
}

impl Table {
    /// Whether the object waits for a first answer to the question.
    fn lacks(&self, question: &Question, object: &ObjectKey) -> bool {
        self.asked.get(question).and_then(|asked| asked.waiting.get(object)).is_some_and(Option::is_none)
    }
}

enum Due {
    Nobody,
    Rest(Duration),
    Now(Arc<Registry>),
}

impl Asked {
    /// Nobody waits, and the registry asked for no rest that is not over.
    fn is_over(&self, now: Instant) -> bool {
        self.waiting.is_empty() && self.not_before.is_none_or(|at| at <= now)
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
pub(super) mod tests;
