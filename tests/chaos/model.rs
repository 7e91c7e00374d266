//! What each kernel must hold, by what was asked for and by what happened to it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use kmm::api::{OnOtherFile, OnRemoval};

use crate::held::{Ask, Held, Reach, Wish};
use crate::orders::Stood;

/// What a kernel must hold of a Module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// One of these.
    Held(BTreeSet<Held>),
    /// It cannot be said: what was to be done, or was kept, may have been lost with the object that said so.
    Unknown,
}

/// What is asked for, and what since the last calm makes its fulfilment uncertain.
#[derive(Debug)]
pub(crate) struct Model {
    /// Names of the nodes.
    nodes: Vec<String>,
    /// By Module, what was asked for since the last calm and what was before; the last is what counts.
    asks: BTreeMap<&'static str, Vec<Ask>>,
    reach: BTreeMap<(&'static str, usize), Reach>,
    /// Modules that were deleted, or left a node, since the last calm, by node.
    left: BTreeSet<(&'static str, usize)>,
    /// Nodes whose NodeModulesConfig was taken away since the last calm.
    lost: BTreeSet<usize>,
    /// When Modules asked for other files to be replaced on a node. It ends with a calm: until then a worker may not have
    /// heard that it is over.
    replacing: Vec<Stood>,
}

impl Model {
    pub(crate) fn new(nodes: Vec<String>) -> Self {
        let (asks, reach, left, lost) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { nodes, asks, reach, left, lost, replacing: Vec::new() }
    }

    /// What the Module asks for; also after it was deleted.
    fn last(&self, module: &str) -> Option<&Ask> {
        self.asks.get(module)?.last()
    }

    /// What the Module asks for, if it is there.
    pub(crate) fn ask(&self, module: &str) -> Option<&Ask> {
        self.last(module).filter(|ask| ask.there)
    }

    /// When other files that are loaded may be replaced.
    pub(crate) fn replacing(&self) -> &[Stood] {
        &self.replacing
    }

    // ---- what is asked for ------------------------------------------------------------------------------

    /// The Module is there, like this. One that was deleted is gone by now.
    pub(crate) fn want(&mut self, module: &'static str, wish: &Wish, now: f64) {
        let before = self.last(module).cloned();
        let life = before.as_ref().map_or(1, |before| if before.there { before.life } else { before.life + 1 });
        if let Some(gone) =
            before.as_ref().filter(|gone| !gone.there && gone.wish.policy.on_removal == OnRemoval::Unload)
        {
            // Every node has confirmed that: nothing of the earlier life is left, and nobody has to hear of its end.
            for node in 0..self.nodes.len() {
                let reach = self.grown(module, node);
                self.reach.insert((module, node), Reach::stirred(reach.settled(Some(gone), node)));
            }
            self.asks.insert(module, vec![gone.clone()]);
        }
        self.put(module, Ask { life, there: true, wish: wish.clone() });
        if wish.policy.on_other_file == OnOtherFile::Replace {
            let stood = |node: &usize| {
                let node = self.nodes[*node].clone();
                Stood { node, module: module.to_owned(), from: now, to: f64::INFINITY }
            };
            self.replacing.extend(wish.nodes.iter().map(stood));
        }
    }

    /// The Module is deleted.
    pub(crate) fn delete(&mut self, module: &'static str) {
        if let Some(ask) = self.ask(module).cloned() {
            self.put(module, Ask { there: false, ..ask });
        }
    }

    fn put(&mut self, module: &'static str, ask: Ask) {
        for node in 0..self.nodes.len() {
            if self.last(module).is_some_and(|before| before.is_for(node)) && !ask.is_for(node) {
                self.left.insert((module, node));
            }
            self.reach.entry((module, node)).or_default().stir();
        }
        self.asks.entry(module).or_default().push(ask);
    }

    // ---- what happens -----------------------------------------------------------------------------------

    /// The node's NodeModulesConfig was taken away, alone or with its Node.
    pub(crate) fn lose(&mut self, node: usize) {
        self.lost.insert(node);
    }

    /// The node boots.
    pub(crate) fn boot(&mut self, node: usize) {
        for ((_, at), reach) in &mut self.reach {
            if *at == node {
                *reach = Reach::stirred(BTreeSet::from([Held::Absent]));
            }
        }
    }

    /// Somebody took the Module's kernel module out.
    pub(crate) fn taken_out(&mut self, module: &'static str, node: usize) -> Result<()> {
        let mut reach = self.grown(module, node);
        let known = !self.may_be_stray(module, node);
        ensure!(
            reach.take_out() || !known,
            "{module} was taken out of {}, and it could not be there",
            self.nodes[node]
        );
        self.reach.insert((module, node), reach);
        Ok(())
    }

    /// Somebody loaded a file that no Module brought.
    pub(crate) fn put_in(&mut self, module: &'static str, node: usize) -> Result<()> {
        let mut reach = self.grown(module, node);
        let known = !self.may_be_stray(module, node);
        let room = reach.put_in() || !known;
        ensure!(room, "another file of {module} was loaded on {}, and there was no room", self.nodes[node]);
        self.reach.insert((module, node), reach);
        Ok(())
    }

    /// Whether an order to unload may have been lost with the object that it was to stand in.
    fn may_be_stray(&self, module: &'static str, node: usize) -> bool {
        self.lost.contains(&node) && self.left.contains(&(module, node))
    }

    /// Everything that the node may hold of the Module now.
    fn grown(&self, module: &'static str, node: usize) -> Reach {
        let mut reach = self.reach.get(&(module, node)).cloned().unwrap_or_default();
        reach.grow(self.asks.get(module).map_or(&[], Vec::as_slice), node, self.lost.contains(&node));
        reach
    }

    // ---- what follows -----------------------------------------------------------------------------------

    /// What the node must hold of the Module once nothing else happens.
    pub(crate) fn expected(&self, module: &'static str, node: usize) -> Expected {
        let ask = self.last(module);
        let held = self.grown(module, node).settled(ask, node);
        let unwanted = ask.is_none_or(|ask| !ask.is_for(node));
        let kept = unwanted && held.iter().any(|held| matches!(held, Held::Loaded(_) | Held::Missing(_)));
        if self.may_be_stray(module, node) || (self.lost.contains(&node) && kept) {
            return Expected::Unknown;
        }
        Expected::Held(held)
    }

    /// Everything was healed, and this is what the nodes hold. Those of which something could not be said boot after that.
    pub(crate) fn calm(&mut self, held: BTreeMap<(&'static str, usize), BTreeSet<Held>>, now: f64) {
        self.reach = held.into_iter().map(|(at, held)| (at, Reach::known(held))).collect();
        for asks in self.asks.values_mut() {
            asks.drain(..asks.len().saturating_sub(1));
        }
        self.left.clear();
        self.lost.clear();
        let (nodes, asks) = (&self.nodes, &self.asks);
        for stood in self.replacing.iter_mut().filter(|stood| stood.to.is_infinite()) {
            let ask = asks.get(stood.module.as_str()).and_then(|asks| asks.last());
            let stands = ask.is_some_and(|ask| {
                ask.wish.policy.on_other_file == OnOtherFile::Replace
                    && (0..nodes.len()).any(|node| nodes[node] == stood.node && ask.is_for(node))
            });
            if !stands {
                stood.to = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kmm::api::{LoadPolicy, OnChange};

    use super::*;
    use crate::held::Load;

    const UNLOAD: LoadPolicy = LoadPolicy {
        on_change: OnChange::Reload,
        on_removal: OnRemoval::Unload,
        on_drift: kmm::api::OnDrift::Repair,
        on_other_file: OnOtherFile::Report,
        restore_in_tree_modules: false,
        load_at_boot: false,
        publish_on_host: false,
    };

    fn wish(version: u8, nodes: &[usize], policy: LoadPolicy) -> Wish {
        Wish { version, level: 3, nodes: nodes.iter().copied().collect(), policy, by_tag: false }
    }

    fn one(held: Held) -> Expected {
        Expected::Held(BTreeSet::from([held]))
    }

    fn loaded(version: u8, life: u32) -> Held {
        Held::Loaded(Load { version, level: 3, life })
    }

    /// Both nodes hold what is expected of them.
    fn calm(model: &mut Model) {
        let held = [0, 1].map(|node| match model.expected("alpha", node) {
            Expected::Held(held) => (("alpha", node), held),
            Expected::Unknown => (("alpha", node), BTreeSet::from([Held::Absent])),
        });
        model.calm(held.into(), 0.0);
    }

    #[test]
    fn the_model_says_what_was_asked_for_and_no_more_than_it_can_know() {
        let mut model = Model::new(vec!["a".into(), "b".into()]);
        model.want("alpha", &wish(1, &[0, 1], UNLOAD), 0.0);
        model.lose(0);
        assert_eq!(model.expected("alpha", 0), one(loaded(1, 1)));
        assert_eq!(model.expected("beta", 1), one(Held::Absent));
        model.want("alpha", &wish(2, &[1], UNLOAD), 0.0);
        assert_eq!(model.expected("alpha", 0), Expected::Unknown, "the order to unload may be lost");
        assert_eq!(model.expected("alpha", 1), one(loaded(2, 1)));
        model.delete("alpha");
        assert_eq!(model.expected("alpha", 1), one(Held::Absent), "no object was lost there");
        calm(&mut model);
        assert_eq!(model.expected("alpha", 0), one(Held::Absent));
    }

    #[test]
    fn what_is_kept_stays_until_a_boot_or_until_its_module_is_made_again() {
        let keep = LoadPolicy { on_removal: OnRemoval::Keep, ..UNLOAD };
        let waits = LoadPolicy { on_change: OnChange::OnReboot, ..UNLOAD };
        let mut model = Model::new(vec!["a".into(), "b".into()]);
        model.want("alpha", &wish(1, &[0, 1], keep), 0.0);
        calm(&mut model);
        model.delete("alpha");
        assert_eq!(model.expected("alpha", 0), one(loaded(1, 1)));
        model.lose(1);
        assert_eq!(model.expected("alpha", 1), Expected::Unknown, "nobody may know of it any more");
        calm(&mut model);
        model.want("alpha", &wish(2, &[0], waits), 0.0);
        assert_eq!(model.expected("alpha", 0), one(loaded(1, 1)), "the change waits");
        calm(&mut model);
        model.boot(0);
        assert_eq!(model.expected("alpha", 0), one(loaded(2, 2)));
        calm(&mut model);
        model.delete("alpha");
        assert_eq!(model.expected("alpha", 0), one(Held::Absent));
        model.want("alpha", &wish(1, &[0], waits), 0.0);
        assert_eq!(model.expected("alpha", 0), one(loaded(1, 3)), "nothing of the earlier life was left");
    }

    #[test]
    fn other_files_may_be_replaced_until_everybody_has_heard_that_they_may_not() {
        let replace = LoadPolicy { on_other_file: OnOtherFile::Replace, ..UNLOAD };
        let mut model = Model::new(vec!["a".into(), "b".into()]);
        model.want("alpha", &wish(1, &[0], replace), 5.0);
        calm(&mut model);
        model.put_in("alpha", 0).unwrap_err();
        model.taken_out("alpha", 0).unwrap();
        model.put_in("alpha", 0).unwrap();
        assert_eq!(model.expected("alpha", 0), one(loaded(1, 1)));
        model.want("alpha", &wish(1, &[0], UNLOAD), 6.0);
        assert!(matches!(model.expected("alpha", 0), Expected::Held(held) if held.len() == 2), "it may have stayed");
        assert!(model.replacing()[0].to.is_infinite());
        calm(&mut model);
        assert!(model.replacing()[0].to.is_finite());
    }
}
