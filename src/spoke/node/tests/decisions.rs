//! Decisions of the node planner, one by one. The simulation beside it runs them against a worker.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Taint, Toleration};
use kube::api::ObjectMeta;

use crate::api::{ModuleState, NodeModulesConfigSpec, UnloadIntent, UnloadReason};
use crate::core::kernel::KernelVersion;
use crate::core::taints::parse_toleration;
use crate::spoke::outcome::{Outcome, Standing, Trouble};
use crate::spoke::testing::{DIGEST, KERNEL, ModuleBuilder, a_config, a_module, a_node, an_entry, loaded};
use crate::spoke::view::{ConfigView, ImageFact, ModuleFacts, NodeView};

use super::*;

const OTHER: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn planned(node: NodeView, config: Option<ConfigView>, modules: &[Arc<ModuleFacts>]) -> Plan {
    let here =
        |facts: &Arc<ModuleFacts>| ModuleHere { facts: Arc::clone(facts), want: want(facts, &node, None, &[], None) };
    let modules = modules.iter().map(here).collect();
    plan(&Observed {
        node: Some(Arc::new(node)),
        config: config.map(Arc::new),
        modules,
        consumers: Vec::new(),
        tolerations: Arc::default(),
    })
}

/// The specification that the plan leads to: what is written, else what stands.
fn spec(plan: &Plan, config: Option<&ConfigView>) -> NodeModulesConfigSpec {
    match &plan.config {
        ConfigAction::Apply { spec, .. } => spec.clone(),
        ConfigAction::Nothing => config.map(|config| config.spec.clone()).unwrap_or_default(),
        ConfigAction::Delete { .. } => NodeModulesConfigSpec::default(),
    }
}

fn standing_of(plan: &Plan, uid: &str) -> Standing {
    let outcome = plan.outcomes.as_ref().and_then(|all| all.get(uid));
    outcome.map_or(Standing::Elsewhere, |outcome: &Outcome| outcome.standing.clone())
}

fn intent(reason: UnloadReason, generation: i64) -> UnloadIntent {
    UnloadIntent { generation, module_uid: "u1".into(), name: "gpu".into(), namespace: "drivers".into(), reason }
}

fn taint() -> Taint {
    Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() }
}

fn not_ready() -> Taint {
    Taint { key: "node.kubernetes.io/not-ready".into(), effect: "NoSchedule".into(), ..Taint::default() }
}

#[test]
fn the_worker_is_told_the_container_runtime_of_its_node_and_keeps_it_while_the_node_is_silent() {
    let node = |runtime: &str| NodeView { runtime: runtime.into(), ..a_node() };
    let told = |runtime: &str, config: Option<ConfigView>| {
        spec(&planned(node(runtime), config.clone(), &[gpu().build()]), config.as_ref()).container_runtime
    };
    let known = |runtime: &str| {
        let mut config = running();
        config.spec.container_runtime = Some(runtime.into());
        Some(config)
    };
    assert_eq!(told("containerd://2.1.4", None).as_deref(), Some("containerd://2.1.4"));
    assert_eq!(told("cri-o://1.34.0", known("containerd://2.1.4")).as_deref(), Some("cri-o://1.34.0"));
    assert_eq!(told("", known("containerd://2.1.4")).as_deref(), Some("containerd://2.1.4"));
    assert_eq!(told("", None), None);
}

#[test]
fn a_wanted_module_with_a_pinned_image_gets_an_entry_and_the_node_its_worker() {
    let plan = planned(a_node(), None, &[gpu().build()]);
    let spec = NodeModulesConfigSpec { modules: vec![entry()], unload: Vec::new(), ..NodeModulesConfigSpec::default() };
    let labels = labels_of(&spec, &[]);
    assert_eq!(labels.len(), 2);
    assert_eq!(
        plan.config,
        ConfigAction::Apply { resource_version: None, owner: "node-uid".into(), labels, stale_labels: vec![], spec }
    );
    assert_eq!(plan.labels, [("kmm.node.kubernetes.io/worker".to_owned(), Some(String::new()))].into());
    assert_eq!(standing_of(&plan, "u1"), Standing::Waiting);
}

