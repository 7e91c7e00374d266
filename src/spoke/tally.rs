//! What all nodes mean for each Module, kept up to date one node at a time.
//!
//! Recording a node costs what that node's Modules cost, however many nodes there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::core::kernel::KernelVersion;
use crate::runtime::store::Store;

use super::outcome::{Deletion, Outcome, Standing, Trouble};
use super::view::{ModuleFacts, NodeView};

type Uid = Arc<str>;

/// The shared tally. Its lock is held while a node is observed and recorded, so that a reader never sees a node's
/// record from before a change that the reader has seen already.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    totals: Arc<Mutex<Totals>>,
    warm: Arc<AtomicBool>,
}

impl Tally {
    /// The totals; keep it short and never across an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether every node was planned once since the start: before that, totals say nothing.
    pub(super) fn is_warm(&self) -> bool {
        self.warm.load(Ordering::SeqCst)
    }

    /// Whether the totals begin to say something just now. True once, for the one who then has to wake every Module: whoever
    /// looked before left without having decided.
    pub(super) fn warms_up(&self, nodes: &Store<NodeView>) -> bool {
        !self.is_warm() && self.knows_all(nodes) && !self.warm.swap(true, Ordering::SeqCst)
    }

    fn knows_all(&self, nodes: &Store<NodeView>) -> bool {
        let totals = self.lock();
        // Each of them is asked for only when there may be all: this runs for every node of the cluster.
        let mut all = totals.nodes.len() >= nodes.len();
        if all {
            nodes.for_each(|key, _| all &= totals.nodes.contains_key(&key.name));
        }
        all
    }
}

/// Totals of each Module, by UID.
#[derive(Debug, Default)]
pub(super) struct Totals {
    nodes: BTreeMap<String, BTreeMap<Uid, Outcome>>,
    modules: BTreeMap<Uid, ModuleTotals>,
    generations: BTreeMap<Uid, i64>,
    unplanned: BTreeMap<String, BTreeSet<Uid>>,
    unplanned_of: BTreeMap<Uid, usize>,
    deletions: BTreeMap<Uid, Deletion>,
}

/// What the totals say of a Module as it was read.
#[derive(Clone, Debug)]
pub(super) enum Count {
    /// Everything.
    Complete(Box<Counted>),
    /// Not yet everything: so many nodes have still to be planned with the Module as it is now.
    Unplanned(usize),
    /// Nothing: who takes in what the Module has become is about to, and wakes its controllers.
    Unknown,
}

/// A Module with totals for which each node was planned with this generation of it: nothing but these makes a status.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    facts: Arc<ModuleFacts>,
    totals: ModuleTotals,
}

impl Counted {
    /// The Module.
    pub(super) fn facts(&self) -> &ModuleFacts {
        &self.facts
    }

    /// What was counted for it.
    pub(super) fn totals(&self) -> &ModuleTotals {
        &self.totals
    }

    /// A Module for which this was counted.
    #[cfg(test)]
    pub(super) fn new(facts: Arc<ModuleFacts>, totals: ModuleTotals) -> Self {
        Self { facts, totals }
    }
}

/// Totals of one Module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModuleTotals {
    /// Nodes that match the selector.
    pub matching: usize,
    /// Nodes that are to run the module.
    pub desired: usize,
    /// Nodes on which it is proved to be loaded.
    pub available: usize,
    /// Matching nodes for whose kernel no mapping can be carried out, by what is wrong.
    pub unmapped: BTreeMap<Arc<Trouble>, usize>,
    /// Those of them that had the module under an earlier kernel.
    pub awaiting: usize,
    /// Matching nodes that a taint keeps the module off, by what to do about it.
    pub tainted: BTreeMap<Arc<Trouble>, usize>,
    /// Nodes that run an older file until they boot again.
    pub waiting_for_reboot: usize,
    /// Nodes that are none of the Module's any more, and have it until they boot again.
    pub kept: usize,
    /// Nodes on which it must go and has not yet.
    pub leaving: usize,
    /// Kernels of the nodes that need an image, with their number.
    pub kernels: BTreeMap<KernelVersion, usize>,
    /// Nodes on which no worker of the present boot has spoken; the first is named in the status.
    pub silent: BTreeSet<String>,
    /// Kernels of nodes without an image, with their number.
    pub imageless: BTreeMap<KernelVersion, usize>,
    /// Nodes without an image.
    pub without_image: BTreeMap<String, Arc<Trouble>>,
    /// Nodes on which it failed, or on which it must go and cannot.
    pub failing: BTreeMap<String, Arc<Trouble>>,
    /// Nodes on which pods have to leave before it is unloaded or replaced.
    pub waiting_for_consumers: BTreeMap<String, Arc<Trouble>>,
    /// Nodes for which the end of the Module waits.
    pub holders: BTreeSet<String>,
}

