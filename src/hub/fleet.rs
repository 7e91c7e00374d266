//! The Hub's stores and queues, and who has to look when something changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::api::names::ClusterReason;
use crate::hub::intern;
use crate::hub::manifest_work::Target;
use crate::hub::standing::{Phase, Standing};
use crate::hub::tally::Tally;
use crate::hub::view::{Cluster, FleetModule, Images, Kernels, Work};
use crate::hub::waits::Waits;
use crate::runtime::metrics::Metrics;
use crate::runtime::queue::Queue;
use crate::runtime::store::{Change, ObjectKey, Store};

/// Events about one cluster that come together cost one pass.
const WORK_DEBOUNCE: Duration = Duration::from_millis(3);
/// Clusters with new kernels that come together cost one pass over the fleet.
const IMAGES_DEBOUNCE: Duration = Duration::from_millis(20);
/// Clusters that change together cost one write of the status.
const STATUS_DEBOUNCE: Duration = Duration::from_secs(1);

/// Everything that the Hub's controllers share.
#[derive(Debug)]
pub struct Fleet {
    /// Namespace of the `ModuleImagesConfigs`.
    pub operator_namespace: String,
    /// `ManagedClusterModules`.
    pub modules: Store<FleetModule>,
    /// `ManagedClusters`.
    pub clusters: Store<Cluster>,
    /// `ModuleImagesConfigs` of the operator's namespace.
    pub images: Store<Images>,
    /// `ManifestWorks` with the label of ours.
    pub works: Store<Work>,
    /// How each cluster stands.
    pub tally: Tally,
    /// Works that wait for answers about their images.
    pub waits: Waits,
    /// Why the server does not take the ModuleImagesConfig of a ManagedClusterModule.
    images_refused: Notes,
    /// Which tags of a ManagedClusterModule have moved.
    tags_moved: Notes,
    /// Works to look at.
    pub work_queue: Queue<Target>,
    /// `ManagedClusterModules` whose images are to be looked at.
    pub images_queue: Queue<Arc<str>>,
    /// `ManagedClusterModules` whose status is to be looked at.
    pub status_queue: Queue<Arc<str>>,
    /// Whether this process leads; before that, events only keep the stores up to date.
    leading: AtomicBool,
}

/// The stores of a [`Fleet`].
#[derive(Debug)]
pub struct Stores {
    /// `ManagedClusterModules`.
    pub modules: Store<FleetModule>,
    /// `ManagedClusters`.
    pub clusters: Store<Cluster>,
    /// `ModuleImagesConfigs` of the operator's namespace.
    pub images: Store<Images>,
    /// `ManifestWorks` with the label of ours.
    pub works: Store<Work>,
}

impl Fleet {
    /// A fleet of which nothing is known yet.
    pub fn new(operator_namespace: String, stores: Stores, metrics: &Metrics) -> Self {
        let Stores { modules, clusters, images, works } = stores;
        Self {
            operator_namespace,
            modules,
            clusters,
            images,
            works,
            tally: Tally::default(),
            waits: Waits::default(),
            images_refused: Notes::default(),
            tags_moved: Notes::default(),
            work_queue: Queue::new(WORK_DEBOUNCE, metrics.queue("manifest_work")),
            images_queue: Queue::new(IMAGES_DEBOUNCE, metrics.queue("module_images")),
            status_queue: Queue::new(STATUS_DEBOUNCE, metrics.queue("fleet_status")),
            leading: AtomicBool::new(false),
        }
    }

    /// Where the images of a ManagedClusterModule are: under its name, which is one for any kind.
    pub fn images_key(&self, module: &str) -> ObjectKey {
        ObjectKey::new(&*self.operator_namespace, module)
    }

    /// Waits until every store holds a complete list.
    pub async fn wait_until_ready(&self) {
        self.modules.wait_until_ready().await;
        self.clusters.wait_until_ready().await;
        self.images.wait_until_ready().await;
        self.works.wait_until_ready().await;
    }

    /// From here on events wake controllers; everything that is there is looked at once.
    pub fn begin_to_lead(&self) {
        // First the flag: what changes after it wakes a controller, what changed before it is in the stores.
        self.leading.store(true, Ordering::SeqCst);
        for (key, module) in self.modules.snapshot() {
            let name = intern::text(&key.name);
            if !module.deleting {
                for cluster in self.selected(&module, |_| true) {
                    self.tally.expect_first(&name, &cluster);
                    self.work_queue.add(Target { module: Arc::clone(&name), cluster });
                }
            }
            self.images_queue.add(Arc::clone(&name));
            self.status_queue.add(name);
        }
        // Works of clusters that are not selected any more.
        self.works.for_each(|key, _| {
            self.work_queue.add(Target { module: intern::text(&key.name), cluster: intern::text(&key.namespace) });
        });
    }

    fn is_leading(&self) -> bool {
        self.leading.load(Ordering::SeqCst)
    }

