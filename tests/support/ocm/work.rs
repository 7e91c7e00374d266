//! The work agent: one task per `ManifestWork` of its cluster, at most ten of them busy at a time.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::{StreamExt, pin_mut};
use kube::Client;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{self, Event, watcher};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use super::apply::Mapper;
use super::kinds::{
    WORK_FINALIZER, condition_status, finalizer_patch, has_finalizer, is_deleting, list, manifest_works, text, to_json,
};
use super::scrape::Watches;
use super::{OcmOptions, delete, evict, reconcile, status};

/// As many works are handled at the same time.
const WORKERS: usize = 10;
/// Shortest and longest pause while a deletion waits for objects that do not go.
const DELETE_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_mins(1));

/// What all tasks of one agent share.
pub struct WorkAgent {
    /// The hub, with the rights of the cluster's agent.
    pub hub: Client,
    /// The spoke, with the rights of `klusterlet-work-sa`.
    pub spoke: Client,
    pub cluster: String,
    pub agent_id: String,
    /// 64 hexadecimal digits of the SHA-256 of the hub's address.
    pub hub_hash: String,
    pub options: OcmOptions,
    pub mapper: Mapper,
    pub watches: Watches,
    pub workers: Semaphore,
}

impl WorkAgent {
    pub fn new(
        hub: Client,
        spoke: Client,
        cluster: &str,
        agent_id: &str,
        hub_hash: String,
        options: OcmOptions,
    ) -> Self {
        Self {
            hub,
            spoke: spoke.clone(),
            cluster: cluster.to_owned(),
            agent_id: agent_id.to_owned(),
            hub_hash,
            options,
            mapper: Mapper::default(),
            watches: Watches::new(spoke),
            workers: Semaphore::new(WORKERS),
        }
    }

    /// Follows the works of the cluster, and evicts what belongs to none, until dropped.
    pub async fn run(self: Arc<Self>) {
        let records = Arc::clone(&self);
        tokio::join!(self.follow(), evict::run(&records));
    }

    async fn follow(self: Arc<Self>) {
        let works = manifest_works(&self.hub, &self.cluster);
        let events = watcher(works, watcher::Config::default()).default_backoff();
        pin_mut!(events);
        let mut tasks = JoinSet::new();
        let mut known: HashMap<String, (String, watch::Sender<Arc<Value>>)> = HashMap::new();
        let mut listed: Vec<String> = Vec::new();
        while let Some(event) = events.next().await {
            let object: DynamicObject = match event {
                Ok(Event::Apply(object)) => object,
                Ok(Event::InitApply(object)) => {
                    listed.extend(object.metadata.name.clone());
                    object
                }
                Ok(Event::Delete(object)) => {
                    known.remove(object.metadata.name.as_deref().unwrap_or_default());
                    continue;
                }
                Ok(Event::Init) => {
                    listed.clear();
                    continue;
                }
                Ok(Event::InitDone) => {
                    known.retain(|name, _| listed.contains(name));
                    continue;
                }
                Err(error) => {
                    debug!(cluster = %self.cluster, %error, "watch of works failed");
                    continue;
                }
            };
            let name = object.metadata.name.clone().unwrap_or_default();
            let uid = object.metadata.uid.clone().unwrap_or_default();
            let work = Arc::new(to_json(&object));
            match known.get(&name) {
                Some((same, sender)) if *same == uid => {
                    sender.send_replace(work);
                }
                _ => {
                    let (sender, receiver) = watch::channel(work);
                    tasks.spawn(WorkTask::new(Arc::clone(&self), receiver).run());
                    known.insert(name, (uid, sender));
                }
            }
            while tasks.try_join_next().is_some() {}
        }
    }

    /// Writes the status of a work if it differs, tied to the version that was read.
    ///
    /// # Errors
    /// What the hub said; a conflict means that a newer version is on its way here.
    pub async fn write_status(&self, work: &Value, status: Value) -> Result<Option<Value>, kube::Error> {
        if work["status"] == status {
            return Ok(None);
        }
        let patch = json!({
            "metadata": {"resourceVersion": work["metadata"]["resourceVersion"]},
            "status": status,
        });
        let api = manifest_works(&self.hub, &self.cluster);
        let name = text(work, "/metadata/name");
        let written = api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(Some(to_json(&written)))
    }

    /// Adds or removes the finalizer of a work.
    ///
    /// # Errors
    /// What the hub said.
    pub async fn set_finalizer(&self, work: &Value, wanted: bool) -> Result<Value, kube::Error> {
        let api = manifest_works(&self.hub, &self.cluster);
        let patch = finalizer_patch(work, WORK_FINALIZER, wanted);
        let written = api.patch(text(work, "/metadata/name"), &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(to_json(&written))
    }

    pub fn applied_name(&self, work: &Value) -> String {
        format!("{}-{}", self.hub_hash, text(work, "/metadata/name"))
    }
}

/// The life of one work in the agent.
struct WorkTask {
    agent: Arc<WorkAgent>,
    receiver: watch::Receiver<Arc<Value>>,
    /// Newest version, from the watch or from our own writes.
    work: Arc<Value>,
    /// Spec and labels that the last attempt to apply began with.
    seen: Option<(Value, Value)>,
    failures: u32,
    apply_at: Instant,
    status_at: Instant,
    /// Pause until the next look at objects that are going.
    delete_pause: Duration,
    /// Woken by a watch on an applied object.
    woken: Arc<Notify>,
}

impl WorkTask {
    fn new(agent: Arc<WorkAgent>, mut receiver: watch::Receiver<Arc<Value>>) -> Self {
        let work = Arc::clone(&receiver.borrow_and_update());
        let now = Instant::now();
        Self {
            agent,
            receiver,
            work,
            seen: None,
            failures: 0,
            apply_at: now,
            status_at: now,
            delete_pause: DELETE_PAUSE.0,
            woken: Arc::default(),
        }
    }

