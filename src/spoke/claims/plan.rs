//! The kernels of all nodes as ClusterClaims.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::claims::{self, Claim, TooMany};
use crate::core::kernel::KernelVersion;
use crate::spoke::view::ClaimView;

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

    fn kernels(count: usize) -> BTreeSet<KernelVersion> {
        (0..count).map(|index| format!("5.14.0-{index}.el9_2.x86_64").parse().unwrap()).collect()
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
    fn every_number_of_kernels_ends_in_an_empty_plan_and_foreign_claims_stay() {
        let mut present = BTreeMap::new();
        present.insert("id.k8s.io".to_owned(), ClaimView { uid: "x".into(), value: "c1".into() });
        for count in [1, 34, 35, 36, 300, 2, 0] {
            let set = kernels(count);
            let actions = plan(&set, &present).unwrap();
            apply(&mut present, actions);
            assert_eq!(plan(&set, &present), Ok(Vec::new()), "{count} kernels");
            assert!(present.values().all(|claim| claim.value.len() <= 1024));
            assert!(present.contains_key("id.k8s.io"));
        }
        assert_eq!(present.len(), 1, "no nodes, no claims");
    }
}
