//! Everything that is watched, and one queue for each controller. Who is woken by what stands in `watches.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::LocalObjectReference;

use crate::runtime::metrics::Metrics;
use crate::runtime::queue::Queue;
use crate::runtime::store::{ObjectKey, Store, Writer, store};

use super::consumers::Consumers;
use super::view::{
    ClaimView, ConfigView, ConsumerView, DaemonSetView, ImagesView, ModuleFacts, ModuleView, NamespaceView, NodeView,
    RoleBindingView, RoleView, ServiceAccountView,
};

/// Everything that is watched.
#[derive(Clone, Debug)]
pub(super) struct Stores {
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

    /// Names of the nodes that any of these Modules selects.
    pub(super) fn selected_by(&self, modules: &[&ModuleFacts]) -> BTreeSet<String> {
        let mut nodes = BTreeSet::new();
        self.nodes.for_each(|key, node| {
            if modules.iter().any(|facts| facts.selects(node)) {
                nodes.insert(key.name.clone());
            }
        });
        nodes
    }

    /// Pull secrets of the service account that a Module names, besides the Module's own; sorted.
    pub(super) fn pull_secrets(&self, module: &ModuleFacts) -> Vec<LocalObjectReference> {
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
    /// Empty queues.
    pub(super) fn new(metrics: &Metrics) -> Self {
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

    /// Wakes the controllers of every Module.
    pub(super) fn wake_every_module(&self, stores: &Stores) {
        stores.modules.for_each(|key, _| self.wake_module(key));
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
