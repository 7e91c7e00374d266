//! Counts over the clusters of each ManagedClusterModule, kept up to date cluster by cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::names::ClusterReason;
use crate::core::kernel::KernelVersion;
use crate::hub::view::{Nodes, Revision};

use super::cluster::{Coverage, Phase, Standing};

/// The counts of all `ManagedClusterModules`; an event about one cluster costs the same in any fleet.
#[derive(Debug, Default)]
pub struct Tally(Mutex<HashMap<Arc<str>, Counts>>);

/// The counts of one ManagedClusterModule.
#[derive(Debug, Default)]
struct Counts {
    /// What every cluster in here was looked at for, or waits to be.
    revision: Revision,
    clusters: HashMap<Arc<str>, Standing>,
    phases: BTreeMap<Phase, usize>,
    applied: usize,
    nodes: Nodes,
    /// Clusters that are not ready, by name.
    not_ready: BTreeSet<Arc<str>>,
    /// Clusters with another reason than [`ClusterReason::Ready`], by reason.
    by_reason: BTreeMap<ClusterReason, BTreeSet<Arc<str>>>,
    /// Clusters in [`Coverage::Covered`].
    covered: usize,
    /// Clusters in [`Coverage::NotCovered`], by name.
    not_covered: BTreeSet<Arc<str>>,
    /// Kernels without an image, with the number of clusters that wait for it.
    held_back: BTreeMap<KernelVersion, usize>,
    /// Clusters that were not looked at since this process leads: until there are none, nothing is told.
    unseen: HashSet<Arc<str>>,
}

/// What the status of a ManagedClusterModule is made from: numbers, and what they were counted for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// The generation that every number in here speaks of.
    pub generation: i64,
    /// Selected clusters.
    pub desired: usize,
    /// Clusters on which it was applied.
    pub applied: usize,
    /// Clusters in [`Phase::Ready`].
    pub ready: usize,
    /// Clusters in [`Phase::Waiting`].
    pub waiting: usize,
    /// Clusters in [`Phase::Unknown`].
    pub unknown: usize,
    /// Clusters in [`Phase::Degraded`].
    pub degraded: usize,
    /// Nodes of all clusters that report.
    pub nodes: Nodes,
    /// The first clusters by name that are not ready.
    pub first: Vec<(Arc<str>, Standing)>,
    /// For each reason but [`ClusterReason::Ready`]: how many clusters, and the first by name.
    pub reasons: BTreeMap<ClusterReason, (usize, Arc<str>, Standing)>,
    /// Clusters in [`Coverage::Covered`].
    pub covered: usize,
    /// Clusters in [`Coverage::NotCovered`].
    pub not_covered: usize,
    /// The first of them by name.
    pub first_not_covered: Option<(Arc<str>, Standing)>,
    /// Kernels without an image, with the number of clusters that wait for it.
    pub held_back: BTreeMap<KernelVersion, usize>,
}

/// Clusters that a status names.
const NAMED: usize = 10;

impl Counts {
    fn take_out(&mut self, cluster: &Arc<str>) -> Option<Standing> {
        let old = self.clusters.remove(cluster)?;
        self.count(cluster, &old, false);
        Some(old)
    }

    fn put_in(&mut self, cluster: &Arc<str>, standing: Standing) {
        self.count(cluster, &standing, true);
        self.clusters.insert(Arc::clone(cluster), standing);
    }

    fn count(&mut self, cluster: &Arc<str>, standing: &Standing, add: bool) {
        let step = |count: &mut usize| *count = if add { *count + 1 } else { count.saturating_sub(1) };
        step(self.phases.entry(standing.phase).or_default());
        if standing.applied {
            step(&mut self.applied);
        }
        match (&standing.coverage, add) {
            (Coverage::Covered, _) => step(&mut self.covered),
            (Coverage::NotCovered { .. }, true) => _ = self.not_covered.insert(Arc::clone(cluster)),
            (Coverage::NotCovered { .. }, false) => _ = self.not_covered.remove(cluster),
            (Coverage::Unknown, _) => {}
        }
        let sign = if add { 1 } else { -1 };
        self.nodes.matching += sign * standing.nodes.matching;
        self.nodes.desired += sign * standing.nodes.desired;
        self.nodes.available += sign * standing.nodes.available;
        for kernel in standing.held_back.iter() {
            let count = self.held_back.entry(kernel.clone()).or_default();
            step(count);
            if *count == 0 {
                self.held_back.remove(kernel);
            }
        }
        if standing.phase != Phase::Ready {
            if add {
                self.not_ready.insert(Arc::clone(cluster))
            } else {
                self.not_ready.remove(cluster)
            };
        }
        if standing.reason == ClusterReason::Ready {
            return;
        }
        let of_reason = self.by_reason.entry(standing.reason).or_default();
        if add {
            of_reason.insert(Arc::clone(cluster))
        } else {
            of_reason.remove(cluster)
        };
        if of_reason.is_empty() {
            self.by_reason.remove(&standing.reason);
        }
    }

