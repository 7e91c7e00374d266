//! The DaemonSet of the worker: there while any node has a NodeModulesConfig. Removing or upgrading it unloads nothing.

mod render;

pub(super) use render::{HOST_MODULES, render};

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use serde_json::Value;

use crate::api::names::WORKER_DAEMON_SET;
use crate::api::names::field_manager::WORKER_DAEMON_SET as MANAGER;
use crate::core::hash;
use crate::runtime::client::{ApiError, apply, delete};
use crate::runtime::queue::Outcome;
use crate::runtime::store::ObjectKey;

use super::Context;
use super::SpokeSettings;
use super::view::{DaemonSetView, ModuleFacts};

/// What happens to the DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It is as it should be.
    Nothing,
    /// It is written.
    Apply,
    /// It is removed.
    Delete {
        /// `metadata.uid`.
        uid: String,
    },
}

/// The plan. `settled` is the generation that the server gave to what was written last: another one means that
/// somebody changed it. It is unknown after a start, when the hash alone counts.
pub(super) fn plan(wanted: bool, hash: &str, present: Option<&DaemonSetView>, settled: Option<i64>) -> Action {
    match present {
        None if wanted => Action::Apply,
        None => Action::Nothing,
        Some(set) if !wanted => Action::Delete { uid: set.uid.clone() },
        Some(set) if set.rendered_hash.as_deref() != Some(hash) => Action::Apply,
        Some(set) if settled.is_some_and(|settled| settled < set.generation) => Action::Apply,
        Some(_) => Action::Nothing,
    }
}

/// Whether the Module is to be published on its nodes.
pub(super) fn publishes(module: &ModuleFacts) -> bool {
    let loader = module.spec.module_loader.as_ref();
    loader.and_then(|loader| loader.policy).is_some_and(|policy| policy.publish_on_host)
}

/// The DaemonSet, each with the hash of its specification.
#[derive(Debug)]
pub(super) struct Rendered {
    plain: (Value, String),
    publishing: (Value, String),
}

impl Rendered {
    /// Both forms.
    pub(super) fn new(settings: &SpokeSettings) -> Result<Self, hash::Error> {
        Ok(Self { plain: render(settings, false)?, publishing: render(settings, true)? })
    }

    /// The form to be written. Workers that could write below `/lib/modules` can for as long as there is a DaemonSet: they
    /// remove what they have put there after the last Module has stopped asking.
    fn of(&self, asked: bool, present: Option<&DaemonSetView>) -> &(Value, String) {
        if asked || present.is_some_and(|set| set.publishes) { &self.publishing } else { &self.plain }
    }
}

/// What is remembered between passes.
#[derive(Debug, Default)]
pub(super) struct Settled(Mutex<Option<i64>>);

impl Settled {
    fn get(&self) -> Option<i64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, generation: Option<i64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = generation;
    }
}

