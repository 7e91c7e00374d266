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
use kube_runtime::watcher::{Config, Event};
use serde::de::DeserializeOwned;
use tokio::sync::watch as signal;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::expectations::{Expectations, Version};
use super::guarded::Guarded;
pub use super::key::ObjectKey;
use super::readiness::Gate;
use super::watch::{self, watch};

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

/// One change of a stored value; at least one side is present.
///
/// The sides differ, but for a write of this process that somebody waited for ([`Store::expected_until`]) and that changed
/// nothing of what is read: then both are what is held.
#[derive(Debug)]
pub struct Change<V> {
    /// Which object.
    pub key: ObjectKey,
    /// The value before, `None` if the object is new.
    pub old: Option<Arc<V>>,
    /// The value now, `None` if the object is gone.
    pub new: Option<Arc<V>>,
}

/// What is held of an object.
#[derive(Debug)]
struct Held<V> {
    value: Arc<V>,
    /// That of which the value was made.
    version: Version,
}

type Map<V> = BTreeMap<ObjectKey, Held<V>>;

#[derive(Debug)]
struct Shared<V> {
    map: RwLock<Map<V>>,
    expectations: Expectations,
}

impl<V> Shared<V> {
    fn read(&self) -> RwLockReadGuard<'_, Map<V>> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Map<V>> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Read side of a store; clones share the same content.
#[derive(Debug)]
pub struct Store<V> {
    shared: Arc<Shared<V>>,
    ready: signal::Receiver<bool>,
}

impl<V> Clone for Store<V> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), ready: self.ready.clone() }
    }
}

impl<V> Store<V> {
    fn read(&self) -> RwLockReadGuard<'_, Map<V>> {
        self.shared.read()
    }

    /// The value of one object.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<V>> {
        self.read().get(key).map(|held| Arc::clone(&held.value))
    }

    /// The value of one object, and the version of which it was made: the precondition of a write that is planned from it.
    pub fn get_with_version(&self, key: &ObjectKey) -> Option<(Arc<V>, Version)> {
        self.read().get(key).map(|held| (Arc::clone(&held.value), held.version.clone()))
    }

    /// All keys and values, ordered by key.
    pub fn snapshot(&self) -> Vec<(ObjectKey, Arc<V>)> {
        self.read().iter().map(|(key, held)| (key.clone(), Arc::clone(&held.value))).collect()
    }

    /// Calls `f` for each object in key order, without copying; keep `f` short, the store is locked.
    pub fn for_each(&self, mut f: impl FnMut(&ObjectKey, &Arc<V>)) {
        for (key, held) in self.read().iter() {
            f(key, &held.value);
        }
    }

    /// This process wrote the object; `meta` is what the server answered.
    pub fn written(&self, key: &ObjectKey, meta: &ObjectMeta) {
        let map = self.read();
        self.shared.expectations.written(key, Version::of(meta), map.get(key).map(|held| &held.version));
    }

    /// This process deleted the object.
    pub fn deleted(&self, key: &ObjectKey) {
        let map = self.read();
        self.shared.expectations.deleted(key, map.get(key).map(|held| &held.version));
    }

    /// Until when to wait for a write of this process to be shown, at most [`LONGEST`](super::expectations::LONGEST) after it;
    /// `None` if nothing is waited for. When it is shown, there is a [`Change`], also where nothing that is read has changed.
    pub fn expected_until(&self, key: &ObjectKey) -> Option<Instant> {
        self.shared.expectations.until(key)
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
    shared: Arc<Shared<V>>,
    ready: signal::Sender<bool>,
    listed: BTreeSet<ObjectKey>,
}

/// A new, empty store and its writer.
pub fn store<V>() -> (Store<V>, Writer<V>) {
    let shared = Arc::new(Shared { map: RwLock::new(Map::new()), expectations: Expectations::default() });
    let (sender, receiver) = signal::channel(false);
    (Store { shared: Arc::clone(&shared), ready: receiver }, Writer { shared, ready: sender, listed: BTreeSet::new() })
}

impl<V: Projection> Writer<V> {
    fn put(&mut self, key: ObjectKey, new: V, version: Version) -> Option<Change<V>> {
        let mut map = self.shared.write();
        let awaited = self.shared.expectations.shown(&key, Some(&version));
        if let Some(held) = map.get_mut(&key)
            && *held.value == new
        {
            held.version = version;
            return awaited.then(|| Self::unchanged(key, &held.value));
        }
        let new = Arc::new(new);
        let old = map.insert(key.clone(), Held { value: Arc::clone(&new), version });
        Some(Change { key, old: old.map(|held| held.value), new: Some(new) })
    }

