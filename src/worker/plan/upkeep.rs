//! What is kept right for the node as a whole, beside the jobs of Modules: none of it waits for one that shares nothing with
//! it.

use std::collections::{BTreeMap, BTreeSet};

use super::in_tree;
use super::job::{Job, Step};
use super::observed::Observed;
use super::report::Plan;
use crate::api::ModuleState;
use crate::api::names::NodeReason;
use crate::worker::facts::Trouble;
use crate::worker::record::{Entry, Owner, Record, published};

/// Plans for the search path of firmware, for what is published on the host, and for in-tree modules without a Module.
pub(super) fn plan(observed: &Observed, plan: &mut Plan) {
    let firmware = observed.firmware.as_ref().filter(|view| !view.is_right(&observed.record));
    let steps = firmware.map(|_| vec![Step::Firmware]).unwrap_or_default();
    keep(observed, plan, "firmware", steps, &|entry| entry.firmware.is_some());
    keep(observed, plan, "in-tree", in_tree::left_over(observed), &|_| false);
    // What a job changes meanwhile is brought right when it has ended.
    let busy: BTreeSet<String> =
        plan.jobs.iter().map(|job| &job.owner).chain(observed.running.keys()).map(published::folder).collect();
    let steps = publishing(observed, &observed.record, &|name| busy.contains(name));
    if let (Some(view), false) = (&observed.published, steps.is_empty())
        && !view.writable
    {
        let message = "publishOnHost is not carried out: the host's /lib/modules is not mounted for writing";
        return tell(plan, &Trouble::new(NodeReason::NotPublished, message), &|entry| published::asks(&entry.spec));
    }
    keep(observed, plan, "published", steps, &|entry| published::asks(&entry.spec));
}

/// Steps after which the host shows nothing of an entry that has nothing in the kernel any more.
///
/// They are part of its removal: once it is forgotten the node may be done with, and the worker gone, before anything else
/// is begun. What the search path holds of other Modules is brought right for them.
pub(super) fn before_forgetting(observed: &Observed, entry: &Entry) -> Vec<Step> {
    let mut left = observed.record.clone();
    left.remove(&entry.owner());
    let mut steps = Vec::new();
    // That it has no firmware any more is recorded before the search path is touched: the last one of all also finishes
    // what was interrupted there.
    let concerned = entry.firmware.is_some() || left.entries.iter().all(|other| other.firmware.is_none());
    if concerned && observed.firmware.as_ref().is_some_and(|view| !view.is_right(&left)) {
        steps.extend([Step::write(Entry { firmware: None, ..entry.clone() }), Step::Firmware]);
    }
    if published::asks(&entry.spec) && observed.published.as_ref().is_some_and(|view| view.writable) {
        let folder = published::folder(&entry.owner());
        steps.extend(publishing(observed, &left, &|name| name != folder));
    }
    steps
}

/// A job for these steps, or why they are not tried now, told at the loaded Modules that are concerned.
fn keep(observed: &Observed, plan: &mut Plan, kind: &str, steps: Vec<Step>, concerned: &dyn Fn(&Entry) -> bool) {
    let node = Owner::node(kind);
    if steps.is_empty() || observed.running.contains_key(&node) {
        return;
    }
    if let Some(trouble) = observed.held_back(&node, None) {
        tell(plan, trouble, concerned);
    } else {
        plan.jobs.push(Job { owner: node, identity: None, steps });
    }
}

/// It is beside the load: the state stays what it is, and the sentence says it.
fn tell(plan: &mut Plan, trouble: &Trouble, concerned: &dyn Fn(&Entry) -> bool) {
    for report in &mut plan.reports {
        let is_concerned = report.loaded.as_ref().is_some_and(|loaded| concerned(&loaded.entry));
        if is_concerned && report.state == ModuleState::Loaded {
            report.add(trouble);
        }
    }
}

