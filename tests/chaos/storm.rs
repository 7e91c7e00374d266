//! The walk: random steps, then calm, then everything must be right.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kmm::api::{LoadPolicy, OnChange, OnDrift, OnOtherFile, OnRemoval};

use crate::dice::Dice;
use crate::held::Wish;
use crate::images::{ALL, Brings, VERSIONS};
use crate::model::{Expected, Model};
use crate::node::now;
use crate::orders;
use crate::right::Seen;
use crate::support::faulty::Fault;
use crate::world::World;

/// How long everything may take to become right after it was healed: the longest pauses of worker and manager among it.
const CALM: Duration = Duration::from_mins(5);
/// How long nothing may change once it is right.
const STAYS: Duration = Duration::from_secs(7);
/// Steps of one storm.
const STEPS: (usize, usize) = (8, 20);

/// What can happen, with its weight.
const STEP: [(Step, usize); 15] = [
    (Step::Want, 12),
    (Step::Delete, 4),
    (Step::KillWorker, 4),
    (Step::EndWorker, 2),
    (Step::KillManager, 2),
    (Step::StopApiServer, 2),
    (Step::StartApiServer, 3),
    (Step::BreakRegistry, 3),
    (Step::MendRegistry, 2),
    (Step::Reboot, 1),
    (Step::CutPower, 2),
    (Step::Rmmod, 4),
    (Step::Insmod, 3),
    (Step::Cordon, 2),
    (Step::TakeObject, 2),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// A Module is made, or changed.
    Want,
    Delete,
    KillWorker,
    EndWorker,
    KillManager,
    StopApiServer,
    StartApiServer,
    BreakRegistry,
    MendRegistry,
    Reboot,
    CutPower,
    /// Somebody takes a kernel module out by hand.
    Rmmod,
    /// Somebody loads another file by hand.
    Insmod,
    Cordon,
    /// A NodeModulesConfig is deleted, alone or because its Node is deleted and made again.
    TakeObject,
}

pub(crate) struct Storm {
    pub(crate) world: World,
    dice: Dice,
    pub(crate) model: Model,
    /// Whether the API server runs.
    api: bool,
    /// Nodes whose machine booted while nobody could tell the cluster.
    booted: BTreeSet<usize>,
    begun: Instant,
    counted: BTreeMap<Step, usize>,
    departures: usize,
}

impl Storm {
    pub(crate) fn new(world: World, dice: Dice) -> Self {
        Self {
            model: Model::new(world.nodes.iter().map(|node| node.name.clone()).collect()),
            world,
            dice,
            api: true,
            booted: BTreeSet::new(),
            begun: Instant::now(),
            counted: BTreeMap::new(),
            departures: 0,
        }
    }

