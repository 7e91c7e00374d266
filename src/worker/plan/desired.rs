//! What is wanted, read once: what each entry asks for in the kernel, apart from how its image is fetched.

use crate::api::names::NodeReason;
use crate::api::{NodeModuleSpec, NodeModulesConfigSpec, UnloadIntent};
use crate::core::kernel::trimmed;
use crate::core::load::{self, LoadIdentity};
use crate::worker::facts::Trouble;
use crate::worker::record::Owner;

/// Everything that is wanted of the worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wants {
    /// What is to be loaded.
    pub modules: Vec<Desired>,
    /// Orders to unload.
    pub unload: Vec<UnloadIntent>,
    /// The node's container runtime, by whose mirrors and rules images are fetched.
    pub container_runtime: Option<String>,
}

impl From<NodeModulesConfigSpec> for Wants {
    fn from(spec: NodeModulesConfigSpec) -> Self {
        let modules = spec.modules.into_iter().map(Desired::of).collect();
        Self { modules, unload: spec.unload, container_runtime: spec.container_runtime }
    }
}

/// An entry of what is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// The entry.
    pub spec: NodeModuleSpec,
    /// What it asks for, or why it cannot be carried out on whatever node.
    pub identity: Result<LoadIdentity, Trouble>,
}

impl Desired {
    /// Reads what an entry asks for.
    pub fn of(spec: NodeModuleSpec) -> Self {
        let identity = load::identity(&spec.config);
        Self { identity: identity.map_err(|refusal| Trouble::new(refusal.reason, refusal.message)), spec }
    }

    /// The Module that it belongs to.
    pub fn owner(&self) -> Owner {
        Owner::of(&self.spec)
    }

    /// The entry as far as it can be carried out on a kernel of this release.
    ///
    /// # Errors
    /// It is for another kernel, or cannot be carried out on any.
    pub fn check(&self, release: &str) -> Result<Wanted, Trouble> {
        let kernel = &self.spec.config.kernel_version;
        if trimmed(kernel) != trimmed(release) {
            let message = format!("wanted for kernel {kernel}, this node runs {release}; what is loaded stays");
            return Err(Trouble::new(NodeReason::WrongKernel, message));
        }
        Ok(Wanted { owner: self.owner(), spec: self.spec.clone(), identity: self.identity.clone()? })
    }
}

