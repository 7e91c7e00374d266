use crate::api::NodeModuleSpec;
use crate::api::names::NodeReason;
use crate::worker::facts::Trouble;
use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::LocalObjectReference;
use nix::errno::Errno;
use tokio_util::sync::CancellationToken;

use super::pause::{Again, Unready};
use super::*;
use crate::api::{ModprobeArgs, TLSOptions};
use crate::core::kmod::order::Role::{Named, Needed, Optional};
use crate::core::kmod::proc_modules::InitState;
use crate::worker::testing::{Loaded, World, file, intent, spec};

/// A node on which `drivers/gpu` (kernel module `gpu`, needs `base`) of image `a` is wanted.
fn gpu() -> World {
    let mut world = World::new();
    world.image('a', vec![file("base", "base1", Needed, &[]), file("gpu", "gpu1", Named, &["base"])]);
    world.image('b', vec![file("base", "base1", Needed, &[]), file("gpu", "gpu2", Named, &["base"])]);
    world.desired.modules = vec![spec("gpu", "gpu", 'a', 1)];
    world
}

pub(super) fn foreign(world: &World, name: &str, id: &str) {
    world.kernel.with(|modules| {
        modules.insert(name.into(), Loaded { id: id.into(), ..Loaded::default() });
    });
}

#[test]
fn a_wanted_module_is_loaded_after_what_it_needs_and_recorded_before() {
    let mut world = gpu();
    let prepared: Vec<NodeModuleSpec> = world.plan().prepare.into_iter().map(|wanted| wanted.spec).collect();
    assert_eq!(prepared, world.desired.modules);
    world.round(&CancellationToken::new());
    assert_eq!(world.next_steps(), ["memory 16", "write gpu", "load base", "load gpu"]);
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["+base", "+gpu"]);
    world.restart();
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), [""; 0], "a new process touches nothing and fetches nothing");
}

#[test]
fn parameters_and_order_reach_the_kernel() {
    let mut world = World::new();
    world.image('a', vec![file("c", "c1", Named, &[]), file("b", "b1", Named, &[]), file("a", "a1", Named, &[])]);
    let mut wanted = spec("m", "a", 'a', 1);
    wanted.config.modprobe.modules_loading_order = Some(vec!["a".into(), "b".into(), "c".into()]);
    wanted.config.modprobe.parameters = vec!["level=3".into(), "text=two words".into()];
    world.desired.modules = vec![wanted];
    world.round(&CancellationToken::new());
    assert_eq!(world.next_steps(), ["memory 16", "write m", "load c", "load b", "load a level=3 text=\"two words\""]);
    assert_eq!(world.settle(), ["m Loaded Loaded"]);
}

#[test]
fn the_same_file_that_is_loaded_already_is_adopted_untouched() {
    let mut world = gpu();
    foreign(&world, "base", "base1");
    foreign(&world, "gpu", "gpu1");
    assert_eq!(world.settle(), ["gpu Loaded Adopted"]);
    assert_eq!(world.kernel.take_calls(), [""; 0]);
    // The named one goes with the Module, what it needs was not inserted for it and stays.
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.take_calls(), ["-gpu"]);
}

#[test]
fn another_file_that_is_loaded_is_told_and_not_touched() {
    for (id, parameters, expected) in [
        ("other", "", "gpu Failed LoadedOtherFile"),
        ("?", "", "gpu Failed LoadedOtherFile"),
        ("gpu1", "7", "gpu Failed LoadedOtherParameters"),
    ] {
        let mut world = gpu();
        world.desired.modules[0].config.modprobe.parameters = vec!["level=5".into()];
        world.desired.unload = vec![intent("gpu", 0)];
        foreign(&world, "gpu", id);
        world.kernel.with(|modules| {
            let shown = if parameters.is_empty() { "5" } else { parameters };
            modules.get_mut("gpu").unwrap().parameters.insert("level".into(), shown.into());
        });
        assert_eq!(world.settle(), [expected], "{id}");
        assert_eq!(world.kernel.take_calls(), [""; 0]);
    }
}

