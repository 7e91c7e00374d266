//! Whether kernels and cluster are as the model says.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node;
use kmm::api::names::ready_label;
use kmm::api::{ModuleState, NodeModuleStatus, NodeModulesConfig};
use kube::{Api, ResourceExt};

use crate::held::{Ask, Held};
use crate::images::{ALL, Brings};
use crate::model::Expected;
use crate::node::{self, ChaosNode};
use crate::storm::Storm;
use crate::world::NAMESPACE;

/// By Module and node, what a kernel holds: of all that was possible, what fits.
pub(crate) type Seen = BTreeMap<(&'static str, usize), BTreeSet<Held>>;

impl Storm {
    /// What is held, or an error that says what is not as it must be.
    pub(crate) async fn is_right(&self) -> Result<Seen> {
        let mut seen = Seen::new();
        let mut uids = BTreeMap::new();
        for brings in ALL {
            let there = self.world.modules().get_opt(brings.module).await?;
            ensure!(there.is_some() == self.model.ask(brings.module).is_some(), "Module {} is not gone", brings.module);
            uids.insert(brings.module, there.and_then(|module| module.uid()));
        }
        for (number, node) in self.world.nodes.iter().enumerate() {
            let modules = node.held().await?;
            let config = self.world.configs().get_opt(&node.name).await?;
            let labels = Api::<Node>::all(self.world.client.clone()).get(&node.name).await?.labels().clone();
            for brings in ALL {
                let Expected::Held(expected) = self.model.expected(brings.module, number) else { continue };
                let held =
                    self.fitting(brings, &expected, &modules).with_context(|| format!("kernel of {}", node.name))?;
                let told = Told {
                    brings,
                    node,
                    config: config.as_ref(),
                    ask: self.model.ask(brings.module).filter(|ask| ask.is_for(number)),
                    uid: uids[brings.module].as_deref(),
                };
                // What cannot be told apart from outside is told apart by what the worker says.
                let mut fits = BTreeSet::new();
                let mut wrong = Vec::new();
                for held in held {
                    match told.says(held, labels.contains_key(&ready_label(NAMESPACE, brings.module))) {
                        Ok(()) => drop(fits.insert(held)),
                        Err(error) => wrong.push(format!("{held:?}: {error:#}")),
                    }
                }
                ensure!(!fits.is_empty(), "{} of {}: {}", brings.module, node.name, wrong.join("; "));
                seen.insert((brings.module, number), fits);
            }
        }
        Ok(seen)
    }

    /// What of the expected things the kernel may hold, by its own words.
    fn fitting(
        &self,
        brings: Brings,
        expected: &BTreeSet<Held>,
        modules: &BTreeMap<String, node::Held>,
    ) -> Result<BTreeSet<Held>> {
        let main = modules.get(brings.main);
        let needs = brings.needs.and_then(|needs| modules.get(needs));
        let found = main.map(|main| (self.world.images.version(brings.main, &main.build_id), main.level));
        let fits = |held: &Held| match held {
            // What a Module that is missing needs may be left, and with it what was kept.
            Held::Missing(_) => found.is_none(),
            Held::Absent => found.is_none() && needs.is_none(),
            Held::Stranger(_) => found.is_some_and(|(version, _)| version.is_none()),
            Held::Loaded(load) => {
                found == Some((Some(load.version), Some(load.level))) && needs.is_some() == brings.needs.is_some()
            }
        };
        let fitting: BTreeSet<Held> = expected.iter().copied().filter(fits).collect();
        ensure!(
            !fitting.is_empty(),
            "it must hold one of {expected:?}, and {} is {main:?}, what it needs {needs:?}",
            brings.main
        );
        for module in [main, needs].into_iter().flatten() {
            ensure!(module.state == "Live", "{}, or what it needs, is {}", brings.main, module.state);
        }
        Ok(fitting)
    }
}

/// What is said of a Module on a node.
struct Told<'a> {
    brings: Brings,
    node: &'a ChaosNode,
    config: Option<&'a NodeModulesConfig>,
    /// What the Module asks of the node.
    ask: Option<&'a Ask>,
    /// UID of the Module, if it is there.
    uid: Option<&'a str>,
}

impl Told<'_> {
    /// Whether the cluster says what is so where the kernel holds this.
    fn says(&self, held: Held, ready: bool) -> Result<()> {
        let name = self.brings.module;
        let Some(ask) = self.ask else {
            ensure!(!ready, "{} still has the label of {name}", self.node.name);
            // Without an object there is nobody to tell: it is not made for what was kept.
            if let (Held::Loaded(_), Some(_)) = (held, self.config) {
                let kept = self.entries()?.into_iter().any(|entry| entry.state == Some(ModuleState::Orphaned));
                ensure!(kept, "{name} is kept and not told");
            }
            return Ok(());
        };
        let own: Vec<_> = self.entries()?.into_iter().filter(|entry| entry.module_uid.as_deref() == self.uid).collect();
        let [entry] = own[..] else { bail!("{} entries of {name}", own.len()) };
        let state = entry.state.context("no state")?;
        let told = (state, entry.reason.as_deref().unwrap_or_default());
        match held {
            Held::Loaded(load) if load == ask.wanted() => {
                ensure!(state == ModuleState::Loaded, "{name} is told as {told:?}: {:?}", entry.message);
                ensure!(entry.boot_id.as_deref() == Some(self.node.boot_id()), "{name} is told of another boot");
                let config = self.config.context("no NodeModulesConfig")?;
                ensure!(config.spec.unload.iter().all(|intent| intent.name != name), "{name} is still to go");
                ensure!(ready, "{} has no label of {name}", self.node.name);
            }
            Held::Loaded(load) => {
                ensure!(told == (ModuleState::Pending, "WaitingForReboot"), "{name} is told as {told:?}");
                // What an earlier life kept makes this one not ready.
                ensure!(ready == (load.life == ask.life), "{name} waits for a reboot, ready: {ready}");
            }
            Held::Missing(_) => {
                ensure!(
                    told == (ModuleState::Failed, "Missing") && !ready,
                    "{name} is told as {told:?}, ready: {ready}"
                );
            }
            Held::Stranger(_) => {
                let other = told == (ModuleState::Failed, "LoadedOtherFile");
                ensure!(other && !ready, "{name} is told as {told:?}, ready: {ready}");
            }
            Held::Absent => bail!("{name} is wanted and absent"),
        }
        Ok(())
    }

    /// What the worker has said of the Module in this boot, of the present specification.
    fn entries(&self) -> Result<Vec<&NodeModuleStatus>> {
        let config = self.config.with_context(|| format!("no NodeModulesConfig {}", self.node.name))?;
        let status = config.status.as_ref().context("no status yet")?;
        ensure!(status.boot_id.as_deref() == Some(self.node.boot_id()), "status of another boot");
        ensure!(status.observed_generation == config.metadata.generation, "status of an older generation");
        Ok(status.modules.iter().filter(|module| module.name == self.brings.module).collect())
    }
}