/// A wanted entry that can be carried out, at least as far as it says itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The Module that it belongs to.
    pub owner: Owner,
    /// The entry.
    pub spec: NodeModuleSpec,
    /// What it asks for.
    pub identity: LoadIdentity,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::{LoadPolicy, ModprobeArgs, ModuleConfig, OnChange};
    use crate::core::kmod::order::Role;
    use crate::core::load::tests::config;
    use crate::worker::testing::{self, Loaded, World};

    fn spec(change: impl FnOnce(&mut ModuleConfig)) -> NodeModuleSpec {
        let config = config(change);
        NodeModuleSpec { config, name: "gpu".into(), namespace: "drivers".into(), ..NodeModuleSpec::default() }
    }

    fn check(spec: NodeModuleSpec, release: &str) -> Result<Wanted, Trouble> {
        Desired::of(spec).check(release)
    }

    #[test]
    fn entries_that_cannot_be_carried_out_have_a_reason() {
        let args =
            |load: &str| Some(ModprobeArgs { load: load.split(' ').map(ToOwned::to_owned).collect(), unload: vec![] });
        let table: Vec<(NodeModuleSpec, NodeReason)> = vec![
            (spec(|c| c.kernel_version = "6.12.2".into()), NodeReason::WrongKernel),
            (spec(|c| c.container_image = "registry.example/kmm:1".into()), NodeReason::ImageInvalidReference),
            (spec(|c| c.container_image = "not an image".into()), NodeReason::ImageInvalidReference),
            (spec(|c| c.modprobe.args = args("-r")), NodeReason::UnsupportedArgs),
            (spec(|c| c.modprobe.args = args("a\0b")), NodeReason::UnsupportedArgs),
            (spec(|c| c.modprobe.raw_args = args("-v -d /opt")), NodeReason::UnsupportedArgs),
            (spec(|c| c.modprobe.raw_args = Some(ModprobeArgs::default())), NodeReason::UnsupportedArgs),
            (spec(|c| c.modprobe.raw_args = args("../x")), NodeReason::ModuleNotFound),
            (
                spec(|c| c.modprobe.modprobe_config = Some("install kmm_a /bin/true".into())),
                NodeReason::UnsupportedArgs,
            ),
            (spec(|c| c.modprobe.firmware_path = Some("/".into())), NodeReason::FirmwareNotFound),
            (spec(|c| c.modprobe.firmware_path = Some(String::new())), NodeReason::FirmwareNotFound),
            (spec(|c| c.modprobe.module_name = None), NodeReason::ModuleNotFound),
            (spec(|c| c.modprobe.module_name = Some("../../x".into())), NodeReason::ModuleNotFound),
            (spec(|c| c.modprobe.parameters = vec!["=1".into()]), NodeReason::ParameterRefused),
            (spec(|c| c.modprobe.parameters = vec!["a=1".into(), "-f".into()]), NodeReason::ParameterRefused),
            (spec(|c| c.modprobe.raw_args = args("kmm-a -- --")), NodeReason::ParameterRefused),
            (spec(|c| c.modprobe.args = args("--dry-run")), NodeReason::UnsupportedArgs),
        ];
        for (spec, expected) in table {
            assert_eq!(check(spec, "6.12.1+").unwrap_err().reason, expected);
        }
    }

    #[test]
    fn a_plus_at_the_end_of_the_release_does_not_count() {
        for (wanted, running) in [("6.12.1", "6.12.1+"), ("6.12.1+", "6.12.1"), ("6.12.1+", "6.12.1+")] {
            assert!(check(spec(|c| c.kernel_version = wanted.into()), running).is_ok(), "{wanted} {running}");
        }
        assert!(check(spec(|c| c.kernel_version = "6.12.1+deb12".into()), "6.12.1+deb12").is_ok());
        assert!(check(spec(|c| c.kernel_version = "6.12.1".into()), "6.12.1+deb12").is_err());
    }

    #[test]
    fn a_wanted_entry_says_what_makes_room_for_it() {
        let one = spec(|c| c.in_tree_modules_to_remove = vec!["old-a".into(), "b".into()]);
        assert_eq!(load::in_tree(&one.config), ["old_a", "b"]);
    }

    /// Ways to ask for a module, in many words; some cannot be carried out.
    fn ways() -> Vec<ModuleConfig> {
        type Edit = fn(&mut ModuleConfig);
        let args = |load: &[&str], unload: &[&str]| {
            let strings = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
            ModprobeArgs { load: strings(load), unload: strings(unload) }
        };
        let images: [Edit; 3] = [
            |_| {},
            |c| c.container_image = format!("other.example/kmm@sha256:{}", "a".repeat(64)),
            |c| c.container_image = format!("registry.example/kmm@sha256:{}", "b".repeat(64)),
        ];
        let parameters: [Edit; 4] = [
            |_| {},
            |c| c.modprobe.parameters = vec!["flag-a".into(), "b=2".into()],
            |c| c.modprobe.parameters = vec!["flag_a b=2".into()],
            |c| c.modprobe.parameters = vec!["flag_a".into()],
        ];
        let rest: [Edit; 5] = [
            |_| {},
            |c| c.modprobe.module_name = Some("kmm_a".into()),
            |c| c.in_tree_modules_to_remove = vec!["old-b".into(), "old-a".into()],
            |c| {
                c.in_tree_modules_to_remove = vec!["old_a".into(), "old_b".into()];
                c.image_pull_policy = "Always".into();
            },
            |c| c.in_tree_module_to_remove = Some("old_a".into()),
        ];
        let modprobe =
            [None, Some(args(&[], &[])), Some(args(&[], &["-v"])), Some(args(&["-v"], &[])), Some(args(&["-r"], &[]))];
        let mut ways = Vec::new();
        for image in images {
            for parameter in parameters {
                for other in rest {
                    for args in &modprobe {
                        let mut way = spec(|_| {}).config;
                        way.modprobe.args.clone_from(args);
                        for edit in [image, parameter, other] {
                            edit(&mut way);
                        }
                        ways.push(way);
                    }
                }
            }
        }
        ways
    }

    #[test]
    fn planner_and_worker_agree_on_what_is_the_same_in_the_kernel() {
        let ways = ways();
        let want = |config: &ModuleConfig, generation| {
            let config = config.clone();
            NodeModuleSpec { config, ..testing::spec("gpu", "kmm_a", 'a', generation) }
        };
        let mut said = BTreeMap::new();
        // A part of all pairs, each way as the first and as the second of some.
        for (at, before) in ways.iter().enumerate() {
            let mut world = World::new();
            for (digest, id) in [('a', "one"), ('b', "two")] {
                world.image(digest, vec![testing::file("kmm_a", id, Role::Named, &[])]);
            }
            world.desired.modules = vec![want(before, 1)];
            if world.settle() != ["gpu Loaded Loaded"] {
                continue;
            }
            world.kernel.take_calls();
            let record = world.record.clone();
            for after in ways.iter().skip(at % 23).step_by(23) {
                world.record = record.clone();
                world.restart();
                world.desired.modules = vec![want(after, 2)];
                let told = world.settle();
                assert_eq!(world.kernel.take_calls(), [""; 0], "nothing is ordered: {before:?} {after:?}");
                let same = told == ["gpu Loaded Loaded"];
                assert_eq!(same, load::same_in_kernel(before, after), "{told:?}: {before:?} {after:?}");
                *said.entry(told[0].clone()).or_insert(0) += 1;
            }
        }
        let told: Vec<&str> = said.keys().map(String::as_str).collect();
        let expected = [
            "gpu Failed LoadedOtherFile",
            "gpu Failed LoadedOtherParameters",
            "gpu Failed UnsupportedArgs",
            "gpu Loaded Loaded",
        ];
        assert_eq!(told, expected, "{said:?}");
    }

    #[test]
    fn another_list_of_in_tree_modules_comes_by_an_order_or_by_a_boot() {
        for (on_change, waits) in [
            (OnChange::Reload, "gpu Failed LoadedOtherParameters"),
            (OnChange::OnReboot, "gpu Pending WaitingForReboot"),
        ] {
            let policy = Some(LoadPolicy { on_change, ..LoadPolicy::default() });
            let mut world = World::new();
            world.image('a', vec![testing::file("kmm_a", "one", Role::Named, &[])]);
            world.kernel.with(|modules| {
                modules.insert("nouveau".into(), Loaded { id: "kernels".into(), ..Loaded::default() });
            });
            world.desired.modules = vec![NodeModuleSpec { policy, ..testing::spec("gpu", "kmm_a", 'a', 1) }];
            assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
            world.kernel.take_calls();
            let mut next = NodeModuleSpec { policy, ..testing::spec("gpu", "kmm_a", 'a', 2) };
            next.config.in_tree_modules_to_remove = vec!["nouveau".into()];
            world.desired.modules = vec![next];
            assert_eq!(world.settle(), [waits]);
            let told = world.plan().reports[0].loaded.clone().unwrap().entry.spec.config;
            assert_eq!((told.in_tree_modules_to_remove, world.kernel.take_calls()), (vec![], vec![]));
            world.desired.unload = vec![testing::intent("gpu", 1)];
            assert_eq!(world.settle(), ["gpu Loaded Loaded"], "{on_change}");
            assert_eq!(world.kernel.names(), ["kmm_a"]);
            assert_eq!(world.kernel.take_calls(), ["-kmm_a", "-nouveau", "+kmm_a"]);
        }
    }

    #[test]
    fn a_module_made_again_with_another_list_waits_for_what_was_before_it() {
        let mut world = World::new();
        world.image('a', vec![testing::file("kmm_a", "one", Role::Named, &[])]);
        world.kernel.with(|modules| {
            modules.insert("nouveau".into(), Loaded { id: "kernels".into(), ..Loaded::default() });
        });
        world.desired.modules = vec![testing::spec("gpu", "kmm_a", 'a', 1)];
        world.settle();
        let mut again = testing::spec("gpu", "kmm_a", 'a', 1);
        again.module_uid = Some("uid-again".into());
        again.config.in_tree_modules_to_remove = vec!["nouveau".into()];
        world.desired.modules = vec![again];
        world.desired.unload = vec![testing::intent("gpu", 1)];
        assert_eq!(world.settle(), ["gpu Loaded Loaded"]);
        assert_eq!(world.kernel.names(), ["kmm_a"]);
    }
}
