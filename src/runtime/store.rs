//! A store of projected objects, kept up to date by a watch.
//!
//! A controller names the fields that it reads by projecting each object to a small value. The
//! store keeps only that value, and an event that changes none of those fields wakes nobody: a node
//! heartbeat costs one decode and no work. Handlers get the old and the new value, so a node that
//! *stops* matching a selector wakes the right controllers too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures::{StreamExt, pin_mut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::core::Resource;
use kube_runtime::watcher::{self, Config, Event};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::guarded::Guarded;
use super::readiness::Gate;

/// Namespace and name of an object; the namespace of cluster-scoped objects is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// Key of a namespaced object.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Key of a cluster-scoped object.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self::new("", name)
    }

    fn of(meta: &ObjectMeta) -> Self {
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// What a store keeps of an object of kind [`Projection::Kind`].
///
/// Equal values mean "nothing that is read has changed": no handler is called.
pub trait Projection: PartialEq + Send + Sync + Sized + 'static {
    /// The watched kind.
    type Kind: Resource + Clone + DeserializeOwned + fmt::Debug + Send + 'static;

    /// Keeps the fields that are read.
    fn project(object: Self::Kind) -> Self;

    /// The value for an object that cannot be decoded, given the last readable one.
    ///
    /// `None` (the default) keeps what the store holds: an object that became unreadable is not an
    /// object that went away.
    fn unreadable(_meta: &ObjectMeta, _error: &str, _last: Option<&Self>) -> Option<Self> {
        None
    }
}

/// One change of a stored value; at least one side is present and the sides differ.
#[derive(Debug)]
pub struct Change<V> {
    /// Which object.
    pub key: ObjectKey,
    /// The value before, `None` if the object is new.
    pub old: Option<Arc<V>>,
    /// The value now, `None` if the object is gone.
    pub new: Option<Arc<V>>,
}

type Map<V> = BTreeMap<ObjectKey, Arc<V>>;

/// Read side of a store; clones share the same content.
#[derive(Debug)]
pub struct Store<V> {
    map: Arc<RwLock<Map<V>>>,
    ready: watch::Receiver<bool>,
}

impl<V> Clone for Store<V> {
    fn clone(&self) -> Self {
        Self { map: Arc::clone(&self.map), ready: self.ready.clone() }
    }
}

impl<V> Store<V> {
    fn read(&self) -> RwLockReadGuard<'_, Map<V>> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value of one object.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<V>> {
        self.read().get(key).cloned()
    }

    /// All keys and values, ordered by key.
    pub fn snapshot(&self) -> Vec<(ObjectKey, Arc<V>)> {
        self.read().iter().map(|(key, value)| (key.clone(), Arc::clone(value))).collect()
    }

    /// Calls `f` for each object in key order, without copying; keep `f` short, the store is locked.
    pub fn for_each(&self, mut f: impl FnMut(&ObjectKey, &Arc<V>)) {
        for (key, value) in self.read().iter() {
            f(key, value);
        }
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether the store holds no object. An unsynced store is empty too: see [`Store::is_ready`].
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// Whether the first complete list has arrived.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Waits for the first complete list. Returns early only if the watch task is gone.
    pub async fn wait_until_ready(&self) {
        let _ = self.ready.clone().wait_for(|ready| *ready).await;
    }
}

/// Write side of a store: feeds watch events into it.
#[derive(Debug)]
pub struct Writer<V> {
    map: Arc<RwLock<Map<V>>>,
    ready: watch::Sender<bool>,
    listed: BTreeSet<ObjectKey>,
}

/// A new, empty store and its writer.
pub fn store<V>() -> (Store<V>, Writer<V>) {
    let map = Arc::new(RwLock::new(Map::new()));
    let (sender, receiver) = watch::channel(false);
    (Store { map: Arc::clone(&map), ready: receiver }, Writer { map, ready: sender, listed: BTreeSet::new() })
}

impl<V: Projection> Writer<V> {
    fn write(&self) -> RwLockWriteGuard<'_, Map<V>> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&mut self, key: ObjectKey, new: V) -> Option<Change<V>> {
        let new = Arc::new(new);
        let old = {
            let mut map = self.write();
            if map.get(&key).is_some_and(|old| **old == *new) {
                return None;
            }
            map.insert(key.clone(), Arc::clone(&new))
        };
        Some(Change { key, old, new: Some(new) })
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Change<V>> {
        let old = self.write().remove(key)?;
        Some(Change { key: key.clone(), old: Some(old), new: None })
    }

    fn apply(&mut self, object: Guarded<V::Kind>) -> (ObjectKey, Option<Change<V>>) {
        match object.0 {
            Ok(object) => {
                let key = ObjectKey::of(object.meta());
                let value = V::project(object);
                (key.clone(), self.put(key, value))
            }
            Err(invalid) => {
                let key = ObjectKey::of(&invalid.metadata);
                warn!(object = %key, error = %invalid.error, "object cannot be read; what is known of it is kept");
                let last = self.write().get(&key).cloned();
                let change = V::unreadable(&invalid.metadata, &invalid.error, last.as_deref())
                    .and_then(|value| self.put(key.clone(), value));
                (key, change)
            }
        }
    }

