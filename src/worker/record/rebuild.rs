//! Makes up for a record that was lost within a boot, by what the worker had reported. Pure.
//!
//! Without it an order to unload would find nothing, and what is in the kernel would be told as gone.

use std::collections::BTreeMap;

use super::{Entry, Owner, Record, RecordedModule};
use crate::api::names::NodeReason;
use crate::api::{
    LoadPolicy, ModuleState, NodeModuleSpec, NodeModuleStatus, NodeModulesConfigSpec, NodeModulesConfigStatus,
    OnRemoval,
};
use crate::core::kmod::{Identity, Sameness};
use crate::core::load;
use crate::worker::facts::Running;

/// What a Module may have in the kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    spec: NodeModuleSpec,
    /// Kernel modules that it names, the module itself first.
    named: Vec<String>,
    /// What was reported of the module itself.
    identity: Identity,
    /// That was in this boot.
    of_this_boot: bool,
    adopted: bool,
}

/// What could be loaded for Modules that are in no entry: all that was reported in this boot, and of what was reported
/// before or is in the plan that was kept, what is to go. What is wanted just so is left to the load, which knows more.
pub fn candidates(
    record: &Record,
    reported: &NodeModulesConfigStatus,
    kept: &[NodeModuleSpec],
    desired: &NodeModulesConfigSpec,
) -> Vec<Candidate> {
    let mut all: BTreeMap<Owner, Candidate> = BTreeMap::new();
    let of_kept = kept.iter().filter_map(|spec| candidate(spec.clone(), Identity::default(), false, false));
    let of_reports = reported.modules.iter().filter_map(|module| {
        let policy = kept.iter().chain(&desired.modules).find(|spec| is_of(module, spec)).and_then(|spec| spec.policy);
        let identity = Identity { build_id: module.build_id.clone(), srcversion: module.srcversion.clone() };
        let of_this_boot = module.boot_id.as_ref() == Some(&record.boot_id);
        let adopted = module.reason.as_deref() == Some(NodeReason::Adopted.as_str());
        candidate(as_loaded(module, policy)?, identity, of_this_boot, adopted)
    });
    all.extend(of_kept.chain(of_reports).map(|candidate| (Owner::of(&candidate.spec), candidate)));
    let must_go = |spec: &NodeModuleSpec| desired.unload.iter().any(|intent| intent.covers(spec));
    let is_wanted = |candidate: &Candidate| {
        desired.modules.iter().any(|spec| {
            Owner::of(spec) == Owner::of(&candidate.spec)
                && !must_go(spec)
                && load::identity(&spec.config) == load::identity(&candidate.spec.config)
        })
    };
    all.into_iter()
        .filter(|(owner, candidate)| {
            record.entry(owner).is_none()
                && !is_wanted(candidate)
                && (candidate.of_this_boot || must_go(&candidate.spec))
        })
        .map(|(_, candidate)| candidate)
        .collect()
}

fn candidate(spec: NodeModuleSpec, identity: Identity, of_this_boot: bool, adopted: bool) -> Option<Candidate> {
    let named = load::identity(&spec.config).ok()?.named;
    Some(Candidate { spec, named, identity, of_this_boot, adopted })
}

fn is_of(module: &NodeModuleStatus, spec: &NodeModuleSpec) -> bool {
    (&module.module_uid, &module.namespace, &module.name) == (&spec.module_uid, &spec.namespace, &spec.name)
}

