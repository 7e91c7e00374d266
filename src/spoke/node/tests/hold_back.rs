//! Consumers leave first.

use std::sync::Arc;

use super::*;
use crate::api::{LoadPolicy, NodeModulesConfigSpec, OnChange, OnRemoval, UnloadIntent, UnloadReason};
use crate::runtime::store::ObjectKey;
use crate::spoke::outcome::{Outcome, Standing};
use crate::spoke::testing::{ModuleBuilder, a_config, a_module, a_node, loaded};

const READY: &str = "kmm.node.kubernetes.io/drivers.gpu.ready";

fn consumer(namespace: &str, module: &str, pod: &str) -> Consumer {
    Consumer { module: ObjectKey::new(namespace, module), pod: pod.to_owned(), deleting: false }
}

fn pod() -> Vec<Consumer> {
    vec![consumer("drivers", "gpu", "gpu-device-plugin-x")]
}

fn changed(module: &mut ModuleBuilder) {
    module.meta.generation = Some(2);
    module.container().modprobe.parameters = vec!["debug=1".into()];
}

fn planned(config: Option<&ConfigView>, labels: &[&str], module: &ModuleBuilder, consumers: Vec<Consumer>) -> Plan {
    let mut node = a_node();
    node.labels = labels.iter().map(|key| ((*key).to_owned(), String::new())).collect();
    node.labels.insert("kmm.node.kubernetes.io/worker".into(), String::new());
    let facts = module.clone().build();
    let modules = vec![ModuleHere { want: want(&facts, &node, None, &[], None), facts }];
    let config = config.cloned().map(Arc::new);
    plan(&Observed { node: Some(Arc::new(node)), config, modules, consumers, tolerations: Arc::default() })
}

fn spec(plan: &Plan, config: &ConfigView) -> NodeModulesConfigSpec {
    match &plan.config {
        ConfigAction::Apply { spec, .. } => spec.clone(),
        ConfigAction::Nothing | ConfigAction::Delete { .. } => config.spec.clone(),
    }
}

fn orders(plan: &Plan, config: &ConfigView) -> Vec<(UnloadReason, i64)> {
    spec(plan, config).unload.iter().map(|intent| (intent.reason, intent.generation)).collect()
}

fn outcome<'a>(plan: &'a Plan, uid: &str) -> Option<&'a Outcome> {
    plan.outcomes.as_ref().and_then(|all| all.get(uid))
}

fn why(plan: &Plan, uid: &str) -> Option<(bool, String)> {
    match &outcome(plan, uid)?.standing {
        Standing::WaitingForConsumers { leaves, why } => Some((*leaves, why.message.clone())),
        _ => None,
    }
}

#[test]
fn every_order_waits_for_the_pods_which_leave_by_the_label() {
    type Edit = fn(&mut ModuleBuilder);
    let table: [(UnloadReason, bool, Edit); 4] = [
        (UnloadReason::Deleted, true, |module| *module = module.clone().deleting()),
        (UnloadReason::NoModuleLoader, true, |module| module.spec.module_loader = None),
        (UnloadReason::NotSelected, true, |module| {
            module.spec.selector = [("gpu".to_owned(), "yes".to_owned())].into();
        }),
        (UnloadReason::Changed, false, changed),
    ];
    for (reason, leaves, edit) in table {
        let mut module = gpu();
        edit(&mut module);
        let waiting = planned(Some(&running()), &[READY], &module, pod());
        assert_eq!(waiting.config, ConfigAction::Nothing, "{reason}: the old entry stands");
        assert_eq!(waiting.labels, [(READY.to_owned(), None)].into(), "{reason}");
        let (left, message) = why(&waiting, "u1").unwrap();
        assert_eq!((left, message.contains("gpu-device-plugin-x")), (leaves, true), "{reason}: {message}");
        assert!(outcome(&waiting, "u1").unwrap().holds, "{reason}");
        // The label gone, there is nothing more to do until the pod is.
        let still = planned(Some(&running()), &[], &module, pod());
        assert_eq!((still.config, still.labels.len()), (ConfigAction::Nothing, 0), "{reason}");
        let then = planned(Some(&running()), &[], &module, vec![]);
        assert_eq!(orders(&then, &running()).len(), 1, "{reason}");
        // Wanted again as it is, it is ready again.
        let again = planned(Some(&running()), &[], &gpu(), pod());
        assert_eq!(again.config, ConfigAction::Nothing, "{reason}");
        assert_eq!(again.labels, [(READY.to_owned(), Some(String::new()))].into(), "{reason}");
    }
}

