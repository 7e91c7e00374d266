//! Firmware, in-tree modules and published files together: whatever happens, the node comes to rest, and in the end it is
//! what it was.

use crate::api::NodeModuleSpec;
use crate::api::UnloadReason;
use crate::worker::record::Firmware;
use crate::worker::record::Record;
use nix::errno::Errno;

use super::tests::Dice;
use crate::api::{LoadPolicy, UnloadIntent};
use crate::core::kmod::order::Role::Named;
use crate::worker::record::published;
use crate::worker::testing::{Loaded, OURS, World, file, intent, spec};

fn node() -> World {
    let mut world = World::new();
    *world.kernel.search_path.lock().unwrap() = Some("/opt/fw".into());
    world.kernel.published.lock().unwrap().writable = true;
    for (module, digest) in [("gpu", 'a'), ("net", 'b')] {
        world.image(digest, vec![file(module, &format!("{module}1"), Named, &[])]);
    }
    for (path, files) in
        [("/one", [("x", "1"), ("y", "2")]), ("/two", [("x", "1"), ("z", "3")]), ("/evil", [("x", "6"), ("w", "4")])]
    {
        let files = files.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect();
        world.firmware.insert(path.into(), Firmware { folder: format!("/tree{path}").into(), files });
    }
    world.kernel.own.lock().unwrap().extend([("lib".to_owned(), vec![]), ("old".to_owned(), vec!["lib".to_owned()])]);
    world.kernel.with(|modules| {
        modules.insert("lib".into(), Loaded { id: "own".into(), ..Loaded::default() });
        modules.insert("old".into(), Loaded { id: "own".into(), needs: vec!["lib".into()], ..Loaded::default() });
    });
    world
}

fn wanted(module: &str, generation: i64, dice: &mut Dice) -> NodeModuleSpec {
    let mut spec = spec(module, module, if module == "gpu" { 'a' } else { 'b' }, generation);
    spec.config.modprobe.firmware_path =
        [None, Some("/one"), Some("/two"), Some("/evil")][dice.roll(4)].map(ToOwned::to_owned);
    spec.config.in_tree_modules_to_remove =
        [vec![], vec!["old".to_owned()], vec!["lib".to_owned(), "old".to_owned()]][dice.roll(3)].clone();
    spec.policy =
        Some(LoadPolicy { restore_in_tree_modules: true, publish_on_host: dice.roll(2) == 0, ..LoadPolicy::default() });
    spec
}

fn removal(module: &str, generation: i64) -> UnloadIntent {
    UnloadIntent { reason: UnloadReason::Deleted, ..intent(module, generation) }
}

#[test]
fn whatever_happens_the_host_is_as_the_record_says_and_in_the_end_as_it_was() {
    for seed in 1..300u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut world = node();
        let mut before = "/opt/fw".to_owned();
        let mut generation = 1;
        for _ in 0..20 {
            generation += 1;
            let module = ["gpu", "net"][dice.roll(2)];
            match dice.roll(10) {
                0..=2 => {
                    world.desired.modules.retain(|spec| spec.name != module);
                    world.desired.unload.retain(|intent| intent.name != module);
                    world.desired.unload.push(intent(module, generation - 1));
                    world.desired.modules.push(wanted(module, generation, &mut dice));
                }
                3 | 4 => {
                    world.desired.modules.retain(|spec| spec.name != module);
                    world.desired.unload.retain(|intent| intent.name != module);
                    world.desired.unload.push(removal(module, generation));
                }
                5 => world.kernel.fail(
                    ["gpu", "old", "lib", "depmod", "firmware_class"][dice.roll(5)],
                    [Errno::EAGAIN, Errno::ENODEV][dice.roll(2)],
                ),
                6 => {
                    world.kernel.heal();
                    world.wait();
                }
                7 => world.kernel.with(|modules| {
                    modules.remove(module);
                }),
                8 if world.record.entries.iter().any(|entry| entry.firmware.is_some()) => {
                    before = format!("/elsewhere/{generation}");
                    *world.kernel.search_path.lock().unwrap() = Some(before.clone());
                }
                _ => world.restart(),
            }
            world.settle();
            assert!(world.plan().is_quiet(), "seed {seed}: at rest");
        }
        world.kernel.heal();
        world.wait();
        world.settle();
        let firmware = world.record.entries.iter().any(|entry| entry.firmware.is_some());
        assert_eq!(world.kernel.search_path.lock().unwrap().as_deref() == Some(OURS), firmware, "seed {seed}");
        let asking = world.record.entries.iter().filter(|entry| published::asks(&entry.spec)).count();
        assert_eq!(world.kernel.published.lock().unwrap().folders.len(), asking, "seed {seed}");
        world.desired.modules.clear();
        world.desired.unload = ["gpu", "net"].map(|module| removal(module, generation + 1)).to_vec();
        for _ in 0..4 {
            world.settle();
            world.wait();
        }
        assert_eq!(world.settle(), [""; 0], "seed {seed}");
        let value = world.kernel.search_path.lock().unwrap().clone();
        assert_eq!(value.as_deref(), Some(before.as_str()), "seed {seed}");
        assert!(world.store.links.lock().unwrap().is_none(), "seed {seed}");
        let published = world.kernel.published.lock().unwrap().clone();
        assert!(published.folders.is_empty() && published.stale.is_empty(), "seed {seed}: {published:?}");
        assert_eq!(world.record, Record::new("boot-1"), "seed {seed}");
    }
}
