//! Which clusters have each module, which of them are not selected any more, and whether taking it from them waits for a
//! person.
//!
//! One wrong word in a selector deselects a fleet. What was deselected is found out from what is there (works, labels), so
//! a manager that starts anew comes to the same answer.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::hub::view::Revision;

/// From when on a change that takes a module from clusters waits for a confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovalGuard {
    /// The share of the clusters with the module, in percent, up to which it is taken away without one; 100 asks never.
    pub share: u8,
    /// The number of clusters with the module from which on it is asked at all.
    pub minimum: usize,
}

impl Default for RemovalGuard {
    fn default() -> Self {
        Self { share: 50, minimum: 10 }
    }
}

impl RemovalGuard {
    fn asks(self, having: usize, leaving: usize) -> bool {
        having >= self.minimum && leaving.saturating_mul(100) > having.saturating_mul(usize::from(self.share))
    }
}

/// What is to become of a cluster's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The work stays: the cluster is selected, or nobody can tell.
    Stays,
    /// The cluster is there and not selected any more.
    Leaves,
}

/// Whether works may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// They may.
    Free,
    /// None may, and no cluster gets one newly.
    Held(Held),
    /// Nobody has looked at the clusters for this revision yet.
    Unknown,
}

/// A removal that waits for a confirmation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Clusters that have a work.
    pub having: usize,
    /// Those of them that are not selected any more.
    pub leaving: usize,
    /// The first of these by name.
    pub first: Vec<Arc<str>>,
}

/// What came of a look at a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing that is told.
    Nothing,
    /// There is something else to tell.
    News,
    /// What waited may go on.
    Released,
}

/// The works of each ManagedClusterModule; an event about one cluster costs the same in any fleet.
#[derive(Debug, Default)]
pub struct Removals {
    guard: RemovalGuard,
    sides: Mutex<HashMap<Arc<str>, Sides>>,
}

#[derive(Debug)]
struct Sides {
    revision: Revision,
    confirmed: bool,
    having: HashSet<Arc<str>>,
    leaving: BTreeSet<Arc<str>>,
}

/// Clusters that a message names.
const NAMED: usize = 3;

impl Sides {
    fn of(revision: Revision, confirmed: bool, clusters: Vec<(Arc<str>, Side)>) -> Self {
        let mut sides = Self { revision, confirmed, having: HashSet::new(), leaving: BTreeSet::new() };
        for (cluster, side) in clusters {
            sides.put(&cluster, Some(side));
        }
        sides
    }

    fn put(&mut self, cluster: &Arc<str>, side: Option<Side>) {
        match side {
            None => self.having.remove(cluster),
            Some(_) => self.having.insert(Arc::clone(cluster)),
        };
        match side {
            Some(Side::Leaves) => self.leaving.insert(Arc::clone(cluster)),
            Some(Side::Stays) | None => self.leaving.remove(cluster),
        };
    }

    fn held(&self, guard: RemovalGuard) -> Option<Held> {
        let (having, leaving) = (self.having.len(), self.leaving.len());
        (!self.confirmed && guard.asks(having, leaving)).then(|| Held {
            having,
            leaving,
            first: self.leaving.iter().take(NAMED).cloned().collect(),
        })
    }
}

