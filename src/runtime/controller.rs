//! The shape of every controller: observe and plan, then apply.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::queue::{Failure, Key, Outcome, Queue};

/// A controller: what it knows is in its stores, what it remembers is in itself.
pub trait Controller: Send + Sync + 'static {
    /// Keys that are worked on at one moment.
    const WORKERS: usize;
    /// What a pass is about.
    type Key: Key;
    /// What is to be done, with everything that doing it needs.
    type Plan: Send;
    /// Why a pass failed.
    type Error: Failure;

    /// Until when to wait for a write of an earlier pass to be shown by the stores that the plan is made from
    /// ([`Store::expected_until`](super::store::Store::expected_until)); a key of which one is awaited is not planned before.
    fn expected_until(&self, key: &Self::Key) -> Option<Instant>;

    /// Looks at stores and decides; no call leaves the process. What it takes down is known before anything is written.
    ///
    /// # Errors
    /// Nothing can be decided; the pass fails.
    fn plan(&self, key: &Self::Key) -> Result<Self::Plan, Self::Error>;

    /// Carries the plan out, without any policy, and tells the stores what it wrote.
    fn apply(&self, key: &Self::Key, plan: Self::Plan) -> impl Future<Output = Result<Outcome, Self::Error>> + Send;
}

/// Runs passes over the keys of `queue` until `shutdown`; passes under way are finished.
///
/// A key with a write that is not shown yet waits in the queue and holds no worker: the change that shows it puts the key in
/// again, as any other change does.
pub async fn run<C: Controller>(controller: Arc<C>, queue: Queue<C::Key>, shutdown: CancellationToken) {
    let pass = move |key: C::Key| {
        let controller = Arc::clone(&controller);
        async move {
            if let Some(until) = controller.expected_until(&key) {
                return Ok(Outcome::Expecting(until));
            }
            let plan = controller.plan(&key)?;
            controller.apply(&key, plan).await
        }
    };
    queue.run(C::WORKERS, shutdown, pass).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use kube_runtime::watcher::Event;

    use super::*;
    use crate::runtime::client::ApiError;
    use crate::runtime::expectations::LONGEST;
    use crate::runtime::guarded::Guarded;
    use crate::runtime::metrics::Metrics;
    use crate::runtime::store::{ObjectKey, Projection, Store, Writer, store};

    /// Whether the object has what the controller below writes.
    #[derive(PartialEq)]
    struct View(bool);

    impl Projection for View {
        type Kind = ConfigMap;
        fn project(object: ConfigMap) -> Self {
            Self(object.data.is_some())
        }
    }

    fn show(name: &str, written: bool, version: &str) -> Event<Guarded<ConfigMap>> {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        };
        let data = written.then(std::collections::BTreeMap::new);
        Event::Apply(Guarded(Ok(ConfigMap { metadata, data, ..ConfigMap::default() })))
    }

    /// Writes every object once; the watch is the test.
    struct Once {
        store: Store<View>,
        queue: Queue<String>,
        writes: Mutex<Vec<(String, Duration)>>,
        begun: Instant,
    }

    impl Controller for Once {
        const WORKERS: usize = 1;
        type Key = String;
        type Plan = bool;
        type Error = ApiError;

        fn expected_until(&self, key: &String) -> Option<Instant> {
            self.store.expected_until(&ObjectKey::cluster(key))
        }

        fn plan(&self, key: &String) -> Result<bool, ApiError> {
            Ok(self.store.get(&ObjectKey::cluster(key)).is_some_and(|view| !view.0))
        }

        async fn apply(&self, key: &String, write: bool) -> Result<Outcome, ApiError> {
            if write {
                self.writes.lock().unwrap().push((key.clone(), self.begun.elapsed()));
                let answer = ObjectMeta { resource_version: Some("20".to_owned()), ..ObjectMeta::default() };
                self.store.written(&ObjectKey::cluster(key), &answer);
                // Something else about it overtakes the watch.
                self.queue.add(key.clone());
            }
            Ok(Outcome::Done)
        }
    }

    struct World {
        controller: Arc<Once>,
        writer: Writer<View>,
        metrics: Metrics,
    }

    impl World {
        fn new() -> Self {
            let metrics = Metrics::default();
            let queue = Queue::new(Duration::from_millis(10), metrics.queue("once"));
            let (store, writer) = store();
            let begun = Instant::now();
            let controller = Arc::new(Once { store, queue, writes: Mutex::default(), begun });
            tokio::spawn(run(Arc::clone(&controller), controller.queue.clone(), CancellationToken::new()));
            Self { controller, writer, metrics }
        }

        fn show(&mut self, name: &str, written: bool, version: &str) {
            for change in self.writer.update(show(name, written, version)) {
                self.controller.queue.add(change.key.name);
            }
        }

        fn writes(&self) -> Vec<String> {
            self.controller.writes.lock().unwrap().iter().map(|(key, _)| key.clone()).collect()
        }

        fn passes(&self, outcome: &str) -> Option<u64> {
            let text = self.metrics.encode().unwrap();
            let line = format!("kmm_reconcile_total{{controller=\"once\",outcome=\"{outcome}\"}} ");
            text.lines().find_map(|metric| metric.strip_prefix(&line)?.parse().ok())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_not_planned_before_its_write_is_shown_and_delays_nobody_meanwhile() {
        let mut world = World::new();
        world.show("a", false, "10");
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.show("a", false, "11");
        world.show("b", false, "12");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.writes(), ["a", "b"], "the only worker is free for the other key");
        assert!(world.passes("expecting") >= Some(2));
        let done = world.passes("done");
        world.show("a", true, "20");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(world.passes("done"), done.map(|done| done + 1), "it is planned as soon as it is shown");
        tokio::time::sleep(LONGEST).await;
        assert_eq!(world.writes(), ["a", "b", "b"], "the watch of the other lags");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_lags_holds_a_key_up_for_a_bounded_time() {
        let mut world = World::new();
        world.show("a", false, "10");
        tokio::time::sleep(LONGEST + Duration::from_secs(1)).await;
        let writes = world.controller.writes.lock().unwrap().clone();
        let [(_, first), (_, second)] = &writes[..] else { panic!("{writes:?}") };
        assert!((*first + LONGEST..*first + LONGEST + Duration::from_millis(100)).contains(second), "{writes:?}");
    }
}