#[test]
fn whatever_cannot_be_told_leaves_a_loaded_module_alone() {
    type Edit = fn(&mut NodeView, &mut ModuleBuilder);
    let table: [(&str, Edit); 8] = [
        ("nothing happened", |_, _| {}),
        ("cordon or taint", |node, _| node.taints.extend([taint(), not_ready()])),
        ("no mapping", |_, module| module.container().kernel_mappings[0].regexp = Some("^7".into())),
        ("bad mapping", |_, module| module.container().kernel_mappings[0].regexp = Some("(".into())),
        ("no digest", |_, module| module.container().kernel_mappings[0].container_image = "r.example/gpu:v2".into()),
        ("no image name", |_, module| module.container().kernel_mappings[0].container_image = "::".into()),
        ("no kernel told", |node, _| node.kernel = KernelVersion::parse("")),
        ("new kernel without image", |node, module| {
            node.kernel = KernelVersion::parse("6.1.0-2-amd64");
            module.container().kernel_mappings[0].container_image = "r.example/gpu:${KERNEL_FULL_VERSION}".into();
        }),
    ];
    for (what, edit) in table {
        let (mut node, mut module) = (a_node(), gpu());
        edit(&mut node, &mut module);
        let plan = planned(node, Some(running()), &[module.build()]);
        assert_eq!(plan.config, ConfigAction::Nothing, "{what}");
    }
    let vanished = planned(a_node(), Some(running()), &[]);
    assert_eq!(vanished.config, ConfigAction::Nothing, "the Module's object is gone without a trace");
}

#[test]
fn what_is_kept_without_a_digest_or_mapping_is_told() {
    let mut module = gpu();
    module.container().kernel_mappings[0].container_image = "r.example/gpu:v2".into();
    let image = planned(a_node(), Some(running()), &[module.clone().build()]);
    assert!(matches!(standing_of(&image, "u1"), Standing::NoImage(why) if why.message.contains("r.example/gpu:v2")));
    module.container().kernel_mappings[0].regexp = Some("^7".into());
    let mapping = planned(a_node(), Some(running()), &[module.build()]);
    let loaded = Standing::Unmapped { awaits: false, why: no_mapping(KERNEL) };
    assert_eq!(standing_of(&mapping, "u1"), loaded, "what is loaded stays, and nothing is waited for");
}

fn no_mapping(kernel: &str) -> Arc<Trouble> {
    Trouble::new("NoMatchingKernel", format!("no kernel mapping fits {kernel}"))
}

#[test]
fn a_node_that_boots_a_kernel_for_which_nothing_is_ready_waits_and_does_not_fail() {
    let booted = |boot: &str| NodeView { kernel: KernelVersion::parse("7.0.0"), boot_id: boot.into(), ..a_node() };
    let plan = planned(booted("boot-2"), Some(running()), &[gpu().build()]);
    assert_eq!(standing_of(&plan, "u1"), Standing::Unmapped { awaits: true, why: no_mapping("7.0.0") });
    assert_eq!(plan.config, ConfigAction::Nothing);
}

#[test]
fn a_node_that_was_never_asked_does_not_fail() {
    type Edit = fn(&mut NodeView, &mut ModuleBuilder);
    let table: [(&str, Edit); 3] = [
        ("no kernel told", |node, _| node.kernel = KernelVersion::parse("")),
        ("no release in the kernel", |node, module| {
            node.kernel = KernelVersion::parse("custom");
            let mapping = &mut module.container().kernel_mappings[0];
            mapping.regexp = Some("custom".into());
            mapping.container_image = "r.example/gpu:${KERNEL_X}".into();
        }),
        ("bad mapping", |_, module| module.container().kernel_mappings[0].regexp = Some("(".into())),
    ];
    for (what, edit) in table {
        let (mut node, mut module) = (a_node(), gpu());
        edit(&mut node, &mut module);
        let module = module.build();
        let standing = |node| standing_of(&planned(node, None, std::slice::from_ref(&module)), "u1");
        assert!(
            matches!(standing(node.clone()), Standing::Unmapped { awaits: false, .. }),
            "{what}: {:?}",
            standing(node)
        );
        node.taints.push(taint());
        assert!(matches!(standing(node), Standing::Tainted(_)), "{what}");
    }
}