#[test]
fn nothing_is_unloaded_without_an_order() {
    let mut world = gpu();
    world.settle();
    world.kernel.take_calls();
    world.desired.modules.clear();
    assert_eq!(world.settle(), ["gpu Orphaned NotWanted"]);
    // Orders that do not fit: another uid, an older generation.
    let mut other = intent("gpu", 9);
    other.module_uid = "uid-of-another".into();
    world.desired.unload = vec![other, intent("gpu", 0)];
    assert_eq!(world.settle(), ["gpu Orphaned NotWanted"]);
    world.desired.modules = vec![spec("gpu", "gpu", 'b', 2)];
    assert_eq!(world.settle(), ["gpu Failed LoadedOtherFile"], "a changed image alone is no order");
    assert_eq!(world.kernel.take_calls(), [""; 0]);
}

#[test]
fn an_order_unloads_users_first_and_only_what_was_inserted() {
    let mut world = gpu();
    foreign(&world, "base", "base1");
    world.settle();
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1)];
    world.kernel.take_calls();
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.take_calls(), ["-gpu"], "base was there before");
    let mut world = gpu();
    world.settle();
    world.kernel.take_calls();
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), [""; 0], "an order as new as the wanted entry wins");
    assert_eq!(world.kernel.take_calls(), ["-gpu", "-base"]);
}

#[test]
fn an_image_that_is_proved_wrong_is_fetched_again_when_the_entry_changes_and_not_before() {
    let mut world = World::new();
    let trouble = Trouble::new(NodeReason::UnsafeImage, "leads out");
    world.images.insert(('a', "gpu".to_owned()), Err(Unready { trouble, again: Again::Never }));
    world.desired.modules = vec![spec("gpu", "gpu", 'a', 1)];
    assert_eq!(world.settle(), ["gpu Failed UnsafeImage"]);
    world.now += Duration::from_hours(24 * 365);
    assert!(world.plan().is_quiet(), "{:?}", world.plan());
    for change in [
        (|spec| spec.image_repo_secret = Some(LocalObjectReference::default())) as fn(&mut NodeModuleSpec),
        |spec| spec.config.registry_tls = Some(TLSOptions::default()),
        |spec| spec.config.modprobe.dir_name = "/other".into(),
    ] {
        change(&mut world.desired.modules[0]);
        assert_eq!(world.plan().prepare.len(), 1);
        assert_eq!(world.settle(), ["gpu Failed UnsafeImage"]);
    }
    world.restart();
    assert_eq!(world.plan().prepare.len(), 1, "another worker may know better");
    // What says nothing of the image is no failure.
    let trouble = Trouble::new(NodeReason::Pending, "no answer");
    world.images.insert(('a', "gpu".to_owned()), Err(trouble.into()));
    assert_eq!(world.settle(), ["gpu Pending Pending"]);
}

#[test]
fn what_nothing_ties_together_leaves_in_the_other_order_than_it_came() {
    let mut world = World::new();
    let files = || {
        let named = ["z", "a", "m"].map(|name| file(name, name, Named, &[])).into_iter();
        named.chain([file("p", "p", Optional, &[])]).collect::<Vec<_>>()
    };
    world.image('a', files());
    world.desired.modules = vec![spec("gpu", "m", 'a', 1)];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["+z", "+a", "+m", "+p"]);
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.take_calls(), ["-p", "-m", "-a", "-z"]);
    // Modules of the kernel itself leave as they are listed, but for those that others hold.
    for name in ["k", "y", "b"] {
        let needs = if name == "b" { vec!["k".to_owned()] } else { vec![] };
        world.kernel.with(|modules| drop(modules.insert(name.into(), Loaded { needs, ..Loaded::default() })));
    }
    world.desired.modules = vec![spec("gpu", "m", 'a', 2)];
    world.desired.modules[0].config.in_tree_modules_to_remove = ["y", "k", "b"].map(ToOwned::to_owned).into();
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls()[..3], ["-y", "-b", "-k"]);
}

