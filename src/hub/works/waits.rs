//! How long works have been waiting for answers about their images, or to go.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::hub::target::Target;

/// The waits of all works. Only what waits is remembered.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<HashMap<Target, (Waited, Instant)>>);

/// The wait of one work, as it was when somebody looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waited {
    /// Generation of the ManagedClusterModule.
    pub(super) generation: i64,
    /// Images of which the registry has said nothing.
    pub(super) unanswered: usize,
    /// How long it has been waiting.
    pub(super) in_all: Duration,
    /// How long it has been waiting since the last answer.
    pub(super) still: Duration,
}

impl Waited {
    /// The wait that follows from the one before. It begins anew with another generation, and where more is to be asked.
    pub(super) fn after(before: Option<Self>, generation: i64, unanswered: usize) -> Self {
        match before.filter(|before| before.generation == generation && unanswered <= before.unanswered) {
            None => Self { generation, unanswered, ..Self::default() },
            Some(before) if unanswered < before.unanswered => Self { unanswered, still: Duration::ZERO, ..before },
            Some(before) => before,
        }
    }
}

impl Waits {
    fn lock(&self) -> MutexGuard<'_, HashMap<Target, (Waited, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the work has been waiting; `None` if it was not.
    pub(super) fn so_far(&self, target: &Target) -> Option<Waited> {
        let (waited, at) = *self.lock().get(target)?;
        let since = at.elapsed();
        Some(Waited { in_all: waited.in_all + since, still: waited.still + since, ..waited })
    }

    /// The work waits like this now, or for nothing any more.
    pub(super) fn set(&self, target: &Target, waited: Option<Waited>) {
        let mut waits = self.lock();
        match waited {
            Some(waited) => {
                waits.insert(target.clone(), (waited, Instant::now()));
            }
            None if waits.remove(target).is_some() && waits.is_empty() => {
                // A fleet that waited together leaves no room behind.
                waits.shrink_to_fit();
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::testing::target;

    #[tokio::test(start_paused = true)]
    async fn a_wait_goes_on_until_the_last_answer_and_begins_anew_with_another_wish() {
        let (waits, target) = (Waits::default(), target("c1"));
        let pass = |generation, unanswered| {
            let waited = Waited::after(waits.so_far(&target), generation, unanswered);
            waits.set(&target, Some(waited));
            (waited.in_all.as_secs(), waited.still.as_secs())
        };
        let second = || tokio::time::advance(Duration::from_secs(1));
        assert_eq!(pass(1, 3), (0, 0));
        second().await;
        assert_eq!(pass(1, 3), (1, 1), "a look changes nothing");
        second().await;
        assert_eq!(pass(1, 2), (2, 0), "an answer came");
        second().await;
        assert_eq!(pass(1, 2), (3, 1));
        assert_eq!(pass(1, 3), (0, 0), "a kernel more");
        second().await;
        assert_eq!(pass(2, 3), (0, 0), "another generation");
        waits.set(&target, None);
        assert_eq!(waits.so_far(&target), None);
        assert_eq!(pass(2, 3), (0, 0));
    }
}
