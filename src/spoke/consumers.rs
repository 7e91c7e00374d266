//! The pods of device plugins and DRA drivers, found by node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use crate::runtime::store::{Change, ObjectKey, Store};

use super::view::ConsumerView;

type Pods = BTreeMap<ObjectKey, Arc<ConsumerView>>;

/// The store of these pods with an index by node. The index holds what was [taken in](Self::take_in), which for the first
/// complete list happens before the store says that it is ready.
#[derive(Clone, Debug)]
pub(super) struct Consumers {
    store: Store<ConsumerView>,
    by_node: Arc<RwLock<BTreeMap<String, Pods>>>,
}

impl Consumers {
    /// An empty index beside the store.
    pub(super) fn new(store: Store<ConsumerView>) -> Self {
        Self { store, by_node: Arc::default() }
    }

    /// Waits for the first complete list.
    pub(super) async fn wait_until_ready(&self) {
        self.store.wait_until_ready().await;
    }

    /// Takes a change in and returns the nodes for which it makes a difference.
    pub(super) fn take_in(&self, change: &Change<ConsumerView>) -> BTreeSet<String> {
        let mut by_node = self.by_node.write().unwrap_or_else(PoisonError::into_inner);
        let mut nodes = BTreeSet::new();
        let counts = |pod: &&Arc<ConsumerView>| !pod.node.is_empty() && !pod.ended;
        if let Some(old) = change.old.as_ref().filter(counts) {
            if let Some(pods) = by_node.get_mut(&old.node) {
                pods.remove(&change.key);
                if pods.is_empty() {
                    by_node.remove(&old.node);
                }
            }
            nodes.insert(old.node.clone());
        }
        if let Some(new) = change.new.as_ref().filter(counts) {
            by_node.entry(new.node.clone()).or_default().insert(change.key.clone(), Arc::clone(new));
            nodes.insert(new.node.clone());
        }
        nodes
    }

    /// The pods on a node that have not ended, ordered by namespace and name.
    pub(super) fn on(&self, node: &str) -> Vec<(ObjectKey, Arc<ConsumerView>)> {
        let by_node = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        let pods = by_node.get(node).into_iter().flatten();
        pods.map(|(key, pod)| (key.clone(), Arc::clone(pod))).collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::runtime::store::{Projection, store};

    fn pod(node: &str, phase: &str, deleted: Option<&str>) -> Arc<ConsumerView> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"labels": {"kmm.node.kubernetes.io/module.name": "gpu"}, "deletionTimestamp": deleted},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase},
        }))
        .unwrap();
        Arc::new(ConsumerView::project(pod))
    }

    #[test]
    fn a_pod_counts_on_its_node_from_its_binding_to_its_end_and_wakes_no_other() {
        let consumers = Consumers::new(store().0);
        let table = [
            ("not bound yet", Some(pod("", "Pending", None)), None, 0),
            ("bound", Some(pod("n1", "Pending", None)), Some("n1"), 1),
            ("being deleted", Some(pod("n1", "Running", Some("2026-01-01T00:00:00Z"))), Some("n1"), 1),
            ("ended", Some(pod("n1", "Succeeded", Some("2026-01-01T00:00:00Z"))), Some("n1"), 0),
            ("gone", None, None, 0),
        ];
        let mut old = None;
        for (what, new, woken, count) in table {
            let key = ObjectKey::new("drivers", "gpu-device-plugin-x");
            let nodes = consumers.take_in(&Change { key, old, new: new.clone() });
            assert_eq!(nodes.first().map(String::as_str), woken, "{what}");
            assert_eq!((consumers.on("n1").len(), consumers.on("n2").len()), (count, 0), "{what}");
            old = new;
        }
        assert!(consumers.by_node.read().unwrap().is_empty());
    }
}