#[test]
fn a_module_in_use_stays_whole_and_goes_when_it_is_free() {
    let mut world = gpu();
    world.settle();
    world.kernel.take_calls();
    world.kernel.with(|modules| modules.get_mut("gpu").unwrap().references = 2);
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["gpu UnloadFailed InUse"]);
    assert_eq!(
        world.plan().reports[0].message,
        "module gpu is in use (reference count 2); it goes as soon as nothing uses it"
    );
    world.kernel.with(|modules| {
        modules.get_mut("gpu").unwrap().references = 0;
        modules.insert("app".into(), Loaded { id: "x".into(), needs: vec!["gpu".into()], ..Loaded::default() });
    });
    assert_eq!(world.settle(), ["gpu UnloadFailed InUse"]);
    assert_eq!(
        world.plan().reports[0].message,
        "module gpu is in use (reference count 1, modules that use it: app); it goes as soon as nothing uses it"
    );
    assert_eq!(world.kernel.take_calls(), [""; 0]);
    world.kernel.with(|modules| {
        modules.remove("app");
    });
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.take_calls(), ["-gpu", "-base"]);
}

#[test]
fn a_module_without_exit_function_is_told() {
    let mut world = gpu();
    world.settle();
    world.kernel.with(|modules| modules.get_mut("gpu").unwrap().permanent = true);
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["gpu UnloadFailed InUse"]);
}

#[test]
fn what_another_module_needs_stays_until_the_last_one_goes() {
    let mut world = gpu();
    world.image('c', vec![file("base", "base1", Needed, &[]), file("net", "net1", Named, &["base"])]);
    world.desired.modules.push(spec("net", "net", 'c', 1));
    assert_eq!(world.settle(), ["gpu Loaded Loaded", "net Loaded Loaded"]);
    world.kernel.take_calls();
    world.desired.modules.remove(0);
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["net Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["-gpu"]);
    world.desired.modules.clear();
    world.desired.unload = vec![intent("net", 1)];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.take_calls(), ["-net", "-base"], "inherited from the one that inserted it");
}

#[test]
fn a_replacement_unloads_the_old_file_only_when_the_new_one_is_there() {
    let mut world = gpu();
    world.settle();
    world.kernel.take_calls();
    world.desired.modules = vec![spec("gpu", "gpu", 'f', 2)];
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["gpu Failed ImageNotFound"]);
    assert_eq!(world.kernel.take_calls(), [""; 0], "no image: what is loaded stays");
    assert!(world.plan().reports[0].loaded.is_some());
    world.desired.modules = vec![spec("gpu", "gpu", 'b', 3)];
    world.kernel.with(|modules| modules.get_mut("gpu").unwrap().references = 1);
    assert_eq!(world.settle(), ["gpu UnloadFailed InUse"]);
    world.kernel.with(|modules| modules.get_mut("gpu").unwrap().references = 0);
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["-gpu", "+gpu"]);
    assert_eq!(world.kernel.id("gpu").as_deref(), Some("gpu2"));
}

#[test]
fn the_end_of_the_worker_waits_for_what_comes_in_the_place_of_what_has_left() {
    let replaced = || {
        let mut world = gpu();
        world.settle();
        world.desired.modules = vec![spec("gpu", "gpu", 'b', 2)];
        world.desired.unload = vec![intent("gpu", 1)];
        world.round(&CancellationToken::new());
        world.kernel.take_calls();
        world
    };
    let mut world = replaced();
    let shutdown = world.kernel.tells_after("-gpu");
    world.round(&shutdown);
    assert_eq!(world.kernel.take_calls(), ["-gpu", "+gpu"]);
    assert!(world.record.entries[0].complete, "the job went to its end");

    let mut world = replaced();
    world.round(&shutdown);
    assert_eq!(world.kernel.take_calls(), [""; 0], "nothing is begun any more");

    let mut world = gpu();
    world.round(&CancellationToken::new());
    let shutdown = world.kernel.tells_after("+base");
    world.round(&shutdown);
    assert_eq!(world.kernel.take_calls(), ["+base"], "where nothing has left, the rest is left for later");
    world.restart();
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
}

