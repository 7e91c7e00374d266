//! Labels: on the Node, by which device plugins and people find loaded modules, and on the NodeModulesConfig.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::names::{
    WORKER_NODE_LABEL, is_module_label, is_ready_label, module_configured_label, module_in_use_label, ready_label,
    version_ready_label,
};
use crate::api::{NodeModuleStatus, NodeModulesConfigSpec};
use crate::core::label;
use crate::runtime::store::ObjectKey;
use crate::spoke::view::{ConfigView, NodeView};

use super::hold_back::HeldBack;
use super::standing::{is_loaded, keeps_older};

/// Changes of the Node's labels, so that they say what the worker proved.
///
/// A label stays as it is while nothing is known: the module is wanted and no worker has spoken about this object yet,
/// or the object was lost (`lost`: namespaces and names of Modules). It goes, whatever is loaded, where pods have to leave
/// by it (`held`), and where an intent stands.
/// Labels of releases that knew no namespace are removed.
pub(super) fn changes(
    node: &NodeView,
    config: Option<&ConfigView>,
    spec: &NodeModulesConfigSpec,
    held: &HeldBack,
    lost: &BTreeSet<(&str, &str)>,
    config_exists: bool,
) -> BTreeMap<String, Option<String>> {
    let mut wanted = BTreeMap::new();
    let keys = |namespace: &str, name: &str| [ready_label(namespace, name), version_ready_label(namespace, name)];
    let is_held = |namespace: &str, name: &str| held.contains_key(&ObjectKey::new(namespace, name));
    let mut open: BTreeSet<String> = lost
        .iter()
        .filter(|(namespace, name)| !is_held(namespace, name))
        .filter(|key| !spec.modules.iter().any(|entry| (entry.namespace.as_str(), entry.name.as_str()) == **key))
        .flat_map(|(namespace, name)| keys(namespace, name))
        .collect();
    if config_exists {
        wanted.insert(WORKER_NODE_LABEL.to_owned(), String::new());
    }
    for entry in &spec.modules {
        let [ready, version] = keys(&entry.namespace, &entry.name);
        let ordered = spec.unload.iter().any(|intent| Some(&intent.module_uid) == entry.module_uid.as_ref());
        if ordered || is_held(&entry.namespace, &entry.name) {
            continue;
        }
        let report = config.and_then(|config| {
            let of_entry = |report: &&NodeModuleStatus| {
                (&report.namespace, &report.name) == (&entry.namespace, &entry.name)
                    && report.module_uid == entry.module_uid
            };
            config.report.modules.iter().find(of_entry)
        });
        match config.and_then(|config| config.report.boot_id.as_deref()) {
            // An object that is new, or that the pod-based worker left: its words stand until ours has looked.
            None => {
                open.insert(ready);
                open.insert(version);
            }
            Some(boot) if boot == node.boot_id => {
                let Some(report) = report else { continue };
                // Under the policy `OnReboot` the older file serves on, and the version label says which one it is.
                let value = if is_loaded(entry, report) {
                    &entry.version
                } else if keeps_older(entry, report) {
                    &report.version
                } else {
                    continue;
                };
                wanted.insert(ready, String::new());
                if let Some(value) = value {
                    wanted.insert(version, value.clone());
                }
            }
            Some(_) => {}
        }
    }
    // The API server takes all changes or none: what is no label must not keep the others from being written.
    wanted.retain(|key, value| label::is_key(key) && label::is_value(value));
    let stale = node.labels.keys().filter(|key| is_ready_label(key) || *key == WORKER_NODE_LABEL);
    let mut changes: BTreeMap<String, Option<String>> =
        stale.filter(|key| !wanted.contains_key(*key) && !open.contains(*key)).map(|key| (key.clone(), None)).collect();
    let missing = wanted.into_iter().filter(|(key, value)| node.labels.get(key) != Some(value));
    changes.extend(missing.map(|(key, value)| (key, Some(value))));
    changes
}

/// Labels of a NodeModulesConfig by which tools of the pod-based operator find it; keys that are too long are left out.
pub(in crate::spoke) fn of_config(
    spec: &NodeModulesConfigSpec,
    reports: &[NodeModuleStatus],
) -> BTreeMap<String, String> {
    let wanted = spec.modules.iter().map(|entry| (&entry.namespace, &entry.name));
    let leaving = spec.unload.iter().map(|intent| (&intent.namespace, &intent.name));
    let loaded = reports.iter().map(|report| (&report.namespace, &report.name));
    let configured = wanted.clone().map(|(namespace, name)| module_configured_label(namespace, name));
    let in_use = wanted.chain(leaving).chain(loaded).map(|(namespace, name)| module_in_use_label(namespace, name));
    configured.chain(in_use).filter(|key| label::is_key(key)).map(|key| (key, String::new())).collect()
}