#[test]
fn the_first_placement_waits_for_what_later_makes_no_difference() {
    type Edit = fn(&mut NodeView, &mut ModuleBuilder);
    let tainted = |taint: &str| {
        let way_out = format!("or for every Module with --tolerations (KMM_TOLERATIONS) {taint} of the manager");
        let message = format!("taint {taint} is not tolerated: tolerate it in spec.tolerations, {way_out}");
        Standing::Tainted(Trouble::new("NodesTainted", message))
    };
    let table: [(&str, Edit, Standing); 7] = [
        ("taint", |node, _| node.taints.push(taint()), tainted("node.kubernetes.io/unschedulable:NoSchedule")),
        ("not ready", |node, _| node.taints.push(not_ready()), tainted("node.kubernetes.io/not-ready:NoSchedule")),
        (
            "not ready, tolerated taint",
            |node, module| {
                node.taints.push(not_ready());
                module.spec.tolerations = vec![parse_toleration("node.kubernetes.io/not-ready").unwrap()];
            },
            Standing::Waiting,
        ),
        (
            "tolerated taint",
            |node, module| {
                node.taints.push(taint());
                module.spec.tolerations = vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }];
            },
            Standing::Waiting,
        ),
        (
            "pressure",
            |node, _| {
                let key = "node.kubernetes.io/disk-pressure".to_owned();
                node.taints.push(Taint { key, effect: "NoSchedule".into(), ..Taint::default() });
            },
            Standing::Waiting,
        ),
        ("no finalizer", |_, module| module.meta.finalizers = None, Standing::Waiting),
        (
            "no mapping",
            |node, _| node.kernel = KernelVersion::parse("7.0.0"),
            Standing::Unmapped { awaits: false, why: no_mapping("7.0.0") },
        ),
    ];
    for (what, edit, standing) in table {
        let (mut node, mut module) = (a_node(), gpu());
        edit(&mut node, &mut module);
        let plan = planned(node, None, &[module.build()]);
        let placed = matches!(plan.config, ConfigAction::Apply { .. });
        assert_eq!(
            (placed, standing_of(&plan, "u1")),
            (what.contains("tolerated") || what == "pressure", standing),
            "{what}"
        );
    }
}

#[test]
fn a_taint_that_the_manager_tolerates_for_all_modules_keeps_none_off() {
    let start_up = Taint { key: "example.org/starting".into(), effect: "NoSchedule".into(), ..Taint::default() };
    let node = Arc::new(NodeView { taints: vec![start_up], ..a_node() });
    let facts = gpu().build();
    for (tolerated, placed) in [("example.org/starting:NoSchedule", true), ("example.org/starting:NoExecute", false)] {
        let want = want(&facts, &node, None, &[], None);
        let plan = plan(&Observed {
            node: Some(Arc::clone(&node)),
            config: None,
            modules: vec![ModuleHere { facts: Arc::clone(&facts), want }],
            consumers: Vec::new(),
            tolerations: [parse_toleration(tolerated).unwrap()].into(),
        });
        assert_eq!(matches!(plan.config, ConfigAction::Apply { .. }), placed, "{tolerated}");
    }
}

#[test]
fn only_a_module_that_is_there_and_does_not_want_the_node_makes_an_intent() {
    type Edit = fn(&mut ModuleBuilder);
    let table: [(UnloadReason, Edit); 3] = [
        (UnloadReason::Deleted, |module| *module = module.clone().deleting()),
        (UnloadReason::NoModuleLoader, |module| module.spec.module_loader = None),
        (UnloadReason::NotSelected, |module| module.spec.selector = [("gpu".to_owned(), "yes".to_owned())].into()),
    ];
    for (reason, edit) in table {
        let mut module = gpu();
        module.meta.generation = Some(5);
        edit(&mut module);
        let module = module.build();
        let plan = planned(a_node(), Some(running()), std::slice::from_ref(&module));
        let expected = NodeModulesConfigSpec {
            modules: Vec::new(),
            unload: vec![intent(reason, 5)],
            ..NodeModulesConfigSpec::default()
        };
        assert_eq!(spec(&plan, None), expected, "{reason}");
        assert!(plan.outcomes.as_ref().unwrap()["u1"].holds);
        assert_eq!(planned(a_node(), None, &[module]).config, ConfigAction::Nothing, "{reason}, nothing to lose");
    }
}