#[test]
fn new_parameters_need_an_order_and_then_reach_the_kernel() {
    let mut world = gpu();
    world.settle();
    world.kernel.take_calls();
    let mut wanted = spec("gpu", "gpu", 'a', 2);
    wanted.config.modprobe.parameters = vec!["level=9".into()];
    world.desired.modules = vec![wanted];
    assert_eq!(world.settle(), ["gpu Failed LoadedOtherParameters"]);
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["-gpu", "+gpu"]);
}

#[test]
fn a_fetch_by_the_rules_of_another_container_runtime_is_another_fetch() {
    for failed in [false, true] {
        let mut world = gpu();
        let wanted = world.plan().prepare.remove(0);
        let mut prepared = Prepared::begun(wanted.clone(), None, None);
        if failed {
            prepared.end(Err(Trouble::new(NodeReason::ImageNotFound, "").into()), Duration::MAX);
        }
        world.prepared.insert(wanted.owner.clone(), prepared);
        assert_eq!(world.plan().prepare, []);
        world.desired.container_runtime = Some("containerd://2.1".into());
        assert_eq!(world.plan().prepare, [wanted]);
    }
}

#[test]
fn how_an_image_is_fetched_does_not_concern_the_kernel() {
    let mut world = gpu();
    world.settle();
    world.kernel.take_calls();
    let wanted = &mut world.desired.modules[0];
    wanted.config.image_pull_policy = "Always".into();
    wanted.config.insecure_pull = true;
    wanted.generation = Some(5);
    world.desired.unload = vec![intent("gpu", 4)];
    world.restart();
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), [""; 0]);
    assert_eq!(world.record.entries[0].generation(), 5);
}

#[test]
fn another_kernel_module_of_the_same_entry_does_not_make_the_old_one_forgotten() {
    let mut world = gpu();
    world.settle();
    world.image('c', vec![file("gpu_next", "next1", Named, &[])]);
    world.desired.modules = vec![spec("gpu", "gpu_next", 'c', 2)];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    world.kernel.take_calls();
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 2)];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.names(), [""; 0]);
}

#[test]
fn a_module_that_vanished_is_loaded_again_and_one_that_was_exchanged_is_told() {
    let mut world = gpu();
    world.settle();
    world.kernel.take_calls();
    world.wait();
    world.kernel.with(|modules| {
        modules.remove("gpu");
    });
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["+gpu"]);
    world.kernel.with(|modules| modules.get_mut("gpu").unwrap().id = "stranger".into());
    assert_eq!(world.settle(), ["gpu Failed LoadedOtherFile"]);
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(
        world.kernel.names(),
        ["base", "gpu"],
        "a stranger is not ours to unload, and it holds nothing of ours back"
    );
}

#[test]
fn modules_of_the_kernel_itself_go_first_where_they_are_loaded() {
    let mut world = gpu();
    world.desired.modules[0].config.in_tree_modules_to_remove = vec!["old-gpu".into(), "gpu".into(), "absent".into()];
    foreign(&world, "old_gpu", "o");
    foreign(&world, "gpu", "in-tree");
    world.kernel.with(|modules| modules.get_mut("old_gpu").unwrap().needs = vec!["gpu".into()]);
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["-old_gpu", "-gpu", "+base", "+gpu"]);
    world.restart();
    world.settle();
    assert_eq!(world.kernel.take_calls(), [""; 0], "what was loaded instead is not removed again");
    let mut busy = gpu();
    busy.desired.modules[0].config.in_tree_module_to_remove = Some("old".into());
    foreign(&busy, "old", "o");
    busy.kernel.with(|modules| modules.get_mut("old").unwrap().references = 1);
    assert_eq!(busy.settle(), ["gpu Failed InTreeModuleStays"]);
    assert_eq!(busy.kernel.take_calls(), [""; 0]);
}

