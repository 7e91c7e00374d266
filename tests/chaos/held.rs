//! What a kernel may hold of one Module, and what becomes of that under what is asked for.

use std::collections::BTreeSet;

use kmm::api::{LoadPolicy, OnChange, OnDrift, OnOtherFile, OnRemoval};

/// What a Module asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) version: u8,
    pub(crate) level: u32,
    /// Nodes that it selects, by number.
    pub(crate) nodes: BTreeSet<usize>,
    pub(crate) policy: LoadPolicy,
    pub(crate) by_tag: bool,
}

/// A file with its parameter, and which Module brought it: one that is made again under its name has another life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Load {
    pub(crate) version: u8,
    pub(crate) level: u32,
    pub(crate) life: u32,
}

/// What stands in a kernel under the name of the Module's kernel module, and what the worker knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Held {
    Absent,
    Loaded(Load),
    /// Taken out by hand, and known as loaded.
    Missing(Load),
    /// A file that no Module brought, perhaps in the place of what is known as loaded.
    Stranger(Option<Load>),
}

impl Held {
    /// What it is for a worker whose plan does not name the Module for a moment, and that finds nothing of it.
    fn forgotten(self) -> Self {
        match self {
            Self::Missing(_) => Self::Absent,
            Self::Stranger(_) => Self::Stranger(None),
            Self::Absent | Self::Loaded(_) => self,
        }
    }

    /// What it can be after somebody took it out; `None` if there is nothing to take out. What was loaded only just now
    /// is not known as loaded yet.
    fn taken_out(self, fresh: bool) -> Option<Vec<Self>> {
        match self {
            Self::Loaded(load) if fresh => Some(vec![Self::Missing(load), Self::Absent]),
            Self::Loaded(load) => Some(vec![Self::Missing(load)]),
            Self::Stranger(Some(load)) => Some(vec![Self::Missing(load), Self::Absent]),
            Self::Stranger(None) => Some(vec![Self::Absent]),
            Self::Absent | Self::Missing(_) => None,
        }
    }

    /// What it is after somebody loaded a file that no Module brought; `None` if there was no room for it.
    fn put_in(self) -> Option<Self> {
        match self {
            Self::Absent => Some(Self::Stranger(None)),
            Self::Missing(load) => Some(Self::Stranger(Some(load))),
            Self::Loaded(_) | Self::Stranger(_) => None,
        }
    }
}

/// A wish, and whose it is. A Module that was deleted asks for no node, under the policy that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) life: u32,
    pub(crate) there: bool,
    pub(crate) wish: Wish,
}

impl Ask {
    pub(crate) fn is_for(&self, node: usize) -> bool {
        self.there && self.wish.nodes.contains(&node)
    }

    pub(crate) fn wanted(&self) -> Load {
        Load { version: self.wish.version, level: self.wish.level, life: self.life }
    }

    /// What becomes of it if nothing else happens.
    pub(crate) fn settle(&self, held: Held, node: usize) -> Held {
        let LoadPolicy { on_change, on_removal, on_drift, on_other_file, .. } = self.wish.policy;
        let wanted = self.wanted();
        if !self.is_for(node) {
            return match held {
                // What an earlier life left was kept by its own policy.
                Held::Loaded(load) | Held::Missing(load)
                    if load.life == self.life && on_removal == OnRemoval::Unload =>
                {
                    Held::Absent
                }
                Held::Stranger(_) => held.forgotten(),
                Held::Absent | Held::Loaded(_) | Held::Missing(_) => held,
            };
        }
        match held {
            Held::Loaded(load) if (load.version, load.level) == (wanted.version, wanted.level) => Held::Loaded(wanted),
            Held::Loaded(_) if on_change == OnChange::OnReboot => held,
            Held::Missing(load)
                if on_drift == OnDrift::Report
                    && load.life == wanted.life
                    && (load == wanted || on_change == OnChange::OnReboot) =>
            {
                held
            }
            Held::Stranger(_) if on_other_file == OnOtherFile::Report => held,
            Held::Absent | Held::Loaded(_) | Held::Missing(_) | Held::Stranger(_) => Held::Loaded(wanted),
        }
    }
}

/// Everything that one kernel may hold of one Module.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    held: BTreeSet<Held>,
    /// Something has happened to it since it was last known for certain.
    stirred: bool,
}

impl Default for Reach {
    fn default() -> Self {
        Self::known(BTreeSet::from([Held::Absent]))
    }
}

impl Reach {
    /// Nothing has happened since.
    pub(crate) fn known(held: BTreeSet<Held>) -> Self {
        Self { held, stirred: false }
    }

    /// Something has just happened.
    pub(crate) fn stirred(held: BTreeSet<Held>) -> Self {
        Self { held, stirred: true }
    }

    pub(crate) fn stir(&mut self) {
        self.stirred = true;
    }

    /// Adds whatever a worker can have made of it that heard of any of these.
    ///
    /// `lost`: it may also have heard of nothing at all.
    pub(crate) fn grow(&mut self, asks: &[Ask], node: usize, lost: bool) {
        let mut open: Vec<Held> = self.held.iter().copied().collect();
        while let Some(held) = open.pop() {
            let mut next = Vec::new();
            for ask in asks {
                let settled = ask.settle(held, node);
                let makes_room = matches!(held, Held::Loaded(_) | Held::Stranger(_)) && settled != held;
                next.extend([Some(settled), makes_room.then_some(Held::Absent)].into_iter().flatten());
            }
            if lost || asks.iter().any(|ask| !ask.is_for(node)) {
                next.push(held.forgotten());
            }
            open.extend(next.into_iter().filter(|next| self.held.insert(*next)));
        }
    }