    /// One storm and the calm after it.
    pub(crate) async fn rage_and_calm(&mut self) -> Result<()> {
        let steps = STEPS.0 + self.dice.roll(STEPS.1 - STEPS.0 + 1);
        for _ in 0..steps {
            let step = self.next_step();
            for node in &self.world.nodes {
                node.tell_time().await?;
            }
            self.take(step).await.with_context(|| format!("step {step:?}"))?;
            let pause = [0, 100, 700, 2500][self.dice.roll(4)];
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.heal().await?;
        let seen = self.becomes_right().await?;
        // Where an order may have been lost with its object, a boot makes what is there certain again. It also ends what
        // waits for a boot or is kept until then, which is to be seen.
        let unknown = |node| ALL.iter().any(|brings| self.model.expected(brings.module, node) == Expected::Unknown);
        let unknown: Vec<bool> = (0..self.world.nodes.len()).map(unknown).collect();
        self.model.calm(seen, now());
        let mut booted = false;
        for (node, unknown) in unknown.into_iter().enumerate() {
            if self.dice.one_in(3) || unknown {
                self.note(&format!("reboot {node}, for certainty"));
                self.world.nodes[node].boot(false).await?;
                self.model.boot(node);
                self.world.nodes[node].tell_boot().await?;
                booted = true;
            }
        }
        if booted {
            let seen = self.becomes_right().await?;
            self.model.calm(seen, now());
        }
        self.nothing_left_without_order().await
    }

    fn next_step(&mut self) -> Step {
        let all: usize = STEP.iter().map(|(_, weight)| weight).sum();
        let mut at = self.dice.roll(all);
        for (step, weight) in STEP {
            match at.checked_sub(weight) {
                None => return step,
                Some(rest) => at = rest,
            }
        }
        Step::Want
    }

    /// Tells people what is done.
    fn note(&self, what: &str) {
        eprintln!("{:7.1}s {what}", self.begun.elapsed().as_secs_f64());
    }

    async fn take(&mut self, step: Step) -> Result<()> {
        // Rolled in any case, so that the walk does not depend on what was possible.
        let node = self.dice.roll(self.world.nodes.len());
        let brings = *self.dice.pick(&ALL);
        let variant = self.dice.roll(1 << 24);
        let needs_api = matches!(step, Step::Want | Step::Delete | Step::KillManager | Step::Cordon | Step::TakeObject);
        if needs_api && !self.api {
            return Ok(());
        }
        *self.counted.entry(step).or_default() += 1;
        match step {
            Step::Want => self.want(brings, variant).await?,
            Step::Delete => {
                if self.model.ask(brings.module).is_some() {
                    self.note(&format!("delete {}", brings.module));
                    self.world.delete(brings.module).await?;
                    self.model.delete(brings.module);
                }
            }
            Step::KillWorker | Step::EndWorker => {
                let signal = if step == Step::KillWorker { "KILL" } else { "TERM" };
                self.note(&format!("worker {node}: SIG{signal}"));
                self.world.nodes[node].kill_worker(signal).await?;
            }
            Step::KillManager => {
                self.note("manager: SIGKILL, and again");
                self.world.manager.kill();
                self.world.revive_manager().await?;
            }
            Step::StopApiServer if self.api => {
                self.note("API server: stopped");
                self.world.cluster.stop_apiserver()?;
                self.api = false;
            }
            Step::StartApiServer if !self.api => self.start_api().await?,
            Step::StopApiServer | Step::StartApiServer => {}
            Step::BreakRegistry => {
                let faults = [
                    Fault::Status(503),
                    Fault::Status(401),
                    Fault::Status(429),
                    Fault::Corrupt,
                    Fault::Truncate,
                    Fault::WrongDigest,
                    Fault::Hang,
                    Fault::Slow(Duration::from_secs(3)),
                ];
                let part = ["", "/blobs/", "/manifests/"][variant % 3];
                let fault = faults[(variant / 3) % faults.len()].clone();
                self.note(&format!("registry: {fault:?} for `{part}`"));
                self.world.front.set_for(part, fault);
            }
            Step::MendRegistry => {
                self.note("registry: mended");
                self.world.front.set(Fault::None);
            }
            Step::Reboot | Step::CutPower => {
                let cut = step == Step::CutPower;
                self.note(&format!("{} {node}", if cut { "power cut" } else { "reboot" }));
                self.world.nodes[node].boot(cut).await?;
                self.model.boot(node);
                self.booted.insert(node);
                if self.api {
                    self.tell_boots().await?;
                }
            }
            Step::Rmmod | Step::Insmod => self.meddle(step, node, brings, variant).await?,
            Step::Cordon => {
                let closed = !variant.is_multiple_of(3);
                self.note(&format!("{} {node}", if closed { "cordon and taint" } else { "uncordon" }));
                self.world.nodes[node].cordon(closed).await?;
            }
            Step::TakeObject => {
                if variant.is_multiple_of(3) {
                    self.note(&format!("Node {node} is deleted and made again"));
                    self.model.lose(node);
                    let World { nodes, cluster, .. } = &mut self.world;
                    nodes[node].join_again(cluster).await?;
                } else if self.world.take_config(node).await? {
                    self.note(&format!("NodeModulesConfig {node} is deleted"));
                    self.model.lose(node);
                }
            }
        }
        Ok(())
    }

    /// Somebody does by hand what the worker should do.
    async fn meddle(&mut self, step: Step, node: usize, brings: Brings, variant: usize) -> Result<()> {
        let names: Vec<&str> = [Some(brings.main), brings.needs].into_iter().flatten().collect();
        let name = names[variant % names.len()];
        let (went, came) = match step {
            Step::Insmod if brings.needs.is_some() => return Ok(()),
            Step::Insmod => self.world.nodes[node].insmod(name).await?,
            _ => (self.world.nodes[node].rmmod(name).await?, false),
        };
        self.note(&format!("{step:?} {name} on {node}: went {went}, came {came}"));
        if went && name == brings.main {
            self.model.taken_out(brings.module, node)?;
        }
        if came {
            self.model.put_in(brings.module, node)?;
        }
        Ok(())
    }

    async fn want(&mut self, brings: Brings, variant: usize) -> Result<()> {
        let nodes: BTreeSet<usize> = match variant % 8 {
            0 => BTreeSet::from([0]),
            1 => BTreeSet::from([1]),
            2 => BTreeSet::new(),
            _ => BTreeSet::from([0, 1]),
        };
        let wish = Wish {
            version: VERSIONS[(variant / 8) % VERSIONS.len()],
            level: u32::try_from((variant / 16) % 3).unwrap_or_default(),
            nodes,
            policy: policy(variant / 256),
            by_tag: (variant / 128).is_multiple_of(3),
        };
        // A Module that is being deleted cannot be wanted again before it is gone.
        if !self.world.is_free(brings.module).await? {
            return Ok(());
        }
        self.ask(brings, &wish).await
    }

    /// Makes or changes a Module.
    pub(crate) async fn ask(&mut self, brings: Brings, wish: &Wish) -> Result<()> {
        self.note(&format!("want {} {wish:?}", brings.module));
        self.world.apply(brings, wish).await?;
        self.model.want(brings.module, wish, now());
        Ok(())
    }

    async fn start_api(&mut self) -> Result<()> {
        self.note("API server: started");
        self.world.cluster.start_apiserver().await?;
        self.api = true;
        self.tell_boots().await
    }

    /// Makes the Nodes true after their machines have booted.
    async fn tell_boots(&mut self) -> Result<()> {
        for node in std::mem::take(&mut self.booted) {
            self.world.nodes[node].tell_boot().await?;
        }
        Ok(())
    }

    async fn heal(&mut self) -> Result<()> {
        self.note("calm");
        if !self.api {
            self.start_api().await?;
        }
        self.world.front.set(Fault::None);
        for node in &self.world.nodes {
            node.cordon(false).await?;
        }
        self.world.revive_manager().await
    }

    /// Waits until both kernels and the cluster say what the model says, and that this lasts.
    pub(crate) async fn becomes_right(&self) -> Result<Seen> {
        let begun = Instant::now();
        let mut right_since: Option<Instant> = None;
        loop {
            match self.is_right().await {
                Ok(seen) if right_since.is_some_and(|since| since.elapsed() >= STAYS) => {
                    self.note(&format!("right after {:.1} s", begun.elapsed().saturating_sub(STAYS).as_secs_f64()));
                    return Ok(seen);
                }
                Ok(_) => right_since = right_since.or_else(|| Some(Instant::now())),
                Err(error) if begun.elapsed() > CALM => {
                    bail!("not right {:.0} s after everything was healed: {error:#}", CALM.as_secs_f64());
                }
                Err(error) => {
                    if right_since.take().is_some() {
                        self.note(&format!("was right, and is not: {error:#}"));
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// The rule above all others.
    async fn nothing_left_without_order(&mut self) -> Result<()> {
        let orders = orders::read(&self.world.audit_log())?;
        let leave = self.model.replacing();
        let mut wrong = Vec::new();
        self.departures = 0;
        for node in &mut self.world.nodes {
            node.listen().await?;
            for boot in &node.boots {
                self.departures += boot.iter().filter(|event| event.left).count();
                wrong.extend(orders::without_order(&node.name, boot, &orders, leave));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    pub(crate) fn summary(&self) -> String {
        format!("{} departures from kernels, all by order or by hand; steps: {:?}", self.departures, self.counted)
    }

    /// Everything that a person needs to see what went wrong.
    pub(crate) async fn tell(&self) -> String {
        let mut text = String::new();
        for node in &self.world.nodes {
            let (name, boot, told) = (&node.name, node.boot_id(), node.tell().await);
            let _ = writeln!(text, "---- {name} (boot {boot}): kernel, record, log\n{told}");
        }
        let objects = ["get", "modules,nodemodulesconfigs,moduleimagesconfigs,nodes", "-A", "-o", "yaml"];
        let objects = self.world.cluster.kubectl(&objects).await.unwrap_or_else(|error| format!("{error:#}"));
        let _ = writeln!(text, "---- objects\n{objects}\n---- manager\n{}", self.world.manager.log_tail(40));
        text
    }
}

/// Policies by a number; each is another than the usual one in one of three cases.
fn policy(variant: usize) -> LoadPolicy {
    let is = |divisor: usize| (variant / divisor).is_multiple_of(3);
    LoadPolicy {
        on_change: if is(1) { OnChange::OnReboot } else { OnChange::Reload },
        on_removal: if is(3) { OnRemoval::Keep } else { OnRemoval::Unload },
        on_drift: if is(9) { OnDrift::Report } else { OnDrift::Repair },
        on_other_file: if is(27) { OnOtherFile::Replace } else { OnOtherFile::Report },
        load_at_boot: (variant / 81).is_multiple_of(2),
        ..LoadPolicy::default()
    }
}