#[test]
fn two_modules_that_want_different_files_under_one_name_conflict() {
    let mut world = gpu();
    world.settle();
    world.desired.modules.push(spec("other", "gpu", 'b', 1));
    assert_eq!(world.settle(), ["gpu Loaded Loaded", "other Failed Conflict"]);
    world.desired.modules[1] = spec("other", "gpu", 'a', 2);
    assert_eq!(world.settle(), ["gpu Loaded Loaded", "other Loaded Adopted"]);
    world.kernel.take_calls();
    world.desired.modules.remove(0);
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["other Loaded Adopted"]);
    assert_eq!(world.kernel.take_calls(), [""; 0]);
}

#[test]
fn a_refused_load_is_told_held_back_and_tried_again() {
    let mut world = gpu();
    world.kernel.fail("gpu", Errno::EKEYREJECTED);
    assert_eq!(world.settle(), ["gpu Failed SignatureRejected"]);
    assert_eq!(world.kernel.take_calls(), ["+base"]);
    world.kernel.heal();
    assert_eq!(world.settle(), ["gpu Failed SignatureRejected"], "not before its time");
    world.wait();
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    // What a failed load had inserted goes with the order to unload.
    let mut world = gpu();
    world.kernel.fail("gpu", Errno::ENOENT);
    world.settle();
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.names(), [""; 0]);
}

