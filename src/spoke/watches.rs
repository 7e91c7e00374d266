//! The watches, and who is woken by what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use k8s_openapi::NamespaceResourceScope;
use kube::core::Resource;
use kube::{Api, Client};
use kube_runtime::watcher::Config;

use crate::api::ImageState;
use crate::api::names::{
    DEVICE_PLUGIN_ROLE, DRA_ROLE, MODULE_NAME_LABEL, NAMESPACE_CONTAINS_MODULES_LABEL, PULL_SECRETS_ROLE, ROLE_LABEL,
    WORKER_DAEMON_SET,
};
use crate::core::claims::is_kernel_claim;
use crate::runtime::guarded::Guarded;
use crate::runtime::readiness::{Gate, Readiness};
use crate::runtime::store::{Change, ObjectKey, Projection, Writer, drive};

use super::claims::Kernels;
use super::reports::Teller;
use super::stores::{Queues, Stores, Writers};
use super::tally::Tally;
use super::view::{ConfigView, ConsumerView, ImagesView, ModuleFacts, ModuleView, NodeView, ServiceAccountView};

/// Objects that are fetched at a time; a node is large on the wire and small in the store.
const PAGE: u32 = 100;
/// The one key of controllers that have one.
const ONLY: &str = "all";

/// A watch, to be polled for as long as the process runs.
pub struct Watch {
    /// What is watched.
    pub name: &'static str,
    /// The work; it never ends.
    pub work: BoxFuture<'static, ()>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("name", &self.name).finish_non_exhaustive()
    }
}

fn watch<V, F>(
    name: &'static str,
    api: Api<Guarded<V::Kind>>,
    config: Config,
    writer: Writer<V>,
    gate: Gate,
    on_change: F,
) -> Watch
where
    V: Projection,
    <V::Kind as Resource>::DynamicType: Default + Eq + std::hash::Hash + Clone + Send + Sync,
    F: FnMut(&Change<V>) + Send + 'static,
{
    Watch { name, work: drive(api, config.page_size(PAGE), writer, gate, on_change).boxed() }
}

fn all<K>(client: &Client) -> Api<Guarded<K>>
where
    K: Resource,
    K::DynamicType: Default,
{
    Api::all(client.clone())
}

fn within<K>(client: &Client, namespace: &str) -> Api<Guarded<K>>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    Api::namespaced(client.clone(), namespace)
}

/// What is woken, and what is asked to find it.
pub(super) struct Wakes {
    pub(super) stores: Stores,
    pub(super) queues: Queues,
    pub(super) tally: Tally,
    pub(super) kernels: Kernels,
    pub(super) teller: Teller,
}

