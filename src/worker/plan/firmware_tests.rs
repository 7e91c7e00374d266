//! Firmware: whatever happens, the search path is as the record says, and in the end as it was.

use crate::api::NodeModuleSpec;
use crate::core::kmod::order::Role::Named;
use crate::worker::record::Firmware;
use crate::worker::record::Record;
use crate::worker::testing::{Loaded, OURS, World, file, intent, spec};
use nix::errno::Errno;
use tokio_util::sync::CancellationToken;

fn wants(module: &str, digest: char, generation: i64, path: Option<&str>) -> NodeModuleSpec {
    let mut spec = spec(module, module, digest, generation);
    spec.config.modprobe.firmware_path = path.map(ToOwned::to_owned);
    spec
}

/// A node where an administrator has set `/opt/fw`; Modules `gpu` and `net` bring firmware.
fn node() -> World {
    let mut world = World::new();
    *world.kernel.search_path.lock().unwrap() = Some("/opt/fw".into());
    for (module, digest) in [("gpu", 'a'), ("net", 'b')] {
        world.image(digest, vec![file(module, &format!("{module}1"), Named, &[])]);
    }
    for (path, files) in [
        ("/gpu", &[("v/gpu.bin", "1"), ("v/both.bin", "2")][..]),
        ("/net", &[("v/net.bin", "3"), ("v/both.bin", "2")]),
        ("/evil", &[("v/both.bin", "666")]),
        ("/moved", &[("v/gpu.bin", "1"), ("v/both.bin", "2")]),
    ] {
        let files = files.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect();
        world.firmware.insert(path.into(), Firmware { folder: format!("/tree{path}").into(), files });
    }
    world.desired.modules = vec![wants("gpu", 'a', 1, Some("/gpu"))];
    world
}

fn value(world: &World) -> String {
    world.kernel.search_path.lock().unwrap().clone().unwrap()
}

fn links(world: &World) -> Vec<String> {
    let links = world.store.links.lock().unwrap();
    links.iter().flat_map(|(_, links)| links).map(|(name, target)| format!("{name} {}", target.display())).collect()
}

#[test]
fn firmware_is_in_place_before_the_load_and_the_old_path_comes_back_after_the_last_one() {
    let mut world = node();
    world.round(&CancellationToken::new());
    assert_eq!(world.next_steps(), ["memory 16", "write gpu", "firmware", "load gpu"]);
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(value(&world), OURS);
    assert_eq!(
        links(&world),
        ["admin.bin /opt/fw/admin.bin", "v/both.bin /tree/gpu/v/both.bin", "v/gpu.bin /tree/gpu/v/gpu.bin"]
    );
    world.desired.modules.push(wants("net", 'b', 1, Some("/net")));
    assert_eq!(world.settle(), ["gpu Loaded Loaded", "net Loaded Loaded"]);
    assert_eq!(links(&world).len(), 4);
    world.restart();
    world.desired.modules.remove(0);
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["net Loaded Loaded"]);
    assert_eq!(
        links(&world),
        ["admin.bin /opt/fw/admin.bin", "v/both.bin /tree/net/v/both.bin", "v/net.bin /tree/net/v/net.bin"]
    );
    world.desired.modules.clear();
    world.desired.unload = vec![intent("net", 1)];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!((value(&world).as_str(), links(&world).len()), ("/opt/fw", 0));
    assert_eq!(world.record.firmware_before, None);
}

#[test]
fn another_content_under_the_same_name_is_a_conflict_also_within_one_pass() {
    let mut world = node();
    world.desired.modules.push(wants("net", 'b', 1, Some("/evil")));
    assert_eq!(world.settle(), ["gpu Loaded Loaded", "net Failed Conflict"]);
    let message = &world.plan().reports[1].message;
    assert!(message.contains("v/both.bin") && message.contains("drivers/gpu"), "{message}");
    world.desired.modules.remove(0);
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), ["net Loaded Loaded"]);
}

#[test]
fn a_path_that_somebody_changes_is_mended_and_becomes_the_one_to_go_back_to() {
    let mut world = node();
    world.settle();
    *world.kernel.search_path.lock().unwrap() = Some("/elsewhere".into());
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(value(&world), OURS);
    assert_eq!(links(&world).len(), 2, "what lay in the older path is nobody's any more");
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1)];
    world.settle();
    assert_eq!(value(&world), "/elsewhere");
    // A value that is not ours any more when the last one goes is left alone.
    let mut world = node();
    world.settle();
    world.kernel.fail("firmware_class", Errno::EACCES);
    *world.kernel.search_path.lock().unwrap() = Some("/mine".into());
    world.settle();
    assert!(world.plan().reports[0].message.contains("cannot be set"), "{:?}", world.plan().reports);
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1)];
    world.wait();
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(value(&world), "/mine");
}

