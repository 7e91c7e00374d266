//! The kernels of all nodes as ClusterClaims.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::warn;

use crate::core::claims::{self, Claim, TooMany};
use crate::core::kernel::KernelVersion;
use crate::spoke::view::ClaimView;

/// The kernels of all nodes, each with the number of nodes that run it.
#[derive(Debug, Default)]
pub(crate) struct Kernels(BTreeMap<Arc<str>, usize>);

impl Kernels {
    /// Takes in that a node changed from one kernel to another, `None` standing for no node. Returns whether the set
    /// of kernels is another one now.
    pub(crate) fn change(&mut self, old: Option<&Arc<str>>, new: Option<&Arc<str>>) -> bool {
        if old == new {
            return false;
        }
        let mut changed = false;
        if let Some(kernel) = new.filter(|kernel| !kernel.is_empty()) {
            let nodes = self.0.entry(Arc::clone(kernel)).or_default();
            *nodes += 1;
            changed |= *nodes == 1;
        }
        if let Some(kernel) = old
            && let Some(nodes) = self.0.get_mut(kernel)
        {
            *nodes = nodes.saturating_sub(1);
            if *nodes == 0 {
                self.0.remove(kernel);
                changed = true;
            }
        }
        changed
    }

    /// The set; what cannot be a kernel's release is left out.
    pub(crate) fn set(&self) -> BTreeSet<KernelVersion> {
        let parsed = self.0.keys().filter_map(|kernel| match KernelVersion::parse(kernel) {
            Ok(kernel) => Some(kernel),
            Err(error) => {
                warn!(%error, "a node tells a kernel that is none; it is left out of the claims");
                None
            }
        });
        parsed.collect()
    }
}

/// What is to be written, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The claim is written.
    Apply(Claim),
    /// The claim is removed.
    Delete {
        /// `metadata.name`.
        name: String,
        /// `metadata.uid`.
        uid: String,
    },
}

/// The plan for all claims with kernels: what is missing or different is written, what is left over is removed.
///
/// # Errors
/// More kernels than claims can hold: nothing is changed.
pub(crate) fn plan(
    kernels: &BTreeSet<KernelVersion>,
    present: &BTreeMap<String, ClaimView>,
) -> Result<Vec<Action>, TooMany> {
    let wanted = claims::encode(kernels)?;
    let names: BTreeSet<&str> = wanted.iter().map(|claim| claim.name.as_str()).collect();
    let obsolete = present.iter().filter(|(name, _)| claims::is_kernel_claim(name) && !names.contains(name.as_str()));
    let obsolete: Vec<_> =
        obsolete.map(|(name, claim)| Action::Delete { name: name.clone(), uid: claim.uid.clone() }).collect();
    let written = wanted.into_iter().filter(|claim| present.get(&claim.name).is_none_or(|is| is.value != claim.value));
    Ok(written.map(Action::Apply).chain(obsolete).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels(count: usize) -> Kernels {
        let mut kernels = Kernels::default();
        for index in 0..count {
            assert!(kernels.change(None, Some(&format!("5.14.0-{index}.el9_2.x86_64").into())));
        }
        kernels
    }

    fn apply(present: &mut BTreeMap<String, ClaimView>, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Apply(Claim { name, value }) => {
                    present.insert(name, ClaimView { uid: "u".into(), value });
                }
                Action::Delete { name, .. } => {
                    present.remove(&name);
                }
            }
        }
    }

    #[test]
    fn only_a_change_of_the_set_counts() {
        let mut kernels = Kernels::default();
        let (a, b): (Arc<str>, Arc<str>) = ("6.1.0".into(), "6.1.1+".into());
        assert!(kernels.change(None, Some(&a)));
        assert!(!kernels.change(None, Some(&a)));
        assert!(!kernels.change(Some(&a), Some(&a)));
        assert!(kernels.change(Some(&a), Some(&b)));
        assert!(kernels.change(Some(&a), Some(&b)));
        assert!(!kernels.change(Some(&b), None));
        assert!(kernels.change(Some(&b), None));
        assert!(!kernels.change(None, Some(&"".into())));
        assert!(kernels.set().is_empty());
    }

    #[test]
    fn every_number_of_kernels_ends_in_an_empty_plan_and_foreign_claims_stay() {
        let mut present = BTreeMap::new();
        present.insert("id.k8s.io".to_owned(), ClaimView { uid: "x".into(), value: "c1".into() });
        for count in [1, 34, 35, 36, 300, 2, 0] {
            let set = kernels(count).set();
            let actions = plan(&set, &present).unwrap();
            apply(&mut present, actions);
            assert_eq!(plan(&set, &present), Ok(Vec::new()), "{count} kernels");
            assert!(present.values().all(|claim| claim.value.len() <= 1024));
            assert!(present.contains_key("id.k8s.io"));
        }
        assert_eq!(present.len(), 1, "no nodes, no claims");
    }
}