#[test]
fn a_module_that_is_evicted_leaves_the_kernel_alone_and_one_whose_deletion_is_not_understood_yet_too() {
    let facts = gpu().deleting().build();
    let planned = |want: Want| {
        plan(&Observed {
            node: Some(Arc::new(a_node())),
            config: Some(Arc::new(running())),
            modules: vec![ModuleHere { facts: Arc::clone(&facts), want }],
            consumers: Vec::new(),
            tolerations: Arc::default(),
        })
    };
    let unclear = planned(Want::Unclear);
    assert_eq!(unclear.config, ConfigAction::Nothing);
    assert!(unclear.outcomes.unwrap()["u1"].holds, "its end waits");
    let evicted = planned(Want::Evicted);
    assert_eq!((spec(&evicted, None), standing_of(&evicted, "u1")), (NodeModulesConfigSpec::default(), Standing::Kept));
    let told = a_config(Vec::new(), vec![loaded(&entry())]);
    let after = plan(&Observed {
        node: Some(Arc::new(a_node())),
        config: Some(Arc::new(told)),
        modules: vec![ModuleHere { facts, want: Want::Evicted }],
        consumers: Vec::new(),
        tolerations: Arc::default(),
    });
    assert!(!after.outcomes.unwrap()["u1"].holds, "and then waits for nobody");
}

#[test]
fn an_intent_ends_when_the_worker_of_this_boot_confirmed_it_and_then_the_object_goes() {
    let gone = gpu().deleting().build();
    let waiting = || {
        let mut config = a_config(Vec::new(), Vec::new());
        config.spec.unload = vec![intent(UnloadReason::Deleted, 1)];
        config.labels = labels_of(&config.spec, &[]);
        config
    };
    type Edit = fn(&mut ConfigView);
    let table: [(&str, Edit, bool); 5] = [
        ("confirmed", |_| {}, true),
        ("seen an older generation", |config| config.report.observed_generation = Some(2), false),
        ("another boot", |config| config.report.boot_id = Some("boot-0".into()), false),
        ("no word at all", |config| config.report = crate::spoke::view::ReportView::default(), false),
        ("still reported", |config| config.report.modules = vec![loaded(&entry())], false),
    ];
    for (what, edit, confirmed) in table {
        let mut config = waiting();
        edit(&mut config);
        config.labels = labels_of(&config.spec, &config.report.modules);
        let plan = planned(a_node(), Some(config), std::slice::from_ref(&gone));
        let deleted = ConfigAction::Delete { uid: "config-uid".into(), resource_version: "7".into() };
        assert_eq!(plan.config, if confirmed { deleted } else { ConfigAction::Nothing }, "{what}");
        // The object still names the Module until it is seen to be gone.
        assert!(plan.outcomes.unwrap()["u1"].holds, "{what}");
    }
    let mut released = a_node();
    released.released = true;
    let plan = planned(released, Some(waiting()), std::slice::from_ref(&gone));
    assert!(plan.outcomes.unwrap().values().all(|outcome| !outcome.holds), "a released node holds nothing up");
}

#[test]
fn a_module_wanted_again_withdraws_the_intent_with_a_newer_generation() {
    let mut config = a_config(Vec::new(), vec![loaded(&entry())]);
    config.spec.unload = vec![intent(UnloadReason::NotSelected, 4)];
    let plan = planned(a_node(), Some(config), &[gpu().build()]);
    let mut again = entry();
    again.generation = Some(5);
    assert_eq!(
        spec(&plan, None),
        NodeModulesConfigSpec { modules: vec![again], unload: Vec::new(), ..NodeModulesConfigSpec::default() }
    );
}