/// The labels among these that [`of_config`] decides on.
pub(super) fn ours(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels.iter().filter(|(key, _)| is_module_label(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spoke::testing::{a_config, a_node, an_entry, loaded};

    fn node(labels: &[&str]) -> NodeView {
        let mut node = a_node();
        node.labels = labels.iter().map(|key| ((*key).to_owned(), String::new())).collect();
        node
    }

    fn removed(keys: &[&str]) -> BTreeMap<String, Option<String>> {
        keys.iter().map(|key| ((*key).to_owned(), None)).collect()
    }

    const READY: &str = "kmm.node.kubernetes.io/drivers.gpu.v2.ready";
    const VERSION: &str = "kmm.node.kubernetes.io/drivers.gpu.v2.version.ready";

    #[test]
    fn a_proved_module_is_ready_also_with_dots_in_its_name() {
        let mut entry = an_entry("drivers", "gpu.v2", "u1");
        entry.version = Some("1.0".into());
        let config = a_config(vec![entry.clone()], vec![loaded(&entry)]);
        let changes =
            changes(&node(&[WORKER_NODE_LABEL]), Some(&config), &config.spec, &HeldBack::new(), &BTreeSet::new(), true);
        assert_eq!(changes, [(READY.to_owned(), Some(String::new())), (VERSION.to_owned(), Some("1.0".into()))].into());
    }

    #[test]
    fn a_version_that_is_no_label_value_keeps_no_other_label_from_being_written() {
        let long = "1".repeat(64);
        for version in ["1.2+deb12", "1 2", "-1", "1.", "ä", long.as_str()] {
            let mut entry = an_entry("drivers", "gpu.v2", "u1");
            entry.version = Some(version.into());
            let config = a_config(vec![entry.clone()], vec![loaded(&entry)]);
            let none = (HeldBack::new(), BTreeSet::new());
            let changes =
                changes(&node(&[VERSION, WORKER_NODE_LABEL]), Some(&config), &config.spec, &none.0, &none.1, true);
            let expected = [(READY.to_owned(), Some(String::new())), (VERSION.to_owned(), None)];
            assert_eq!(changes, expected.into(), "{version}");
        }
    }

    #[test]
    fn labels_follow_only_what_is_known() {
        let entry = an_entry("drivers", "gpu.v2", "u1");
        let with = |edit: fn(&mut ConfigView)| {
            let mut config = a_config(vec![entry.clone()], vec![loaded(&entry)]);
            edit(&mut config);
            config
        };
        let table: [(&str, ConfigView, &[&str]); 6] = [
            ("as it is", with(|_| {}), &[]),
            ("nobody spoke about this object yet", with(|c| c.report = crate::spoke::view::ReportView::default()), &[]),
            ("said in an earlier boot", with(|c| c.report.boot_id = Some("old".into())), &[READY]),
            ("failed", with(|c| c.report.modules[0].state = Some(crate::api::ModuleState::Failed)), &[READY]),
            ("another file", with(|c| c.spec.modules[0].config.container_image = "r/x@sha256:ff".into()), &[READY]),
            (
                "must go",
                with(|c| {
                    c.spec.unload.push(crate::api::UnloadIntent { module_uid: "u1".into(), ..Default::default() });
                }),
                &[READY],
            ),
        ];
        for (what, config, expected) in table {
            let node = node(&[READY, WORKER_NODE_LABEL]);
            assert_eq!(
                changes(&node, Some(&config), &config.spec, &HeldBack::new(), &BTreeSet::new(), true),
                removed(expected),
                "{what}"
            );
        }
    }

    #[test]
    fn what_no_entry_asks_for_goes_and_foreign_labels_stay() {
        let node = node(&[
            READY,
            VERSION,
            "kmm.node.kubernetes.io/gpu.ready",
            "kmm.node.kubernetes.io/drivers.gpu.device-plugin-ready",
            "kmm.node.kubernetes.io/version-module.drivers.gpu",
            "example.org/gpu.ready",
            WORKER_NODE_LABEL,
        ]);
        let gone = removed(&[READY, VERSION, "kmm.node.kubernetes.io/gpu.ready", WORKER_NODE_LABEL]);
        assert_eq!(
            changes(&node, None, &NodeModulesConfigSpec::default(), &HeldBack::new(), &BTreeSet::new(), false),
            gone
        );
    }

    #[test]
    fn the_label_of_a_wanted_module_outlives_the_object_that_was_lost() {
        let lost = BTreeSet::from([("drivers", "gpu.v2")]);
        let node = node(&[READY, VERSION, "kmm.node.kubernetes.io/drivers.other.ready"]);
        let gone = removed(&["kmm.node.kubernetes.io/drivers.other.ready"]);
        assert_eq!(changes(&node, None, &NodeModulesConfigSpec::default(), &HeldBack::new(), &lost, false), gone);
    }

    #[test]
    fn a_key_that_is_too_long_is_left_out() {
        let name = "a".repeat(60);
        let entry = an_entry("drivers", &name, "u1");
        let config = a_config(vec![entry.clone()], vec![loaded(&entry)]);
        assert!(of_config(&config.spec, &config.report.modules).is_empty());
        assert!(
            changes(&node(&[WORKER_NODE_LABEL]), Some(&config), &config.spec, &HeldBack::new(), &BTreeSet::new(), true)
                .is_empty()
        );
    }
}