    /// What it may be once nothing else happens under this.
    pub(crate) fn settled(&self, ask: Option<&Ask>, node: usize) -> BTreeSet<Held> {
        self.held.iter().map(|held| ask.map_or(*held, |ask| ask.settle(*held, node))).collect()
    }

    /// Somebody took the kernel module out. False if that cannot be.
    pub(crate) fn take_out(&mut self) -> bool {
        let fresh = std::mem::replace(&mut self.stirred, true);
        self.held = self.held.iter().filter_map(|held| held.taken_out(fresh)).flatten().collect();
        !self.held.is_empty()
    }

    /// Somebody loaded a file that no Module brought. False if that cannot be.
    pub(crate) fn put_in(&mut self) -> bool {
        self.stirred = true;
        self.held = self.held.iter().filter_map(|held| held.put_in()).collect();
        !self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: usize = 0;

    fn ask(version: u8, life: u32, nodes: &[usize], policy: LoadPolicy) -> Ask {
        let wish = Wish { version, level: 1, nodes: nodes.iter().copied().collect(), policy, by_tag: false };
        Ask { life, there: true, wish }
    }

    fn load(version: u8, life: u32) -> Load {
        Load { version, level: 1, life }
    }

    #[test]
    fn each_policy_decides_what_becomes_of_what_is_held() {
        let usual = LoadPolicy::default();
        let waits = LoadPolicy { on_change: OnChange::OnReboot, ..usual };
        let keeps = LoadPolicy { on_removal: OnRemoval::Keep, ..usual };
        let reports = LoadPolicy { on_drift: OnDrift::Report, ..usual };
        let waits_and_reports = LoadPolicy { on_drift: OnDrift::Report, ..waits };
        let replaces = LoadPolicy { on_other_file: OnOtherFile::Replace, ..usual };
        let (old, new) = (load(1, 1), load(2, 1));
        let stranger = Held::Stranger(Some(old));
        for (policy, nodes, held, expected) in [
            (usual, &[NODE][..], Held::Absent, Held::Loaded(new)),
            (usual, &[NODE], Held::Loaded(old), Held::Loaded(new)),
            (waits, &[NODE], Held::Loaded(old), Held::Loaded(old)),
            (waits, &[NODE], Held::Loaded(load(2, 0)), Held::Loaded(new)),
            (waits, &[NODE], Held::Missing(old), Held::Loaded(new)),
            (reports, &[NODE], Held::Missing(new), Held::Missing(new)),
            (reports, &[NODE], Held::Missing(old), Held::Loaded(new)),
            (reports, &[NODE], Held::Missing(load(2, 0)), Held::Loaded(new)),
            (waits_and_reports, &[NODE], Held::Missing(old), Held::Missing(old)),
            (usual, &[NODE], stranger, stranger),
            (replaces, &[NODE], stranger, Held::Loaded(new)),
            (usual, &[], Held::Loaded(old), Held::Absent),
            (usual, &[], Held::Loaded(load(1, 0)), Held::Loaded(load(1, 0))),
            (usual, &[], stranger, Held::Stranger(None)),
            (keeps, &[], Held::Loaded(old), Held::Loaded(old)),
        ] {
            assert_eq!(ask(2, 1, nodes, policy).settle(held, NODE), expected, "{policy:?} {nodes:?} {held:?}");
        }
    }

    #[test]
    fn what_a_change_leaves_alone_is_all_that_may_be_held() {
        let waits = LoadPolicy { on_change: OnChange::OnReboot, ..LoadPolicy::default() };
        let asks = [ask(1, 1, &[NODE], waits), ask(2, 1, &[NODE], waits)];
        let mut reach = Reach::known(BTreeSet::from([Held::Loaded(load(1, 1))]));
        reach.grow(&asks, NODE, false);
        assert_eq!(reach.settled(Some(&asks[1]), NODE), BTreeSet::from([Held::Loaded(load(1, 1))]));
        // A boot in the middle: whether the node had heard of the change is not known.
        reach = Reach::default();
        reach.grow(&asks, NODE, false);
        assert_eq!(reach.settled(Some(&asks[1]), NODE), BTreeSet::from([1, 2].map(|n| Held::Loaded(load(n, 1)))));
    }

    #[test]
    fn what_was_taken_out_is_missing_unless_it_was_too_fresh_or_the_object_was_lost() {
        let asks = [ask(1, 1, &[NODE], LoadPolicy { on_drift: OnDrift::Report, ..LoadPolicy::default() })];
        let (loaded, missing) = (Held::Loaded(load(1, 1)), Held::Missing(load(1, 1)));
        for (stirred, lost, expected) in
            [(false, false, vec![missing]), (true, false, vec![loaded, missing]), (false, true, vec![loaded, missing])]
        {
            let mut reach = Reach::known(BTreeSet::from([loaded]));
            reach.stirred = stirred;
            assert!(reach.take_out());
            reach.grow(&asks, NODE, lost);
            assert_eq!(reach.settled(Some(&asks[0]), NODE), expected.into_iter().collect(), "{stirred} {lost}");
        }
        assert!(!Reach::default().take_out(), "there was nothing");
        assert!(!Reach::known(BTreeSet::from([loaded])).put_in(), "there was no room");
    }
}
