//! The watches, and who is woken by what.
//!
//! Events reach only a replica that leads; on the others they keep the stores up to date and nothing else.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use kube::Api;
use kube::core::Resource;
use kube_runtime::watcher::Config;

use super::fleet::{Fleet, Writers};
use super::intern;
use super::standing::Turn;
use super::target::Target;
use super::view::{Cluster, FleetModule, Images, Kernels, Work};
use crate::api::names::MANAGED_CLUSTER_MODULE_LABEL;
use crate::runtime::guarded::Guarded;
use crate::runtime::readiness::Readiness;
use crate::runtime::store::{Change, ObjectKey, Projection, Writer, drive};
use crate::runtime::tasks::Tasks;

/// Objects per page of a list: works hold whole Modules, and a page is decoded at once.
const PAGE: u32 = 200;

/// Starts every watch as a task, on every replica.
pub(super) fn start(
    fleet: &Arc<Fleet>,
    client: &kube::Client,
    writers: Writers,
    readiness: &Readiness,
    tasks: &mut Tasks,
) {
    let Writers { modules, clusters, images, works } = writers;
    let all = || Config::default().page_size(PAGE);
    let mut begin = Begin { fleet, readiness, tasks };
    begin.watch("watch of ManagedClusterModules", Api::all(client.clone()), all(), modules, module_changed);
    begin.watch("watch of ManagedClusters", Api::all(client.clone()), all(), clusters, cluster_changed);
    let api = Api::namespaced(client.clone(), &fleet.operator_namespace);
    begin.watch("watch of ModuleImagesConfigs", api, all(), images, images_changed);
    let labelled = all().labels(MANAGED_CLUSTER_MODULE_LABEL);
    begin.watch("watch of ManifestWorks", Api::all(client.clone()), labelled, works, work_changed);
}

struct Begin<'a> {
    fleet: &'a Arc<Fleet>,
    readiness: &'a Readiness,
    tasks: &'a mut Tasks,
}

impl Begin<'_> {
    fn watch<V>(
        &mut self,
        name: &'static str,
        api: Api<Guarded<V::Kind>>,
        config: Config,
        writer: Writer<V>,
        wake: fn(&Fleet, &Change<V>),
    ) where
        V: Projection,
        <V::Kind as Resource>::DynamicType: Default + Eq + std::hash::Hash + Clone + Send + Sync,
    {
        let fleet = Arc::clone(self.fleet);
        let on_change = move |change: &Change<V>| {
            if fleet.is_leading() {
                wake(&fleet, change);
            }
        };
        // A type of its own for each watch would be large: the future is boxed.
        let work: BoxFuture<'static, ()> = drive(api, config, writer, self.readiness.gate(name), on_change).boxed();
        self.tasks.spawn_endless(name, work);
    }
}

/// From here on events wake controllers; everything that is there is looked at once.
pub(super) fn begin_to_lead(fleet: &Fleet) {
    // First the flag: what changes after it wakes a controller, what changed before it is in the stores.
    fleet.lead();
    for (key, module) in fleet.modules.snapshot() {
        let name = intern::text(&key.name);
        if !module.deleting {
            let look = || fleet.sides(&module);
            fleet.removals.resume(&name, module.revision(), module.removal_confirmed, look);
            let selected = || fleet.selected(&module, |_| true);
            fleet.tally.resume(&name, module.revision(), selected);
            for cluster in selected() {
                fleet.work_queue.add(Target { module: Arc::clone(&name), cluster });
            }
        }
        fleet.images_queue.add(Arc::clone(&name));
        fleet.status_queue.add(name);
    }
    // Works of clusters that are not selected any more, or not there.
    fleet.works.for_each(|key, _| {
        fleet.work_queue.add(Target { module: intern::text(&key.name), cluster: intern::text(&key.namespace) });
    });
}