/// Every watch of a manager.
pub(super) fn watches(
    client: &Client,
    operator_namespace: &str,
    wakes: &Arc<Wakes>,
    writers: Writers,
    readiness: &Readiness,
) -> Vec<Watch> {
    let gate = |name: &str| readiness.gate(&format!("watch of {name}"));
    let named = |name: &str| Config::default().fields(&format!("metadata.name={name}"));
    let of = || Arc::clone(wakes);
    let mut watches = Vec::new();

    let to = of();
    let on_node = move |change: &Change<NodeView>| to.node_changed(change);
    watches.push(watch("nodes", all(client), Config::default(), writers.nodes, gate("nodes"), on_node));
    let to = of();
    let on_module = move |change: &Change<ModuleView>| to.module_changed(change);
    watches.push(watch("modules", all(client), Config::default(), writers.modules, gate("modules"), on_module));
    let to = of();
    let on_config = move |change: &Change<ConfigView>| to.config_changed(change);
    let configs = gate("nodemodulesconfigs");
    watches.push(watch("nodemodulesconfigs", all(client), Config::default(), writers.configs, configs, on_config));
    let to = of();
    let on_images = move |change: &Change<ImagesView>| to.images_changed(change);
    let images = gate("moduleimagesconfigs");
    watches.push(watch("moduleimagesconfigs", all(client), Config::default(), writers.images, images, on_images));

    let to = of();
    let marked = Config::default().labels(NAMESPACE_CONTAINS_MODULES_LABEL);
    let on_namespace = move |change: &Change<_>| to.queues.namespaces.add(change.key.name.clone());
    watches.push(watch("namespaces", all(client), marked, writers.namespaces, gate("namespaces"), on_namespace));
    let to = of();
    let on_role = move |change: &Change<_>| to.queues.namespaces.add(change.key.namespace.clone());
    watches.push(watch("roles", all(client), named(PULL_SECRETS_ROLE), writers.roles, gate("roles"), on_role));
    let to = of();
    let on_binding = move |change: &Change<_>| to.queues.namespaces.add(change.key.namespace.clone());
    let bindings = gate("rolebindings");
    watches.push(watch("rolebindings", all(client), named(PULL_SECRETS_ROLE), writers.bindings, bindings, on_binding));
    let to = of();
    let on_account = move |change: &Change<ServiceAccountView>| to.account_changed(change);
    let accounts = gate("serviceaccounts");
    let every = Config::default();
    watches.push(watch("serviceaccounts", all(client), every, writers.service_accounts, accounts, on_account));
    let to = of();
    let on_set = move |_: &Change<_>| to.queues.worker.add(ONLY.to_owned());
    let sets = within(client, operator_namespace);
    watches.push(watch("daemonsets", sets, named(WORKER_DAEMON_SET), writers.daemon_sets, gate("daemonsets"), on_set));

    let to = of();
    let on_consumer = move |change: &Change<ConsumerView>| {
        to.stores.consumers.take_in(change).into_iter().for_each(|node| to.queues.nodes.add(node));
    };
    let roles = format!("{MODULE_NAME_LABEL},{ROLE_LABEL} in ({DEVICE_PLUGIN_ROLE},{DRA_ROLE})");
    let pods = Config::default().labels(&roles);
    watches.push(watch("pods", all(client), pods, writers.consumers, gate("pods"), on_consumer));

    if let Some(writer) = writers.claims {
        let to = of();
        let on_claim = move |change: &Change<_>| {
            if is_kernel_claim(&change.key.name) {
                to.queues.claims.add(ONLY.to_owned());
            }
        };
        // The kind belongs to OCM and may come later: what it lacks is logged, and holds up nothing else.
        let apart = readiness.optional("watch of clusterclaims");
        watches.push(watch("clusterclaims", all(client), Config::default(), writer, apart, on_claim));
    }
    watches
}

impl Wakes {
    fn node_changed(&self, change: &Change<NodeView>) {
        self.teller.tell_release(change);
        self.queues.nodes.add(change.key.name.clone());
        if self.kernels.change(change.old.as_deref(), change.new.as_deref()) {
            self.queues.claims.add(ONLY.to_owned());
        }
    }

    pub(super) fn module_changed(&self, change: &Change<ModuleView>) {
        let facts = |view: &Option<Arc<ModuleView>>| view.as_ref().map(|view| Arc::clone(&view.facts));
        let (old, new) = (facts(&change.old), facts(&change.new));
        if old == new {
            self.queues.wake_module(&change.key);
            return;
        }
        self.queues.namespaces.add(change.key.namespace.clone());
        let either: Vec<&ModuleFacts> = [&old, &new].into_iter().filter_map(|facts| facts.as_deref()).collect();
        if either.iter().any(|facts| facts.publishes()) {
            self.queues.worker.add(ONLY.to_owned());
        }
        let mut nodes = self.stores.selected_by(&either);
        {
            let mut totals = self.tally.lock();
            if let Some(old) = old.filter(|old| new.as_ref().is_none_or(|new| new.uid != old.uid)) {
                nodes.extend(totals.module_gone(&old.uid));
            }
            if let Some(new) = new {
                nodes = totals.module_changed(&new, nodes);
            }
        }
        // Whoever is woken finds that the nodes have still to be planned.
        self.queues.wake_module(&change.key);
        for node in nodes {
            self.queues.nodes.add(node);
        }
    }