    /// The selected clusters for which `filter` holds.
    fn selected(&self, module: &FleetModule, filter: impl Fn(&Cluster) -> bool) -> Vec<Arc<str>> {
        let mut names = Vec::new();
        self.clusters.for_each(|key, cluster| {
            if module.selects(&cluster.labels) && filter(cluster) {
                names.push(intern::text(&key.name));
            }
        });
        names
    }

    /// Takes down how a cluster stands and wakes the status if that is news.
    pub fn stands(&self, target: &Target, standing: Option<Standing>) {
        if self.tally.put(&target.module, &target.cluster, standing) {
            self.status_queue.add(Arc::clone(&target.module));
        }
    }

    /// Takes down whether the server takes the ModuleImagesConfig, or why not, and wakes the status if that is news.
    pub fn images_refused(&self, module: &Arc<str>, why: Option<&str>) {
        if self.images_refused.set(module, why) {
            self.status_queue.add(Arc::clone(module));
        }
    }

    /// Takes down which tags have moved; whether that is news.
    pub fn tags_moved(&self, module: &Arc<str>, which: Option<&str>) -> bool {
        self.tags_moved.set(module, which)
    }

    /// Why the server does not take the ModuleImagesConfig of a ManagedClusterModule.
    pub fn why_images_are_refused(&self, module: &str) -> Option<String> {
        self.images_refused.lock().get(module).cloned()
    }

    /// A ManagedClusterModule changed.
    pub fn on_module(&self, change: &Change<FleetModule>) {
        if !self.is_leading() {
            return;
        }
        let name = intern::text(&change.key.name);
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        let Some(new) = new else {
            self.tally.forget(&name);
            self.waits.forget(&name);
            self.images_refused.set(&name, None);
            self.tags_moved.set(&name, None);
            return;
        };
        self.status_queue.add(Arc::clone(&name));
        if old.is_some_and(|old| old.wishes_the_same(new)) {
            return;
        }
        // Everything else waits for it, and it looks at the whole fleet anyway.
        self.images_queue.add_after(Arc::clone(&name), Duration::ZERO);
        let mut clusters = self.selected(new, |_| true);
        // What was said so far was about another wish.
        for cluster in &clusters {
            let pending = Standing::new(Phase::Waiting, ClusterReason::WaitingForApply, "not looked at yet");
            self.tally.put(&name, cluster, Some(pending));
        }
        clusters.extend(old.map(|old| self.selected(old, |cluster| !new.selects(&cluster.labels))).unwrap_or_default());
        for cluster in clusters {
            self.work_queue.add(Target { module: Arc::clone(&name), cluster });
        }
    }

    /// A ManagedCluster changed: every ManagedClusterModule that selects it, or did, looks at this one cluster.
    pub fn on_cluster(&self, change: &Change<Cluster>) {
        if !self.is_leading() {
            return;
        }
        let cluster = intern::text(&change.key.name);
        let selects =
            |module: &FleetModule, side: Option<&Cluster>| side.is_some_and(|side| module.selects(&side.labels));
        self.modules.for_each(|key, module| {
            if selects(module, change.old.as_deref()) || selects(module, change.new.as_deref()) {
                self.work_queue.add(Target { module: intern::text(&key.name), cluster: Arc::clone(&cluster) });
            }
        });
    }

    /// A ModuleImagesConfig changed: the clusters with kernels of which something else is known now.
    pub fn on_images(&self, change: &Change<Images>) {
        if !self.is_leading() {
            return;
        }
        // It has the name of its ManagedClusterModule; whose it is may have changed.
        let Some(module) = self.modules.get(&ObjectKey::cluster(&*change.key.name)) else { return };
        // Somebody else may have changed or deleted it.
        self.images_queue.add(Arc::clone(&module.name));
        self.status_queue.add(Arc::clone(&module.name));
        let kernels = Images::changed_kernels(change.old.as_deref(), change.new.as_deref());
        if kernels.is_empty() {
            return;
        }
        let affected = |cluster: &Cluster| {
            // What a cluster cannot tell may be in its work.
            matches!(cluster.kernels, Kernels::Incomplete { .. })
                || cluster.kernels.known().iter().any(|kernel| kernels.binary_search(kernel).is_ok())
        };
        for cluster in self.selected(&module, affected) {
            self.work_queue.add(Target { module: Arc::clone(&module.name), cluster });
        }
    }

    /// A work changed: its own cluster is looked at.
    pub fn on_work(&self, change: &Change<Work>) {
        if self.is_leading() {
            let (module, cluster) = (intern::text(&change.key.name), intern::text(&change.key.namespace));
            self.work_queue.add(Target { module, cluster });
        }
    }
}

/// A sentence about some of the `ManagedClusterModules`, by name.
#[derive(Debug, Default)]
struct Notes(Mutex<HashMap<Arc<str>, String>>);

impl Notes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down what is to be said; whether it is another thing than before.
    fn set(&self, module: &Arc<str>, note: Option<&str>) -> bool {
        let mut notes = self.lock();
        if notes.get(module).map(String::as_str) == note {
            return false;
        }
        match note {
            Some(note) => notes.insert(Arc::clone(module), note.to_owned()),
            None => notes.remove(module),
        };
        true
    }
}
