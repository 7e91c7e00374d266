//! What each kernel must hold, by what was asked for.

use std::collections::{BTreeMap, BTreeSet};

use crate::images::Brings;

/// What follows from a seed is always the same.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        // Small seeds differ in few bits; zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number from 0 to below `sides`.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % sides as u64).unwrap_or_default()
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }
}

/// What a Module asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) version: u8,
    pub(crate) level: u32,
    /// Nodes that it selects, by number.
    pub(crate) nodes: BTreeSet<usize>,
    pub(crate) load_at_boot: bool,
    pub(crate) by_tag: bool,
}

/// What a kernel must hold of a Module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Nothing.
    Absent,
    /// This file with this parameter.
    Loaded { version: u8, level: u32 },
    /// It cannot be said: the order to unload may have been lost with the object that it was to stand in.
    Unknown,
}

/// The wishes, and since the last calm what makes their fulfilment uncertain.
#[derive(Debug, Default)]
pub(crate) struct Model {
    wishes: BTreeMap<&'static str, Wish>,
    /// Modules that were deleted, or left a node, since the last calm, by node.
    left: BTreeSet<(&'static str, usize)>,
    /// Nodes whose NodeModulesConfig was taken away since the last calm.
    lost: BTreeSet<usize>,
}

impl Model {
    pub(crate) fn wish(&self, module: &str) -> Option<&Wish> {
        self.wishes.get(module)
    }

    /// The Module is there, like this.
    pub(crate) fn want(&mut self, module: &'static str, wish: &Wish) {
        let before = self.wishes.insert(module, wish.clone());
        let lost: Vec<usize> =
            before.into_iter().flat_map(|old| old.nodes).filter(|n| !wish.nodes.contains(n)).collect();
        self.left.extend(lost.into_iter().map(|node| (module, node)));
    }

    /// The Module is deleted.
    pub(crate) fn delete(&mut self, module: &'static str) {
        if let Some(wish) = self.wishes.remove(module) {
            self.left.extend(wish.nodes.into_iter().map(|node| (module, node)));
        }
    }

    /// The node's NodeModulesConfig was taken away, alone or with its Node.
    pub(crate) fn lose(&mut self, node: usize) {
        self.lost.insert(node);
    }

    /// Everything was healed and is as it must be. Nodes of which something could not be said boot before that.
    pub(crate) fn calm(&mut self) {
        self.left.clear();
        self.lost.clear();
    }

    pub(crate) fn expected(&self, module: Brings, node: usize) -> Expected {
        if self.lost.contains(&node) && self.left.contains(&(module.module, node)) {
            return Expected::Unknown;
        }
        match self.wishes.get(module.module) {
            Some(wish) if wish.nodes.contains(&node) => Expected::Loaded { version: wish.version, level: wish.level },
            _ => Expected::Absent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::ALL;

    #[test]
    fn the_model_says_what_was_asked_for_and_no_more_than_it_can_know() {
        let [alpha, beta, _] = ALL;
        let mut model = Model::default();
        let wish = |version, nodes: &[usize]| Wish {
            version,
            level: 3,
            nodes: nodes.iter().copied().collect(),
            load_at_boot: false,
            by_tag: false,
        };
        model.want("alpha", &wish(1, &[0, 1]));
        model.want("beta", &wish(1, &[0]));
        model.lose(0);
        assert_eq!(model.expected(alpha, 0), Expected::Loaded { version: 1, level: 3 });
        assert_eq!(model.expected(beta, 1), Expected::Absent);
        model.want("alpha", &wish(2, &[1]));
        assert_eq!(model.expected(alpha, 0), Expected::Unknown, "the order to unload may be lost");
        assert_eq!(model.expected(alpha, 1), Expected::Loaded { version: 2, level: 3 });
        model.delete("alpha");
        assert_eq!(model.expected(alpha, 1), Expected::Absent, "no object was lost there");
        model.calm();
        assert_eq!(model.expected(alpha, 0), Expected::Absent);
    }

    #[test]
    fn the_same_seed_gives_the_same_walk_and_another_seed_another() {
        let walk = |seed| {
            let mut dice = Dice::new(seed);
            (0..500).map(|_| dice.roll(12)).collect::<Vec<_>>()
        };
        assert_eq!(walk(7), walk(7));
        assert_ne!(walk(7), walk(8));
        assert!((0..12).all(|side| walk(7).contains(&side)));
    }
}