#[test]
fn another_file_or_other_parameters_replace_what_is_loaded() {
    let mut module = gpu();
    module.meta.generation = Some(2);
    module.container().modprobe.parameters = vec!["debug=1".into()];
    let module = module.build();
    let first = planned(a_node(), Some(running()), std::slice::from_ref(&module));
    let mut next = entry();
    next.config.modprobe.parameters = vec!["debug=1".into()];
    next.generation = Some(2);
    let expected = NodeModulesConfigSpec {
        modules: vec![next.clone()],
        unload: vec![intent(UnloadReason::Changed, 1)],
        ..NodeModulesConfigSpec::default()
    };
    assert_eq!(spec(&first, None), expected);

    // Nothing more happens until the worker says so; then the intent goes.
    let mut config = running();
    config.spec = expected.clone();
    config.labels = labels_of(&config.spec, &config.report.modules);
    config.generation = 4;
    let waiting = planned(a_node(), Some(config.clone()), std::slice::from_ref(&module));
    assert_eq!((waiting.config, standing_of(&first, "u1")), (ConfigAction::Nothing, Standing::Waiting));
    config.report.modules = vec![loaded(&next)];
    config.report.observed_generation = Some(4);
    let done = planned(a_node(), Some(config), std::slice::from_ref(&module));
    assert_eq!(
        spec(&done, None),
        NodeModulesConfigSpec { modules: vec![next], unload: Vec::new(), ..NodeModulesConfigSpec::default() }
    );
}

#[test]
fn what_only_concerns_the_way_to_the_image_reloads_nothing() {
    let mut module = gpu();
    module.meta.generation = Some(9);
    module.container().image_pull_policy = Some("Always".into());
    module.spec.image_repo_secret = Some(k8s_openapi::api::core::v1::LocalObjectReference { name: "s".into() });
    let plan = planned(a_node(), Some(running()), &[module.build()]);
    let spec = spec(&plan, None);
    assert_eq!((spec.modules[0].generation, spec.unload.len()), (Some(1), 0));
    assert_eq!(spec.modules[0].config.image_pull_policy, "Always");
    assert_eq!(standing_of(&plan, "u1"), Standing::Available);
}

#[test]
fn a_new_kernel_with_an_image_gets_an_entry_and_nothing_is_unloaded() {
    let mut node = a_node();
    node.kernel = KernelVersion::parse("6.1.0-2-amd64");
    node.boot_id = "boot-2".into();
    let plan = planned(node, Some(running()), &[gpu().build()]);
    let spec = spec(&plan, None);
    assert_eq!((spec.modules[0].config.kernel_version.as_str(), spec.unload.len()), ("6.1.0-2-amd64", 0));
}

#[test]
fn an_entry_of_the_pod_based_operator_is_taken_over_without_an_intent() {
    let mut old = entry();
    old.module_uid = None;
    old.generation = None;
    old.config.container_image = "registry.example/gpu:v1".into();
    let mut report = loaded(&old);
    report.state = None;
    report.observed_generation = None;
    let mut config = a_config(vec![old], vec![report]);
    config.report.boot_id = None;
    let plan = planned(a_node(), Some(config), &[gpu().build()]);
    assert_eq!(
        spec(&plan, None),
        NodeModulesConfigSpec { modules: vec![entry()], unload: Vec::new(), ..NodeModulesConfigSpec::default() }
    );
    assert!(plan.labels.keys().all(|key| key.strip_suffix(".ready").is_none()));
}

#[test]
fn a_module_made_again_under_its_name_takes_over_and_replaces_only_another_file() {
    let again = a_module("drivers", "gpu", "u2");
    let same = planned(a_node(), Some(running()), &[again.clone().build()]);
    let taken = spec(&same, None);
    assert_eq!((taken.modules.len(), taken.modules[0].module_uid.as_deref(), taken.unload), (1, Some("u2"), vec![]));
    let mut other = again;
    other.container().kernel_mappings[0].container_image = format!("registry.example/gpu@{OTHER}");
    let other = planned(a_node(), Some(running()), &[other.build()]);
    assert_eq!(spec(&other, None).unload, [intent(UnloadReason::Changed, 1)]);
}

#[test]
fn two_modules_of_one_name_in_two_namespaces_do_not_meet() {
    let modules = [gpu().build(), a_module("other", "gpu", "u2").build()];
    let entries = vec![entry(), an_entry("other", "gpu", "u2")];
    let plan = planned(a_node(), None, &modules);
    assert_eq!(spec(&plan, None).modules, entries);
    let config = a_config(entries.clone(), entries.iter().map(loaded).collect());
    let one = planned(a_node(), Some(config), &[gpu().deleting().build(), Arc::clone(&modules[1])]);
    let expected = NodeModulesConfigSpec {
        modules: vec![entries[1].clone()],
        unload: vec![intent(UnloadReason::Deleted, 1)],
        ..NodeModulesConfigSpec::default()
    };
    assert_eq!(spec(&one, None), expected);
}

