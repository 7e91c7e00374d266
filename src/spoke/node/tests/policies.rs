//! What the policies of a Module let the planner order.

use std::sync::Arc;

use crate::api::names::NodeReason;
use crate::api::{
    LoadPolicy, ModuleState, NodeModuleSpec, NodeModuleStatus, NodeModulesConfigSpec, OnChange, OnRemoval,
    UnloadIntent, UnloadReason,
};
use crate::spoke::outcome::Standing;
use crate::spoke::testing::{ModuleBuilder, a_config, a_module, a_node, an_entry, loaded};
use crate::spoke::view::{ConfigView, ModuleFacts};

use super::*;

const READY: &str = "kmm.node.kubernetes.io/drivers.gpu.ready";
const VERSION: &str = "kmm.node.kubernetes.io/drivers.gpu.version.ready";

#[allow(clippy::unnecessary_wraps, reason = "what an entry holds")]
fn policy(on_change: OnChange, on_removal: OnRemoval) -> Option<LoadPolicy> {
    Some(LoadPolicy { on_change, on_removal, ..LoadPolicy::default() })
}

fn gpu(policy: Option<LoadPolicy>) -> ModuleBuilder {
    let mut module = a_module("drivers", "gpu", "u1");
    module.spec.module_loader.get_or_insert_default().policy = policy;
    module
}

/// The same with another parameter, generation 2.
fn changed(policy: Option<LoadPolicy>) -> ModuleBuilder {
    let mut module = gpu(policy);
    module.meta.generation = Some(2);
    module.container().modprobe.parameters = vec!["debug=1".into()];
    module
}

fn entry(policy: Option<LoadPolicy>) -> NodeModuleSpec {
    NodeModuleSpec { policy, version: Some("1.0".into()), ..an_entry("drivers", "gpu", "u1") }
}

fn reported(entry: &NodeModuleSpec, state: ModuleState, reason: NodeReason) -> NodeModuleStatus {
    let reason = Some(reason.as_str().to_owned());
    NodeModuleStatus { state: Some(state), reason, version: Some("1.0".into()), ..loaded(entry) }
}

fn planned(config: &ConfigView, modules: &[Arc<ModuleFacts>]) -> Plan {
    let mut node = a_node();
    for key in [READY, VERSION, "kmm.node.kubernetes.io/worker"] {
        let value = if key == VERSION { "1.0" } else { "" };
        node.labels.insert(key.into(), value.into());
    }
    let here =
        |facts: &Arc<ModuleFacts>| ModuleHere { facts: Arc::clone(facts), want: want(facts, &node, None, &[], None) };
    let modules = modules.iter().map(here).collect();
    plan(&Observed {
        node: Some(Arc::new(node)),
        config: Some(Arc::new(config.clone())),
        modules,
        consumers: Vec::new(),
        tolerations: Arc::default(),
    })
}

/// The specification that the plan leads to, and the world in which the worker has not yet looked at it.
fn carried_out(plan: &Plan, config: &ConfigView) -> ConfigView {
    let mut next = config.clone();
    if let ConfigAction::Apply { spec, labels, .. } = &plan.config {
        next.generation += 1;
        next.spec = spec.clone();
        next.labels = labels.clone();
    }
    next
}

/// The world in which the worker has said this about the present specification.
fn told(mut config: ConfigView, reports: Vec<NodeModuleStatus>) -> ConfigView {
    config.report.observed_generation = Some(config.generation);
    config.report.modules = reports;
    config.labels = labels_of(&config.spec, &config.report.modules);
    config
}

fn standing_of(plan: &Plan, uid: &str) -> Standing {
    plan.outcomes.as_ref().and_then(|all| all.get(uid)).map_or(Standing::Elsewhere, |outcome| outcome.standing.clone())
}

fn holds(plan: &Plan, uid: &str) -> bool {
    plan.outcomes.as_ref().and_then(|all| all.get(uid)).is_some_and(|outcome| outcome.holds)
}

fn intent(reason: UnloadReason, generation: i64) -> UnloadIntent {
    UnloadIntent { generation, module_uid: "u1".into(), name: "gpu".into(), namespace: "drivers".into(), reason }
}

