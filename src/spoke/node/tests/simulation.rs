//! The planner of one node against a worker that keeps to its contract, through random histories.
//!
//! Proved of every history: each new intent has a Module that is there and does not want what is loaded; the plan of
//! the world that a plan made is empty; and once the world holds still, the kernel holds what Modules want, and of the
//! rest only what no Module has ever asked to go. No order is given while a pod of the Module is on the node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;

use crate::api::{
    LoadPolicy, ModuleState, NodeModuleSpec, NodeModuleStatus, NodeModulesConfigSpec, OnChange, OnRemoval,
    UnloadIntent, UnloadReason,
};
use crate::core::kernel::KernelVersion;
use crate::core::load::same_in_kernel;
use crate::runtime::store::ObjectKey;
use crate::spoke::module;
use crate::spoke::outcome::Deletion;
use crate::spoke::tally::Tally;
use crate::spoke::testing::{KERNEL, ModuleBuilder, a_module, a_node};
use crate::spoke::view::{ConfigView, NodeView, ReportView};

use super::*;

/// Small, fast, and the same everywhere: xorshift.
struct Dice(u64);

impl Dice {
    fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

struct World {
    node: NodeView,
    config: Option<ConfigView>,
    modules: Vec<ModuleBuilder>,
    /// What the worker loaded in this boot, by UID of the Module. It survives the object.
    record: BTreeMap<String, NodeModuleSpec>,
    /// Modules whose loading nobody had heard of when the object was lost.
    unheard: BTreeSet<String>,
    /// Modules whose finalizer was removed.
    ended: BTreeSet<String>,
    in_use: bool,
    /// Modules with a pod on the node, and whether the pod stays although the label by which it came is gone.
    pods: BTreeMap<(&'static str, &'static str), bool>,
    boots: u32,
    uids: u32,
    versions: u32,
}

const NAMES: [(&str, &str); 3] = [("a", "gpu"), ("b", "gpu"), ("a", "net.x")];

impl World {
    fn new() -> Self {
        let mut world = Self {
            node: a_node(),
            config: None,
            modules: Vec::new(),
            record: BTreeMap::new(),
            unheard: BTreeSet::new(),
            ended: BTreeSet::new(),
            in_use: false,
            pods: BTreeMap::new(),
            boots: 1,
            uids: 0,
            versions: 0,
        };
        world.node.labels.insert("gpu".into(), "yes".into());
        for name in NAMES {
            world.create(name);
        }
        world
    }

    fn create(&mut self, (namespace, name): (&str, &str)) {
        self.uids += 1;
        let mut module = a_module(namespace, name, &format!("u{}", self.uids));
        module.spec.selector = [("gpu".to_owned(), "yes".to_owned())].into();
        self.modules.push(module);
    }

    fn observed(&self) -> Observed {
        let here = |module: &ModuleBuilder| {
            let facts = module.clone().build();
            ModuleHere { want: want(&facts, &self.node, None, &[], None), facts }
        };
        Observed {
            node: Some(Arc::new(self.node.clone())),
            config: self.config.clone().map(Arc::new),
            modules: self.modules.iter().map(here).collect(),
            consumers: self.pods.keys().map(|(namespace, name)| consumer(namespace, name)).collect(),
            tolerations: Arc::default(),
        }
    }

    /// One pass of the DaemonSet controller and the kubelet. Returns whether a pod came or went.
    fn run_pods(&mut self) -> bool {
        let before = self.pods.clone();
        let ready = |(namespace, name): (&str, &str)| {
            self.node.labels.contains_key(&crate::api::names::ready_label(namespace, name))
        };
        self.pods.retain(|module, stays| *stays || ready(*module));
        for module in NAMES.into_iter().filter(|module| ready(*module)) {
            self.pods.entry(module).or_insert(false);
        }
        self.pods != before
    }

