//! Policies, one by one: what they let the worker do, and above all what they keep it from.

use super::*;
use crate::api::NodeModuleSpec;
use crate::api::NodeModulesConfigSpec;
use crate::api::{LoadPolicy, OnChange, OnDrift, OnOtherFile, OnRemoval, UnloadIntent};
use crate::core::kmod::order::Role::{Named, Needed};
use crate::worker::record::kept_plan::KeptPlan;
use crate::worker::testing::{Loaded, World, file, intent, spec};

/// A node on which `drivers/gpu` (kernel module `gpu`, needs `base`) of image `a` is wanted under this policy.
fn gpu(policy: LoadPolicy) -> World {
    let mut world = World::new();
    world.image('a', vec![file("base", "base1", Needed, &[]), file("gpu", "gpu1", Named, &["base"])]);
    world.image('b', vec![file("base", "base1", Needed, &[]), file("gpu", "gpu2", Named, &["base"])]);
    world.image('c', vec![file("net", "net1", Named, &[])]);
    world.desired.modules = vec![NodeModuleSpec { policy: Some(policy), ..spec("gpu", "gpu", 'a', 1) }];
    world
}

fn foreign(world: &World, name: &str, id: &str) {
    world.kernel.with(|modules| {
        modules.insert(name.into(), Loaded { id: id.into(), ..Loaded::default() });
    });
}

#[test]
fn before_the_api_server_answers_nothing_but_the_entries_that_ask_for_it_is_touched_or_forgotten() {
    let mut world = gpu(LoadPolicy { load_at_boot: true, ..LoadPolicy::default() });
    let all = NodeModulesConfigSpec {
        modules: vec![world.desired.modules[0].clone(), spec("net", "net", 'c', 1)],
        unload: vec![],
        ..NodeModulesConfigSpec::default()
    };
    let at_boot = KeptPlan::new("u", 1, all.clone()).at_boot();
    world.desired = at_boot.clone();
    world.scope = Scope::AtBoot;
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.names(), ["base", "gpu"]);
    world.desired = all;
    world.scope = Scope::Everything;
    assert_eq!(world.settle(), ["gpu Loaded Loaded", "net Loaded Loaded"]);

    // In a worker that starts anew, what is recorded and not asked for stays in the record, whatever became of it.
    world.desired = at_boot;
    world.scope = Scope::AtBoot;
    world.restart();
    world.kernel.with(|modules| {
        modules.remove("net");
    });
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.record.entries.len(), 2);
    world.scope = Scope::Everything;
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.record.entries.len(), 1);
}

#[test]
fn a_module_that_somebody_took_out_is_loaded_again_or_reported() {
    for (on_drift, expected, calls) in
        [(OnDrift::Repair, "gpu Loaded Loaded", vec!["+gpu"]), (OnDrift::Report, "gpu Failed Missing", vec![])]
    {
        let mut world = gpu(LoadPolicy { on_drift, ..LoadPolicy::default() });
        // A first load is no drift, nor is one that failed, nor one that a crash cut off.
        world.kernel.fail("gpu", nix::errno::Errno::ENODEV);
        assert_eq!(world.settle(), ["gpu Failed KernelRefused"]);
        world.restart();
        world.kernel.heal();
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert!(world.record.entries[0].complete);
        world.kernel.take_calls();
        world.wait();
        world.kernel.with(|modules| {
            modules.remove("gpu");
        });
        for _ in 0..2 {
            assert_eq!(world.settle(), [expected], "{on_drift}");
            world.restart();
        }
        assert_eq!(world.kernel.take_calls(), calls);
        // Another wish is no drift either, and neither is a change of mind.
        world.desired.modules[0].policy = Some(LoadPolicy::default());
        assert_eq!(world.settle(), ["gpu Loaded Loaded"], "{on_drift}");
    }
}