/// Steps after which the host shows what this record says: of the running kernel, and nothing of others.
///
/// What a wanted Module has there from an earlier boot stays until it is loaded again. Folders that are `left_alone` are
/// not touched.
fn publishing(observed: &Observed, record: &Record, left_alone: &dyn Fn(&str) -> bool) -> Vec<Step> {
    let Some(view) = &observed.published else { return Vec::new() };
    let recorded: BTreeMap<String, &Entry> = record
        .entries
        .iter()
        .filter(|entry| published::asks(&entry.spec) && !entry.files.is_empty())
        .map(|entry| (published::folder(&entry.owner()), entry))
        .collect();
    let wanted: BTreeSet<String> = observed
        .desired
        .modules
        .iter()
        .map(|desired| &desired.spec)
        .filter(|spec| {
            published::asks(spec) && observed.intent(&Owner::of(spec), spec.generation.unwrap_or(0)).is_none()
        })
        .map(|spec| published::folder(&Owner::of(spec)))
        .collect();
    let mut steps = Vec::new();
    let mut stale = view.stale.clone();
    for (release, name) in view.folders.keys().filter(|(_, name)| !left_alone(name)) {
        let here = *release == observed.release;
        if !here || !(recorded.contains_key(name) || wanted.contains(name)) {
            steps.push(Step::Unpublish { release: release.clone(), name: name.clone() });
            stale.insert(release.clone());
        }
    }
    for (name, entry) in recorded.into_iter().filter(|(name, _)| !left_alone(name)) {
        let (release, content) = (observed.release.clone(), published::content(entry));
        if view.folders.get(&(release.clone(), name.clone())) != Some(&content) {
            stale.insert(release.clone());
            steps.push(Step::Publish { release, name, content, files: entry.files.clone() });
        }
    }
    steps.extend(stale.into_iter().map(Step::Index));
    steps
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::api::{LoadPolicy, NodeModuleSpec};
    use crate::core::kmod::order::Role::{Named, Needed};
    use crate::worker::plan::startable;
    use crate::worker::record::RecordedModule;
    use crate::worker::testing::{RELEASE, World, file, identity, intent, spec};

    fn asking(generation: i64, publish_on_host: bool) -> NodeModuleSpec {
        let policy = LoadPolicy { publish_on_host, ..LoadPolicy::default() };
        NodeModuleSpec { policy: Some(policy), ..spec("gpu", "gpu", 'a', generation) }
    }

    fn node() -> World {
        let mut world = World::new();
        world.image('a', vec![file("gpu", "gpu1", Named, &[])]);
        world.image('b', vec![file("gpu", "gpu2", Named, &[])]);
        world.desired.modules = vec![asking(1, true)];
        world.kernel.published.lock().unwrap().writable = true;
        world
    }

    fn shown(world: &World) -> Vec<String> {
        let view = world.kernel.published.lock().unwrap().clone();
        assert_eq!(view.stale, BTreeSet::new());
        view.folders.keys().map(|(release, name)| format!("{release} {name}")).collect()
    }

    const GPU: &str = "6.12.1+ drivers.gpu";

    #[test]
    fn what_is_loaded_and_asked_for_is_published_until_it_is_not() {
        let mut world = node();
        world.kernel.published.lock().unwrap().folders.insert(("5.10".into(), "drivers.gpu".into()), "old".into());
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert_eq!(shown(&world), [GPU]);
        world.restart();
        assert!(world.plan().is_quiet());
        world.desired.modules = vec![asking(1, false)];
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert_eq!(shown(&world), [""; 0]);
        world.desired.modules = vec![asking(1, true)];
        world.settle();
        assert_eq!(shown(&world), [GPU]);
        // Neither wanted nor to go: it stays loaded, and published.
        world.desired.modules.clear();
        assert_eq!(world.settle(), ["gpu Orphaned NotWanted"]);
        assert_eq!(shown(&world), [GPU]);
        world.desired.unload = vec![intent("gpu", 1)];
        assert_eq!(world.settle(), [""; 0]);
        assert_eq!(shown(&world), [""; 0]);
    }

    #[test]
    fn another_file_is_published_in_the_place_of_the_old_one_and_a_half_change_is_finished() {
        let mut world = node();
        world.settle();
        let before = world.kernel.published.lock().unwrap().clone();
        world.desired.modules = vec![NodeModuleSpec { policy: asking(2, true).policy, ..spec("gpu", "gpu", 'b', 2) }];
        world.desired.unload = vec![intent("gpu", 1)];
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert_eq!(shown(&world), [GPU]);
        assert_ne!(*world.kernel.published.lock().unwrap(), before);
        world.kernel.published.lock().unwrap().stale.insert(RELEASE.into());
        world.settle();
        shown(&world);
    }

    #[test]
    fn after_a_boot_it_stays_until_the_module_is_there_again() {
        let mut world = node();
        world.settle();
        let before = world.kernel.published.lock().unwrap().clone();
        world.restart();
        world.record = crate::worker::record::Record::new("boot-2");
        world.kernel.with(std::collections::BTreeMap::clear);
        let image = world.images.remove(&('a', "gpu".to_owned())).unwrap();
        assert_eq!(world.settle(), ["gpu Failed ImageNotFound"]);
        assert_eq!(*world.kernel.published.lock().unwrap(), before);
        world.images.insert(('a', "gpu".to_owned()), image);
        world.wait();
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert_eq!(*world.kernel.published.lock().unwrap(), before);
    }

    #[test]
    fn what_the_host_loads_by_itself_at_a_boot_makes_room_for_a_change_that_waited_for_it() {
        let never = CancellationToken::new();
        for (change, expected) in [
            ("named", vec!["-gpu", "+gpu"]),
            ("both", vec!["-gpu", "-base", "+base", "+gpu"]),
            ("needed", vec![]),
            ("stranger", vec![]),
            ("made up", vec![]),
            ("of another", vec![]),
            ("named by another", vec![]),
            ("held", vec![]),
            ("none", vec![]),
        ] {
            let mut world = node();
            let image =
                |base: &str, gpu: &str| vec![file("base", base, Needed, &[]), file("gpu", gpu, Named, &["base"])];
            world.image('a', image("base1", "gpu1"));
            let (base, gpu) = match change {
                "needed" => ("base2", "gpu1"),
                "both" | "of another" | "named by another" | "held" => ("base2", "gpu2"),
                _ => ("base1", "gpu2"),
            };
            world.image('b', image(base, gpu));
            world.settle();
            let digest = if change == "none" { 'a' } else { 'b' };
            world.desired.modules =
                vec![NodeModuleSpec { policy: asking(2, true).policy, ..spec("gpu", "gpu", digest, 2) }];
            // The node boots, and the host loads what lies there.
            world.restart();
            world.record = Record { made_up: change == "made up", ..Record::new("boot-2") };
            let other = spec("net", if change == "of another" { "net" } else { "base" }, 'c', 1);
            match change {
                "of another" => {
                    let (name, identity) = ("base".to_owned(), identity("base1"));
                    let base = RecordedModule { name, identity, named: false, inserted: true, filesystems: Vec::new() };
                    world.record.put(Entry { modules: vec![base], ..Entry::of(other) });
                }
                "named by another" => world.desired.modules.push(other),
                _ => {}
            }
            world.kernel.with(|modules| {
                modules.get_mut("base").unwrap().references = u32::from(change == "held");
                let gpu = modules.get_mut("gpu").unwrap();
                gpu.references = u32::from(change != "held");
                if change == "stranger" {
                    gpu.id = "stranger".into();
                }
            });
            world.kernel.take_calls();
            let told = world.settle().remove(0);
            match change {
                "stranger" | "made up" => assert_eq!(told, "gpu Failed LoadedOtherFile", "{change}"),
                "none" | "needed" => assert_eq!(told, "gpu Loaded Adopted", "{change}"),
                "of another" | "named by another" => assert_eq!(told, "gpu Failed Conflict", "{change}"),
                _ => assert_eq!(told, "gpu Failed InUse", "{change}"),
            }
            assert_eq!(world.kernel.take_calls(), [""; 0], "{change}");
            world.kernel.with(|modules| modules.get_mut("gpu").unwrap().references = 0);
            while !world.round(&never).is_quiet() {}
            assert_eq!(world.kernel.take_calls(), expected, "{change}");
            assert_eq!(shown(&world), [GPU], "{change}");
        }
    }

    #[test]
    fn a_removal_is_over_when_the_host_shows_nothing_of_it_and_says_what_is_in_the_way() {
        for interrupted in [false, true] {
            let mut world = node();
            world.settle();
            world.desired.modules.clear();
            world.desired.unload = vec![intent("gpu", 1)];
            if interrupted {
                let mut plan = world.plan();
                let index = plan.jobs[0].steps.iter().position(|step| matches!(step, Step::Index(_))).unwrap();
                plan.jobs[0].steps.truncate(index);
                world.carry_out(&plan, &CancellationToken::new());
                world.restart();
            }
            world.kernel.fail("depmod", Errno::EIO);
            assert_eq!(world.settle(), ["gpu UnloadFailed NotPublished"], "{interrupted}");
            assert_eq!((world.kernel.names().len(), world.record.entries.len()), (0, 1));
            world.kernel.heal();
            world.wait();
            assert_eq!(world.settle(), [""; 0]);
            assert_eq!((shown(&world).len(), world.record.entries.len()), (0, 0));
        }
    }

    #[test]
    fn two_removals_share_nothing() {
        let mut world = node();
        world.image('c', vec![file("net", "net1", Named, &[])]);
        world.desired.modules.push(NodeModuleSpec { policy: asking(1, true).policy, ..spec("net", "net", 'c', 1) });
        world.settle();
        world.desired.modules.clear();
        world.desired.unload = vec![intent("gpu", 1), intent("net", 1)];
        let plan = world.plan();
        assert_eq!((plan.jobs.len(), startable(plan.jobs, &world.record, []).len()), (2, 2));
        assert_eq!(world.settle(), [""; 0]);
        assert_eq!(shown(&world), [""; 0]);
    }

    #[test]
    fn where_the_host_cannot_be_written_the_module_is_loaded_and_says_so() {
        let mut world = node();
        world.kernel.published.lock().unwrap().writable = false;
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert!(world.plan().reports[0].message.starts_with("NotPublished: "), "{:?}", world.plan().reports);
        let mut world = node();
        world.kernel.fail("depmod", nix::errno::Errno::EIO);
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert!(world.plan().reports[0].message.starts_with("NotPublished: "), "{:?}", world.plan().reports);
        world.kernel.heal();
        world.wait();
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert_eq!((shown(&world), world.plan().reports[0].message.as_str()), (vec![GPU.to_owned()], ""));
    }
}
