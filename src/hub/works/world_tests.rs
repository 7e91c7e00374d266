//! Random fleets: every plan leaves nothing to plan, and no cluster sees another's kernels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::observe::Observed;
use super::plan::{Action, SETTLE, plan};
use super::waits::Waited;
use crate::core::pin::source_id;
use crate::hub::standing::Removal;
use crate::hub::testing::{cluster, cluster_of, digest, images, module, spec, stored, target, work};
use crate::hub::view::FleetModule;

/// The generator xorshift64*: the cases are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(2_685_821_657_736_338_717) >> 33).unwrap() % limit
    }
}

const KERNELS: [&str; 6] = ["6.1.0-a", "6.1.0-b+", "6.1.0-c", "6.12.1+deb12", "5.14.0-x", "noversion"];

#[derive(Default)]
struct World {
    version: usize,
    clusters: BTreeMap<String, Option<Vec<&'static str>>>,
    /// What the registry says of (kernel, image).
    facts: BTreeMap<(String, String), Result<String, &'static str>>,
    works: BTreeMap<String, Value>,
    modules: BTreeMap<usize, Arc<FleetModule>>,
}

impl World {
    /// The present version; compiled once, as in a store.
    fn module(&mut self) -> Arc<FleetModule> {
        let version = self.version;
        let make = || {
            let mut spec = spec();
            spec["moduleSpec"]["moduleLoader"]["container"]["containerImage"] =
                json!(format!("registry.test/gpu:v{version}-${{KERNEL_FULL_VERSION}}"));
            Arc::new(module(&spec))
        };
        Arc::clone(self.modules.entry(version).or_insert_with(make))
    }

    fn image(&self, kernel: &str) -> String {
        let tag: String = kernel.chars().map(|c| if c == '+' { '_' } else { c }).collect();
        format!("registry.test/gpu:v{}-{tag}", self.version)
    }

    fn change(&mut self, random: &mut Random) {
        let kernel = KERNELS[random.below(KERNELS.len())];
        match random.below(10) {
            0 => self.version = random.below(3),
            1..=4 => {
                let name = format!("c{}", random.below(4));
                let kernels: Vec<_> = KERNELS.into_iter().filter(|_| random.below(3) == 0).collect();
                let selected = random.below(8) != 0;
                self.clusters.insert(name, selected.then_some(kernels));
            }
            5 => {
                self.clusters.remove(&format!("c{}", random.below(4)));
            }
            _ => {
                let trimmed = kernel.strip_suffix('+').unwrap_or(kernel);
                let said = [Ok(digest('a')), Ok(digest('b')), Err("NotFound"), Err("Timeout")][random.below(4)].clone();
                self.facts.insert((trimmed.to_owned(), self.image(trimmed)), said);
            }
        }
    }

    fn observed(&mut self, name: &str) -> Observed {
        let module = self.module();
        let facts: Vec<(&str, &str, Result<&str, &str>)> = self
            .facts
            .iter()
            .map(|((kernel, image), said)| (&**kernel, &**image, said.as_deref().map_err(|reason| *reason)))
            .collect();
        Observed {
            target: target(name),
            module: Some(module),
            cluster: self.clusters.get(name).map(|kernels| {
                Arc::new(
                    kernels.as_ref().map_or_else(|| cluster_of(&json!({}), &json!([])), |kernels| cluster(kernels)),
                )
            }),
            images: Some(Arc::new(images(&facts))),
            work: self.works.get(name).map(|value| work(value.clone())),
            removal: Removal::Free,
            // What is not selected has been so for a while.
            waited: Some(Waited { generation: 1, unanswered: 0, in_all: SETTLE, still: SETTLE }),
        }
    }

    /// Plans and applies as a server would; returns whether anything was written.
    fn reconcile(&mut self, name: &str) -> bool {
        match plan(&self.observed(name)).unwrap().action {
            Action::Nothing => false,
            Action::Apply { work, .. } => {
                self.works.insert(name.to_owned(), stored(&work));
                true
            }
            Action::Delete { .. } => self.works.remove(name).is_some(),
        }
    }
}

fn sent(work: &Value) -> BTreeMap<String, String> {
    let mappings = &work["spec"]["workload"]["manifests"][1]["spec"]["moduleLoader"]["container"]["kernelMappings"];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    mappings.as_array().unwrap().iter().map(|m| (text(&m["literal"]), text(&m["containerImage"]))).collect()
}

fn sources(work: &Value) -> BTreeMap<String, String> {
    serde_json::from_str(work["metadata"]["annotations"]["kmm.node.kubernetes.io/sent-images"].as_str().unwrap())
        .unwrap()
}

#[test]
fn an_applied_plan_leaves_nothing_to_plan_and_no_kernel_strays_or_loses_its_digest() {
    for seed in 1..=8u64 {
        let (mut random, mut world) = (Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1), World::default());
        for step in 0..50 {
            world.change(&mut random);
            for name in (0..4).map(|n| format!("c{n}")) {
                let at = format!("seed {seed}, step {step}, {name}");
                let before = world.works.get(&name).cloned();
                world.reconcile(&name);
                assert!(!world.reconcile(&name), "{at}: a second pass writes");
                let after = world.works.get(&name);
                let kernels = match world.clusters.get(&name) {
                    None => {
                        assert_eq!(after, before.as_ref(), "{at}: the work of a cluster that is not there changed");
                        continue;
                    }
                    Some(None) => {
                        assert!(after.is_none(), "{at}: not selected and has a work");
                        continue;
                    }
                    Some(Some(kernels)) => kernels,
                };
                let Some(after) = after else {
                    assert!(before.is_none(), "{at}: selected and lost its work");
                    continue;
                };
                let own: BTreeSet<String> =
                    kernels.iter().map(|k| k.strip_suffix('+').unwrap_or(k).to_owned()).collect();
                let now = sent(after);
                if Some(after) != before.as_ref() {
                    assert!(now.keys().all(|kernel| own.contains(kernel)), "{at}: kernels of others: {now:?}");
                }
                let Some(before) = before else { continue };
                for (kernel, source) in sources(&before) {
                    if own.contains(&kernel) && source == source_id(&world.image(&kernel), None) {
                        assert_eq!(now.get(&kernel), sent(&before).get(&kernel), "{at}: {kernel}");
                    }
                }
            }
        }
    }
}

#[test]
fn rendering_is_the_same_byte_for_byte_in_every_order_of_clusters_and_kernels() {
    let facts: Vec<(String, String)> = ["6.1.0-a", "6.1.0-b", "6.1.0-c"]
        .iter()
        .map(|kernel| ((*kernel).to_owned(), format!("registry.test/gpu:{kernel}")))
        .collect();
    let digest = digest('a');
    let facts: Vec<_> = facts.iter().map(|(kernel, image)| (&**kernel, &**image, Ok(&*digest))).collect();
    let rendered = |kernels: &[&str]| {
        let seen = Observed {
            target: target("c1"),
            module: Some(Arc::new(module(&spec()))),
            cluster: Some(Arc::new(cluster(kernels))),
            images: Some(Arc::new(images(&facts))),
            work: None,
            removal: Removal::Free,
            waited: None,
        };
        match plan(&seen).unwrap().action {
            Action::Apply { work, .. } => serde_json::to_string(&work).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    let first = rendered(&["6.1.0-a", "6.1.0-b"]);
    rendered(&["6.1.0-c"]);
    assert_eq!(rendered(&["6.1.0-b+", "6.1.0-a", "6.1.0-b"]), first);
}