#[test]
fn a_change_that_waits_for_a_reboot_orders_nothing_and_the_older_file_stays_ready_under_its_version() {
    let waits = policy(OnChange::OnReboot, OnRemoval::Unload);
    let old = entry(waits);
    let running =
        told(a_config(vec![old.clone()], vec![]), vec![reported(&old, ModuleState::Loaded, NodeReason::Loaded)]);
    let mut module = changed(waits);
    module.container().version = Some("2.0".into());
    let module = module.build();

    // From the moment at which the change is written until the worker has spoken of it, and from then on.
    let first = planned(&running, std::slice::from_ref(&module));
    let written = carried_out(&first, &running);
    assert_eq!((written.spec.modules[0].generation, written.spec.unload.as_slice()), (Some(2), [].as_slice()));
    let new = written.spec.modules[0].clone();
    let waiting = NodeModuleStatus {
        observed_generation: Some(2),
        ..reported(&old, ModuleState::Pending, NodeReason::WaitingForReboot)
    };
    for config in [written.clone(), told(written.clone(), vec![waiting.clone()])] {
        let plan = planned(&config, std::slice::from_ref(&module));
        assert_eq!((plan.config.clone(), plan.labels.clone()), (ConfigAction::Nothing, [].into()));
        assert_eq!(standing_of(&plan, "u1"), Standing::WaitingForReboot);
    }
    assert!(first.labels.is_empty());

    // A boot later the new file is loaded, and ready under its own version.
    let config = told(written.clone(), vec![loaded(&new)]);
    let plan = planned(&config, std::slice::from_ref(&module));
    assert_eq!(plan.labels, [(VERSION.to_owned(), Some("2.0".to_owned()))].into());
    assert_eq!(standing_of(&plan, "u1"), Standing::Available);

    // The order to replace it at once is to say so in the policy.
    let config = told(written, vec![waiting]);
    let mut hurried = changed(policy(OnChange::Reload, OnRemoval::Unload));
    hurried.container().version = Some("2.0".into());
    let plan = planned(&config, &[hurried.build()]);
    let spec = carried_out(&plan, &config).spec;
    assert_eq!((spec.unload, spec.modules[0].generation), (vec![intent(UnloadReason::Changed, 2)], Some(3)));
    assert_eq!(plan.labels, [(READY.to_owned(), None), (VERSION.to_owned(), None)].into());
}

#[test]
fn a_replacement_that_has_not_happened_is_called_off_by_the_policy() {
    let old = entry(None);
    let mut config =
        told(a_config(vec![old.clone()], vec![]), vec![reported(&old, ModuleState::Loaded, NodeReason::Loaded)]);
    config.spec.modules = vec![NodeModuleSpec { generation: Some(2), ..old }];
    config.spec.modules[0].config.modprobe.parameters = vec!["debug=1".into()];
    config.spec.unload = vec![intent(UnloadReason::Changed, 1)];
    let plan = planned(&config, &[changed(policy(OnChange::OnReboot, OnRemoval::Unload)).build()]);
    let spec = carried_out(&plan, &config).spec;
    assert_eq!((spec.unload, spec.modules[0].generation), (vec![], Some(2)));
}

#[test]
fn a_kept_module_is_left_by_its_entry_without_an_order_and_its_module_does_not_wait() {
    type Edit = fn(&mut ModuleBuilder);
    let table: [(&str, Edit); 3] = [
        ("deleted", |module| *module = module.clone().deleting()),
        ("not selected", |module| module.spec.selector = [("gpu".to_owned(), "yes".to_owned())].into()),
        ("no moduleLoader", |module| module.spec.module_loader = None),
    ];
    for (what, edit) in table {
        let keep = policy(OnChange::Reload, OnRemoval::Keep);
        let old = entry(keep);
        let config =
            told(a_config(vec![old.clone()], vec![]), vec![reported(&old, ModuleState::Loaded, NodeReason::Loaded)]);
        let mut module = gpu(keep);
        edit(&mut module);
        let module = module.build();
        let first = planned(&config, std::slice::from_ref(&module));
        let config = carried_out(&first, &config);
        assert_eq!(config.spec, NodeModulesConfigSpec::default(), "{what}");
        assert_eq!(first.labels, [(READY.to_owned(), None), (VERSION.to_owned(), None)].into(), "{what}");
        assert!(holds(&first, "u1"), "{what}: until the entry is seen to be gone");

        let second = planned(&config, std::slice::from_ref(&module));
        assert_eq!(second.config, ConfigAction::Nothing, "{what}: before the worker has spoken");
        let config = told(config, vec![reported(&old, ModuleState::Orphaned, NodeReason::Kept)]);
        let third = planned(&config, std::slice::from_ref(&module));
        assert_eq!(
            (third.config.clone(), standing_of(&third, "u1")),
            (ConfigAction::Nothing, Standing::Kept),
            "{what}"
        );
        assert!(!holds(&third, "u1"), "{what}");
        // Its Module gone for good, the object stays until the node has booted and the worker has nothing to tell.
        assert_eq!(planned(&config, &[]).config, ConfigAction::Nothing, "{what}");
        let booted = told(config, vec![]);
        assert!(matches!(planned(&booted, &[]).config, ConfigAction::Delete { .. }), "{what}");
    }
}