#[test]
fn a_parameter_that_somebody_changed_is_told_and_nothing_is_done_for_it() {
    for on_drift in OnDrift::ALL.iter().copied() {
        let mut world = gpu(LoadPolicy { on_drift, ..LoadPolicy::default() });
        world.desired.modules[0].config.modprobe.parameters = vec!["level=3".into()];
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        world.kernel.take_calls();
        let set = |world: &World, value: &str| {
            let change = |loaded: &mut Loaded| drop(loaded.parameters.insert("level".into(), value.into()));
            world.kernel.with(|modules| modules.get_mut("gpu").into_iter().for_each(change));
        };
        set(&world, "4");
        assert_eq!(world.settle(), ["gpu Loaded ParametersDiffer"]);
        assert_eq!(world.plan().reports[0].message, "parameters differ: level is `4`, asked for `3`");
        set(&world, "3");
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert_eq!(world.kernel.take_calls(), [""; 0]);
    }
}

#[test]
fn what_is_missing_while_something_else_is_wanted_is_loaded() {
    let mut world = gpu(LoadPolicy { on_drift: OnDrift::Report, ..LoadPolicy::default() });
    world.settle();
    world.kernel.with(|modules| {
        modules.remove("gpu");
    });
    assert_eq!(world.settle(), ["gpu Failed Missing"]);
    let waits = LoadPolicy { on_drift: OnDrift::Report, on_change: OnChange::OnReboot, ..LoadPolicy::default() };
    let report = world.desired.modules[0].policy;
    for (policy, expected) in [(Some(waits), "gpu Failed Missing"), (report, "gpu Loaded Loaded")] {
        world.desired.modules[0] = NodeModuleSpec { policy, ..spec("gpu", "gpu", 'b', 2) };
        assert_eq!(world.settle(), [expected]);
    }
    assert_eq!(world.kernel.id("gpu").as_deref(), Some("gpu2"));
    // Taken out by an order and wanted again: that was no drift.
    world.desired.unload = vec![intent("gpu", 2)];
    world.settle();
    world.desired.unload.clear();
    world.desired.modules[0].generation = Some(3);
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
}

#[test]
fn another_file_that_no_module_brought_is_replaced_where_the_policy_says_so_and_nothing_uses_it() {
    let replace = LoadPolicy { on_other_file: OnOtherFile::Replace, ..LoadPolicy::default() };
    for (id, level, expected, calls) in [
        ("other", "5", "gpu Loaded Loaded", vec!["-gpu", "+base", "+gpu"]),
        ("?", "5", "gpu Loaded Loaded", vec!["-gpu", "+base", "+gpu"]),
        ("gpu1", "7", "gpu Loaded Loaded", vec!["-gpu", "+base", "+gpu"]),
        ("gpu1", "5", "gpu Loaded Adopted", vec![]),
    ] {
        for in_use in [false, true] {
            let mut world = gpu(replace);
            world.desired.modules[0].config.modprobe.parameters = vec!["level=5".into()];
            foreign(&world, "gpu", id);
            world.kernel.with(|modules| {
                let gpu = modules.get_mut("gpu").unwrap();
                gpu.parameters.insert("level".into(), level.into());
                gpu.references = u32::from(in_use);
            });
            let expected = if in_use && !calls.is_empty() { "gpu Failed InUse" } else { expected };
            assert_eq!(world.settle(), [expected], "{id} {level} {in_use}");
            let calls = if in_use { vec![] } else { calls.clone() };
            assert_eq!(world.kernel.take_calls(), calls, "{id} {level} {in_use}");
        }
    }
}