impl Totals {
    /// Totals of a Module; all zero if no node concerns it.
    pub(super) fn of(&self, module: &str) -> ModuleTotals {
        self.modules.get(module).cloned().unwrap_or_default()
    }

    /// Totals of a Module together with the Module that they were counted for.
    pub(super) fn count(&self, facts: &Arc<ModuleFacts>) -> Count {
        if self.generations.get(&facts.uid) != Some(&facts.generation) {
            return Count::Unknown;
        }
        match self.unplanned_of.get(&facts.uid) {
            Some(nodes) => Count::Unplanned(*nodes),
            None => Count::Complete(Box::new(Counted { facts: Arc::clone(facts), totals: self.of(&facts.uid) })),
        }
    }

    /// Whose wish it is that the Module goes, if it is being deleted; `None` while nobody knows. One that OCM's agent did
    /// not apply is deleted by order.
    pub(super) fn deletion(&self, facts: &ModuleFacts) -> Option<Deletion> {
        let asked = facts.deleting && facts.applied_by.is_some();
        if asked { self.deletions.get(&facts.uid).copied() } else { Some(Deletion::Ordered) }
    }

    /// Takes in whose wish it is, for as long as the Module is there.
    pub(super) fn deletion_is(&mut self, uid: &Uid, deletion: Deletion) {
        self.deletions.insert(Arc::clone(uid), deletion);
    }

    /// Takes in that a Module has become another one, and that these nodes, besides those that it concerns already, are
    /// to be planned with it. Returns all of them, for the caller to wake.
    pub(super) fn module_changed(&mut self, facts: &ModuleFacts, mut nodes: BTreeSet<String>) -> BTreeSet<String> {
        nodes.extend(self.nodes_of(&facts.uid));
        self.generations.insert(Arc::clone(&facts.uid), facts.generation);
        for node in &nodes {
            if self.unplanned.entry(node.clone()).or_default().insert(Arc::clone(&facts.uid)) {
                *self.unplanned_of.entry(Arc::clone(&facts.uid)).or_default() += 1;
            }
        }
        nodes
    }

    /// Takes in that a Module is gone. Returns the nodes that it concerned, for the caller to wake.
    pub(super) fn module_gone(&mut self, uid: &str) -> BTreeSet<String> {
        self.generations.remove(uid);
        self.deletions.remove(uid);
        self.nodes_of(uid).into_iter().collect()
    }

    /// Takes in that a node was planned, and returns the Modules of which it was the last one.
    fn planned(&mut self, node: &str) -> Vec<Uid> {
        let mut complete = Vec::new();
        for uid in self.unplanned.remove(node).unwrap_or_default() {
            let Some(nodes) = self.unplanned_of.get_mut(&uid) else { continue };
            *nodes -= 1;
            if *nodes == 0 {
                self.unplanned_of.remove(&uid);
                complete.push(uid);
            }
        }
        complete
    }

    /// Names of the nodes that concern the Module in any way.
    fn nodes_of(&self, module: &str) -> Vec<String> {
        self.nodes.iter().filter(|(_, all)| all.contains_key(module)).map(|(name, _)| name.clone()).collect()
    }

    /// Replaces what is known of a node (`None`: it is gone) and returns the Modules whose totals changed or became
    /// complete.
    pub(super) fn record(&mut self, node: &str, outcomes: Option<BTreeMap<Uid, Outcome>>) -> Vec<Uid> {
        let gone = outcomes.is_none();
        let new = outcomes.unwrap_or_default();
        let old = self.nodes.remove(node).unwrap_or_default();
        let mut changed = self.planned(node);
        for (uid, outcome) in &old {
            if new.get(uid) != Some(outcome) {
                self.modules.entry(Arc::clone(uid)).or_default().remove(node, outcome);
                changed.push(Arc::clone(uid));
            }
        }
        for (uid, outcome) in &new {
            if old.get(uid) != Some(outcome) {
                self.modules.entry(Arc::clone(uid)).or_default().add(node, outcome);
                changed.push(Arc::clone(uid));
            }
        }
        changed.sort();
        changed.dedup();
        for uid in &changed {
            if self.modules.get(uid) == Some(&ModuleTotals::default()) {
                self.modules.remove(uid);
            }
        }
        if !gone {
            self.nodes.insert(node.to_owned(), new);
        }
        changed
    }
}