/// One pass.
pub(super) async fn reconcile(context: Arc<Context>, _: String) -> Result<Outcome, ApiError> {
    let namespace = &context.settings.operator_namespace;
    let present = context.stores.daemon_sets.get(&ObjectKey::new(namespace.as_str(), WORKER_DAEMON_SET));
    let wanted = !context.stores.configs.is_empty();
    let mut asked = false;
    context.stores.modules.for_each(|_, module| asked |= publishes(&module.facts));
    let (body, hash) = context.worker.of(asked, present.as_deref());
    let api: Api<DaemonSet> = Api::namespaced(context.client.clone(), namespace);
    match plan(wanted, hash, present.as_deref(), context.settled.get()) {
        Action::Nothing => {
            if context.settled.get().is_none() {
                context.settled.set(present.map(|set| set.generation));
            }
        }
        Action::Apply => {
            let written = apply(&api, WORKER_DAEMON_SET, MANAGER, body).await?;
            context.settled.set(written.metadata.generation);
        }
        Action::Delete { uid } => {
            delete(&api, WORKER_DAEMON_SET, &uid).await?;
            context.settled.set(None);
        }
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::runtime::store::Projection;
    use crate::spoke::Mode;

    fn settings(image: &str) -> SpokeSettings {
        SpokeSettings {
            mode: Mode::Standalone,
            operator_namespace: "kmm".into(),
            worker_image: image.into(),
            worker_service_account: "worker".into(),
            worker_health_port: 8081,
            worker_variables: vec![("HTTPS_PROXY", "http://proxy:3128".into())],
            instance: "test".into(),
        }
    }

    #[test]
    fn it_is_written_only_when_something_is_different() {
        let set = |hash: &str, generation| DaemonSetView {
            uid: "u".into(),
            generation,
            rendered_hash: Some(hash.into()).filter(|hash: &String| !hash.is_empty()),
            publishes: false,
        };
        let table = [
            ("no node needs it", false, None, None, Action::Nothing),
            ("first node", true, None, None, Action::Apply),
            ("as it is, after a start", true, Some(set("h", 7)), None, Action::Nothing),
            ("as it was written", true, Some(set("h", 7)), Some(7), Action::Nothing),
            ("the watch is behind", true, Some(set("h", 7)), Some(8), Action::Nothing),
            ("changed by somebody", true, Some(set("h", 8)), Some(7), Action::Apply),
            ("another version", true, Some(set("old", 7)), None, Action::Apply),
            ("not ours", true, Some(set("", 1)), None, Action::Apply),
            ("last node gone", false, Some(set("h", 7)), Some(7), Action::Delete { uid: "u".into() }),
        ];
        for (what, wanted, present, settled, action) in table {
            assert_eq!(plan(wanted, "h", present.as_ref(), settled), action, "{what}");
        }
    }

    #[test]
    fn modules_can_be_written_only_once_a_module_asks_and_as_long_as_something_may_lie_there() {
        let rendered = Rendered::new(&settings("a")).unwrap();
        let view = |(body, _): &(Value, String)| DaemonSetView::project(serde_json::from_value(body.clone()).unwrap());
        let plain = view(rendered.of(false, None));
        let publishing = view(rendered.of(true, Some(&plain)));
        assert_eq!((plain.publishes, publishing.publishes), (false, true));
        assert!(view(rendered.of(false, Some(&publishing))).publishes, "what was published can still be removed");
        assert!(!view(rendered.of(false, Some(&plain))).publishes);
        let set: DaemonSet = serde_json::from_value(rendered.of(false, None).0.clone()).unwrap();
        let pod = set.spec.unwrap().template.spec.unwrap();
        let writable = pod.containers[0].volume_mounts.iter().flatten().filter(|mount| mount.read_only != Some(true));
        assert_eq!(writable.map(|mount| mount.mount_path.as_str()).collect::<Vec<_>>(), ["/var/lib/kmm"]);
    }

    #[test]
    fn the_documented_host_paths_are_those_of_the_pod() {
        let docs = include_str!("../../../docs/security.md");
        let documented = |row: &str| -> BTreeSet<String> {
            let line = docs.lines().find(|line| line.starts_with(&format!("| {row} |"))).unwrap();
            line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let set: DaemonSet = serde_json::from_value(render(&settings("a"), false).unwrap().0).unwrap();
        let pod = set.spec.unwrap().template.spec.unwrap();
        let volumes = pod.volumes.unwrap_or_default();
        let paths = |read_only: bool| -> BTreeSet<String> {
            let mounts = pod.containers[0].volume_mounts.iter().flatten();
            let names = mounts.filter(|mount| mount.read_only.unwrap_or(false) == read_only).map(|mount| &mount.name);
            let of = |name: &String| volumes.iter().find(|volume| volume.name == *name)?.host_path.clone();
            names.filter_map(of).map(|path| path.path).collect()
        };
        assert_eq!(paths(true), documented("Host paths, read-only"));
        assert_eq!(paths(false), documented("Host paths, writable"));
    }

    #[test]
    fn the_hash_follows_what_is_rendered_and_the_object_is_a_daemon_set() {
        let ((one, hash), (_, same)) = (render(&settings("a"), false).unwrap(), render(&settings("a"), false).unwrap());
        assert_eq!(hash, same);
        assert_ne!(hash, render(&settings("b"), false).unwrap().1);
        let set: DaemonSet = serde_json::from_value(one).unwrap();
        let pod = set.spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.containers[0].image.as_deref(), Some("a"));
        assert_eq!(pod.tolerations.unwrap()[0].operator.as_deref(), Some("Exists"));
        assert!(pod.node_selector.unwrap().contains_key("kmm.node.kubernetes.io/worker"));
        let proxy = pod.containers[0].env.iter().flatten().find(|variable| variable.name == "HTTPS_PROXY");
        assert_eq!(proxy.and_then(|variable| variable.value.as_deref()), Some("http://proxy:3128"));
    }
}