#[test]
fn the_policy_counts_as_it_is_when_the_module_leaves() {
    let (keep, unload) = (policy(OnChange::Reload, OnRemoval::Keep), policy(OnChange::Reload, OnRemoval::Unload));
    for (loaded_under, deleted_under, order) in [(keep, unload, true), (unload, keep, false)] {
        let old = entry(loaded_under);
        let config =
            told(a_config(vec![old.clone()], vec![]), vec![reported(&old, ModuleState::Loaded, NodeReason::Loaded)]);
        // A policy alone changes the entry and not its generation: the kernel is not touched.
        let edited = carried_out(&planned(&config, &[gpu(deleted_under).build()]), &config).spec;
        assert_eq!((edited.modules[0].policy, edited.modules[0].generation), (deleted_under, Some(1)));
        assert_eq!(edited.unload, []);
        let gone = carried_out(&planned(&config, &[gpu(deleted_under).deleting().build()]), &config).spec;
        assert_eq!(!gone.unload.is_empty(), order);
    }
    // An order that cannot be carried out is called off by it, so that a deletion can end.
    let mut config = a_config(vec![], vec![reported(&entry(unload), ModuleState::UnloadFailed, NodeReason::InUse)]);
    config.spec.unload = vec![intent(UnloadReason::Deleted, 1)];
    let plan = planned(&config, &[gpu(keep).deleting().build()]);
    assert_eq!(carried_out(&plan, &config).spec, NodeModulesConfigSpec::default());
}

#[test]
fn without_a_module_loader_the_policy_is_asked_of_the_worker() {
    let mut bare = gpu(None);
    bare.spec.module_loader = None;
    let bare = bare.build();
    // The object was lost with the policy in it; only the label says that there was something.
    let lost =
        ConfigView { generation: 1, report: crate::spoke::view::ReportView::default(), ..a_config(vec![], vec![]) };
    let plan = planned(&lost, std::slice::from_ref(&bare));
    let asked = carried_out(&plan, &lost);
    assert_eq!(asked.spec.unload, [intent(UnloadReason::NoModuleLoader, 0)], "an order up to no generation only asks");
    for (reason, next) in
        [(NodeReason::Kept, vec![]), (NodeReason::NotWanted, vec![intent(UnloadReason::NoModuleLoader, 1)])]
    {
        let mut config = asked.clone();
        config.report.boot_id = Some("boot-1".into());
        let config = told(config, vec![reported(&entry(None), ModuleState::Orphaned, reason)]);
        let plan = planned(&config, std::slice::from_ref(&bare));
        assert_eq!(carried_out(&plan, &config).spec.unload, next, "{reason}");
    }
    // A policy that the worker may not have in its record yet gets there before the entry goes.
    let keep = entry(policy(OnChange::Reload, OnRemoval::Keep));
    let mut config =
        told(a_config(vec![keep.clone()], vec![]), vec![reported(&keep, ModuleState::Loaded, NodeReason::Loaded)]);
    config.generation += 1;
    let plan = planned(&config, std::slice::from_ref(&bare));
    assert_eq!((plan.config.clone(), holds(&plan, "u1")), (ConfigAction::Nothing, true));
}

#[test]
fn a_module_made_again_adopts_what_was_kept_or_replaces_it_by_its_own_policy() {
    let kept = reported(&entry(policy(OnChange::Reload, OnRemoval::Keep)), ModuleState::Orphaned, NodeReason::Kept);
    let config = a_config(vec![], vec![kept]);
    for (on_change, differs, orders) in [
        (OnChange::Reload, false, vec![]),
        (OnChange::Reload, true, vec![intent(UnloadReason::Changed, 1)]),
        (OnChange::OnReboot, true, vec![]),
    ] {
        let policy = policy(on_change, OnRemoval::Unload);
        let mut again = if differs { changed(policy) } else { gpu(policy) };
        again.meta.uid = Some("u2".into());
        let again = again.build();
        let plan = planned(&config, std::slice::from_ref(&again));
        let next = carried_out(&plan, &config);
        assert_eq!(
            (next.spec.unload.as_slice(), next.spec.modules.len()),
            (orders.as_slice(), 1),
            "{on_change} {differs}"
        );
        assert_eq!(planned(&next, &[again]).config, ConfigAction::Nothing, "{on_change} {differs}");
    }
}