    /// One pass of the manager. Returns whether it wrote anything.
    fn manage(&mut self) -> bool {
        let plan = plan(&self.observed());
        self.check_intents(&plan);
        let mut wrote = !plan.labels.is_empty() || plan.config != ConfigAction::Nothing;
        match plan.config {
            ConfigAction::Nothing => {}
            ConfigAction::Delete { .. } => self.config = None,
            ConfigAction::Apply { resource_version, owner, labels, stale_labels: _, spec } => {
                assert_eq!(resource_version.is_some(), self.config.is_some());
                let old = self.config.take().unwrap_or_else(|| ConfigView { generation: 0, ..ConfigView::default() });
                self.versions += 1;
                let generation = old.generation + i64::from(old.spec != spec || old.generation == 0);
                let resource_version = self.versions.to_string();
                self.config =
                    Some(ConfigView { generation, owner: Some(owner), labels, spec, resource_version, ..old });
            }
        }
        for (key, value) in plan.labels {
            match value {
                Some(value) => self.node.labels.insert(key, value),
                None => self.node.labels.remove(&key),
            };
        }
        // The finalizers, by the totals of this one node.
        let tally = Tally::default();
        tally.lock().record("n", plan.outcomes);
        let totals = tally.lock();
        let over = |module: &ModuleBuilder| {
            let facts = module.clone().build();
            let observed = module::Observed {
                totals: Some(totals.of(&facts.uid)),
                facts: Arc::clone(&facts),
                images: None,
                pull_secrets: Vec::new(),
                counted: true,
                deletion: Some(Deletion::Ordered),
            };
            facts.deleting && module::plan(&observed).finalizers.is_some()
        };
        let (ended, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.modules).into_iter().partition(over);
        wrote |= !ended.is_empty();
        self.ended.extend(ended.into_iter().filter_map(|module| module.meta.uid));
        self.modules = rest;
        wrote
    }

    fn check_intents(&self, plan: &Plan) {
        let ConfigAction::Apply { spec, .. } = &plan.config else { return };
        let old = self.config.as_ref().map(|config| config.spec.clone()).unwrap_or_default();
        for intent in spec.unload.iter().filter(|intent| !old.unload.contains(intent)) {
            let repeats =
                |other: &UnloadIntent| other.module_uid == intent.module_uid && other.generation >= intent.generation;
            let orders = intent.generation > 0 && !old.unload.iter().any(repeats);
            let pod = self.pods.keys().any(|module| *module == (&*intent.namespace, &*intent.name));
            assert!(!orders || !pod, "a pod is still there: {intent:?}");
            let module = self.modules.iter().find(|module| module.meta.uid.as_ref() == Some(&intent.module_uid));
            let justified = match intent.reason {
                UnloadReason::Deleted => module.is_some_and(|m| m.meta.deletion_timestamp.is_some()),
                UnloadReason::NoModuleLoader => module.is_some_and(|m| m.spec.module_loader.is_none()),
                UnloadReason::NotSelected => module.is_some_and(|m| {
                    m.spec.selector.iter().any(|(key, value)| self.node.labels.get(key) != Some(value))
                }),
                // The new entry, of this Module or of its successor, stands beside it and is in a hurry.
                UnloadReason::Changed => spec.modules.iter().any(|entry| {
                    let newer = entry.generation > Some(intent.generation);
                    (&entry.namespace, &entry.name) == (&intent.namespace, &intent.name)
                        && entry.policy.unwrap_or_default().on_change == OnChange::Reload
                        && (newer || entry.module_uid.as_ref() != Some(&intent.module_uid))
                }),
                UnloadReason::Unknown => false,
            };
            // What the policy keeps is not ordered out: the Module's, and where it has none any more that of what is loaded,
            // if the intent is about that.
            let kept = match module.and_then(|module| module.spec.module_loader.as_ref()) {
                Some(loader) => keeps(loader.policy),
                None => self.record.get(&intent.module_uid).is_some_and(|held| {
                    let replaced =
                        old.modules.iter().find(|entry| entry.module_uid.as_ref() == Some(&intent.module_uid));
                    held.generation <= Some(intent.generation)
                        && keeps(replaced.map_or(held.policy, |entry| entry.policy))
                }),
            };
            assert!(!kept || intent.reason == UnloadReason::Changed, "kept: {intent:?} of {module:?}");
            assert!(justified, "{intent:?} of {module:?}");
        }
    }