#[test]
fn other_firmware_is_another_load_and_the_same_from_elsewhere_is_none() {
    let mut world = node();
    world.settle();
    world.kernel.take_calls();
    world.desired.modules = vec![wants("gpu", 'a', 2, Some("/moved"))];
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert_eq!(world.kernel.take_calls(), [""; 0]);
    assert!(links(&world).contains(&"v/gpu.bin /tree/moved/v/gpu.bin".to_owned()));
    for (path, generation) in [(Some("/evil"), 3), (None, 4)] {
        world.desired.modules = vec![wants("gpu", 'a', generation, path)];
        assert_eq!(world.settle(), ["gpu Failed LoadedOtherParameters"], "{path:?} without an order");
        world.desired.unload = vec![intent("gpu", generation - 1)];
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert_eq!(world.kernel.take_calls(), ["-gpu", "+gpu"]);
    }
    assert_eq!(value(&world), "/opt/fw", "without firmware the path is what it was");
}

#[test]
fn a_kernel_without_a_search_path_is_told_and_gets_nothing() {
    let mut world = node();
    *world.kernel.search_path.lock().unwrap() = None;
    assert_eq!(world.settle(), ["gpu Failed FirmwarePathRefused"]);
    assert_eq!(world.kernel.take_calls(), [""; 0]);
    let mut world = node();
    world.kernel.fail("firmware_class", Errno::EACCES);
    assert_eq!(world.settle(), ["gpu Failed FirmwarePathRefused"]);
    assert_eq!(world.kernel.take_calls(), [""; 0], "no load without its firmware");
}

#[test]
fn after_a_crash_at_any_step_the_path_is_mended_and_comes_back() {
    for steps in 0..7 {
        for leaving in [false, true] {
            let mut world = node();
            if leaving {
                world.settle();
                world.desired.modules.clear();
                world.desired.unload = vec![intent("gpu", 1)];
            } else {
                world.round(&CancellationToken::new());
            }
            let mut plan = world.plan();
            plan.jobs.iter_mut().for_each(|job| job.steps.truncate(steps));
            world.carry_out(&plan, &CancellationToken::new());
            world.restart();
            let expected: &[&str] = if leaving { &[] } else { &["gpu Loaded Loaded"] };
            assert_eq!(world.settle(), expected, "after {steps} steps");
            assert_eq!(value(&world), if leaving { "/opt/fw" } else { OURS });
            assert_eq!(links(&world).len(), if leaving { 0 } else { 3 });
        }
    }
}

#[test]
fn a_removal_is_over_when_the_path_is_what_it_was_and_says_what_is_in_the_way() {
    let mut world = node();
    world.desired.modules.push(wants("net", 'b', 1, Some("/net")));
    world.settle();
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1), intent("net", 1)];
    world.kernel.fail("firmware_class", Errno::EACCES);
    let told = world.settle();
    assert!(told.iter().any(|told| told.ends_with("UnloadFailed FirmwarePathRefused")), "{told:?}");
    assert_eq!((world.kernel.names().len(), value(&world).as_str()), (0, OURS));
    world.restart();
    let told = world.settle();
    assert!(told.iter().any(|told| told.ends_with("UnloadFailed FirmwarePathRefused")), "{told:?}");
    world.kernel.heal();
    world.wait();
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!((value(&world).as_str(), links(&world).len(), world.record.entries.len()), ("/opt/fw", 0, 0));
}

#[test]
fn a_lost_record_leaves_no_path_to_nowhere() {
    let mut world = node();
    world.settle();
    world.record = Record::new("boot-1");
    world.kernel.with(|modules| assert_eq!(modules.get("gpu").map(|m: &Loaded| m.id.as_str()), Some("gpu1")));
    assert_eq!(world.settle(), ["gpu Loaded Adopted"]);
    assert_eq!(value(&world), OURS);
    world.desired.modules.clear();
    world.desired.unload = vec![intent("gpu", 1)];
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(value(&world), "");
}

#[test]
fn a_search_path_that_cannot_be_read_concerns_nobody_without_firmware() {
    let mut world = node();
    world.image('c', vec![file("disk", "d1", Named, &[])]);
    world.desired.modules.push(spec("disk", "disk", 'c', 1));
    world.kernel.fail("firmware_path", Errno::EIO);
    let told = world.settle();
    assert!(told.contains(&"disk Loaded Loaded".to_owned()), "{told:?}");
    assert!(told.iter().any(|told| told.ends_with("Failed FirmwarePathRefused")), "{told:?}");
}

#[test]
fn what_somebody_adds_later_where_the_path_pointed_before_is_found() {
    let mut world = node();
    assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
    assert!(world.plan().is_quiet());
    world.kernel.foreign.lock().unwrap().insert("late.bin".into());
    world.settle();
    assert!(links(&world).contains(&"late.bin /opt/fw/late.bin".to_owned()), "{:?}", links(&world));
    world.kernel.foreign.lock().unwrap().clear();
    world.settle();
    assert!(!links(&world).iter().any(|link| link.starts_with("late.bin")), "{:?}", links(&world));
    assert!(world.plan().is_quiet());
}
