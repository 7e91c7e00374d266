//! Watches on applied objects, for feedback of the scrape type `Watch`.
//!
//! They only make the next look come earlier: polling goes on as well, so a watch that is forbidden or
//! beyond the limit costs time and nothing else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::{StreamExt, pin_mut};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{self, Event, watcher};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// One watch per resource type and namespace, at most as many of them.
const MAX_WATCHES: usize = 50;

type Listeners = Arc<Mutex<HashMap<String, Vec<Weak<Notify>>>>>;

/// The watches of one agent; all of them end when it is dropped.
pub struct Watches {
    spoke: Client,
    open: Mutex<HashMap<(String, String), (AbortHandle, Listeners)>>,
}

impl Watches {
    pub fn new(spoke: Client) -> Self {
        Self { spoke, open: Mutex::default() }
    }

    /// Has `woken` notified on each change of the object, if a watch can be had.
    pub fn ensure(&self, resource: &ApiResource, namespace: &str, name: &str, woken: &Arc<Notify>) {
        let key = (format!("{}/{}", resource.api_version, resource.plural), namespace.to_owned());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !open.contains_key(&key) {
            if open.len() >= MAX_WATCHES {
                return;
            }
            let listeners = Listeners::default();
            let api = match namespace {
                "" => Api::all_with(self.spoke.clone(), resource),
                namespace => Api::namespaced_with(self.spoke.clone(), namespace, resource),
            };
            let task = tokio::spawn(follow(api, Arc::clone(&listeners)));
            open.insert(key.clone(), (task.abort_handle(), listeners));
        }
        let Some((_, listeners)) = open.get(&key) else { return };
        let mut listeners = listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let here = listeners.entry(name.to_owned()).or_default();
        here.retain(|other| other.strong_count() > 0);
        if !here.iter().any(|other| other.as_ptr() == Arc::as_ptr(woken)) {
            here.push(Arc::downgrade(woken));
        }
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        for (task, _) in self.open.lock().unwrap_or_else(PoisonError::into_inner).values() {
            task.abort();
        }
    }
}

async fn follow(api: Api<DynamicObject>, listeners: Listeners) {
    let events = watcher(api, watcher::Config::default()).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        let Ok(Event::Apply(object) | Event::Delete(object)) = event else { continue };
        let name = object.metadata.name.unwrap_or_default();
        let mut listeners = listeners.lock().unwrap_or_else(PoisonError::into_inner);
        for woken in listeners.get_mut(&name).into_iter().flatten() {
            if let Some(woken) = woken.upgrade() {
                woken.notify_one();
            }
        }
    }
}