#[test]
fn an_unreadable_module_keeps_what_it_has_on_every_node() {
    let view = crate::spoke::view::ModuleView { facts: gpu().build(), status: crate::api::ModuleStatus::default() };
    let meta = gpu().meta;
    let kept = <crate::spoke::view::ModuleView as crate::runtime::store::Projection>::unreadable;
    let unreadable = kept(&meta, "bad", Some(&view)).unwrap();
    let plan = planned(a_node(), Some(running()), &[unreadable.facts]);
    assert_eq!(plan.config, ConfigAction::Nothing);
    assert!(matches!(standing_of(&plan, "u1"), Standing::Failing(why) if why.reason == "InvalidSpec"));
}

#[test]
fn a_module_that_was_never_read_keeps_what_it_has_and_its_deletion_takes_it_from_nodes() {
    let never_read = |module: ModuleBuilder| {
        let view = <crate::spoke::view::ModuleView as crate::runtime::store::Projection>::unreadable;
        view(&module.meta, "bad", None).unwrap().facts
    };
    let mut node = a_node();
    for key in ["drivers.gpu.ready", "worker"] {
        node.labels.insert(format!("kmm.node.kubernetes.io/{key}"), String::new());
    }
    let stands = planned(node.clone(), Some(running()), &[never_read(gpu())]);
    assert_eq!((stands.config.clone(), stands.labels.len()), (ConfigAction::Nothing, 0));
    assert!(stands.outcomes.unwrap()["u1"].holds, "its end waits for what stands");
    assert_eq!(planned(a_node(), None, &[never_read(gpu())]).config, ConfigAction::Nothing);

    let leaves = planned(node, Some(running()), &[never_read(gpu().deleting())]);
    let expected =
        NodeModulesConfigSpec { unload: vec![intent(UnloadReason::Deleted, 1)], ..NodeModulesConfigSpec::default() };
    assert_eq!(spec(&leaves, None), expected);
    let nowhere = planned(a_node(), None, &[never_read(gpu().deleting())]);
    assert_eq!((nowhere.config, nowhere.outcomes), (ConfigAction::Nothing, Some([].into())));
}

#[test]
fn an_object_that_was_never_readable_is_left_alone_and_what_it_may_name_waits() {
    let in_use = "beta.kmm.node.kubernetes.io/drivers.gpu.module-in-use";
    let never_read = |labels: &[&str]| {
        let meta = ObjectMeta {
            uid: Some("config-uid".into()),
            labels: Some(labels.iter().map(|key| ((*key).to_owned(), String::new())).collect()),
            ..ObjectMeta::default()
        };
        <ConfigView as crate::runtime::store::Projection>::unreadable(&meta, "bad", None)
    };
    let holds = |plan: &Plan| plan.outcomes.as_ref().is_some_and(|all| all.values().any(|outcome| outcome.holds));
    let wanted = planned(a_node(), never_read(&[]), &[gpu().build()]);
    assert_eq!((&wanted.config, wanted.labels.len()), (&ConfigAction::Nothing, 0));
    assert!(matches!(standing_of(&wanted, "u1"), Standing::Failing(why) if why.reason == "Unreadable"));
    for (labels, held) in [(&[in_use][..], true), (&[][..], false)] {
        let gone = planned(a_node(), never_read(labels), &[gpu().deleting().build()]);
        assert_eq!((&gone.config, holds(&gone)), (&ConfigAction::Nothing, held), "{labels:?}");
    }
    let unreadable = <ConfigView as crate::runtime::store::Projection>::unreadable;
    let meta = ObjectMeta { uid: Some("config-uid".into()), ..ObjectMeta::default() };
    assert_eq!(unreadable(&meta, "bad", Some(&running())), None, "it counts as it was read last");
}

