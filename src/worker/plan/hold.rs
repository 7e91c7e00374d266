//! What is not carried out because it could not be remembered.

use std::collections::BTreeMap;

use super::observed::Observed;
use super::report::Plan;
use crate::api::ModuleState;
use crate::worker::facts::Trouble;
use crate::worker::record::Owner;

/// Leaves out all that is to be done while what is wanted is not kept on the disk, and jobs that could not be recorded a
/// short while ago. It is told at the Modules that are concerned; what is loaded counts as loaded all the same.
pub(super) fn plan(observed: &Observed, plan: &mut Plan) {
    let mut held: BTreeMap<Owner, Trouble> = BTreeMap::new();
    plan.jobs.retain(|job| {
        let unrecorded = observed.held_back(&job.owner, job.identity.as_ref()).filter(|trouble| trouble.is_of_store());
        let why = observed.unkept.as_ref().or(unrecorded);
        held.extend(why.map(|why| (job.owner.clone(), why.clone())));
        why.is_none()
    });
    if let Some(why) = &observed.unkept {
        held.extend(plan.prepare.drain(..).map(|wanted| (wanted.owner, why.clone())));
        plan.taken_back.clear();
    }
    for report in &mut plan.reports {
        let Some(why) = held.get(&Owner::of(&report.spec)) else { continue };
        report.state = match report.state {
            ModuleState::Loaded => {
                report.add(why);
                continue;
            }
            ModuleState::Unloading => ModuleState::UnloadFailed,
            _ => ModuleState::Failed,
        };
        report.reason = why.reason;
        report.message.clone_from(&why.message);
    }
    plan.held = held.into_keys().collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::names::NodeReason;
    use crate::core::kmod::order::Role::Named;
    use crate::worker::testing::{World, file, intent, spec};

    fn node() -> World {
        let mut world = World::new();
        for module in ["gpu", "net", "disk"] {
            world.image('a', vec![file(module, &format!("{module}1"), Named, &[])]);
            world.image('b', vec![file(module, &format!("{module}2"), Named, &[])]);
        }
        world.desired.modules = vec![spec("gpu", "gpu", 'a', 1), spec("net", "net", 'a', 1)];
        assert_eq!(world.settle(), ["gpu Loaded Loaded", "net Loaded Loaded"]);
        world.kernel.take_calls();
        world
    }

    #[test]
    fn what_is_not_kept_on_the_disk_is_told_and_not_carried_out() {
        let mut world = node();
        world.unkept = Some(Trouble::new(NodeReason::StoreFull, "no room"));
        assert_eq!(world.settle(), ["gpu Loaded Loaded", "net Loaded Loaded"]);
        world.desired.modules = vec![spec("gpu", "gpu", 'a', 2), spec("disk", "disk", 'a', 1)];
        world.desired.unload = vec![intent("net", 1)];
        let held = ["disk Failed StoreFull", "gpu Loaded Loaded", "net UnloadFailed StoreFull"];
        assert_eq!(world.settle(), held);
        let plan = world.plan();
        assert_eq!(plan.held.len(), 3);
        let messages: Vec<&str> = plan.reports.iter().map(|report| report.message.as_str()).collect();
        assert_eq!(messages, ["no room", "StoreFull: no room", "no room"]);
        world.wait();
        world.kernel.with(|modules| drop(modules.remove("gpu")));
        assert_eq!(world.settle(), ["disk Failed StoreFull", "gpu Failed StoreFull", "net UnloadFailed StoreFull"]);
        assert_eq!(world.kernel.take_calls(), [""; 0]);
        world.unkept = None;
        assert_eq!(world.settle(), ["disk Loaded Loaded", "gpu Loaded Loaded"]);
        assert_eq!(world.kernel.names(), ["disk", "gpu"]);
    }

    #[test]
    fn what_cannot_be_recorded_is_neither_loaded_nor_unloaded_nor_replaced_nor_tried_without_a_pause() {
        let mut world = node();
        *world.store.full.lock().unwrap() = true;
        world.desired.modules = vec![spec("gpu", "gpu", 'b', 2), spec("disk", "disk", 'a', 1)];
        world.desired.unload = vec![intent("net", 1), intent("gpu", 1)];
        let held = ["disk Failed StoreFailed", "gpu Failed StoreFailed", "net UnloadFailed StoreFailed"];
        assert_eq!(world.settle(), held);
        assert_eq!(world.kernel.take_calls(), [""; 0]);
        // Only the record is concerned.
        world.desired.modules = vec![spec("gpu", "gpu", 'a', 2), spec("net", "net", 'a', 2)];
        world.desired.unload.clear();
        assert_eq!(world.settle(), ["gpu Loaded Loaded", "net Loaded Loaded"]);
        assert!(world.plan().reports.iter().all(|report| report.message.starts_with("StoreFailed: ")));
        *world.store.full.lock().unwrap() = false;
        world.wait();
        world.settle();
        assert!(world.record.entries.iter().all(|entry| entry.generation() == 2), "{:?}", world.record);
        assert_eq!(world.kernel.take_calls(), [""; 0]);
    }
}