#[test]
fn an_optional_module_that_is_refused_does_not_matter() {
    let mut world = World::new();
    world.image('a', vec![file("soft", "s1", Optional, &[]), file("m", "m1", Named, &[])]);
    world.desired.modules = vec![spec("m", "m", 'a', 1)];
    world.kernel.fail("soft", Errno::ENODEV);
    assert_eq!(world.settle(), ["m Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["+m"]);
}

#[test]
fn what_the_kernel_never_got_is_not_taken_out_later() {
    let never = CancellationToken::new();
    for (refused, by_modprobe) in [("soft", false), ("lib", false), ("m", false), ("lib", true), ("m", true)] {
        let case = format!("{refused} {by_modprobe}");
        let mut world = World::new();
        let m = file("m", "m1", Named, &["lib"]);
        world.image('a', vec![file("lib", "l1", Needed, &[]), file("soft", "s1", Optional, &[]), m]);
        world.desired.modules = vec![spec("m", "m", 'a', 1)];
        if by_modprobe {
            world.desired.modules[0].config.modprobe.args = args(&["-v"], &[]);
        }
        world.round(&never);
        world.kernel.fail(refused, Errno::ENODEV);
        world.round(&never);
        world.kernel.heal();
        // By udev.
        let before = world.kernel.names();
        let late = |name: &&str| before.iter().all(|known| known != name);
        for (name, id) in [("lib", "l1"), ("soft", "s1"), ("m", "m1")].into_iter().filter(|(name, _)| late(name)) {
            foreign(&world, name, id);
        }
        world.desired.modules.clear();
        world.desired.unload = vec![intent("m", 1)];
        assert_eq!(world.settle(), [""; 0], "{case}");
        // The named one goes whoever inserted it.
        let left: Vec<&str> = ["lib", "soft"].into_iter().filter(late).collect();
        assert_eq!(world.kernel.names(), left, "{case}");
    }
}

#[test]
fn without_a_record_on_the_disk_the_kernel_gets_nothing() {
    let mut world = gpu();
    *world.store.full.lock().unwrap() = true;
    assert_eq!(world.settle(), ["gpu Failed StoreFailed"]);
    assert_eq!(world.kernel.take_calls(), [""; 0]);
    *world.store.full.lock().unwrap() = false;
    world.wait();
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
}

#[test]
fn entries_that_cannot_be_carried_out_leave_what_is_loaded() {
    let mut world = gpu();
    world.settle();
    world.kernel.take_calls();
    world.desired.modules[0].config.kernel_version = "5.0".into();
    assert_eq!(world.settle(), ["gpu Failed WrongKernel"]);
    world.desired.modules[0].config.container_image = "registry.example/kmm:tag".into();
    world.desired.modules[0].config.kernel_version = "6.12.1".into();
    assert_eq!(world.settle(), ["gpu Failed ImageInvalidReference"]);
    assert!(world.plan().reports[0].loaded.is_some());
    assert_eq!(world.kernel.take_calls(), [""; 0]);
}

#[test]
fn a_module_that_is_starting_is_waited_for() {
    let mut world = gpu();
    foreign(&world, "gpu", "gpu1");
    world.kernel.with(|modules| modules.get_mut("gpu").unwrap().state = Some(InitState::Coming));
    assert_eq!(world.settle(), ["gpu Loading Loading"]);
    world.kernel.with(|modules| modules.get_mut("gpu").unwrap().state = None);
    assert_eq!(world.settle(), ["gpu Loaded Adopted"]);
}

#[allow(clippy::unnecessary_wraps)] // the field's type
fn args(load: &[&str], unload: &[&str]) -> Option<ModprobeArgs> {
    let strings = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
    Some(ModprobeArgs { load: strings(load), unload: strings(unload) })
}

/// As [`gpu`], with arguments for modprobe.
fn by_modprobe() -> World {
    let mut world = gpu();
    world.desired.modules[0].config.modprobe.args = args(&["-v"], &["-v"]);
    world
}

#[test]
fn modprobe_loads_what_was_recorded_before_and_removes_by_order_only() {
    let mut world = by_modprobe();
    world.round(&CancellationToken::new());
    assert_eq!(world.next_steps(), ["memory 16", "write gpu", "modprobe base gpu"]);
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["modprobe", "+base", "+gpu"]);
    world.restart();
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    world.desired.modules.clear();
    assert_eq!(world.settle(), ["gpu Orphaned NotWanted"]);
    assert_eq!(world.kernel.take_calls(), [""; 0]);
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.next_steps(), ["modprobe -r gpu base", "unload gpu", "unload base", "forget gpu"]);
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.take_calls(), ["modprobe", "-gpu", "-base"]);
}

#[test]
fn what_modprobe_would_take_along_without_an_order_is_taken_out_one_by_one() {
    // A dependency that was there before, one that another Module has, no arguments to unload, a lost folder.
    type Change = fn(&mut World);
    let cases: [(&str, Change, &[&str]); 4] = [
        ("before", |world| foreign(world, "base", "base1"), &["-gpu"]),
        (
            "another",
            |world| {
                world.image('c', vec![file("base", "base1", Named, &[])]);
                world.desired.modules.push(spec("lib", "base", 'c', 1));
            },
            &["-gpu"],
        ),
        ("plain", |world| world.desired.modules[0].config.modprobe.args = args(&["-v"], &[]), &["-gpu", "-base"]),
        ("lost", |world| world.store.lost_generated = true, &["-gpu", "-base"]),
    ];
    for (what, change, expected) in cases {
        let mut world = by_modprobe();
        change(&mut world);
        world.settle();
        world.kernel.take_calls();
        world.desired.modules.retain(|spec| spec.name != "gpu");
        world.desired.unload = vec![intent("gpu", 1)];
        world.settle();
        assert_eq!(world.kernel.take_calls(), expected, "{what}");
    }
}