impl ModuleTotals {
    fn add(&mut self, node: &str, outcome: &Outcome) {
        self.count(outcome, |number| *number += 1);
        if let Some(kernel) = &outcome.kernel {
            *self.kernels.entry(kernel.clone()).or_default() += 1;
            if matches!(outcome.standing, Standing::NoImage(_)) {
                *self.imageless.entry(kernel.clone()).or_default() += 1;
            }
        }
        if outcome.holds {
            self.holders.insert(node.to_owned());
        }
        match &outcome.standing {
            Standing::NoImage(trouble) => {
                self.without_image.insert(node.to_owned(), Arc::clone(trouble));
            }
            Standing::Failing(trouble) | Standing::Stuck(trouble) => {
                self.failing.insert(node.to_owned(), Arc::clone(trouble));
            }
            Standing::Silent => {
                self.silent.insert(node.to_owned());
            }
            Standing::Unmapped { why, .. } => *self.unmapped.entry(Arc::clone(why)).or_default() += 1,
            Standing::Tainted(trouble) => *self.tainted.entry(Arc::clone(trouble)).or_default() += 1,
            Standing::WaitingForConsumers { why, .. } => {
                self.waiting_for_consumers.insert(node.to_owned(), Arc::clone(why));
            }
            Standing::Elsewhere
            | Standing::Waiting
            | Standing::Available
            | Standing::WaitingForReboot
            | Standing::Kept
            | Standing::Leaving => {}
        }
    }

    fn remove(&mut self, node: &str, outcome: &Outcome) {
        self.count(outcome, |number| *number = number.saturating_sub(1));
        if let Some(kernel) = &outcome.kernel {
            take_one(&mut self.kernels, kernel);
            if matches!(outcome.standing, Standing::NoImage(_)) {
                take_one(&mut self.imageless, kernel);
            }
        }
        match &outcome.standing {
            Standing::Tainted(trouble) => take_one(&mut self.tainted, trouble),
            Standing::Unmapped { why, .. } => take_one(&mut self.unmapped, why),
            _ => {}
        }
        self.holders.remove(node);
        self.without_image.remove(node);
        self.failing.remove(node);
        self.silent.remove(node);
        self.waiting_for_consumers.remove(node);
    }

    fn count(&mut self, outcome: &Outcome, change: impl Fn(&mut usize)) {
        let standing = &outcome.standing;
        let counters = [
            (outcome.is_matching(), &mut self.matching),
            (outcome.is_desired(), &mut self.desired),
            (*standing == Standing::Available, &mut self.available),
            (matches!(standing, Standing::Unmapped { awaits: true, .. }), &mut self.awaiting),
            (*standing == Standing::WaitingForReboot, &mut self.waiting_for_reboot),
            (*standing == Standing::Kept, &mut self.kept),
            (outcome.is_leaving(), &mut self.leaving),
        ];
        counters.into_iter().filter(|(counts, _)| *counts).for_each(|(_, number)| change(number));
    }
}

/// One less of these; none are left out.
fn take_one<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(standing: Standing) -> Outcome {
        Outcome { kernel: Some("6.1".parse().unwrap()), holds: true, standing }
    }

    #[allow(clippy::unnecessary_wraps, reason = "what `record` takes")]
    fn of(standing: Standing) -> Option<BTreeMap<Uid, Outcome>> {
        Some([(Uid::from("m"), outcome(standing))].into())
    }

    #[test]
    fn totals_follow_each_node_and_end_empty() {
        let tally = Tally::default();
        let mut totals = tally.lock();
        let module = vec![Uid::from("m")];
        assert_eq!(totals.record("a", of(Standing::Waiting)), module);
        assert_eq!(totals.record("b", of(Standing::Available)), module);
        assert_eq!(totals.record("c", of(Standing::Failing(Trouble::new("Why", "because")))), module);
        assert_eq!(totals.record("c", of(Standing::Failing(Trouble::new("Why", "because")))), Vec::<Uid>::new());
        let now = totals.of("m");
        assert_eq!((now.matching, now.desired, now.available, now.failing.len()), (3, 3, 1, 1));
        assert_eq!((now.kernels[&"6.1".parse::<KernelVersion>().unwrap()], now.holders.len()), (3, 3));
        assert_eq!(totals.module_gone("m"), ["a", "b", "c"].map(str::to_owned).into());

        assert_eq!(totals.record("c", of(Standing::Available)), module);
        assert_eq!(totals.record("a", Some(BTreeMap::new())), module);
        assert_eq!(totals.record("b", None), module);
        assert!(totals.nodes.contains_key("a") && !totals.nodes.contains_key("b"));
        assert_eq!((totals.of("m").available, totals.of("m").failing.len()), (1, 0));
        totals.record("c", None);
        assert_eq!(totals.of("m"), ModuleTotals::default());
        assert!(totals.modules.is_empty());
    }
}