/// The entry that a report speaks of as loaded, if it does. One of the pod-based worker, which tells no state, does not
/// come from a record.
fn as_loaded(module: &NodeModuleStatus, policy: Option<LoadPolicy>) -> Option<NodeModuleSpec> {
    use ModuleState::{Loaded, Orphaned, UnloadFailed, Unloading};
    // Others speak of a later generation than that of what is loaded, which then is not known: any order is meant.
    let of_loaded = matches!(module.state?, Loaded | Orphaned | Unloading | UnloadFailed);
    let kept = module.reason.as_deref() == Some(NodeReason::Kept.as_str());
    Some(NodeModuleSpec {
        config: module.config.clone()?,
        generation: module.observed_generation.filter(|_| of_loaded),
        image_pull_secrets: Vec::new(),
        image_source: None,
        image_repo_secret: module.image_repo_secret.clone(),
        module_uid: module.module_uid.clone(),
        name: module.name.clone(),
        namespace: module.namespace.clone(),
        policy: if kept {
            Some(LoadPolicy { on_removal: OnRemoval::Keep, ..policy.unwrap_or_default() })
        } else {
            policy
        },
        service_account_name: module.service_account_name.clone(),
        tolerations: module.tolerations.clone(),
        version: module.version.clone(),
    })
}

impl Candidate {
    /// Name of the module itself, as the kernel has it.
    pub fn main(&self) -> &str {
        self.named.first().map_or("", String::as_str)
    }