#[test]
fn a_stranger_in_the_place_of_what_was_loaded_is_replaced_and_what_another_module_has_never() {
    let replace = LoadPolicy { on_other_file: OnOtherFile::Replace, ..LoadPolicy::default() };
    let mut world = gpu(replace);
    world.settle();
    world.kernel.take_calls();
    world.wait();
    world.kernel.with(|modules| modules.get_mut("gpu").unwrap().id = "stranger".into());
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["-gpu", "+gpu"]);
    world.desired.modules.push(NodeModuleSpec { policy: Some(replace), ..spec("other", "gpu", 'b', 1) });
    assert_eq!(world.settle(), ["gpu Loaded Loaded", "other Failed Conflict"]);
    // What this Module itself has loaded needs an order, whatever the policy says of strangers.
    world.desired.modules = vec![NodeModuleSpec { policy: Some(replace), ..spec("gpu", "gpu", 'b', 2) }];
    assert_eq!(world.settle(), ["gpu Failed LoadedOtherFile"]);
    assert_eq!(world.kernel.take_calls(), [""; 0]);
}

#[test]
fn a_change_that_waits_for_a_reboot_has_its_image_ready_and_touches_nothing() {
    let waits = LoadPolicy { on_change: OnChange::OnReboot, ..LoadPolicy::default() };
    for parameters in [vec![], vec!["level=9".to_owned()]] {
        let mut world = gpu(waits);
        world.settle();
        world.kernel.take_calls();
        let digest = if parameters.is_empty() { 'b' } else { 'a' };
        let mut next = NodeModuleSpec { policy: Some(waits), ..spec("gpu", "gpu", digest, 2) };
        next.config.modprobe.parameters = parameters;
        world.desired.modules = vec![next];
        assert_eq!(world.settle(), ["gpu Pending WaitingForReboot"]);
        assert_eq!(world.kernel.take_calls(), [""; 0]);
        assert!(world.plan().reports[0].loaded.is_some(), "the older file is told");
        // An order is an order.
        world.desired.unload = vec![intent("gpu", 1)];
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    }
}

#[test]
fn a_kept_module_is_told_as_kept_until_a_module_made_again_takes_it_over() {
    let keep = LoadPolicy { on_removal: OnRemoval::Keep, ..LoadPolicy::default() };
    let mut world = gpu(keep);
    world.settle();
    world.kernel.take_calls();
    let wanted = std::mem::take(&mut world.desired.modules);
    assert_eq!(world.settle(), ["gpu Orphaned Kept"]);
    world.restart();
    assert_eq!(world.settle(), ["gpu Orphaned Kept"]);
    let again = NodeModuleSpec { module_uid: Some("uid-again".into()), ..wanted[0].clone() };
    world.desired.modules = vec![again.clone()];
    assert_eq!(world.settle(), ["gpu Loaded Adopted"]);
    assert_eq!(world.record.entries.len(), 1);
    assert_eq!(world.kernel.take_calls(), [""; 0]);
    // It goes whole with its new owner.
    world.desired.modules.clear();
    world.desired.unload = vec![UnloadIntent { module_uid: "uid-again".into(), ..intent("gpu", 1) }];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.take_calls(), ["-gpu", "-base"]);
}

#[test]
fn a_module_made_again_with_another_file_follows_its_own_policy() {
    for (on_change, expected) in
        [(OnChange::Reload, "gpu Failed LoadedOtherFile"), (OnChange::OnReboot, "gpu Pending WaitingForReboot")]
    {
        let mut world = gpu(LoadPolicy { on_removal: OnRemoval::Keep, ..LoadPolicy::default() });
        world.settle();
        world.kernel.take_calls();
        let policy = Some(LoadPolicy { on_change, ..LoadPolicy::default() });
        let module_uid = Some("uid-again".into());
        world.desired.modules = vec![NodeModuleSpec { module_uid, policy, ..spec("gpu", "gpu", 'b', 1) }];
        let told = world.settle();
        assert!(told.len() == 2 && told.iter().any(|told| told == "gpu Orphaned Kept"), "{told:?}");
        assert!(told.iter().any(|told| told == expected), "{told:?}");
        assert_eq!(world.kernel.take_calls(), [""; 0]);
        world.desired.unload = vec![intent("gpu", 1)];
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert_eq!(world.kernel.take_calls(), ["-gpu", "-base", "+base", "+gpu"]);
    }
}