/// A ManagedClusterModule changed: everything about it is looked at.
pub(super) fn module_changed(fleet: &Fleet, change: &Change<FleetModule>) {
    let name = intern::text(&change.key.name);
    let (old, new) = (change.old.as_deref(), change.new.as_deref());
    let selected = match new {
        None => {
            fleet.tally.forget(&name);
            fleet.removals.forget(&name);
            Vec::new()
        }
        Some(new) => {
            let begin_removals =
                || fleet.removals.begin(&name, new.revision(), new.removal_confirmed, || fleet.sides(new));
            if let Some(old) = old.filter(|old| old.wishes_the_same(new)) {
                if old.removal_confirmed == new.removal_confirmed {
                    fleet.status_queue.add(name);
                } else {
                    begin_removals();
                    release(fleet, new);
                }
                return;
            }
            begin_removals();
            // What was said so far was about another wish.
            fleet.tally.begin(&name, new.revision(), || fleet.selected(new, |_| true))
        }
    };
    if new.is_some() {
        fleet.status_queue.add(Arc::clone(&name));
    }
    // Everything else waits for it, and it looks at the whole fleet anyway.
    fleet.images_queue.add_after(Arc::clone(&name), Duration::ZERO);
    let not_any_more = |cluster: &Cluster| !new.is_some_and(|new| new.selects(&cluster.labels));
    let left = old.map(|old| fleet.selected(old, not_any_more)).unwrap_or_default();
    for cluster in selected.into_iter().chain(left) {
        fleet.work_queue.add(Target { module: Arc::clone(&name), cluster });
    }
}

/// A ManagedCluster changed: every ManagedClusterModule that selects it, or did, looks at this one cluster.
pub(super) fn cluster_changed(fleet: &Fleet, change: &Change<Cluster>) {
    let cluster = intern::text(&change.key.name);
    let (old, new) = (change.old.as_deref(), change.new.as_deref());
    let selects = |module: &FleetModule, side: Option<&Cluster>| side.is_some_and(|side| module.selects(&side.labels));
    let belongs = |side: Option<&Cluster>| side.map(|side| (side.labels.clone(), side.deleting));
    let moved = belongs(old) != belongs(new);
    for (_, module) in fleet.modules.snapshot() {
        if moved {
            look_at_removal(fleet, &module, &cluster);
        }
        if selects(&module, old) || selects(&module, new) {
            fleet.work_queue.add(Target { module: Arc::clone(&module.name), cluster: Arc::clone(&cluster) });
        }
    }
}

/// The cluster may have got or lost a work, or be selected or not any more.
fn look_at_removal(fleet: &Fleet, module: &FleetModule, cluster: &Arc<str>) {
    let look = || fleet.side(module, cluster);
    match fleet.removals.put(&module.name, &module.revision(), cluster, look) {
        Turn::Nothing => {}
        Turn::News => fleet.status_queue.add(Arc::clone(&module.name)),
        Turn::Released => release(fleet, module),
    }
}

/// What waited for a confirmation, or for clusters to be selected again, goes on.
fn release(fleet: &Fleet, module: &FleetModule) {
    fleet.status_queue.add(Arc::clone(&module.name));
    for cluster in fleet.selected(module, |_| true).into_iter().chain(fleet.removals.leaving(&module.name)) {
        fleet.work_queue.add(Target { module: Arc::clone(&module.name), cluster });
    }
}

/// A ModuleImagesConfig changed: the clusters with kernels of which something else is known now.
pub(super) fn images_changed(fleet: &Fleet, change: &Change<Images>) {
    // It has the name of its ManagedClusterModule; whose it is may have changed.
    let Some(module) = fleet.modules.get(&ObjectKey::cluster(&*change.key.name)) else { return };
    // Somebody else may have changed or deleted it.
    fleet.images_queue.add(Arc::clone(&module.name));
    fleet.status_queue.add(Arc::clone(&module.name));
    let kernels = Images::changed_kernels(change.old.as_deref(), change.new.as_deref());
    if kernels.is_empty() {
        return;
    }
    let changed = |kernel: &str| kernels.binary_search_by(|changed| (**changed).cmp(kernel)).is_ok();
    let affected = |cluster: &Cluster| {
        // What a cluster cannot tell may be in its work.
        matches!(cluster.kernels, Kernels::Incomplete { .. })
            || cluster.kernels.known().iter().any(|kernel| changed(kernel.as_str()))
    };
    for cluster in fleet.selected(&module, affected) {
        fleet.work_queue.add(Target { module: Arc::clone(&module.name), cluster });
    }
}

/// A work changed: its own cluster is looked at.
pub(super) fn work_changed(fleet: &Fleet, change: &Change<Work>) {
    let (module, cluster) = (intern::text(&change.key.name), intern::text(&change.key.namespace));
    if let Some(module) = fleet.modules.get(&ObjectKey::cluster(&*module)) {
        look_at_removal(fleet, &module, &cluster);
    }
    fleet.work_queue.add(Target { module, cluster });
}