    fn totals(&self) -> Totals {
        let phase = |phase| self.phases.get(&phase).copied().unwrap_or_default();
        let named = |cluster: &Arc<str>| Some((Arc::clone(cluster), self.clusters.get(cluster)?.clone()));
        Totals {
            generation: self.revision.generation,
            desired: self.clusters.len(),
            applied: self.applied,
            ready: phase(Phase::Ready),
            waiting: phase(Phase::Waiting),
            unknown: phase(Phase::Unknown),
            degraded: phase(Phase::Degraded),
            nodes: self.nodes,
            first: self.not_ready.iter().take(NAMED).filter_map(named).collect(),
            reasons: self
                .by_reason
                .iter()
                .filter_map(|(reason, clusters)| {
                    let (first, standing) = named(clusters.first()?)?;
                    Some((*reason, (clusters.len(), first, standing)))
                })
                .collect(),
            covered: self.covered,
            not_covered: self.not_covered.len(),
            first_not_covered: self.not_covered.first().and_then(named),
            held_back: self.held_back.clone(),
        }
    }
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another revision is wanted: the clusters that it selects are still to be looked at for it, and whatever was
    /// counted before is forgotten. Gives these clusters.
    ///
    /// `clusters` is asked under the lock: a cluster that changes later is put in after it, one that changed before is in
    /// the answer.
    pub fn begin(
        &self,
        module: &Arc<str>,
        revision: Revision,
        clusters: impl FnOnce() -> Vec<Arc<str>>,
    ) -> Vec<Arc<str>> {
        let mut all = self.lock();
        let clusters = clusters();
        let mut counts = Counts { revision, ..Counts::default() };
        for cluster in &clusters {
            counts.put_in(cluster, Standing::pending());
        }
        all.insert(Arc::clone(module), counts);
        clusters
    }

    /// This process begins to lead: nothing is told about the ManagedClusterModule before each of these clusters was
    /// looked at. Does nothing if another revision has begun since.
    pub fn resume(&self, module: &Arc<str>, revision: Revision, clusters: impl FnOnce() -> Vec<Arc<str>>) {
        let mut all = self.lock();
        if !all.contains_key(module) {
            let unseen = clusters().into_iter().collect();
            all.insert(Arc::clone(module), Counts { revision, unseen, ..Counts::default() });
        }
    }

    /// How a cluster stands now that it was looked at for this revision, `None` if it is not selected. Returns whether
    /// anything changed for the status. What was found for another revision than the present one is not counted.
    pub fn put(&self, module: &Arc<str>, revision: &Revision, cluster: &Arc<str>, standing: Option<Standing>) -> bool {
        let mut all = self.lock();
        let Some(counts) = all.get_mut(module).filter(|counts| counts.revision == *revision) else { return false };
        let last_unseen = counts.unseen.remove(cluster) && counts.unseen.is_empty();
        if counts.clusters.get(cluster) == standing.as_ref() {
            return last_unseen;
        }
        counts.take_out(cluster);
        if let Some(standing) = standing {
            counts.put_in(cluster, standing);
        }
        true
    }

    /// Forgets a ManagedClusterModule that is gone.
    pub fn forget(&self, module: &str) {
        self.lock().remove(module);
    }

    /// The totals of this revision; `None` if another one is counted, or while a cluster was not looked at since this
    /// process leads, because counts of half a fleet are wrong.
    pub fn totals(&self, module: &str, revision: &Revision) -> Option<Totals> {
        let all = self.lock();
        let counts = all.get(module).filter(|counts| counts.revision == *revision)?;
        counts.unseen.is_empty().then(|| counts.totals())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::intern;
    use crate::hub::testing::kernel;

    fn standing(phase: Phase, reason: ClusterReason, available: i64, held_back: &[&str]) -> Standing {
        let held_back: Vec<KernelVersion> = held_back.iter().copied().map(kernel).collect();
        Standing {
            applied: phase == Phase::Ready,
            nodes: Nodes { matching: 3, desired: 2, available },
            coverage: match phase {
                Phase::Ready => Coverage::Covered,
                Phase::Waiting => Coverage::NotCovered { reason, message: "why".into() },
                Phase::Unknown | Phase::Degraded => Coverage::Unknown,
            },
            held_back: intern::kernels(&held_back),
            ..Standing::new(phase, reason, "why")
        }
    }

    fn revision(generation: i64) -> Revision {
        Revision { uid: name("uid"), generation }
    }

    /// Counts the first revision of `m`, which selects nothing so far.
    fn begun() -> Tally {
        let tally = Tally::default();
        tally.begin(&name("m"), revision(1), Vec::new);
        tally
    }

    fn totals(tally: &Tally) -> Totals {
        tally.totals("m", &revision(1)).unwrap()
    }

    fn name(text: &str) -> Arc<str> {
        intern::text(text)
    }

    #[test]
    fn totals_kept_cluster_by_cluster_equal_those_counted_anew() {
        let standings = [
            None,
            Some(standing(Phase::Ready, ClusterReason::Ready, 2, &[])),
            Some(standing(Phase::Waiting, ClusterReason::ImagesNotReady, 0, &["6.1", "6.2"])),
            Some(standing(Phase::Waiting, ClusterReason::ImagesNotReady, 1, &["6.1"])),
            Some(standing(Phase::Degraded, ClusterReason::NotApplied, 0, &[])),
            Some(standing(Phase::Unknown, ClusterReason::NoClaims, 0, &[])),
        ];
        let (kept, module) = (begun(), name("m"));
        let mut world: BTreeMap<Arc<str>, Standing> = BTreeMap::new();
        let mut random = 1u64;
        for step in 0..2000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let cluster = name(&format!("c{:02}", (random >> 33) % 23));
            let next = standings[usize::try_from((random >> 50) % 6).unwrap()].clone();
            let before = world.get(&cluster).cloned();
            assert_eq!(kept.put(&module, &revision(1), &cluster, next.clone()), before != next, "step {step}");
            match next {
                Some(next) => world.insert(cluster, next),
                None => world.remove(&cluster),
            };
            let anew = begun();
            for (cluster, standing) in &world {
                anew.put(&module, &revision(1), cluster, Some(standing.clone()));
            }
            assert_eq!(totals(&kept), totals(&anew), "step {step}");
        }
        for cluster in world.keys() {
            kept.put(&module, &revision(1), cluster, None);
        }
        assert_eq!(totals(&kept), Totals { generation: 1, ..Totals::default() });
    }