    fn unchanged(key: ObjectKey, value: &Arc<V>) -> Change<V> {
        Change { key, old: Some(Arc::clone(value)), new: Some(Arc::clone(value)) }
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Change<V>> {
        let mut map = self.shared.write();
        self.shared.expectations.shown(key, None);
        let old = map.remove(key)?;
        Some(Change { key: key.clone(), old: Some(old.value), new: None })
    }

    fn apply(&mut self, object: Guarded<V::Kind>) -> (ObjectKey, Option<Change<V>>) {
        let (key, version) = (ObjectKey::of(object.meta()), Version::of(object.meta()));
        let change = match object.0 {
            Ok(object) => self.put(key.clone(), V::project(object), version),
            Err(invalid) => {
                warn!(object = %key, error = %invalid.error, "object cannot be read; what is known of it is kept");
                let last = self.shared.read().get(&key).map(|held| Arc::clone(&held.value));
                if let Some(value) = V::unreadable(&invalid.metadata, &invalid.error, last.as_deref()) {
                    self.put(key.clone(), value, version)
                } else {
                    // The version stays that of the value: a write that was planned from the value is refused.
                    let awaited = self.shared.expectations.shown(&key, Some(&version));
                    last.filter(|_| awaited).map(|value| Self::unchanged(key.clone(), &value))
                }
            }
        };
        (key, change)
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
                let gone: Vec<_> = self.shared.read().keys().filter(|key| !listed.contains(*key)).cloned().collect();
                let changes = gone.iter().filter_map(|key| self.remove(key)).collect();
                self.shared.expectations.tidy();
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
    <V::Kind as Resource>::DynamicType: Default,
    F: FnMut(&Change<V>),
{
    let ear = gate.clone();
    let stream = watch(api, config, move || ear.heard());
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

fn report(gate: &Gate, error: &watch::Error) {
    if error.is_expired() {
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
    use crate::runtime::expectations::LONGEST;
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

    fn invalid(name: &str, version: &str) -> Guarded<ConfigMap> {
        let metadata = map(name, "", version).meta().clone();
        Guarded(Err(Unreadable { error: "bad".into(), metadata }))
    }

    fn answer(version: &str) -> ObjectMeta {
        map("a", "", version).meta().clone()
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
        assert!(writer.update(Event::Apply(invalid("a", "9"))).is_empty());
        writer.update(Event::Init);
        assert!(writer.update(Event::InitApply(invalid("a", "9"))).is_empty());
        assert!(writer.update(Event::InitDone).is_empty());
        assert_eq!(store.get(&ObjectKey::new("ns", "a")).as_deref(), Some(&Data(Some("1".into()))));
        assert_eq!(writer.update(Event::Delete(invalid("a", "9"))).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_waited_for_until_the_store_shows_it_or_something_later() {
        let (key, other) = (ObjectKey::new("ns", "a"), ObjectKey::new("ns", "b"));
        type Show = fn(&str) -> Event<Guarded<ConfigMap>>;
        let ways: [(&str, Show); 4] = [
            ("changed", |version| Event::Apply(map("a", version, version))),
            ("nothing that is read has changed", |version| Event::Apply(map("a", "1", version))),
            ("it cannot be read any more", |version| Event::Apply(invalid("a", version))),
            ("in a list", |version| Event::InitApply(map("a", "1", version))),
        ];
        for (way, show) in ways {
            for (written, shown, met) in [("12", "12", true), ("12", "100", true), ("12", "11", false)] {
                let (store, mut writer) = store::<Data>();
                writer.update(Event::Apply(map("a", "1", "9")));
                store.written(&key, &answer(written));
                assert_eq!(store.expected_until(&key), Some(Instant::now() + LONGEST), "{way}");
                assert_eq!(store.expected_until(&other), None, "{way}");
                let changes = writer.update(show(shown));
                assert_eq!(store.expected_until(&key).is_none(), met, "{way}: {written} {shown}");
                assert!(!changes.is_empty() || !met, "{way}: whoever waited is not woken");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_waited_for_that_is_there_already_or_never_comes() {
        let key = ObjectKey::new("ns", "a");
        let (store, mut writer) = store::<Data>();
        writer.update(Event::Apply(map("a", "1", "9")));
        store.written(&key, &answer("9"));
        assert_eq!(store.expected_until(&key), None, "nothing was changed, or the watch was faster");
        store.written(&key, &answer("12"));
        assert!(writer.update(Event::Apply(map("a", "1", "12"))).is_empty(), "nobody has asked: nobody is woken");
        store.written(&key, &answer("13"));
        assert!(store.expected_until(&key).is_some());
        tokio::time::advance(LONGEST).await;
        assert_eq!(store.expected_until(&key), None, "the watch lags");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deletion_is_waited_for_until_the_object_is_gone_or_another_one() {
        let key = ObjectKey::new("ns", "a");
        for show in [Event::Delete(map("a", "1", "12")), Event::Apply(map("a", "1", "11"))] {
            let (store, mut writer) = store::<Data>();
            store.deleted(&key);
            assert_eq!(store.expected_until(&key), None, "it is gone already");
            writer.update(Event::Apply(map("a", "1", "9")));
            store.deleted(&key);
            assert!(store.expected_until(&key).is_some());
            writer.update(Event::Apply(map("a", "1", "9")));
            assert!(store.expected_until(&key).is_some(), "that is the one that was deleted");
            assert_eq!(writer.update(show).len(), 1);
            assert_eq!(store.expected_until(&key), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_made_and_is_gone_before_the_store_saw_it_is_forgotten() {
        let (store, mut writer) = store::<Data>();
        store.written(&ObjectKey::new("ns", "a"), &answer("12"));
        writer.update(Event::Delete(map("a", "1", "13")));
        assert_eq!(store.expected_until(&ObjectKey::new("ns", "a")), None);
        store.written(&ObjectKey::new("ns", "a"), &answer("14"));
        tokio::time::advance(LONGEST).await;
        for event in [Event::Init, Event::InitDone] {
            writer.update(event);
        }
        assert!(store.shared.expectations.is_empty());
    }

    #[test]
    fn the_version_is_that_of_the_value_that_is_held() {
        let key = ObjectKey::new("ns", "a");
        let (store, mut writer) = store::<Data>();
        for (event, version) in [
            (Event::Apply(map("a", "1", "9")), "9"),
            (Event::Apply(map("a", "1", "10")), "10"),
            (Event::Apply(invalid("a", "11")), "10"),
            (Event::Apply(map("a", "2", "12")), "12"),
        ] {
            writer.update(event);
            assert_eq!(store.get_with_version(&key).unwrap().1.to_string(), version);
        }
    }
}