    /// The entry, given what the kernel runs under the name: nothing if that is not what was reported, and one without
    /// proof if that cannot be told.
    pub fn entry(&self, running: Option<&Running>) -> Option<Entry> {
        let running = &running?.identity;
        let entry = Entry::of(self.spec.clone());
        match running.compare(&self.identity) {
            Sameness::Different => None,
            Sameness::Same if self.of_this_boot => {
                let modules = self.named.iter().rev().map(|name| RecordedModule {
                    name: name.clone(),
                    named: true,
                    inserted: !self.adopted,
                    // Of the others nothing was reported; the module itself stands on them.
                    identity: if name == self.main() { running.clone() } else { Identity::default() },
                    filesystems: Vec::new(),
                });
                Some(Entry { modules: modules.collect(), adopted: self.adopted, ..entry })
            }
            Sameness::Same | Sameness::Unknown => Some(Entry { unproved: true, ..entry }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::kmod::order::Role::{Named, Needed};
    use crate::worker::kernel::Kernel as _;
    use crate::worker::testing::{Loaded, World, file, intent, spec};

    /// The node after `base` and `gpu` were loaded, with the status that says so.
    fn node() -> (World, NodeModulesConfigStatus) {
        let mut world = World::new();
        world.image('a', vec![file("base", "b1", Needed, &[]), file("gpu", "gpu1", Named, &["base"])]);
        world.image('b', vec![file("gpu", "gpu2", Named, &[])]);
        world.desired.modules = vec![spec("gpu", "gpu", 'a', 1)];
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        world.kernel.take_calls();
        let status = told(&world);
        (world, status)
    }

    fn told(world: &World) -> NodeModulesConfigStatus {
        let node =
            crate::worker::report::About { boot_id: "boot-1", release: "6.12.1+", generation: 7, unreadable: None };
        let old = NodeModulesConfigStatus::default();
        crate::worker::report::status(&old, &node, &world.plan().reports, None, jiff::Timestamp::UNIX_EPOCH).unwrap()
    }

    /// The record is lost and made up for.
    fn lose(world: &mut World, status: &NodeModulesConfigStatus, kept: &[NodeModuleSpec]) {
        world.restart();
        world.record = Record::new("boot-1");
        for candidate in candidates(&world.record, status, kept, &world.desired) {
            let running = world.kernel.running(candidate.main(), &std::collections::BTreeSet::new()).unwrap();
            world.record.entries.extend(candidate.entry(running.as_ref()));
        }
    }

    #[test]
    fn an_order_takes_out_what_was_reported_in_this_boot() {
        let (mut world, status) = node();
        world.desired.modules.clear();
        world.desired.unload = vec![intent("gpu", 1)];
        lose(&mut world, &status, &[]);
        assert_eq!(world.settle(), [""; 0]);
        // That it had inserted `base` as well is lost with the record.
        assert_eq!(world.kernel.names(), ["base"]);
    }

    #[test]
    fn what_was_reported_and_is_in_neither_list_is_told_and_what_is_wanted_is_left_to_the_load() {
        let (mut world, status) = node();
        let wanted = std::mem::take(&mut world.desired.modules);
        lose(&mut world, &status, &[]);
        assert_eq!(world.settle(), ["gpu Orphaned NotWanted"]);
        let mut kept = status.clone();
        kept.modules[0].reason = Some("Kept".into());
        lose(&mut world, &kept, &[]);
        assert_eq!(world.settle(), ["gpu Orphaned Kept"]);
        world.desired.modules = wanted;
        lose(&mut world, &status, &[]);
        assert_eq!(world.record.entries, []);
        assert_eq!(world.settle(), ["gpu Loaded Adopted"]);
        assert_eq!(world.kernel.take_calls(), [""; 0]);
    }

    #[test]
    fn an_order_to_make_room_is_carried_out_although_another_generation_was_reported() {
        let (mut world, _) = node();
        world.desired.modules = vec![spec("gpu", "gpu", 'b', 2)];
        assert_eq!(world.settle(), ["gpu Failed LoadedOtherFile"]);
        let status = told(&world);
        world.desired.unload = vec![intent("gpu", 1)];
        lose(&mut world, &status, &[]);
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert_eq!(world.kernel.id("gpu").as_deref(), Some("gpu2"));
    }

    #[test]
    fn what_is_not_proved_is_told_until_it_is_gone_and_never_touched() {
        let (mut world, status) = node();
        let kept = std::mem::take(&mut world.desired.modules);
        let mut of_other_boot = status.clone();
        of_other_boot.modules[0].boot_id = Some("boot-0".into());
        let mut without_proof = status.clone();
        without_proof.modules[0].build_id = None;
        let nothing = NodeModulesConfigStatus::default();
        for (status, kept) in [(&of_other_boot, [].as_slice()), (&without_proof, &[]), (&nothing, &kept)] {
            world.desired.unload = vec![intent("gpu", 1)];
            lose(&mut world, status, kept);
            assert_eq!(world.settle(), ["gpu UnloadFailed RecordLost"]);
            assert_eq!(told(&world).modules[0].config, None, "nothing is told as this Module's");
            // Another start, and an order that is taken back.
            world.restart();
            world.desired.unload.clear();
            assert_eq!(world.settle(), ["gpu Orphaned RecordLost"]);
            assert_eq!(world.kernel.names(), ["base", "gpu"]);
        }
        // Wanted again, it is proved by the file.
        world.desired.modules.clone_from(&kept);
        assert_eq!(world.settle(), ["gpu Loaded Adopted"]);
        world.desired.modules.clear();
        world.desired.unload = vec![intent("gpu", 1)];
        lose(&mut world, &nothing, &kept);
        world.kernel.with(|modules| drop(modules.remove("gpu")));
        assert_eq!(world.settle(), [""; 0]);
        assert_eq!((world.record.entries.len(), world.kernel.take_calls()), (0, vec![]));
    }

    #[test]
    fn what_the_kernel_does_not_run_any_more_is_gone() {
        let (mut world, status) = node();
        world.desired.modules.clear();
        world.desired.unload = vec![intent("gpu", 1)];
        for id in [None, Some("other")] {
            world.kernel.with(|modules| {
                modules.remove("gpu");
                modules.extend(id.map(|id| ("gpu".to_owned(), Loaded { id: id.into(), ..Loaded::default() })));
            });
            lose(&mut world, &status, &[]);
            assert_eq!(world.record.entries, []);
            assert_eq!(world.settle(), [""; 0]);
        }
        // In a new boot nothing that was reported or kept says anything of what is not there.
        world.kernel.with(BTreeMap::clear);
        lose(&mut world, &status, &[spec("gpu", "gpu", 'a', 1)]);
        assert_eq!(world.record.entries, []);
    }
}