    /// Takes one watch event in and returns the changes that it made.
    pub fn update(&mut self, event: Event<Guarded<V::Kind>>) -> Vec<Change<V>> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                let (key, change) = self.apply(object);
                self.listed.insert(key);
                change.into_iter().collect()
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let gone: Vec<_> = self.write().keys().filter(|key| !listed.contains(*key)).cloned().collect();
                let changes = gone.iter().filter_map(|key| self.remove(key)).collect();
                self.ready.send_replace(true);
                changes
            }
            Event::Apply(object) => self.apply(object).1.into_iter().collect(),
            Event::Delete(object) => {
                let key = match &object.0 {
                    Ok(object) => ObjectKey::of(object.meta()),
                    Err(invalid) => ObjectKey::of(&invalid.metadata),
                };
                self.remove(&key).into_iter().collect()
            }
        }
    }
}

/// Watches `api` for ever: keeps the store up to date and calls `on_change` after each change.
///
/// `on_change` runs in the watch task: it looks up and enqueues, it does not wait. Failures are
/// retried with growing pauses; the gate says what is missing until the first list.
pub async fn drive<V, F>(
    api: Api<Guarded<V::Kind>>,
    config: Config,
    mut writer: Writer<V>,
    gate: Gate,
    mut on_change: F,
) where
    V: Projection,
    <V::Kind as Resource>::DynamicType: Default + Eq + std::hash::Hash + Clone,
    F: FnMut(&Change<V>),
{
    let stream = super::watch::watch(api, config);
    pin_mut!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                let done = matches!(event, Event::InitDone);
                for change in writer.update(event) {
                    on_change(&change);
                }
                if done {
                    gate.open();
                }
            }
            Err(error) => report(&gate, &error),
        }
    }
}

fn report(gate: &Gate, error: &watcher::Error) {
    // A watch that ends with 410 Gone is part of normal life: the next list repairs it.
    if let watcher::Error::WatchError(status) = error
        && status.code == 410
    {
        debug!(watch = gate.name(), "watch expired, listing again");
        return;
    }
    let text = super::client::chain(error);
    warn!(watch = gate.name(), error = %text, "watch failed, trying again");
    gate.waiting(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::guarded::Unreadable;
    use k8s_openapi::api::core::v1::ConfigMap;

    #[derive(Debug, PartialEq)]
    struct Data(Option<String>);

    impl Projection for Data {
        type Kind = ConfigMap;
        fn project(object: ConfigMap) -> Self {
            Self(object.data.and_then(|data| data.get("k").cloned()))
        }
    }

    fn map(name: &str, value: &str, version: &str) -> Guarded<ConfigMap> {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.into());
        object.metadata.namespace = Some("ns".into());
        object.metadata.resource_version = Some(version.into());
        object.data = Some([("k".to_string(), value.to_string())].into());
        Guarded(Ok(object))
    }

    fn invalid(name: &str) -> Guarded<ConfigMap> {
        let metadata = ObjectMeta { name: Some(name.into()), namespace: Some("ns".into()), ..ObjectMeta::default() };
        Guarded(Err(Unreadable { error: "bad".into(), metadata }))
    }

    #[test]
    fn an_event_that_changes_no_projected_field_is_no_change() {
        let (store, mut writer) = store::<Data>();
        assert_eq!(writer.update(Event::Apply(map("a", "1", "1"))).len(), 1);
        assert_eq!(writer.update(Event::Apply(map("a", "1", "2"))).len(), 0);
        let changes = writer.update(Event::Apply(map("a", "2", "3")));
        assert_eq!(changes[0].old.as_deref(), Some(&Data(Some("1".into()))));
        assert_eq!(store.get(&ObjectKey::new("ns", "a")).as_deref(), Some(&Data(Some("2".into()))));
    }

    #[test]
    fn an_object_missing_from_a_new_list_is_a_deletion_and_others_are_untouched() {
        let (store, mut writer) = store::<Data>();
        for event in [Event::Init, Event::InitApply(map("a", "1", "1")), Event::InitApply(map("b", "1", "1"))] {
            writer.update(event);
        }
        assert!(!store.is_ready());
        assert!(writer.update(Event::InitDone).is_empty());
        assert!(store.is_ready());
        writer.update(Event::Init);
        assert!(writer.update(Event::InitApply(map("b", "1", "9"))).is_empty());
        let changes = writer.update(Event::InitDone);
        assert_eq!(changes.len(), 1);
        assert_eq!((changes[0].key.name.as_str(), changes[0].new.is_none()), ("a", true));
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn an_object_that_becomes_unreadable_is_kept_also_over_a_new_list() {
        let (store, mut writer) = store::<Data>();
        writer.update(Event::Apply(map("a", "1", "1")));
        assert!(writer.update(Event::Apply(invalid("a"))).is_empty());
        writer.update(Event::Init);
        assert!(writer.update(Event::InitApply(invalid("a"))).is_empty());
        assert!(writer.update(Event::InitDone).is_empty());
        assert_eq!(store.get(&ObjectKey::new("ns", "a")).as_deref(), Some(&Data(Some("1".into()))));
        assert_eq!(writer.update(Event::Delete(invalid("a"))).len(), 1);
    }
}
