//! In-tree modules make room and come back, when and only when the Module asks for it.

use crate::api::NodeModuleSpec;
use crate::api::UnloadReason;
use crate::worker::record::Record;
use k8s_openapi::api::core::v1::Toleration;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::api::{LoadPolicy, UnloadIntent};
use crate::core::kmod::order::Role::Named;
use crate::worker::testing::{Loaded, World, file, intent, spec};

fn asking(module: &str, digest: char, in_tree: &[&str], restore: bool) -> NodeModuleSpec {
    let mut spec = spec(module, module, digest, 1);
    spec.config.in_tree_modules_to_remove = in_tree.iter().map(|name| (*name).to_owned()).collect();
    spec.policy = Some(LoadPolicy { restore_in_tree_modules: restore, ..LoadPolicy::default() });
    spec
}

fn removal(module: &str) -> UnloadIntent {
    UnloadIntent { reason: UnloadReason::Deleted, ..intent(module, 1) }
}

/// A node that runs the kernel's own `old_gpu`, which uses its own `lib`; `drivers/gpu` wants both gone.
fn node(restore: bool) -> World {
    let mut world = World::new();
    world.image('a', vec![file("gpu", "gpu1", Named, &[])]);
    world.image('b', vec![file("net", "net1", Named, &[])]);
    world.kernel.own.lock().unwrap().extend([
        ("lib".to_owned(), vec![]),
        ("old_gpu".to_owned(), vec!["lib".to_owned()]),
        ("gpu".to_owned(), vec![]),
    ]);
    world.kernel.with(|modules| {
        modules.insert("lib".into(), Loaded { id: "own".into(), ..Loaded::default() });
        let parameters =
            BTreeMap::from([("level".to_owned(), "3".to_owned()), ("none".to_owned(), "(null)".to_owned())]);
        modules.insert(
            "old_gpu".into(),
            Loaded { id: "own".into(), needs: vec!["lib".into()], parameters, ..Loaded::default() },
        );
    });
    world.desired.modules = vec![asking("gpu", 'a', &["lib", "old-gpu"], restore)];
    world
}

#[test]
fn what_made_room_comes_back_as_it_was_after_the_module_left_for_good() {
    let mut world = node(true);
    world.round(&CancellationToken::new());
    assert_eq!(
        world.next_steps(),
        [
            "memory 16",
            "take out old_gpu",
            "take out lib",
            "on failure 2 steps",
            "unload old_gpu",
            "unload lib",
            "write gpu",
            "load gpu"
        ]
    );
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    world.restart();
    world.desired.modules.clear();
    world.desired.unload = vec![removal("gpu")];
    assert_eq!(
        world.next_steps(),
        ["unload gpu", "put back lib", "put back old_gpu", "forget taken lib old_gpu", "forget gpu"]
    );
    world.kernel.take_calls();
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.take_calls(), ["-gpu", "+lib", "+old_gpu"]);
    world.kernel.with(|modules| {
        assert_eq!(modules["old_gpu"].parameters, BTreeMap::from([("level".to_owned(), "3".to_owned())]));
    });
    assert_eq!(world.record.in_tree, []);
}

#[test]
fn without_being_asked_for_or_for_a_mere_change_nothing_comes_back() {
    let mut world = node(false);
    world.settle();
    world.desired.modules.clear();
    world.desired.unload = vec![removal("gpu")];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!((world.kernel.names().len(), world.record.in_tree.len()), (0, 0));
    // An order that only makes room for another file is no removal; what is known is kept for the one that is.
    let mut world = node(true);
    world.settle();
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!((world.kernel.names().len(), world.record.in_tree.len()), (0, 2));
    world.desired.modules =
        vec![NodeModuleSpec { generation: Some(2), ..asking("gpu", 'a', &["lib", "old-gpu"], true) }];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    world.desired.modules.clear();
    world.desired.unload = vec![UnloadIntent { generation: 2, ..removal("gpu") }];
    world.settle();
    assert_eq!(world.kernel.names(), ["lib", "old_gpu"]);
}

#[test]
fn the_kernels_own_module_of_the_same_name_comes_back_too() {
    let mut world = node(true);
    world.kernel.with(|modules| {
        modules.clear();
        modules.insert("gpu".into(), Loaded { id: "own".into(), ..Loaded::default() });
    });
    world.desired.modules = vec![asking("gpu", 'a', &["gpu"], true)];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.id("gpu").as_deref(), Some("gpu1"));
    world.desired.modules.clear();
    world.desired.unload = vec![removal("gpu")];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.id("gpu").as_deref(), Some("own"));
}

