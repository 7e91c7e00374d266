//! What all controllers of a cluster with nodes share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::LocalObjectReference;
use kube::Client;

use crate::runtime::metrics::Metrics;
use crate::runtime::queue::Queue;
use crate::runtime::store::{ObjectKey, Store, Writer, store};

use super::SpokeSettings;
use super::consumers::Consumers;
use super::kernel_claims::Kernels;
use super::node::Echo;
use super::reports::Teller;
use super::tally::Tally;
use super::view::{
    ClaimView, ConfigView, ConsumerView, DaemonSetView, ImagesView, ModuleFacts, ModuleView, NamespaceView, NodeView,
    RoleBindingView, RoleView, ServiceAccountView,
};
use super::worker_daemonset::{Rendered, Settled};

/// Everything that is watched.
#[derive(Clone, Debug)]
pub struct Stores {
    /// Every Node.
    pub nodes: Store<NodeView>,
    /// Every Module.
    pub modules: Store<ModuleView>,
    /// Every NodeModulesConfig.
    pub configs: Store<ConfigView>,
    /// Every ModuleImagesConfig.
    pub images: Store<ImagesView>,
    /// Namespaces that are marked as holding Modules.
    pub namespaces: Store<NamespaceView>,
    /// Roles of workers.
    pub roles: Store<RoleView>,
    /// Bindings of these Roles.
    pub bindings: Store<RoleBindingView>,
    /// Every ServiceAccount, with the names of its pull secrets.
    pub service_accounts: Store<ServiceAccountView>,
    /// The worker's DaemonSet.
    pub daemon_sets: Store<DaemonSetView>,
    /// Pods that use kernel modules of Modules.
    pub consumers: Consumers,
    /// Every ClusterClaim; only on a Spoke.
    pub claims: Option<Store<ClaimView>>,
}

/// Write sides of [`Stores`].
#[derive(Debug)]
pub(super) struct Writers {
    pub(super) nodes: Writer<NodeView>,
    pub(super) modules: Writer<ModuleView>,
    pub(super) configs: Writer<ConfigView>,
    pub(super) images: Writer<ImagesView>,
    pub(super) namespaces: Writer<NamespaceView>,
    pub(super) roles: Writer<RoleView>,
    pub(super) bindings: Writer<RoleBindingView>,
    pub(super) service_accounts: Writer<ServiceAccountView>,
    pub(super) daemon_sets: Writer<DaemonSetView>,
    pub(super) consumers: Writer<ConsumerView>,
    pub(super) claims: Option<Writer<ClaimView>>,
}

/// New stores, with one for claims on a Spoke.
pub(super) fn stores(managed: bool) -> (Stores, Writers) {
    let (nodes, write_nodes) = store();
    let (modules, write_modules) = store();
    let (configs, write_configs) = store();
    let (images, write_images) = store();
    let (namespaces, write_namespaces) = store();
    let (roles, write_roles) = store();
    let (bindings, write_bindings) = store();
    let (service_accounts, write_service_accounts) = store();
    let (daemon_sets, write_daemon_sets) = store();
    let (consumers, write_consumers) = store();
    let (claims, write_claims) = managed.then(store).unzip();
    (
        Stores {
            nodes,
            modules,
            configs,
            images,
            namespaces,
            roles,
            bindings,
            service_accounts,
            daemon_sets,
            consumers: Consumers::new(consumers),
            claims,
        },
        Writers {
            nodes: write_nodes,
            modules: write_modules,
            configs: write_configs,
            images: write_images,
            namespaces: write_namespaces,
            roles: write_roles,
            bindings: write_bindings,
            service_accounts: write_service_accounts,
            daemon_sets: write_daemon_sets,
            consumers: write_consumers,
            claims: write_claims,
        },
    )
}

impl Stores {
    /// Waits until every store has had its first complete list; that of claims apart, whose kind may be missing.
    pub(super) async fn wait_until_ready(&self) {
        let Self {
            nodes,
            modules,
            configs,
            images,
            namespaces,
            roles,
            bindings,
            service_accounts,
            daemon_sets,
            consumers,
            claims: _,
        } = self;
        tokio::join!(
            nodes.wait_until_ready(),
            modules.wait_until_ready(),
            configs.wait_until_ready(),
            images.wait_until_ready(),
            namespaces.wait_until_ready(),
            roles.wait_until_ready(),
            bindings.wait_until_ready(),
            service_accounts.wait_until_ready(),
            daemon_sets.wait_until_ready(),
            consumers.wait_until_ready(),
        );
    }

    /// Pull secrets of the service account that a Module names, besides the Module's own; sorted.
    pub fn pull_secrets(&self, module: &ModuleFacts) -> Vec<LocalObjectReference> {
        let account = module.service_account().and_then(|account| self.service_accounts.get(&account));
        let names = account.iter().flat_map(|account| &account.pull_secrets);
        let own = module.spec.image_repo_secret.as_ref().map(|secret| &secret.name);
        names.filter(|name| Some(*name) != own).map(|name| LocalObjectReference { name: name.clone() }).collect()
    }
}

/// One queue for each controller.
#[derive(Clone, Debug)]
pub(super) struct Queues {
    pub(super) nodes: Queue<String>,
    pub(super) modules: Queue<ObjectKey>,
    pub(super) statuses: Queue<ObjectKey>,
    pub(super) namespaces: Queue<String>,
    pub(super) worker: Queue<String>,
    pub(super) claims: Queue<String>,
}