impl Removals {
    /// Nothing is known yet.
    pub fn new(guard: RemovalGuard) -> Self {
        Self { guard, sides: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Sides>> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another revision is wanted, or what waits is confirmed: every cluster with a work is looked at anew.
    ///
    /// `look` is asked under the lock, as the one of [`put`](Self::put): whichever comes last has seen the latest world.
    pub fn begin(
        &self,
        module: &Arc<str>,
        revision: Revision,
        confirmed: bool,
        look: impl FnOnce() -> Vec<(Arc<str>, Side)>,
    ) {
        let mut all = self.lock();
        all.insert(Arc::clone(module), Sides::of(revision, confirmed, look()));
    }

    /// The same as this process begins to lead. Does nothing if another revision has begun since.
    pub fn resume(
        &self,
        module: &Arc<str>,
        revision: Revision,
        confirmed: bool,
        look: impl FnOnce() -> Vec<(Arc<str>, Side)>,
    ) {
        self.lock().entry(Arc::clone(module)).or_insert_with(|| Sides::of(revision, confirmed, look()));
    }

    /// A cluster or its work changed; `look` gives `None` where there is no work that could go.
    pub fn put(
        &self,
        module: &str,
        revision: &Revision,
        cluster: &Arc<str>,
        look: impl FnOnce() -> Option<Side>,
    ) -> Turn {
        let mut all = self.lock();
        let Some(sides) = all.get_mut(module).filter(|sides| sides.revision == *revision) else {
            return Turn::Nothing;
        };
        let before = sides.held(self.guard);
        sides.put(cluster, look());
        match (before, sides.held(self.guard)) {
            (before, after) if before == after => Turn::Nothing,
            (Some(_), None) => Turn::Released,
            _ => Turn::News,
        }
    }

    /// Whether works may go.
    pub fn of(&self, module: &str, revision: &Revision) -> Removal {
        match self.lock().get(module).filter(|sides| sides.revision == *revision) {
            None => Removal::Unknown,
            Some(sides) => sides.held(self.guard).map_or(Removal::Free, Removal::Held),
        }
    }

    /// The clusters that are not selected any more and have a work.
    pub fn leaving(&self, module: &str) -> Vec<Arc<str>> {
        self.lock().get(module).map(|sides| sides.leaving.iter().cloned().collect()).unwrap_or_default()
    }

    /// Forgets a ManagedClusterModule that is gone.
    pub fn forget(&self, module: &str) {
        self.lock().remove(module);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::intern;

    fn revision(generation: i64) -> Revision {
        Revision { uid: intern::text("uid"), generation }
    }

    fn name(n: usize) -> Arc<str> {
        intern::text(&format!("c{n:02}"))
    }

    /// `leaving` of `having` clusters are not selected.
    fn begun(having: usize, leaving: usize, confirmed: bool) -> Removals {
        let removals = Removals::default();
        let side = |n| if n < leaving { Side::Leaves } else { Side::Stays };
        removals
            .begin(&intern::text("m"), revision(1), confirmed, || (0..having).map(|n| (name(n), side(n))).collect());
        removals
    }

    fn held(having: usize, leaving: usize, first: &[usize]) -> Removal {
        Removal::Held(Held { having, leaving, first: first.iter().copied().map(name).collect() })
    }

    #[test]
    fn more_than_half_of_at_least_ten_clusters_waits_for_a_confirmation() {
        let table = [
            (9, 9, Removal::Free),
            (10, 5, Removal::Free),
            (10, 6, held(10, 6, &[0, 1, 2])),
            (400, 200, Removal::Free),
            (400, 201, held(400, 201, &[0, 1, 2])),
            (0, 0, Removal::Free),
        ];
        for (having, leaving, expected) in table {
            assert_eq!(begun(having, leaving, false).of("m", &revision(1)), expected, "{leaving} of {having}");
            assert_eq!(begun(having, leaving, true).of("m", &revision(1)), Removal::Free, "confirmed");
        }
        assert_eq!(begun(400, 400, false).of("m", &revision(2)), Removal::Unknown);
        assert_eq!(begun(400, 400, false).of("other", &revision(1)), Removal::Unknown);
        let asks = |share, minimum| RemovalGuard { share, minimum }.asks(2, 2);
        assert_eq!([asks(100, 0), asks(99, 2), asks(0, 3)], [false, true, false]);
    }

    #[test]
    fn what_may_go_goes_on_going_while_it_goes() {
        let removals = begun(20, 10, false);
        for n in 0..10 {
            assert_eq!(removals.put("m", &revision(1), &name(n), || None), Turn::Nothing);
            assert_eq!(removals.of("m", &revision(1)), Removal::Free, "after {n}");
        }
    }

    #[test]
    fn clusters_that_leave_one_by_one_are_held_from_the_middle_on_until_enough_are_back() {
        let removals = begun(10, 0, false);
        let put = |n, side| removals.put("m", &revision(1), &name(n), || Some(side));
        for n in 0..5 {
            assert_eq!(put(n, Side::Leaves), Turn::Nothing);
        }
        assert_eq!(put(5, Side::Leaves), Turn::News);
        assert_eq!(put(5, Side::Leaves), Turn::Nothing);
        assert_eq!(put(6, Side::Leaves), Turn::News);
        assert_eq!(removals.of("m", &revision(1)), held(10, 7, &[0, 1, 2]));
        assert_eq!(put(0, Side::Stays), Turn::News);
        assert_eq!(put(1, Side::Stays), Turn::Released);
        assert_eq!(removals.of("m", &revision(1)), Removal::Free);
        assert_eq!(removals.leaving("m"), [2, 3, 4, 5, 6].map(name));
        // Of another revision nothing is taken in.
        assert_eq!(removals.put("m", &revision(2), &name(0), || Some(Side::Leaves)), Turn::Nothing);
        assert_eq!(removals.leaving("m").len(), 5);
    }
}