#[test]
fn an_object_of_an_earlier_node_is_removed_and_one_of_a_gone_node_left_to_its_owner() {
    let mut node = a_node();
    node.uid = "node-2".into();
    let removed = ConfigAction::Delete { uid: "config-uid".into(), resource_version: "7".into() };
    assert_eq!(planned(node, Some(running()), &[gpu().build()]).config, removed);
    let without_node = |config: ConfigView| {
        let config = Some(Arc::new(config));
        plan(&Observed { node: None, config, modules: Vec::new(), consumers: Vec::new(), tolerations: Arc::default() })
    };
    assert_eq!(without_node(running()).config, ConfigAction::Nothing);
    assert_eq!(without_node(ConfigView { owner: None, ..running() }).config, removed);
}

#[test]
fn a_failure_is_told_with_the_words_of_the_worker() {
    let mut report = loaded(&entry());
    report.state = Some(ModuleState::Failed);
    report.reason = Some("SymbolMissing".into());
    report.message = Some("symbol foo is missing".into());
    let config = a_config(vec![entry()], vec![report.clone()]);
    let plan = planned(a_node(), Some(config), &[gpu().build()]);
    let Standing::Failing(why) = standing_of(&plan, "u1") else { panic!("{plan:?}") };
    assert_eq!((why.reason.as_str(), why.message.as_str()), ("SymbolMissing", "symbol foo is missing"));

    report.state = Some(ModuleState::UnloadFailed);
    report.reason = Some("InUse".into());
    let mut config = a_config(Vec::new(), vec![report]);
    config.spec.unload = vec![intent(UnloadReason::Deleted, 1)];
    let stuck = super::super::plan(&Observed {
        node: Some(Arc::new(a_node())),
        config: Some(Arc::new(config)),
        modules: vec![ModuleHere { facts: gpu().deleting().build(), want: Want::Gone(UnloadReason::Deleted) }],
        consumers: Vec::new(),
        tolerations: Arc::default(),
    });
    assert!(matches!(standing_of(&stuck, "u1"), Standing::Stuck(why) if why.reason == "InUse"));
}

#[test]
fn an_image_is_pinned_by_the_digest_that_was_looked_up_for_its_kernel() {
    use crate::api::{ImageState, ImageStatus};
    use crate::core::pin::{Pinned, source_id};
    use crate::spoke::view::ImagesView;
    let state = |kernel: &str, digest: Option<&str>, reason: &str| ImageState {
        image: "r.example/gpu:v1".into(),
        kernel_version: Some(kernel.into()),
        digest: digest.map(str::to_owned),
        reason: Some(reason.into()),
        status: if digest.is_some() { ImageStatus::Exists } else { ImageStatus::Unknown },
        ..ImageState::default()
    };
    let images = ImagesView {
        states: vec![state("a", Some(DIGEST), "Resolved"), state("b", None, "Unauthorized")],
        ..ImagesView::default()
    };
    let of = |image: &str, kernel: &str| ImageFact::of(image, kernel, None, Some(&images), None);
    let pinned =
        |digest: &str, source: String| ImageFact::Pinned(Pinned { image: format!("r.example/gpu@{digest}"), source });
    let source = source_id("r.example/gpu:v1", None);
    assert_eq!(of("r.example/gpu:v1", "a"), pinned(DIGEST, source.clone()));
    assert!(matches!(of("r.example/gpu:v1", "b"), ImageFact::Missing { reason: "Unauthorized", .. }));
    assert!(matches!(of("r.example/gpu:v1", "c"), ImageFact::Missing { reason: "Pending", .. }));
    assert!(matches!(of("R.example//gpu", "a"), ImageFact::Missing { reason: "InvalidReference", .. }));
    assert_eq!(of(&format!("r.example/gpu:v1@{OTHER}"), "a"), pinned(OTHER, String::new()));
    // The other digest stands already: the tag has moved, or what was known was lost and looked up again.
    let other = format!("r.example/gpu@{OTHER}");
    let again = |trigger, images| ImageFact::of("r.example/gpu:v1", "a", trigger, images, Some((&*other, &*source)));
    for images in [Some(&images), None] {
        assert_eq!(again(None, images), pinned(OTHER, source.clone()));
    }
    assert_eq!(again(Some(1), Some(&images)), pinned(OTHER, source.clone()), "triggered and not looked up again yet");
    let answered = ImagesView { trigger: Some(1), ..images.clone() };
    assert_eq!(again(Some(1), Some(&answered)), pinned(DIGEST, source_id("r.example/gpu:v1", Some(1))));
}