/// Time in which events about one object become one pass.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// The same for what stands between a Module and the kernel.
const SOON: Duration = Duration::from_millis(20);
/// The same for what sums up many objects.
const COALESCE: Duration = Duration::from_secs(1);

impl Queues {
    fn new(metrics: &Metrics) -> Self {
        Self {
            nodes: Queue::new(SOON, metrics.queue("node")),
            modules: Queue::new(SOON, metrics.queue("module")),
            statuses: Queue::new(COALESCE, metrics.queue("module_status")),
            namespaces: Queue::new(DEBOUNCE, metrics.queue("namespace")),
            worker: Queue::new(DEBOUNCE, metrics.queue("worker_daemonset")),
            claims: Queue::new(DEBOUNCE, metrics.queue("kernel_claims")),
        }
    }

    /// Wakes the two controllers of a Module.
    pub(super) fn wake_module(&self, key: &ObjectKey) {
        self.modules.add(key.clone());
        self.statuses.add(key.clone());
    }

    /// Wakes the controllers of the Modules with these UIDs.
    pub(super) fn wake_modules(&self, stores: &Stores, uids: &[Arc<str>]) {
        if uids.is_empty() {
            return;
        }
        stores.modules.for_each(|key, module| {
            if uids.contains(&module.facts.uid) {
                self.wake_module(key);
            }
        });
    }
}

/// What a pass works with.
pub(super) struct Context {
    pub(super) settings: SpokeSettings,
    pub(super) client: Client,
    pub(super) stores: Stores,
    pub(super) queues: Queues,
    pub(super) tally: Tally,
    /// What was written about nodes just now.
    pub(super) echo: Echo,
    pub(super) teller: Teller,
    /// The worker's DaemonSet.
    pub(super) worker: Rendered,
    pub(super) settled: Settled,
    pub(super) leading: AtomicBool,
    kernels: Mutex<Kernels>,
    warm: AtomicBool,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Context {
    pub(super) fn new(
        settings: SpokeSettings,
        client: Client,
        stores: Stores,
        metrics: &Metrics,
        teller: Teller,
        worker: Rendered,
    ) -> Self {
        Self {
            settings,
            client,
            stores,
            queues: Queues::new(metrics),
            tally: Tally::default(),
            echo: Echo::default(),
            teller,
            worker,
            settled: Settled::default(),
            leading: AtomicBool::new(false),
            kernels: Mutex::default(),
            warm: AtomicBool::new(false),
        }
    }

    /// The kernels of all nodes.
    pub(super) fn kernels(&self) -> MutexGuard<'_, Kernels> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether every node was planned once since the start: before that, totals say nothing.
    pub(super) fn is_warm(&self) -> bool {
        self.warm.load(Ordering::SeqCst)
    }

    fn all_are_planned(&self) -> bool {
        let totals = self.tally.lock();
        // Each of them is asked for only when there may be all: this runs for every node of the cluster.
        let mut all = totals.known() >= self.stores.nodes.len();
        if all {
            self.stores.nodes.for_each(|key, _| all &= totals.knows(&key.name));
        }
        all
    }

    /// Wakes every Module at the moment when the totals begin to say something: whoever looked before left without having
    /// decided, so only who sets the flag may look at it first.
    pub(super) fn warm_up(&self) {
        if !self.is_warm() && self.all_are_planned() && !self.warm.swap(true, Ordering::SeqCst) {
            self.stores.modules.for_each(|key, _| self.queues.wake_module(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use k8s_openapi::api::core::v1::Node;
    use kube::api::ObjectMeta;
    use kube_runtime::watcher::Event;

    use super::*;
    use crate::runtime::guarded::Guarded;
    use crate::spoke::Mode;
    use crate::spoke::testing::a_module;

    fn context() -> (Context, Writers) {
        let settings = SpokeSettings {
            mode: Mode::Standalone,
            operator_namespace: "kmm".into(),
            worker_image: "kmm:1".into(),
            worker_service_account: "worker".into(),
            worker_health_port: 1,
            worker_variables: Vec::new(),
            instance: "test".into(),
        };
        let worker = Rendered::new(&settings).unwrap();
        let (stores, writers) = stores(false);
        let client = Client::new(Router::new(), "default");
        (Context::new(settings, client, stores, &Metrics::default(), Teller::new().0, worker), writers)
    }

    #[tokio::test]
    async fn when_the_last_node_was_planned_every_module_is_looked_at_again_whoever_asks_first() {
        let (context, mut writers) = context();
        for name in ["n1", "n2"] {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            writers.nodes.update(Event::Apply(Guarded(Ok(Node { metadata, ..Node::default() }))));
        }
        let module = a_module("drivers", "gpu", "u1");
        let module = crate::api::Module { metadata: module.meta, spec: module.spec, status: None };
        writers.modules.update(Event::Apply(Guarded(Ok(module))));
        for (name, woken) in [("n1", 0), ("n2", 1)] {
            context.tally.lock().record(name, Some([].into()));
            // A pass over a Module between the record and the wake leaves again: it must not use up the wake.
            assert!(!context.is_warm(), "{name}");
            context.warm_up();
            assert_eq!((context.queues.modules.len(), context.queues.statuses.len()), (woken, woken), "{name}");
        }
        assert!(context.is_warm());
    }
}