#[test]
fn the_kernels_own_comes_back_before_anything_else_is_tidied_up() {
    let mut world = node(true);
    world.kernel.published.lock().unwrap().writable = true;
    world.kernel.with(|modules| {
        modules.clear();
        modules.insert("gpu".into(), Loaded { id: "own".into(), ..Loaded::default() });
    });
    let mut wanted = asking("gpu", 'a', &["gpu"], true);
    wanted.policy = wanted.policy.map(|policy| LoadPolicy { publish_on_host: true, ..policy });
    world.desired.modules = vec![wanted];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    world.desired.modules.clear();
    world.desired.unload = vec![removal("gpu")];
    let steps =
        ["unload gpu", "put back gpu", "forget taken gpu", "unpublish drivers.gpu", "index 6.12.1+", "forget gpu"];
    assert_eq!(world.next_steps(), steps);
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.id("gpu").as_deref(), Some("own"));
}

#[test]
fn what_another_module_wants_gone_stays_out_until_that_one_leaves() {
    let mut world = node(true);
    world.desired.modules.push(asking("net", 'b', &["lib", "old_gpu"], true));
    assert_eq!(world.settle(), ["gpu Loaded Loaded", "net Loaded Loaded"]);
    world.desired.modules.remove(0);
    world.desired.unload = vec![removal("gpu")];
    assert_eq!(world.settle(), ["net Loaded Loaded"]);
    assert_eq!(world.kernel.names(), ["net"]);
    world.desired.modules.clear();
    world.desired.unload = vec![removal("net")];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.names(), ["lib", "old_gpu"]);
}

#[test]
fn a_load_that_fails_gives_the_node_its_own_module_back() {
    let mut world = node(true);
    world.kernel.fail("gpu", Errno::ENODEV);
    assert_eq!(world.settle(), ["gpu Failed KernelRefused"]);
    assert_eq!(world.kernel.names(), ["lib", "old_gpu"]);
    world.kernel.heal();
    world.wait();
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.names(), ["gpu"]);
    let mut silent = node(false);
    silent.kernel.fail("gpu", Errno::ENODEV);
    silent.settle();
    assert_eq!(silent.kernel.names(), [""; 0]);
}

#[test]
fn a_load_that_fails_gives_it_back_also_while_the_worker_ends() {
    let mut world = node(true);
    world.round(&CancellationToken::new());
    world.kernel.fail("gpu", Errno::ENODEV);
    let shutdown = world.kernel.tells_after("-lib");
    world.round(&shutdown);
    assert_eq!(world.kernel.take_calls(), ["-old_gpu", "-lib", "+lib", "+old_gpu"]);
}

#[test]
fn what_is_taken_back_while_room_is_made_for_it_is_told_until_then_and_not_loaded() {
    let mut world = node(true);
    world.round(&CancellationToken::new());
    let plan = world.plan();
    let (job, reach) = startable(plan.jobs.clone(), &world.record, []).remove(0);
    world.running.insert(job.owner.clone(), RunningJob::of(&job, reach, world.now));
    world.desired.modules.clear();
    world.desired.unload = vec![removal("gpu")];
    let told = world.plan();
    let reports: Vec<_> = told.reports.iter().map(|report| (report.state, report.generation)).collect();
    assert_eq!(reports, [(ModuleState::Loading, Some(1))], "it is not gone yet");
    assert_eq!(told.taken_back, BTreeSet::from([job.owner]));

    world.taken_back = world.kernel.tells_after("-old_gpu");
    world.carry_out(&plan, &CancellationToken::new());
    assert_eq!(world.kernel.take_calls(), ["-old_gpu", "+old_gpu"]);
    world.running.clear();
    world.taken_back = CancellationToken::new();
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.names(), ["lib", "old_gpu"]);
    assert_eq!(world.record, Record::new("boot-1"));
}

#[test]
fn one_that_cannot_come_back_is_told_and_does_not_hold_the_removal_up_for_ever() {
    let mut world = node(true);
    world.settle();
    world.kernel.fail("old_gpu", Errno::ENODEV);
    world.desired.modules.clear();
    world.desired.unload = vec![removal("gpu")];
    for _ in 0..3 {
        assert_eq!(world.settle(), ["gpu UnloadFailed InTreeModuleNotRestored"]);
        assert!(world.plan().reports[0].message.contains("old_gpu"), "{:?}", world.plan().reports);
        assert_eq!(world.kernel.names(), ["lib"]);
        world.wait();
    }
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.record, Record::new("boot-1"));
}

