//! The images controller: from what a ModuleImagesConfig asks for to digests in its status.
//!
//! One controller on Hub, Spoke and single cluster. A question to a registry is asked once for all objects and kernels
//! that want its answer ([`lookup`]); what is known is never asked again. Only a digest leaves this room: to find out
//! what a tag means is nobody else's business.

pub mod apply;
pub mod lookup;
pub mod observe;
pub mod plan;
pub mod registries;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use kube_runtime::watcher::Config;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::oci::route::proxies::Proxies;
use crate::runtime::client::ApiError;
use crate::runtime::events::Events;
use crate::runtime::metrics::Metrics;
use crate::runtime::queue::{Outcome, Queue};
use crate::runtime::readiness::Readiness;
use crate::runtime::store::{Change, ObjectKey, Store, drive, store};
use crate::runtime::tasks::Tasks;
use lookup::Lookups;
use observe::{ImagesView, Observed};
use registries::Registries;

/// Objects that are worked on at one moment.
const WORKERS: usize = 4;
/// Events about one object within this time cost one pass.
const DEBOUNCE: Duration = Duration::from_millis(2);
/// Longest wait for the store to show a status that was just written.
const ECHO: Duration = Duration::from_secs(2);

/// What the images controller needs to know about its installation.
#[derive(Clone, Debug)]
pub struct ImagesSettings {
    /// The only namespace whose `ModuleImagesConfigs` are answered, as on a Hub; `None` means all of them.
    pub namespace: Option<String>,
    /// Whether this is the Hub: it answers those of ManagedClusterModules and nobody else does, so that Hub and Spoke can
    /// live in one cluster.
    pub is_hub: bool,
    /// Name of this replica, shown as the source of events.
    pub instance: Option<String>,
    /// Proxies on the way to registries.
    pub proxies: Proxies,
}

/// The images controller: its watch runs on every replica, the rest only on the one that leads.
pub struct Images {
    client: Client,
    events: Events,
    metrics: Metrics,
    proxies: Proxies,
    store: Store<ImagesView>,
    queue: Queue<ObjectKey>,
    is_hub: bool,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("objects", &self.store.len()).finish_non_exhaustive()
    }
}

impl Images {
    /// Starts the watch as a task; a replica that waits for the lease has its store filled already.
    pub fn start(
        settings: ImagesSettings,
        client: Client,
        metrics: &Metrics,
        readiness: &Readiness,
        tasks: &mut Tasks,
    ) -> Self {
        let (store, writer) = store::<ImagesView>();
        let queue = Queue::new(DEBOUNCE, metrics.queue("images"));
        let api = match &settings.namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let gate = readiness.gate("watch of ModuleImagesConfigs to be answered");
        let changed = queue.clone();
        let watch = drive(api, Config::default(), writer, gate, move |change: &Change<_>| {
            changed.add(change.key.clone());
        });
        tasks.spawn_endless("watch of ModuleImagesConfigs to be answered", watch);
        let events = Events::new(client.clone(), "kmm-images", settings.instance);
        Self {
            client,
            events,
            metrics: metrics.clone(),
            proxies: settings.proxies,
            store,
            queue,
            is_hub: settings.is_hub,
        }
    }

    /// Asks registries and writes statuses until `shutdown`; for the replica that holds the lease.
    pub async fn lead(self, shutdown: CancellationToken) {
        let Self { client, events, metrics, proxies, store, queue, is_hub } = self;
        tokio::select! {
            () = store.wait_until_ready() => {}
            () = shutdown.cancelled() => return,
        }
        info!(objects = store.len(), "the store is complete, images are looked up");
        let oracle = Box::new(Registries::new(client.clone(), proxies, &metrics));
        let lookups = Lookups::new(oracle, queue.clone(), metrics.queue("image_lookups"));
        let controller = Arc::new(Controller { client, events, store, lookups: lookups.clone(), is_hub });
        let passes = queue.run(WORKERS, shutdown.clone(), move |key| {
            let controller = Arc::clone(&controller);
            async move { controller.pass(&key).await }
        });
        tokio::join!(lookups.run(shutdown), passes);
    }
}

struct Controller {
    client: Client,
    events: Events,
    store: Store<ImagesView>,
    lookups: Lookups,
    is_hub: bool,
}

impl Controller {
    async fn pass(&self, key: &ObjectKey) -> Result<Outcome, ApiError> {
        let Some(view) = self.store.get(key).filter(|view| view.is_of_hub == self.is_hub) else {
            self.lookups.want(key, &[].into());
            return Ok(Outcome::Done);
        };
        let observed = Observed { key: key.clone(), view: (*view).clone(), answers: self.lookups.answers(key) };
        let plan = plan::plan(&observed, Timestamp::now());
        self.lookups.want(key, &plan.questions);
        apply::apply(&self.client, &self.events, key, &view.uid, &plan).await?;
        if plan.status.is_some() {
            self.echo(key, &view).await;
        }
        Ok(Outcome::Done)
    }

    /// Waits until the store holds something else than the pass began with, so that the next pass does not write what
    /// this one wrote already. A store that lags for longer costs such a write, and nothing else.
    async fn echo(&self, key: &ObjectKey, before: &ImagesView) {
        let shown = async {
            while self.store.get(key).is_some_and(|view| view.status == before.status) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(ECHO, shown).await;
    }
}