#[test]
fn other_arguments_are_another_load_and_wait_for_an_order() {
    let mut world = by_modprobe();
    world.settle();
    world.kernel.take_calls();
    world.desired.modules[0].generation = Some(2);
    world.desired.modules[0].config.modprobe.args = args(&["-v"], &["-q"]);
    assert_eq!(world.settle(), ["gpu Loaded Loaded"], "how it will be unloaded does not concern the kernel");
    world.desired.modules[0].config.modprobe.args = args(&["-b"], &["-q"]);
    assert_eq!(world.settle(), ["gpu Failed LoadedOtherParameters"]);
    assert_eq!(world.kernel.take_calls(), [""; 0]);
    world.desired.modules[0].generation = Some(3);
    world.desired.unload = vec![intent("gpu", 2)];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["modprobe", "-gpu", "-base", "modprobe", "+base", "+gpu"]);
}

#[test]
fn a_good_end_of_modprobe_proves_nothing() {
    let mut world = by_modprobe();
    world.round(&CancellationToken::new());
    // It does what it was told, and something else stands under the name afterwards.
    world.round(&CancellationToken::new());
    world.kernel.with(|modules| modules.get_mut("gpu").unwrap().id = "stranger".into());
    assert_eq!(world.settle(), ["gpu Failed LoadedOtherFile"]);
    let mut world = by_modprobe();
    world.kernel.fail("gpu", Errno::EKEYREJECTED);
    assert_eq!(world.settle(), ["gpu Failed SignatureRejected"]);
    assert_eq!(world.record.entries[0].modules.len(), 2, "what it may have inserted is known");
}

/// A small generator of test cases: what follows from a seed is always the same.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }
}

#[test]
fn whatever_happens_every_world_comes_to_rest_and_nothing_goes_without_an_order() {
    for seed in 1..400u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut world = gpu();
        world.image('c', vec![file("base", "base1", Needed, &[]), file("net", "net1", Named, &["base"])]);
        world.image('d', vec![file("soft", "s1", Optional, &[]), file("net", "net2", Named, &[])]);
        for (digest, module) in [('1', "gpu"), ('2', "net")] {
            world.image(digest, vec![file("base", "base2", Needed, &[]), file(module, "next", Named, &["base"])]);
        }
        let mut generation = 1;
        for _ in 0..25 {
            generation += 1;
            let module = ["gpu", "net"][dice.roll(2)];
            let digest = if module == "gpu" { ['a', 'b', 'f', '1'] } else { ['c', 'd', 'e', '2'] }[dice.roll(4)];
            let policy = crate::api::LoadPolicy {
                on_change: crate::api::OnChange::ALL[dice.roll(2)],
                on_removal: crate::api::OnRemoval::ALL[dice.roll(2)],
                on_drift: crate::api::OnDrift::ALL[dice.roll(2)],
                on_other_file: crate::api::OnOtherFile::ALL[dice.roll(2)],
                ..crate::api::LoadPolicy::default()
            };
            match dice.roll(12) {
                0 | 1 => {
                    world.desired.modules.retain(|spec| spec.name != module);
                    let mut wanted =
                        NodeModuleSpec { policy: Some(policy), ..spec(module, module, digest, generation) };
                    if dice.roll(3) == 0 {
                        wanted.config.modprobe.args = args(&["-v"], [&["-v"] as &[&str], &[]][dice.roll(2)]);
                    }
                    world.desired.modules.push(wanted);
                }
                2 => world.desired.modules.retain(|spec| spec.name != module),
                3 | 4 => {
                    let up_to = i64::try_from(dice.roll(usize::try_from(generation).unwrap() + 1)).unwrap();
                    world.desired.unload.retain(|intent| intent.name != module);
                    world.desired.unload.push(intent(module, up_to));
                }
                5 => world.desired.unload.clear(),
                6 => world.kernel.with(|modules| {
                    modules.retain(|name, _| name != module);
                }),
                7 => world.kernel.with(|modules| {
                    modules.entry(module.to_owned()).or_insert(Loaded { id: "stranger".into(), ..Loaded::default() });
                }),
                8 => world.kernel.with(|modules| {
                    if let Some(loaded) = modules.get_mut(module) {
                        loaded.references ^= 1;
                    }
                }),
                9 => world
                    .kernel
                    .fail(["gpu", "net", "base"][dice.roll(3)], [Errno::EAGAIN, Errno::ENOEXEC][dice.roll(2)]),
                10 => {
                    world.kernel.heal();
                    world.wait();
                }
                _ => world.restart(),
            }
            let allowed: BTreeSet<String> = world
                .record
                .entries
                .iter()
                .filter(|entry| {
                    world
                        .desired
                        .unload
                        .iter()
                        .any(|intent| intent.name == entry.spec.name && intent.generation >= entry.generation())
                })
                .flat_map(|entry| entry.modules.iter().map(|module| module.name.clone()))
                .chain(strangers_to_replace(&world))
                .collect();
            world.kernel.take_calls();
            world.settle();
            assert!(world.plan().is_quiet(), "seed {seed}: at rest");
            for call in world.kernel.take_calls() {
                if let Some(gone) = call.strip_prefix('-') {
                    assert!(allowed.contains(gone), "seed {seed}: {gone} went without an order");
                }
            }
            for entry in &world.record.entries {
                let base =
                    entry.module("base").filter(|_| entry.complete).map(|module| module.identity.build_id.clone());
                assert!(
                    base.is_none() || world.kernel.id("base").is_none_or(|id| base == Some(Some(id))),
                    "seed {seed}: another file than the recorded one"
                );
                for module in entry.modules.iter().filter(|module| module.named && module.inserted) {
                    let reported = world.plan().reports.iter().any(|report| Owner::of(&report.spec) == entry.owner());
                    assert!(reported, "seed {seed}: {} is recorded and not reported", module.name);
                }
            }
        }
    }
}