    async fn run(mut self) {
        let mut event = true;
        loop {
            let until = self.step(event).await;
            tokio::select! {
                changed = self.receiver.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let newest = Arc::clone(&self.receiver.borrow_and_update());
                    // The watch may still bring a version from before our own last write.
                    event = version(&newest) > version(&self.work);
                    if event {
                        self.work = newest;
                    }
                }
                () = tokio::time::sleep_until(until) => event = false,
                () = self.woken.notified() => {
                    event = false;
                    self.status_at = Instant::now();
                }
            }
        }
    }

    /// Does what is due and says when to come again without an event.
    async fn step(&mut self, event: bool) -> Instant {
        let agent = Arc::clone(&self.agent);
        let Ok(_permit) = agent.workers.acquire().await else { return far() };
        if is_deleting(&self.work) {
            return self.finish().await;
        }
        if !has_finalizer(&self.work, WORK_FINALIZER) {
            return match self.agent.set_finalizer(&self.work, true).await {
                Ok(written) => {
                    self.work = Arc::new(written);
                    Instant::now()
                }
                Err(error) => {
                    debug!(%error, "finalizer not added");
                    Instant::now() + self.retry_delay()
                }
            };
        }
        let key = (self.work["spec"].clone(), self.work["metadata"]["labels"].clone());
        if self.seen.as_ref() != Some(&key) {
            self.seen = Some(key);
            self.failures = 0;
            self.apply_at = Instant::now();
        }
        if Instant::now() >= self.apply_at {
            self.apply().await;
        }
        if event || Instant::now() >= self.status_at {
            self.sync_status().await;
        }
        self.apply_at.min(self.status_at)
    }

    async fn apply(&mut self) {
        if condition_status(list(&self.work, "/status/conditions"), "Complete") == "True" {
            self.apply_at = far();
            return;
        }
        let outcome = reconcile::apply_work(&self.agent, &self.work).await;
        let again = match outcome {
            Ok(done) => {
                if let Some(written) = done.written {
                    self.work = Arc::new(written);
                    self.status_at = Instant::now();
                }
                done.again
            }
            Err(error) => {
                debug!(work = text(&self.work, "/metadata/name"), error = format!("{error:#}"), "work not applied");
                reconcile::Again::Retry
            }
        };
        let delay = match again {
            reconcile::Again::Resync => {
                self.failures = 0;
                jitter(self.agent.options.resync, 0.5)
            }
            reconcile::Again::Retry => self.retry_delay(),
        };
        self.apply_at = Instant::now() + delay;
    }

    async fn sync_status(&mut self) {
        self.status_at = Instant::now() + jitter(self.agent.options.status_sync_interval, 0.9);
        match status::sync(&self.agent, &self.work, &self.woken).await {
            Ok(Some(written)) => self.work = Arc::new(written),
            Ok(None) => {}
            // After a conflict the next event brings the newer version and with it another look.
            Err(error) => debug!(work = text(&self.work, "/metadata/name"), %error, "status not written"),
        }
    }

    async fn finish(&mut self) -> Instant {
        match delete::finish_work(&self.agent, &self.work).await {
            Ok(delete::Progress::Done) => far(),
            Ok(delete::Progress::Wrote(written)) => {
                self.work = Arc::new(written);
                Instant::now()
            }
            Ok(delete::Progress::Pending) => self.pause_deletion(),
            Err(error) => {
                debug!(
                    work = text(&self.work, "/metadata/name"),
                    error = format!("{error:#}"),
                    "deletion not finished"
                );
                self.pause_deletion()
            }
        }
    }

    fn pause_deletion(&mut self) -> Instant {
        let pause = self.delete_pause;
        self.delete_pause = (pause * 2).min(DELETE_PAUSE.1);
        Instant::now() + pause
    }

    fn retry_delay(&mut self) -> Duration {
        let delay = retry_delay(&self.agent.options, self.failures);
        self.failures += 1;
        delay
    }
}

/// The pause after the failure with this number, counted from 0: it doubles up to the cap.
pub fn retry_delay(options: &OcmOptions, failures: u32) -> Duration {
    options.first_retry.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(options.longest_retry)
}

/// `base` made longer by a random share of up to `most` of it.
fn jitter(base: Duration, most: f64) -> Duration {
    // A fresh hasher has random keys: enough for spreading timers, and no further dependency.
    let random = RandomState::new().build_hasher().finish() % 1000;
    base.mul_f64(1.0 + most * (random as f64) / 1000.0)
}

fn version(object: &Value) -> u64 {
    text(object, "/metadata/resourceVersion").parse().unwrap_or_default()
}

fn far() -> Instant {
    Instant::now() + Duration::from_hours(24)
}
