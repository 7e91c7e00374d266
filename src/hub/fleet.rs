//! What the Hub's controllers share: stores, queues, and how each cluster stands. It knows no controller.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::intern;
use super::standing::{RemovalGuard, Removals, Side, Standing, Tally};
use super::target::Target;
use super::view::{Cluster, FleetModule, Images, Revision, Work};
use crate::runtime::metrics::Metrics;
use crate::runtime::queue::Queue;
use crate::runtime::store::{ObjectKey, Store, Writer, store};

/// Events about one cluster that come together cost one pass.
const WORK_DEBOUNCE: Duration = Duration::from_millis(3);
/// Clusters with new kernels that come together cost one pass over the fleet.
const IMAGES_DEBOUNCE: Duration = Duration::from_millis(20);
/// Clusters that change together cost one write of the status.
const STATUS_DEBOUNCE: Duration = Duration::from_secs(1);

/// Everything that the Hub's controllers share.
#[derive(Debug)]
pub(super) struct Fleet {
    /// Namespace of the `ModuleImagesConfigs`.
    pub(super) operator_namespace: String,
    /// `ManagedClusterModules`.
    pub(super) modules: Store<FleetModule>,
    /// `ManagedClusters`.
    pub(super) clusters: Store<Cluster>,
    /// `ModuleImagesConfigs` of the operator's namespace.
    pub(super) images: Store<Images>,
    /// `ManifestWorks` with the label of ours.
    pub(super) works: Store<Work>,
    /// How each cluster stands.
    pub(super) tally: Tally,
    /// Which clusters have a work, and which of them are not selected any more.
    pub(super) removals: Removals,
    /// Why the server does not take the ModuleImagesConfig of a ManagedClusterModule.
    pub(super) images_refused: Notes,
    /// Works to look at.
    pub(super) work_queue: Queue<Target>,
    /// `ManagedClusterModules` whose images are to be looked at.
    pub(super) images_queue: Queue<Arc<str>>,
    /// `ManagedClusterModules` whose status is to be looked at.
    pub(super) status_queue: Queue<Arc<str>>,
    /// Whether this process leads; before that, events only keep the stores up to date.
    leading: AtomicBool,
}

/// The write sides of the stores of a [`Fleet`].
#[derive(Debug)]
pub(super) struct Writers {
    /// `ManagedClusterModules`.
    pub(super) modules: Writer<FleetModule>,
    /// `ManagedClusters`.
    pub(super) clusters: Writer<Cluster>,
    /// `ModuleImagesConfigs` of the operator's namespace.
    pub(super) images: Writer<Images>,
    /// `ManifestWorks` with the label of ours.
    pub(super) works: Writer<Work>,
}

impl Fleet {
    /// A fleet of which nothing is known yet, and what fills its stores.
    pub(super) fn new(operator_namespace: String, guard: RemovalGuard, metrics: &Metrics) -> (Self, Writers) {
        let (modules, modules_writer) = store();
        let (clusters, clusters_writer) = store();
        let (images, images_writer) = store();
        let (works, works_writer) = store();
        let fleet = Self {
            operator_namespace,
            modules,
            clusters,
            images,
            works,
            tally: Tally::default(),
            removals: Removals::new(guard),
            images_refused: Notes::default(),
            work_queue: Queue::new(WORK_DEBOUNCE, metrics.queue("manifest_work")),
            images_queue: Queue::new(IMAGES_DEBOUNCE, metrics.queue("module_images")),
            status_queue: Queue::new(STATUS_DEBOUNCE, metrics.queue("fleet_status")),
            leading: AtomicBool::new(false),
        };
        let writers =
            Writers { modules: modules_writer, clusters: clusters_writer, images: images_writer, works: works_writer };
        (fleet, writers)
    }

    /// Where the images of a ManagedClusterModule are: under its name, which is one for any kind.
    pub(super) fn images_key(&self, module: &str) -> ObjectKey {
        ObjectKey::new(&*self.operator_namespace, module)
    }

    /// Waits until every store holds a complete list.
    pub(super) async fn wait_until_ready(&self) {
        self.modules.wait_until_ready().await;
        self.clusters.wait_until_ready().await;
        self.images.wait_until_ready().await;
        self.works.wait_until_ready().await;
    }

    /// From here on this process leads.
    pub(super) fn lead(&self) {
        self.leading.store(true, Ordering::SeqCst);
    }

    /// Whether this process leads.
    pub(super) fn is_leading(&self) -> bool {
        self.leading.load(Ordering::SeqCst)
    }

    /// The selected clusters for which `filter` holds.
    pub(super) fn selected(&self, module: &FleetModule, filter: impl Fn(&Cluster) -> bool) -> Vec<Arc<str>> {
        let mut names = Vec::new();
        self.clusters.for_each(|key, cluster| {
            if module.selects(&cluster.labels) && filter(cluster) {
                names.push(intern::text(&key.name));
            }
        });
        names
    }

    /// What is to become of the work of the cluster; `None` if there is none that could go.
    pub(super) fn side(&self, module: &FleetModule, cluster: &str) -> Option<Side> {
        let work = self.works.get(&ObjectKey::new(cluster, &*module.name))?;
        work.is_held_by(&module.uid).then(|| self.side_of(module, cluster))
    }

    /// The same of every cluster with such a work.
    pub(super) fn sides(&self, module: &FleetModule) -> Vec<(Arc<str>, Side)> {
        let mut clusters = Vec::new();
        self.works.for_each(|key, work| {
            if *key.name == *module.name && work.is_held_by(&module.uid) {
                clusters.push(intern::text(&key.namespace));
            }
        });
        let side = |cluster: Arc<str>| (Arc::clone(&cluster), self.side_of(module, &cluster));
        clusters.into_iter().map(side).collect()
    }

    fn side_of(&self, module: &FleetModule, cluster: &str) -> Side {
        let cluster = self.clusters.get(&ObjectKey::cluster(cluster));
        if cluster.is_some_and(|cluster| module.has_left(&cluster)) { Side::Leaves } else { Side::Stays }
    }

    /// Records how a cluster stands with this revision, `None` if it is not selected, and wakes the status if that is
    /// news.
    pub(super) fn stands(&self, target: &Target, revision: &Revision, standing: Option<Standing>) {
        if self.tally.put(&target.module, revision, &target.cluster, standing) {
            self.status_queue.add(Arc::clone(&target.module));
        }
    }
}

/// A sentence about some of the `ManagedClusterModules`, by name.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<HashMap<Arc<str>, String>>);

impl Notes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be said.
    pub(super) fn get(&self, module: &str) -> Option<String> {
        self.lock().get(module).cloned()
    }

    /// Records what is to be said; whether it is another thing than before.
    pub(super) fn set(&self, module: &Arc<str>, note: Option<&str>) -> bool {
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