    /// One pass of the worker. Returns whether its report changed.
    fn work(&mut self) -> bool {
        let Some(config) = &mut self.config else { return false };
        let mut reports = Vec::new();
        let mut busy = BTreeSet::new();
        for intent in &config.spec.unload {
            let covered = self.record.get(&intent.module_uid).filter(|e| e.generation <= Some(intent.generation));
            match covered {
                Some(entry) if self.in_use => {
                    busy.insert(intent.module_uid.clone());
                    reports.push(status(entry, ModuleState::UnloadFailed, "InUse", Some(entry)));
                }
                Some(_) => {
                    self.record.remove(&intent.module_uid);
                }
                None => {}
            }
        }
        for entry in &config.spec.modules {
            let uid = entry.module_uid.clone().unwrap_or_default();
            if busy.contains(&uid) {
                continue;
            }
            if Ok(entry.config.kernel_version.as_str()) != self.node.kernel.as_ref().map(KernelVersion::trimmed) {
                reports.push(status(entry, ModuleState::Failed, "WrongKernel", self.record.get(&uid)));
                continue;
            }
            let holder =
                self.record.iter().find(|(_, held)| (&held.namespace, &held.name) == (&entry.namespace, &entry.name));
            match holder.map(|(uid, held)| (uid.clone(), held.clone())) {
                None => {
                    self.record.insert(uid.clone(), entry.clone());
                }
                Some((of, held)) if same_in_kernel(&held.config, &entry.config) => {
                    // A Module made again under the name adopts; a record keeps the generation of its load.
                    self.record.remove(&of);
                    let generation = if of == uid { held.generation } else { entry.generation };
                    self.record.insert(uid.clone(), NodeModuleSpec { generation, ..entry.clone() });
                }
                Some((of, held)) => {
                    let own = (of == uid).then_some(&held);
                    let (state, reason) = match entry.policy.unwrap_or_default().on_change {
                        OnChange::Reload => (ModuleState::Failed, "LoadedOtherFile"),
                        OnChange::OnReboot => (ModuleState::Pending, "WaitingForReboot"),
                    };
                    reports.push(status(entry, state, reason, own));
                    continue;
                }
            }
            reports.push(status(entry, ModuleState::Loaded, "Loaded", Some(entry)));
        }
        let told: BTreeSet<_> = reports.iter().filter_map(|report| report.module_uid.clone()).collect();
        let rest = self.record.iter().filter(|(uid, _)| !told.contains(*uid));
        reports.extend(rest.map(|(_, held)| {
            let reason = if keeps(held.policy) { "Kept" } else { "NotWanted" };
            status(held, ModuleState::Orphaned, reason, Some(held))
        }));
        let report = ReportView {
            boot_id: Some(self.node.boot_id.clone()),
            observed_generation: Some(config.generation),
            modules: reports,
        };
        let changed = config.report != report;
        if changed {
            self.versions += 1;
            config.resource_version = self.versions.to_string();
            config.report = report;
        }
        changed
    }

