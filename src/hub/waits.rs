//! Since when works wait for answers about their images.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::hub::manifest_work::Target;

/// The waits of all works. Only what waits is remembered.
#[derive(Debug, Default)]
pub struct Waits(Mutex<HashMap<Target, Wait>>);

/// A wait begins anew with each generation of the ManagedClusterModule.
#[derive(Debug)]
struct Wait {
    generation: i64,
    since: Instant,
}

impl Waits {
    fn lock(&self) -> MutexGuard<'_, HashMap<Target, Wait>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the work has been waiting with this generation; zero if it was not.
    pub fn so_far(&self, target: &Target, generation: i64) -> Duration {
        let since = self.lock().get(target).filter(|wait| wait.generation == generation).map(|wait| wait.since);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The work waits with this generation, from now on if it did not before.
    pub fn begin(&self, target: &Target, generation: i64) {
        let new = || Wait { generation, since: Instant::now() };
        let mut waits = self.lock();
        let wait = waits.entry(target.clone()).or_insert_with(new);
        if wait.generation != generation {
            *wait = new();
        }
    }

    /// The work waits for nothing.
    pub fn end(&self, target: &Target) {
        let mut waits = self.lock();
        if waits.remove(target).is_some() && waits.is_empty() {
            // A fleet that waited together leaves no room behind.
            waits.shrink_to_fit();
        }
    }

    /// No work of the ManagedClusterModule waits.
    pub fn forget(&self, module: &str) {
        self.lock().retain(|target, _| *target.module != *module);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::testing::{MODULE, target};

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_as_long_as_its_generation_and_ends_once() {
        let (waits, target) = (Waits::default(), target("c1"));
        let pass = |generation| {
            waits.begin(&target, generation);
            waits.so_far(&target, generation).as_secs()
        };
        assert_eq!(pass(1), 0);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((pass(1), waits.so_far(&target, 2), pass(2)), (3, Duration::ZERO, 0));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(pass(2), 1);
        waits.end(&target);
        assert_eq!(pass(2), 0);
        tokio::time::advance(Duration::from_secs(1)).await;
        waits.forget("another");
        assert_eq!(pass(2), 1);
        waits.forget(MODULE);
        assert!(waits.lock().is_empty());
    }
}
