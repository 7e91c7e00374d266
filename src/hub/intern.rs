//! Equal values kept once.
//!
//! Thousands of clusters report the same few kernels and get the same few images. A store that kept a
//! copy for each work would hold the same text a hundred thousand times.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::core::conditions;
use crate::core::kernel::KernelVersion;

/// Values that somebody still uses; those that nobody uses are dropped when the set has doubled.
struct Interner<T: ?Sized>(Mutex<Kept<T>>);

struct Kept<T: ?Sized> {
    values: HashSet<Arc<T>>,
    sweep_at: usize,
}

const FIRST_SWEEP: usize = 1024;

impl<T: ?Sized + Eq + Hash> Interner<T>
where
    Arc<T>: for<'a> From<&'a T> + Borrow<T>,
{
    fn new() -> Self {
        Self(Mutex::new(Kept { values: HashSet::new(), sweep_at: FIRST_SWEEP }))
    }

    fn get(&self, value: &T) -> Arc<T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.values.get(value) {
            return Arc::clone(known);
        }
        if kept.values.len() >= kept.sweep_at {
            kept.values.retain(|value| Arc::strong_count(value) > 1);
            kept.sweep_at = FIRST_SWEEP.max(2 * kept.values.len());
        }
        let new = Arc::from(value);
        kept.values.insert(Arc::clone(&new));
        new
    }
}

/// One kernel of a cluster and the image that it was sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sent {
    /// The kernel, without a trailing `+`.
    pub kernel: KernelVersion,
    /// The image as it stands in the work, with digest; empty where only the kernel is remembered.
    pub image: Arc<str>,
    /// [`source_id`](crate::core::pin::source_id) of the image that the digest was found for.
    pub source: Arc<str>,
}

/// The text, sharing memory with every equal one.
pub fn text(value: &str) -> Arc<str> {
    static TEXTS: LazyLock<Interner<str>> = LazyLock::new(Interner::new);
    TEXTS.get(value)
}

/// Longest message about one cluster, in characters. Agents and servers send up to 32,768, each another one, and a fleet
/// that fails sends all of them at once.
pub const MESSAGE_MAX: usize = 512;

/// At most [`MESSAGE_MAX`] characters of the text, sharing memory with every equal one.
pub fn message(value: &str) -> Arc<str> {
    text(&conditions::truncate(value, MESSAGE_MAX))
}

/// The kernel, sharing memory with every equal text.
pub fn kernel(value: &KernelVersion) -> KernelVersion {
    value.sharing(text)
}

/// The list, sharing memory with every equal one.
pub fn kernels(values: &[KernelVersion]) -> Arc<[KernelVersion]> {
    static LISTS: LazyLock<Interner<[KernelVersion]>> = LazyLock::new(Interner::new);
    LISTS.get(values)
}

/// The list, sharing memory with every equal one.
pub fn sent(values: &[Sent]) -> Arc<[Sent]> {
    static LISTS: LazyLock<Interner<[Sent]>> = LazyLock::new(Interner::new);
    LISTS.get(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_what_nobody_uses_goes() {
        let interner = Interner::<str>::new();
        let kept = interner.get("kept");
        assert!(Arc::ptr_eq(&kept, &interner.get(&String::from("kept"))));
        for n in 0..10 * FIRST_SWEEP {
            interner.get(&n.to_string());
        }
        assert!(Arc::ptr_eq(&kept, &interner.get("kept")));
        assert!(interner.0.lock().unwrap().values.len() <= FIRST_SWEEP + 1);
    }
}