    fn happen(&mut self, dice: &mut Dice) {
        let kernel = |n: u64| format!("6.1.0-{n}-amd64");
        let at = usize::try_from(dice.roll(8)).unwrap_or_default();
        let digest = char::from_digit(u32::try_from(dice.roll(4)).unwrap_or_default() + 10, 16).unwrap_or('a');
        match dice.roll(23) {
            21 => {
                let module = NAMES[at % NAMES.len()];
                self.pods.insert(module, dice.roll(2) == 0);
            }
            22 => self.pods.values_mut().for_each(|stays| *stays = false),
            0 => self.node.labels.extend([("gpu".to_owned(), "no".to_owned())]),
            1 | 2 => self.node.labels.extend([("gpu".to_owned(), "yes".to_owned())]),
            3 => self.node.taints = vec![Taint { key: "t".into(), effect: "NoExecute".into(), ..Taint::default() }],
            4 | 5 => self.node.taints.clear(),
            6 => self.reboot(KERNEL),
            7 => self.reboot(&kernel(dice.roll(3))),
            8 => {
                self.config = None;
                let ready = |held: &NodeModuleSpec| {
                    self.node.labels.contains_key(&crate::api::names::ready_label(&held.namespace, &held.name))
                };
                let unheard = self.record.iter().filter(|(_, held)| !ready(held));
                self.unheard.extend(unheard.map(|(uid, _)| uid.clone()));
            }
            9 => self.in_use = !self.in_use,
            10 => self.modules.truncate(at),
            11 => {
                let missing: Vec<_> = NAMES.into_iter().filter(|name| !self.has(*name)).collect();
                for name in missing {
                    self.create(name);
                }
            }
            12 => {
                if let Some(module) = self.modules.get_mut(at) {
                    *module = module.clone().deleting();
                    module.meta.generation = module.meta.generation.map(|generation| generation + 1);
                }
            }
            13 => self.edit(at, |module| module.spec.module_loader = None),
            14 => self.edit(at, |module| module.container().modprobe.parameters = vec![format!("p={digest}")]),
            15 => self.edit(at, |module| {
                let image = format!("r.example/x@sha256:{}", digest.to_string().repeat(64));
                module.container().kernel_mappings.iter_mut().for_each(|m| m.container_image.clone_from(&image));
            }),
            16 => self.edit(at, |module| {
                let unresolved = "r.example/x:tag".to_owned();
                module.container().kernel_mappings.iter_mut().for_each(|m| m.container_image.clone_from(&unresolved));
            }),
            17 => self.edit(at, |module| {
                module.container().kernel_mappings.iter_mut().for_each(|m| m.regexp = Some("^7".into()));
            }),
            _ => {
                let policy = LoadPolicy {
                    on_change: [OnChange::Reload, OnChange::OnReboot][at % 2],
                    on_removal: [OnRemoval::Unload, OnRemoval::Keep][at / 2 % 2],
                    ..LoadPolicy::default()
                };
                self.edit(usize::try_from(dice.roll(3)).unwrap_or_default(), |module| {
                    if let Some(loader) = &mut module.spec.module_loader {
                        loader.policy = Some(policy);
                    }
                });
            }
        }
    }

    fn has(&self, (namespace, name): (&str, &str)) -> bool {
        let is = |module: &ModuleBuilder| {
            (module.meta.namespace.as_deref(), module.meta.name.as_deref()) == (Some(namespace), Some(name))
        };
        self.modules.iter().any(is)
    }

    fn edit(&mut self, at: usize, edit: impl FnOnce(&mut ModuleBuilder)) {
        if let Some(module) = self.modules.get_mut(at) {
            edit(module);
            module.meta.generation = module.meta.generation.map(|generation| generation + 1);
        }
    }

    fn reboot(&mut self, kernel: &str) {
        self.boots += 1;
        self.node.boot_id = format!("boot-{}", self.boots);
        self.node.kernel = KernelVersion::parse(kernel);
        self.record.clear();
        self.unheard.clear();
    }

    /// The world holds still and everything in it can be carried out; returns what the manager and worker did.
    fn settle(&mut self) -> usize {
        for steps in 0..200 {
            let (wrote, worked, moved) = (self.manage(), self.work(), self.run_pods());
            if !wrote && !worked && !moved {
                return steps;
            }
        }
        panic!("it never ends: {:?}\n{:?}", self.config, self.record);
    }

