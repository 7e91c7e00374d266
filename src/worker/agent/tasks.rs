//! What runs beside the loop: fetching and reading images, and jobs for the kernel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::tree::Tree;
use super::users::Looked;
use crate::api::NodeModulesConfig;
use crate::api::names::NodeReason;
use crate::core::image::ImageRef;
use crate::runtime::client::ApiError;
use crate::worker::apply;
use crate::worker::facts::Trouble;
use crate::worker::image::fetch::Fetch;
use crate::worker::image::prepare::{Places, Target};
use crate::worker::node;
use crate::worker::plan::pause::Unready;
use crate::worker::plan::{Job, LoadSet, Outcome, Reach, RunningJob, Wanted};
use crate::worker::record::Owner;
use crate::worker::store::StateDir;

/// Images that are fetched from one registry at the same time. Of another registry none waits: where one is dead, each
/// fetch takes minutes to find out.
const FETCHES: usize = 4;

/// The end of a task.
pub(super) enum Finished {
    /// An image was fetched and read.
    Prepared { number: u64, owner: Owner, result: Box<Result<LoadSet, Unready>> },
    /// A job was carried out; without an outcome it broke off.
    Worked { job: Box<Job>, outcome: Option<Outcome> },
    /// Users of modules that could not go were looked for.
    Users(Vec<Looked>),
    /// A status was written.
    Written(Result<Box<NodeModulesConfig>, ApiError>),
}

/// What jobs are carried out on.
pub(super) type Hands = node::Hands<StateDir>;

/// The tasks that run.
pub(super) struct Tasks {
    all: JoinSet<Finished>,
    /// Number of the latest preparation of each Module; what an earlier one brings is dropped.
    preparing: BTreeMap<Owner, (u64, AbortHandle)>,
    number: u64,
    /// By registry.
    slots: BTreeMap<String, Arc<Semaphore>>,
    /// Keeps two fetches of the same image apart.
    trees: BTreeMap<String, Arc<Mutex<()>>>,
    /// Jobs that run.
    running: BTreeMap<Owner, RunningJob>,
    /// Tells each of them that what it loads is not wanted any more.
    taken_back: BTreeMap<Owner, CancellationToken>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            all: JoinSet::new(),
            preparing: BTreeMap::new(),
            number: 0,
            slots: BTreeMap::new(),
            trees: BTreeMap::new(),
            running: BTreeMap::new(),
            taken_back: BTreeMap::new(),
        }
    }
}

impl Tasks {
    /// The next one that ends; `None` if none runs.
    pub(super) async fn next(&mut self) -> Option<Result<Finished, JoinError>> {
        self.all.join_next().await
    }

    /// Runs something else beside the loop.
    pub(super) fn spawn(&mut self, task: impl Future<Output = Finished> + Send + 'static) {
        self.all.spawn(task);
    }

    /// Jobs that run, by Module.
    pub(super) fn running(&self) -> &BTreeMap<Owner, RunningJob> {
        &self.running
    }

    /// No image is being fetched or read.
    pub(super) fn prepares_nothing(&self) -> bool {
        self.preparing.is_empty()
    }

    /// Tells the job of a Module that what it loads is not wanted any more.
    pub(super) fn take_back(&self, owner: &Owner) {
        if let Some(job) = self.taken_back.get(owner) {
            job.cancel();
        }
    }

    /// Starts to fetch the image of an entry into `tree`, unless it is there, as this container runtime would, and to read
    /// its modules.
    pub(super) fn prepare(
        &mut self,
        wanted: Wanted,
        runtime: Option<String>,
        target: Target,
        tree: Tree,
        fetch: Arc<dyn Fetch>,
        places: Places,
    ) {
        let owner = wanted.owner.clone();
        if let Some((_, task)) = self.preparing.remove(&owner) {
            task.abort();
        }
        self.number += 1;
        let number = self.number;
        self.trees.retain(|_, lock| Arc::strong_count(lock) > 1);
        let turn = Arc::clone(self.trees.entry(tree.key().to_owned()).or_default());
        self.slots.retain(|_, slots| Arc::strong_count(slots) > 1);
        let free = || Arc::new(Semaphore::new(FETCHES));
        let slots = Arc::clone(self.slots.entry(registry_of(&wanted)).or_insert_with(free));
        let module = owner.clone();
        let task = self.all.spawn(async move {
            let _turn = turn.lock().await;
            let result = async {
                let tree = blocking(move || tree.looked_through()).await?;
                if !tree.is_there() {
                    let _slot = slots.acquire().await;
                    fetch.fetch(wanted.clone(), runtime, target.release.clone(), tree.path()).await?;
                    let path = tree.path();
                    blocking(move || Tree::list(&path)).await??;
                }
                let set = blocking(move || tree.read(|path| places.load_set(path, &target, &wanted))).await?;
                set.map_err(Unready::from)
            };
            Finished::Prepared { number, owner: module, result: Box::new(result.await) }
        });
        self.preparing.insert(owner, (number, task));
    }

    /// Whether a preparation that ended is the latest one of its Module.
    pub(super) fn prepared(&mut self, number: u64, owner: &Owner) -> bool {
        let latest = self.preparing.get(owner).is_some_and(|(latest, _)| *latest == number);
        if latest {
            self.preparing.remove(owner);
        }
        latest
    }

    /// Drops preparations whose files are not needed.
    pub(super) fn keep_preparing(&mut self, needed: impl Fn(&Owner) -> bool) {
        self.preparing.retain(|owner, (_, task)| {
            let needed = needed(owner);
            if !needed {
                task.abort();
            }
            needed
        });
    }

    /// Starts a job.
    pub(super) fn work(&mut self, hands: Hands, job: Job, reach: Reach, shutdown: CancellationToken, now: Duration) {
        let taken_back = CancellationToken::new();
        self.running.insert(job.owner.clone(), RunningJob::of(&job, reach, now));
        self.taken_back.insert(job.owner.clone(), taken_back.clone());
        let (done, ended) = oneshot::channel();
        let refused = apply::begin(hands, job.clone(), shutdown, taken_back, |outcome| drop(done.send(outcome))).err();
        self.all.spawn(async move {
            let outcome = if refused.is_some() { refused } else { ended.await.ok() };
            Finished::Worked { job: Box::new(job), outcome }
        });
    }

    /// A job is over.
    pub(super) fn worked(&mut self, owner: &Owner) {
        self.running.remove(owner);
        self.taken_back.remove(owner);
    }
}

/// Does beside the loop what takes long and cannot be waited for.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Trouble::new(NodeReason::InvalidModule, format!("the image could not be read: {error}")))
}

/// Whom an entry's image is fetched from.
fn registry_of(wanted: &Wanted) -> String {
    let image = wanted.spec.config.container_image.parse::<ImageRef>();
    image.map_or_else(|_| String::new(), |image| image.registry().to_owned())
}