/// Modules that nobody brought and that the policy of the Module that wants the name takes out.
fn strangers_to_replace(world: &World) -> Vec<String> {
    let replaced = |spec: &&NodeModuleSpec| {
        let replace = spec.policy.unwrap_or_default().on_other_file == crate::api::OnOtherFile::Replace;
        replace && world.kernel.id(&spec.name).as_deref() == Some("stranger")
    };
    world.desired.modules.iter().filter(replaced).map(|spec| spec.name.clone()).collect()
}

#[test]
fn after_a_crash_at_any_step_everything_inserted_is_known() {
    // The process dies in every possible place; the kernel and the record on the disk are what they are then.
    for steps in 0..6 {
        let mut world = gpu();
        world.round(&CancellationToken::new());
        let plan = world.plan();
        for job in &plan.jobs {
            for step in job.steps.iter().take(steps) {
                match step {
                    Step::Check { .. } => {}
                    Step::Write(entry) => world.record.put(entry.as_ref().clone()),
                    Step::Forget(owner) => world.record.remove(owner),
                    Step::Unload { name, .. } => crate::worker::kernel::Kernel::unload(&world.kernel, name).unwrap(),
                    Step::Load { file, parameters } => {
                        crate::worker::kernel::Kernel::load(
                            &world.kernel,
                            &file.name,
                            &file.path,
                            file.packing,
                            parameters,
                        )
                        .unwrap();
                    }
                    Step::Modprobe { arguments, modules, removes } => {
                        crate::worker::kernel::Kernel::modprobe(&world.kernel, arguments, modules, *removes).unwrap();
                    }
                    other => unreachable!("neither firmware nor in-tree modules here: {other:?}"),
                }
            }
        }
        world.restart();
        assert_eq!(world.settle(), ["gpu Loaded Loaded"], "after {steps} steps");
        world.desired.modules.clear();
        world.desired.unload = vec![intent("gpu", 1)];
        assert_eq!(world.settle(), [""; 0]);
        assert_eq!(world.kernel.names(), [""; 0], "after {steps} steps");
    }
}