    #[test]
    fn nothing_is_told_before_every_cluster_was_looked_at() {
        let (tally, module, a, b) = (Tally::default(), name("m"), name("a"), name("b"));
        tally.resume(&module, revision(1), || vec![a.clone(), b.clone()]);
        tally.put(&module, &revision(1), &a, Some(standing(Phase::Ready, ClusterReason::Ready, 1, &[])));
        assert_eq!(tally.totals("m", &revision(1)), None);
        assert!(
            tally.put(&module, &revision(1), &b, None),
            "the last look wakes the status, also if the cluster is not selected"
        );
        assert_eq!(totals(&tally).desired, 1);
        tally.forget("m");
        assert_eq!(tally.totals("m", &revision(1)), None);
    }

    #[test]
    fn no_total_speaks_of_a_revision_for_which_it_was_not_counted() {
        let (tally, module) = (begun(), name("m"));
        let ready = || Some(standing(Phase::Ready, ClusterReason::Ready, 1, &[]));
        tally.put(&module, &revision(1), &name("a"), ready());
        assert_eq!(totals(&tally).ready, 1);
        // The second one is in the store, and not begun here yet: it has no totals, and no pass adds to those of the first.
        assert_eq!(tally.totals("m", &revision(2)), None);
        assert!(!tally.put(&module, &revision(2), &name("b"), ready()));
        assert_eq!(totals(&tally).desired, 1);

        tally.begin(&module, revision(2), || vec![name("a"), name("b")]);
        assert_eq!(tally.totals("m", &revision(1)), None);
        let first = tally.totals("m", &revision(2)).unwrap();
        assert_eq!((first.generation, first.desired, first.waiting, first.nodes), (2, 2, 2, Nodes::default()));
        // A pass that began with the first revision ends late.
        assert!(!tally.put(&module, &revision(1), &name("a"), ready()));
        assert_eq!(tally.totals("m", &revision(2)), Some(first));
        // A ManagedClusterModule made again under the name begins with generation 1 once more.
        let again = Revision { uid: name("another"), generation: 2 };
        assert_eq!(tally.totals("m", &again), None);
        assert!(!tally.put(&module, &again, &name("a"), ready()));
        // What was begun while this process began to lead is not begun again.
        tally.resume(&module, revision(1), Vec::new);
        assert!(tally.totals("m", &revision(2)).is_some());
    }

    #[test]
    fn the_first_clusters_and_the_first_of_each_reason_are_named() {
        let (tally, module) = (begun(), name("m"));
        for n in (0..15).rev() {
            let (phase, reason) = match n % 3 {
                0 => (Phase::Ready, ClusterReason::Ready),
                1 => (Phase::Degraded, ClusterReason::NotApplied),
                _ => (Phase::Unknown, ClusterReason::NoClaims),
            };
            let standing = standing(phase, reason, 0, &[]);
            tally.put(&module, &revision(1), &name(&format!("c{n:02}")), Some(standing));
        }
        let totals = totals(&tally);
        let first: Vec<&str> = totals.first.iter().map(|(cluster, _)| &**cluster).collect();
        assert_eq!(first, ["c01", "c02", "c04", "c05", "c07", "c08", "c10", "c11", "c13", "c14"]);
        let reasons: Vec<_> =
            totals.reasons.iter().map(|(reason, (count, first, _))| (*reason, *count, &**first)).collect();
        assert_eq!(reasons, [(ClusterReason::NoClaims, 5, "c02"), (ClusterReason::NotApplied, 5, "c01")]);
    }
}
