//! Modules that named ones need, of images in which they are other files than those that the kernel has.

use super::tests::foreign;
use crate::api::{LoadPolicy, NodeModuleSpec, OnDrift};
use crate::core::kmod::order::Role::{Named, Needed};
use crate::worker::testing::{World, file, intent, spec};

/// A node on which `gpu` and `net` need `base` of their images, which is another file in the newer ones.
fn two_on_base() -> World {
    let mut world = World::new();
    for (version, digest) in [("1", 'a'), ("2", 'b')] {
        for module in ["gpu", "net"] {
            let base = file("base", &format!("base{version}"), Needed, &[]);
            world.image(digest, vec![base, file(module, &format!("{module}{version}"), Named, &["base"])]);
        }
    }
    world
}

fn ids(world: &World) -> Vec<String> {
    ["base", "gpu", "net"].iter().filter_map(|name| world.kernel.id(name)).collect()
}

#[test]
fn what_is_needed_as_another_file_leaves_too_or_nothing_leaves() {
    let mut world = two_on_base();
    world.desired.modules = vec![spec("gpu", "gpu", 'a', 1)];
    world.settle();
    world.kernel.take_calls();
    world.kernel.with(|modules| modules.get_mut("base").unwrap().references = 1);
    world.desired.modules = vec![spec("gpu", "gpu", 'b', 2)];
    assert_eq!(world.settle(), ["gpu Failed LoadedOtherFile"]);
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["gpu UnloadFailed InUse"]);
    assert!(world.plan().reports[0].message.starts_with("module base is in use (reference count 2"));
    assert_eq!(world.kernel.take_calls(), [""; 0], "the old file is not given up");
    world.kernel.with(|modules| modules.get_mut("base").unwrap().references = 0);
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), ["-gpu", "-base", "+base", "+gpu"]);
    assert_eq!(ids(&world), ["base2", "gpu2"]);
}

#[test]
fn a_change_of_what_is_needed_alone_is_a_change() {
    let mut world = two_on_base();
    world.image('b', vec![file("base", "base2", Needed, &[]), file("gpu", "gpu1", Named, &["base"])]);
    world.desired.modules = vec![spec("gpu", "gpu", 'a', 1)];
    world.settle();
    world.desired.modules = vec![spec("gpu", "gpu", 'b', 2)];
    assert_eq!(world.settle(), ["gpu Failed LoadedOtherFile"]);
    assert_eq!(
        world.plan().reports[0].message,
        "the kernel runs base (build id base1), wanted is build id base2; reloading waits for an order to unload, or for \
         a reboot"
    );
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(ids(&world), ["base2", "gpu1"]);
}

#[test]
fn what_two_modules_brought_stays_until_one_of_them_goes_or_needs_it_no_more() {
    for way_out in ["goes", "changes"] {
        let mut world = two_on_base();
        world.image('c', vec![file("net", "net3", Named, &[])]);
        world.desired.modules = vec![spec("gpu", "gpu", 'a', 1), spec("net", "net", 'a', 1)];
        world.settle();
        world.kernel.take_calls();
        world.desired.modules = vec![spec("gpu", "gpu", 'b', 2), spec("net", "net", 'b', 2)];
        world.desired.unload = vec![intent("gpu", 1), intent("net", 1)];
        assert_eq!(world.settle(), ["gpu Failed Conflict", "net Failed Conflict"]);
        assert_eq!(
            world.plan().reports[0].message,
            "module base belongs to drivers/net: the kernel runs base (build id base1), wanted is build id base2; delete \
             or change that Module first, or boot the node"
        );
        assert_eq!(world.kernel.take_calls(), [""; 0], "nothing leaves");
        world.desired.modules.pop();
        if way_out == "changes" {
            world.desired.modules.push(spec("net", "net", 'c', 3));
        }
        world.settle();
        assert_eq!(world.settle()[0], "gpu Loaded Loaded", "{way_out}");
        let net = (way_out == "changes").then(|| "net3".to_owned());
        assert_eq!(ids(&world), ["base2".to_owned(), "gpu2".to_owned()].into_iter().chain(net).collect::<Vec<_>>());
        world.desired.modules.clear();
        world.desired.unload = vec![intent("gpu", 2), intent("net", 3)];
        assert_eq!(world.settle(), [""; 0]);
        assert_eq!(world.kernel.names(), [""; 0]);
    }
}

#[test]
fn who_only_uses_a_module_keeps_it_as_long_as_it_does() {
    let mut world = two_on_base();
    let report = LoadPolicy { on_drift: OnDrift::Report, ..LoadPolicy::default() };
    let net = NodeModuleSpec { policy: Some(report), ..spec("net", "net", 'b', 1) };
    world.desired.modules = vec![spec("gpu", "gpu", 'a', 1), net];
    assert_eq!(world.settle(), ["gpu Loaded Loaded", "net Loaded Loaded"]);
    assert!(!world.record.entries[1].owns("base"));
    world.kernel.take_calls();
    world.desired.modules[0] = spec("gpu", "gpu", 'b', 2);
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["gpu UnloadFailed InUse", "net Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), [""; 0], "nothing leaves");
    world.kernel.with(|modules| drop(modules.remove("net")));
    assert_eq!(world.settle(), ["gpu Loaded Loaded", "net Failed Missing"]);
    assert_eq!(world.kernel.take_calls(), ["-gpu", "-base", "+base", "+gpu"]);
    assert_eq!(ids(&world), ["base2", "gpu2"]);
    assert!(!world.record.entries[1].owns("base"), "what has left becomes nobody's");
}

#[test]
fn what_a_module_shares_with_one_that_goes_is_replaced_after_that() {
    let mut world = two_on_base();
    world.desired.modules = vec![spec("gpu", "gpu", 'a', 1), spec("net", "net", 'a', 1)];
    world.settle();
    world.desired.modules = vec![spec("gpu", "gpu", 'b', 2)];
    world.desired.unload = vec![intent("gpu", 1), intent("net", 1)];
    world.kernel.with(|modules| modules.get_mut("net").unwrap().references = 1);
    assert_eq!(world.settle(), ["gpu Failed Conflict", "net UnloadFailed InUse"]);
    world.kernel.with(|modules| modules.get_mut("net").unwrap().references = 0);
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(ids(&world), ["base2", "gpu2"]);
}

#[test]
fn what_somebody_else_brought_is_used_as_it_is_and_recorded_as_that() {
    let mut world = two_on_base();
    foreign(&world, "base", "of-the-host");
    world.desired.modules = vec![spec("gpu", "gpu", 'a', 1)];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    world.desired.modules = vec![spec("gpu", "gpu", 'b', 2)];
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(ids(&world), ["of-the-host", "gpu2"]);
    let base = world.record.entries[0].module("base").unwrap();
    assert_eq!((base.identity.describe().as_str(), base.inserted), ("build id of-the-host", false));

    // Of another Module it becomes this one's when that one goes.
    let mut world = two_on_base();
    world.desired.modules = vec![spec("gpu", "gpu", 'a', 1), spec("net", "net", 'b', 1)];
    assert_eq!(world.settle(), ["gpu Loaded Loaded", "net Loaded Loaded"]);
    assert_eq!(ids(&world), ["base1", "gpu1", "net2"]);
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["net Loaded Loaded"]);
    world.desired.unload.push(intent("net", 1));
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.names(), [""; 0]);
}