#[test]
fn only_pods_of_the_module_count_and_only_where_something_is_unloaded() {
    let others = vec![consumer("other", "gpu", "a"), consumer("drivers", "gpu2", "b")];
    let deleted = gpu().deleting();
    let plan = planned(Some(&running()), &[READY], &deleted, others);
    assert_eq!(orders(&plan, &running()), [(UnloadReason::Deleted, 1)]);

    let careful = LoadPolicy { on_change: OnChange::OnReboot, on_removal: OnRemoval::Keep, ..LoadPolicy::default() };
    let mut module = gpu();
    module.spec.module_loader.get_or_insert_default().policy = Some(careful);
    let kept = planned(Some(&running()), &[READY], &module.clone().deleting(), pod());
    assert_eq!(spec(&kept, &running()), NodeModulesConfigSpec::default());
    changed(&mut module);
    let later = planned(Some(&running()), &[READY], &module, pod());
    assert_eq!((spec(&later, &running()).modules[0].generation, later.labels.len()), (Some(2), 0));
    assert_eq!(outcome(&later, "u1").unwrap().standing, Standing::WaitingForReboot);
}

#[test]
fn what_was_ordered_before_a_pod_came_goes_on_and_is_not_extended() {
    let ordered = |generation| {
        let mut config = a_config(vec![], vec![loaded(&NodeModuleSpec { generation: Some(3), ..entry() })]);
        let (module_uid, name, namespace) = ("u1".into(), "gpu".into(), "drivers".into());
        let reason = UnloadReason::Deleted;
        config.spec.unload = vec![UnloadIntent { generation, module_uid, name, namespace, reason }];
        config
    };
    let deleted = gpu().deleting();
    for (generation, consumers, expected, waits) in [(3, pod(), 3, false), (1, pod(), 1, true), (1, vec![], 3, false)] {
        let plan = planned(Some(&ordered(generation)), &[], &deleted, consumers);
        let orders = orders(&plan, &ordered(generation));
        assert_eq!((orders, why(&plan, "u1").is_some()), (vec![(UnloadReason::Deleted, expected)], waits));
    }
}

#[test]
fn a_module_made_again_with_another_file_leaves_the_older_entry_until_the_pods_are_gone() {
    let mut again = a_module("drivers", "gpu", "u2");
    changed(&mut again);
    let waiting = planned(Some(&running()), &[READY], &again, pod());
    assert_eq!((waiting.config.clone(), waiting.labels.len()), (ConfigAction::Nothing, 1));
    assert!(why(&waiting, "u2").is_some_and(|(leaves, _)| !leaves));
    let then = planned(Some(&running()), &[], &again, vec![]);
    assert_eq!(orders(&then, &running()), [(UnloadReason::Changed, 1)]);
    assert_eq!(spec(&then, &running()).modules[0].module_uid.as_deref(), Some("u2"));
    // Before it may have an entry of its own, it asks for no room, whether or not the worker has spoken.
    again.meta.finalizers = None;
    for generation in [3, 4] {
        let early = planned(Some(&ConfigView { generation, ..running() }), &[READY], &again, pod());
        assert_eq!((early.config, early.labels.len()), (ConfigAction::Nothing, 0), "{generation}");
    }
}

#[test]
fn where_only_the_label_is_left_the_worker_is_asked_what_it_holds() {
    let deleted = gpu().deleting();
    let empty = a_config(vec![], vec![]);
    let first = planned(None, &[READY], &deleted, pod());
    assert_eq!(orders(&first, &empty), [(UnloadReason::Deleted, 0)], "an order up to no generation takes nothing out");
    assert_eq!(first.labels, [(READY.to_owned(), None)].into());
    let mut config = a_config(vec![], vec![loaded(&entry())]);
    config.spec = spec(&first, &empty);
    for (consumers, expected) in [(pod(), 0), (vec![], 1)] {
        let plan = planned(Some(&config), &[], &deleted, consumers);
        assert_eq!(orders(&plan, &config), [(UnloadReason::Deleted, expected)]);
        assert!(outcome(&plan, "u1").unwrap().holds);
    }
}
