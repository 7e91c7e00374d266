//! The kernels that nodes run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use crate::core::kernel::{self, KernelVersion};
use crate::spoke::view::NodeView;

/// The kernels of all nodes, each with the number of nodes that run it. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kernels(Arc<Mutex<BTreeMap<KernelVersion, usize>>>);

impl Kernels {
    /// Takes in that a node changed, `None` standing for no node. Returns whether the set of kernels is another one now.
    pub(crate) fn change(&self, old: Option<&NodeView>, new: Option<&NodeView>) -> bool {
        let (old, new) = (old.map(|node| &node.kernel), new.map(|node| &node.kernel));
        if old == new {
            return false;
        }
        if let Some(Err(error)) = new.filter(|told| **told != Err(kernel::Error::Empty)) {
            warn!(%error, "a node tells a kernel that is none; it is left out of the claims");
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        if let Some(Ok(kernel)) = new {
            let nodes = all.entry(kernel.clone()).or_default();
            *nodes += 1;
            changed |= *nodes == 1;
        }
        if let Some(Ok(kernel)) = old
            && let Some(nodes) = all.get_mut(kernel)
        {
            *nodes = nodes.saturating_sub(1);
            if *nodes == 0 {
                all.remove(kernel);
                changed = true;
            }
        }
        changed
    }

    /// The set; what cannot be a kernel's release is left out.
    pub(crate) fn set(&self) -> BTreeSet<KernelVersion> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spoke::testing::a_node;

    #[test]
    fn only_a_change_of_the_set_counts() {
        let kernels = Kernels::default();
        let node = |kernel: &str| NodeView { kernel: KernelVersion::parse(kernel), ..a_node() };
        let (a, b) = (node("6.1.0"), node("6.1.1+"));
        assert!(kernels.change(None, Some(&a)));
        assert!(!kernels.change(None, Some(&a)));
        assert!(!kernels.change(Some(&a), Some(&a)));
        assert!(kernels.change(Some(&a), Some(&b)));
        assert!(kernels.change(Some(&a), Some(&b)));
        assert!(!kernels.change(Some(&b), None));
        assert!(kernels.change(Some(&b), None));
        for none in ["", "6.1 0"] {
            assert!(!kernels.change(None, Some(&node(none))));
            assert!(kernels.change(Some(&node(none)), Some(&a)));
            assert!(kernels.change(Some(&a), Some(&node(none))));
        }
        assert!(kernels.set().is_empty());
    }
}
