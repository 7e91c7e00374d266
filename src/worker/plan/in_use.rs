//! Modules that are to go and are in use.

use std::collections::BTreeMap;

use super::observed::Observed;
use super::report::Plan;
use crate::api::names::NodeReason;
use crate::core::load;
use crate::worker::record::Owner;

/// Modules whose users are worth looking for, each with the types of filesystems that it provides: those with references
/// of every Module that is reported as kept from going. Empty when nothing waits, so at rest nothing is looked for.
pub fn in_use(observed: &Observed, plan: &Plan) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for report in &plan.reports {
        let entry = observed.record.entry(&Owner::of(&report.spec));
        let recorded = entry.into_iter().flat_map(|entry| &entry.modules);
        let names: Vec<(String, Vec<String>)> = match report.reason {
            NodeReason::InUse => recorded.map(|module| (module.name.clone(), module.filesystems.clone())).collect(),
            NodeReason::InTreeModuleStays => {
                load::in_tree(&report.spec.config).into_iter().map(|name| (name, Vec::new())).collect()
            }
            _ => Vec::new(),
        };
        let used = |name: &String| observed.kernel.listed.get(name).is_some_and(|listed| listed.refcnt > Some(0));
        found.extend(names.into_iter().filter(|(name, _)| used(name)));
    }
    found
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::api::ModuleState;
    use crate::core::kmod::gates::{Gates, SignedOnly};
    use crate::core::kmod::order::Role::Named;
    use crate::worker::testing::{Loaded, World, file, intent, spec};

    fn gpu() -> World {
        let mut world = World::new();
        let mut image = file("gpu", "g1", Named, &[]);
        image.facts.filesystems = vec!["gpufs".into()];
        world.image('a', vec![image]);
        world.image('b', vec![file("gpu", "g2", Named, &[])]);
        world.desired.modules = vec![spec("gpu", "gpu", 'a', 1)];
        world
    }

    #[test]
    fn users_are_looked_for_only_while_something_in_use_is_to_go() {
        let mut world = gpu();
        let looked_for = |world: &World| in_use(&world.observe(), &world.plan());
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        world.kernel.with(|modules| modules.get_mut("gpu").unwrap().references = 1);
        assert!(looked_for(&world).is_empty(), "in use, but not to go");
        world.desired.modules.clear();
        assert_eq!(world.settle(), ["gpu Orphaned NotWanted"]);
        assert!(looked_for(&world).is_empty());
        world.desired.unload = vec![intent("gpu", 1)];
        assert_eq!(world.settle(), ["gpu UnloadFailed InUse"]);
        assert_eq!(looked_for(&world), BTreeMap::from([("gpu".to_owned(), vec!["gpufs".to_owned()])]));
        let mut observed = world.observe();
        observed.kernel.users.insert("gpu".into(), "mounted: /data (gpufs)".into());
        assert_eq!(
            crate::worker::plan::plan(&observed).reports[0].message,
            "module gpu is in use (reference count 1, mounted: /data (gpufs)); it goes as soon as nothing uses it"
        );
        // One of the kernel's own that is to make room.
        let mut world = gpu();
        world.kernel.with(|modules| {
            modules.insert("old_gpu".into(), Loaded { id: "x".into(), references: 3, ..Loaded::default() });
        });
        world.desired.modules[0].config.in_tree_modules_to_remove = vec!["old-gpu".into()];
        assert_eq!(world.settle(), ["gpu Failed InTreeModuleStays"]);
        assert_eq!(looked_for(&world), BTreeMap::from([("old_gpu".to_owned(), vec![])]));
    }

    #[test]
    fn an_unload_that_something_was_in_the_way_of_is_tried_again_when_the_count_changes_and_not_before() {
        let mut world = gpu();
        world.settle();
        world.desired.modules.clear();
        world.desired.unload = vec![intent("gpu", 1)];
        // The kernel refuses although the table shows no reference: somebody holds it for moments.
        world.kernel.fail("gpu", Errno::EAGAIN);
        let never = tokio_util::sync::CancellationToken::new();
        let tries = (0..50).filter(|_| !world.round(&never).jobs.is_empty()).count();
        assert_eq!(tries, 1, "fifty looks within the pause try once");
        assert_eq!(world.settle(), ["gpu UnloadFailed InUse"]);
        // Somebody holds it for longer, then lets go: no pause is waited for.
        world.kernel.heal();
        world.kernel.with(|modules| modules.get_mut("gpu").unwrap().references = 1);
        assert_eq!(world.settle(), ["gpu UnloadFailed InUse"]);
        let attempt = world.attempts.get_mut(&Owner::of(&spec("gpu", "gpu", 'a', 1))).unwrap();
        attempt.counts.insert("gpu".into(), Some(1));
        world.kernel.with(|modules| modules.get_mut("gpu").unwrap().references = 0);
        assert_eq!(world.settle(), [""; 0]);
        assert_eq!(world.kernel.names(), [""; 0]);
    }

    #[test]
    fn a_file_that_was_lost_meanwhile_costs_nothing_that_is_loaded_and_is_fetched_again() {
        let mut world = gpu();
        world.settle();
        world.kernel.take_calls();
        world.desired.modules = vec![spec("gpu", "gpu", 'b', 2)];
        world.desired.unload = vec![intent("gpu", 1)];
        world.kernel.with(|modules| modules.get_mut("gpu").unwrap().references = 1);
        assert_eq!(world.settle(), ["gpu UnloadFailed InUse"]);
        let lost = file("gpu", "g2", Named, &[]).path;
        world.kernel.lost.lock().unwrap().insert(lost.clone());
        world.kernel.with(|modules| modules.get_mut("gpu").unwrap().references = 0);
        let image = world.images.remove(&('b', "gpu".to_owned())).unwrap();
        let never = tokio_util::sync::CancellationToken::new();
        world.round(&never);
        let report = &world.plan().reports[0];
        assert_eq!((report.state, report.reason), (ModuleState::Failed, NodeReason::StoreFailed));
        assert_eq!(
            report.message,
            format!("{} cannot be read: No such file or directory (os error 2)", lost.display())
        );
        assert_eq!(world.settle(), ["gpu Failed ImageNotFound"]);
        assert_eq!(world.kernel.take_calls(), [""; 0], "the old file stays until the new one can be read");
        world.images.insert(('b', "gpu".to_owned()), image);
        world.wait();
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert_eq!(world.kernel.take_calls(), ["-gpu", "+gpu"]);
    }

    #[test]
    fn what_cannot_be_loaded_costs_nothing_that_is_loaded() {
        for signed in [false, true] {
            let mut world = gpu();
            assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
            world.kernel.take_calls();
            world.desired.modules = vec![spec("gpu", "gpu", 'b', 2)];
            world.desired.unload = vec![intent("gpu", 1)];
            let expected = if signed {
                *world.kernel.memory.lock().unwrap() = Some(1);
                "gpu Failed OutOfMemory"
            } else {
                let gates = Gates { signed_only: Some(SignedOnly::Enforced), ..Gates::default() };
                *world.kernel.gates.lock().unwrap() = gates;
                "gpu Failed SignatureMissing"
            };
            assert_eq!(world.settle(), [expected]);
            assert_eq!(world.kernel.take_calls(), [""; 0], "the old file stays until the new one can be loaded");
            *world.kernel.memory.lock().unwrap() = None;
            *world.kernel.gates.lock().unwrap() = Gates::default();
            world.wait();
            assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
            assert_eq!(world.kernel.id("gpu").as_deref(), Some("g2"));
        }
    }
}