    fn check_end(&self) {
        for module in &self.modules {
            let facts = module.clone().build();
            let held = self.record.get(&*facts.uid);
            match want(&facts, &self.node, None, &[], None) {
                Want::Here(entry) => {
                    let blocked = self.record.iter().any(|(uid, held)| {
                        let unknown = self.modules.iter().all(|module| module.meta.uid.as_ref() != Some(uid));
                        unknown && (&held.namespace, &held.name) == (&entry.namespace, &entry.name)
                    });
                    let right = held.is_some_and(|held| same_in_kernel(&held.config, &entry.config));
                    // Until the node boots again, what is loaded under the name is left there.
                    let waits = entry.policy.unwrap_or_default().on_change == OnChange::OnReboot
                        && self
                            .record
                            .values()
                            .any(|held| (&held.namespace, &held.name) == (&entry.namespace, &entry.name));
                    assert!(right || blocked || waits, "{entry:?} is not loaded: {:?}\n{:?}", self.record, self.config);
                }
                Want::Gone(reason) => {
                    let kept = match &facts.spec.module_loader {
                        Some(loader) => keeps(loader.policy),
                        None => held.is_some_and(|held| keeps(held.policy)),
                    };
                    let known = held.filter(|_| !kept && !self.unheard.contains(&*facts.uid));
                    assert_eq!(known, None, "{reason}: {:?}", self.config);
                }
                Want::Evicted | Want::Unmapped(_) | Want::Invalid(_) | Want::NoImage(_) | Want::Unclear => {}
            }
        }
        let empty = self
            .config
            .as_ref()
            .is_none_or(|config| config.spec == NodeModulesConfigSpec::default() && config.report.modules.is_empty());
        assert!(!empty || self.config.is_none(), "an object that says nothing stays: {:?}", self.config);
        assert!(self.modules.iter().all(|module| module.meta.deletion_timestamp.is_none()), "a deletion never ends");
    }
}

fn consumer(namespace: &str, name: &str) -> Consumer {
    Consumer { module: ObjectKey::new(namespace, name), pod: format!("{name}-device-plugin-x"), deleting: false }
}

fn keeps(policy: Option<LoadPolicy>) -> bool {
    policy.unwrap_or_default().on_removal == OnRemoval::Keep
}

fn status(
    entry: &NodeModuleSpec,
    state: ModuleState,
    reason: &str,
    loaded: Option<&NodeModuleSpec>,
) -> NodeModuleStatus {
    NodeModuleStatus {
        name: entry.name.clone(),
        namespace: entry.namespace.clone(),
        module_uid: entry.module_uid.clone(),
        config: loaded.map(|loaded| loaded.config.clone()),
        state: Some(state),
        reason: Some(reason.to_owned()),
        observed_generation: entry.generation,
        ..NodeModuleStatus::default()
    }
}

#[test]
fn every_history_ends_with_what_modules_want_and_never_unloads_without_an_order() {
    for seed in 1..=600_u64 {
        let mut dice = Dice::of(seed);
        let mut world = World::new();
        for _ in 0..40 {
            match dice.roll(4) {
                0 => world.happen(&mut dice),
                1 => {
                    world.manage();
                }
                2 => {
                    world.run_pods();
                }
                _ => {
                    world.work();
                }
            }
        }
        world.node.taints.clear();
        world.in_use = false;
        world.pods.values_mut().for_each(|stays| *stays = false);
        world.settle();
        assert!(!world.manage(), "seed {seed}: the plan of a settled world is empty");
        world.check_end();
    }
}

#[test]
fn a_plan_that_was_carried_out_leaves_nothing_to_plan() {
    for seed in 1..=150_u64 {
        let mut dice = Dice::of(seed);
        let mut world = World::new();
        for _ in 0..25 {
            world.happen(&mut dice);
            if dice.roll(2) == 0 {
                world.work();
            }
            if dice.roll(2) == 0 {
                world.run_pods();
            }
            // Writing, and what follows from the object being there, is two passes at most; without a word of the
            // worker there is nothing more to do.
            let passes = (0..5).take_while(|_| world.manage()).count();
            assert!(passes <= 3, "seed {seed}: {passes} passes that write");
        }
    }
}