#[test]
fn what_made_room_for_a_load_that_never_came_to_the_record_comes_back() {
    for steps in 0..8 {
        let mut world = node(true);
        world.round(&CancellationToken::new());
        let mut plan = world.plan();
        plan.jobs.iter_mut().for_each(|job| job.steps.truncate(steps));
        world.carry_out(&plan, &CancellationToken::new());
        world.restart();
        world.desired.modules.clear();
        world.desired.unload = vec![removal("gpu")];
        assert_eq!(world.settle(), [""; 0]);
        assert_eq!(world.kernel.names(), ["lib", "old_gpu"], "after {steps} steps");
        assert_eq!(world.record, Record::new("boot-1"));
    }
}

#[test]
fn wanted_again_in_the_middle_or_after_a_crash_at_any_step_it_ends_right() {
    for steps in 0..10 {
        for (start, end) in [("loaded", "gone"), ("gone", "loaded"), ("loaded", "wanted again")] {
            let mut world = node(true);
            let wanted = world.desired.modules.clone();
            if start == "loaded" {
                world.settle();
                world.desired.modules.clear();
                world.desired.unload = vec![removal("gpu")];
            } else {
                world.round(&CancellationToken::new());
            }
            let mut plan = world.plan();
            plan.jobs.iter_mut().for_each(|job| job.steps.truncate(steps));
            world.carry_out(&plan, &CancellationToken::new());
            world.restart();
            if end == "wanted again" {
                world.desired.modules = vec![NodeModuleSpec { generation: Some(2), ..wanted[0].clone() }];
            }
            let (reports, names): (&[&str], &[&str]) =
                if end == "gone" { (&[], &["lib", "old_gpu"]) } else { (&["gpu Loaded Loaded"], &["gpu"]) };
            assert_eq!(world.settle(), reports, "{start} to {end} after {steps} steps");
            assert_eq!(world.kernel.names(), names, "{start} to {end} after {steps} steps");
            world.desired.modules.clear();
            world.desired.unload = vec![UnloadIntent { generation: 9, ..removal("gpu") }];
            world.settle();
            assert_eq!(world.kernel.names(), ["lib", "old_gpu"], "{start} to {end} after {steps} steps, in the end");
        }
    }
}

#[test]
fn a_module_that_made_room_and_is_taken_out_by_somebody_is_loaded_again_soon() {
    let mut world = World::new();
    world.image('a', vec![file("gpu", "gpu1", Named, &[])]);
    world.kernel.own.lock().unwrap().insert("old_gpu".into(), vec![]);
    world.kernel.with(|modules| {
        modules.insert("old_gpu".into(), Loaded { id: "own".into(), ..Loaded::default() });
    });
    world.desired.modules = vec![asking("gpu", 'a', &["old-gpu"], true)];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    world.kernel.take_calls();
    world.kernel.with(|modules| drop(modules.remove("gpu")));
    assert_eq!(
        world.settle(),
        ["gpu Failed LoadNotProved"],
        "one that leaves again at once is not loaded over and over"
    );
    world.now += Duration::from_secs(5);
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    // One that had lasted is loaded again at once.
    world.now += Duration::from_mins(2);
    world.settle();
    world.kernel.take_calls();
    world.kernel.with(|modules| drop(modules.remove("gpu")));
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["+gpu"]);
}

#[test]
fn a_list_that_holds_the_modules_own_name_takes_out_the_kernels_own_once_and_never_the_modules() {
    let mut world = World::new();
    world.image('a', vec![file("gpu", "gpu1", Named, &[])]);
    let own = || Loaded { id: "own".into(), ..Loaded::default() };
    world.kernel.with(|modules| drop(modules.insert("gpu".into(), own())));
    world.desired.modules = vec![asking("gpu", 'a', &["gpu"], false)];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["-gpu", "+gpu"]);
    world.restart();
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    world.desired.modules[0].tolerations = vec![Toleration::default()];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    // The record is lost: which file the kernel runs decides.
    world.restart();
    world.record = Record { made_up: true, ..Record::new("boot-1") };
    assert_eq!(world.settle(), ["gpu Loaded Adopted"]);
    assert_eq!(world.kernel.take_calls(), [""; 0]);
    // The node boots, with the kernel's own.
    world.restart();
    world.record = Record::new("boot-2");
    world.kernel.with(|modules| drop(modules.insert("gpu".into(), own())));
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["-gpu", "+gpu"]);
}