    /// Wakes what has to do with Modules that use the account, if its pull secrets are others than before.
    fn account_changed(&self, change: &Change<ServiceAccountView>) {
        let secrets =
            |view: &Option<Arc<ServiceAccountView>>| view.as_ref().map_or(vec![], |view| view.pull_secrets.clone());
        if secrets(&change.old) == secrets(&change.new) {
            return;
        }
        let mut users = Vec::new();
        self.stores.modules.for_each(|_, module| {
            if module.facts.service_account().as_ref() == Some(&change.key) {
                users.push(Arc::clone(&module.facts));
            }
        });
        if users.is_empty() {
            return;
        }
        self.queues.namespaces.add(change.key.namespace.clone());
        for facts in &users {
            self.queues.modules.add(facts.key.clone());
        }
        self.stores.nodes.for_each(|key, node| {
            if users.iter().any(|facts| facts.selects(node)) {
                self.queues.nodes.add(key.name.clone());
            }
        });
    }

    fn config_changed(&self, change: &Change<ConfigView>) {
        self.queues.nodes.add(change.key.name.clone());
        if change.old.is_some() != change.new.is_some() {
            self.queues.worker.add(ONLY.to_owned());
        }
        self.teller.tell(change);
    }

    fn images_changed(&self, change: &Change<ImagesView>) {
        self.queues.wake_module(&change.key);
        let Some(kernels) = changed_kernels(change.old.as_deref(), change.new.as_deref()) else { return };
        let Some(module) = self.stores.modules.get(&ObjectKey::new(&*change.key.namespace, &*change.key.name)) else {
            return;
        };
        self.stores.nodes.for_each(|key, node| {
            let concerned = kernels.is_empty() || node.kernel.as_ref().is_ok_and(|it| kernels.contains(it.trimmed()));
            if concerned && module.facts.selects(node) {
                self.queues.nodes.add(key.name.clone());
            }
        });
    }
}

/// Kernels of whose images something else is known on the two sides, `None` if of no image; empty if of every kernel's.
fn changed_kernels(old: Option<&ImagesView>, new: Option<&ImagesView>) -> Option<BTreeSet<String>> {
    let head = |view: Option<&ImagesView>| view.map(|view| (view.owner.clone(), view.trigger));
    let states = |view: Option<&ImagesView>| -> BTreeMap<(Option<String>, String), ImageState> {
        let states = view.map(|view| view.states.clone()).unwrap_or_default();
        // Of two states of one image the first counts.
        states.into_iter().rev().map(|state| ((state.kernel_version.clone(), state.image.clone()), state)).collect()
    };
    if head(old) != head(new) {
        return Some(BTreeSet::new());
    }
    let (old, new) = (states(old), states(new));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).filter(|key| old.get(key) != new.get(key)).collect();
    if keys.is_empty() {
        return None;
    }
    let kernels: Option<BTreeSet<String>> = keys.into_iter().map(|(kernel, _)| kernel.clone()).collect();
    Some(kernels.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ImageStatus;

    #[test]
    fn what_is_found_out_about_an_image_concerns_nodes_with_its_kernel_only() {
        let state = |kernel: Option<&str>, status| ImageState {
            kernel_version: kernel.map(str::to_owned),
            image: "r.example/gpu:v1".into(),
            status,
            ..ImageState::default()
        };
        let view = |states: Vec<ImageState>| ImagesView { owner: Some("u".into()), states, ..ImagesView::default() };
        let (asked, found) = (ImageStatus::Unknown, ImageStatus::Exists);
        let old = view(vec![state(Some("a"), asked), state(Some("b"), asked)]);
        let set = |kernels: &[&str]| Some(kernels.iter().map(|kernel| (*kernel).to_owned()).collect());
        for (what, new, expected) in [
            ("nothing", old.clone(), None),
            ("of one", view(vec![state(Some("a"), found), state(Some("b"), asked)]), set(&["a"])),
            ("one less", view(vec![state(Some("a"), asked)]), set(&["b"])),
            ("one more", view([old.states.clone(), vec![state(Some("c"), asked)]].concat()), set(&["c"])),
            ("of all", view([old.states.clone(), vec![state(None, asked)]].concat()), set(&[])),
            ("another owner", ImagesView { owner: None, ..old.clone() }, set(&[])),
            ("another trigger", ImagesView { trigger: Some(1), ..old.clone() }, set(&[])),
        ] {
            assert_eq!(changed_kernels(Some(&old), Some(&new)), expected, "{what}");
        }
        assert_eq!(changed_kernels(Some(&old), None), set(&[]));
    }
}
