//! Looks for users of modules that are to go and cannot: at once, again when the reference count changes, and otherwise
//! less and less often.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::debug;

use crate::core::kmod::proc_modules::Listed;
use crate::worker::kernel::Kernel;
use crate::worker::plan::pause;

/// The users of one module, in words, at one reference count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Looked {
    name: String,
    count: Option<u32>,
    users: String,
}

#[derive(Debug)]
struct Known {
    looked: Looked,
    /// Not before.
    again: Duration,
    pause: Duration,
}

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct UsersFound {
    known: BTreeMap<String, Known>,
    looking: bool,
}

impl UsersFound {
    /// Users by module, in words.
    pub(super) fn told(&self) -> BTreeMap<String, String> {
        self.known.iter().map(|(name, known)| (name.clone(), known.looked.users.clone())).collect()
    }

    /// A look is on its way.
    pub(super) fn looking(&self) -> bool {
        self.looking
    }

    /// Those of `names` that are due, and their counts. Others are forgotten.
    fn due(
        &mut self,
        names: BTreeMap<String, Vec<String>>,
        listed: &BTreeMap<String, Listed>,
        now: Duration,
    ) -> Vec<(String, Option<u32>, Vec<String>)> {
        self.known.retain(|name, _| names.contains_key(name));
        if self.looking {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (name, filesystems) in names {
            let count = listed.get(&name).and_then(|listed| listed.refcnt);
            let pause = match self.known.get(&name) {
                Some(known) if known.looked.count == count && now < known.again => continue,
                Some(known) if known.looked.count == count => known.pause.saturating_mul(2).min(pause::LONGEST),
                Some(_) | None => pause::FIRST,
            };
            let users = self.known.get(&name).map(|known| known.looked.users.clone()).unwrap_or_default();
            let looked = Looked { name: name.clone(), count, users };
            self.known.insert(name.clone(), Known { looked, again: now + pause, pause });
            due.push((name, count, filesystems));
        }
        self.looking = !due.is_empty();
        due
    }

    /// Starts to look for the users of these modules, where it is time; what is found comes later.
    pub(super) fn look(
        &mut self,
        kernel: &Arc<dyn Kernel>,
        names: BTreeMap<String, Vec<String>>,
        listed: &BTreeMap<String, Listed>,
        now: Duration,
    ) -> Option<oneshot::Receiver<Vec<Looked>>> {
        let due = self.due(names, listed, now);
        if due.is_empty() {
            return None;
        }
        let kernel = Arc::clone(kernel);
        let (done, ended) = oneshot::channel();
        // Not on the runtime's threads for blocking work: the process could not end before they do.
        let begun = std::thread::Builder::new().name("users".to_owned()).spawn(move || {
            let looked = due.into_iter().map(|(name, count, filesystems)| {
                let users = kernel.users(&name, &filesystems).describe();
                Looked { name, count, users }
            });
            let _ = done.send(looked.collect());
        });
        if let Err(error) = begun {
            debug!("no thread to look for users: {error}");
        }
        Some(ended)
    }

    /// A look ended.
    pub(super) fn found(&mut self, looked: Vec<Looked>) {
        self.looking = false;
        for looked in looked {
            if let Some(known) = self.known.get_mut(&looked.name) {
                known.looked = looked;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::kmod::proc_modules::InitState;

    #[test]
    fn a_look_is_repeated_when_the_count_changes_and_otherwise_ever_more_seldom() {
        let mut users = UsersFound::default();
        let names = || BTreeMap::from([("m".to_owned(), vec!["fs".to_owned()])]);
        let mut at = |seconds, refcnt| {
            let listed = Listed { refcnt: Some(refcnt), holders: vec![], permanent: false, state: InitState::Live };
            let listed = BTreeMap::from([("m".to_owned(), listed)]);
            let due = users.due(names(), &listed, Duration::from_secs(seconds));
            let looked = due.iter().map(|(name, count, _)| Looked {
                name: name.clone(),
                count: *count,
                users: format!("{refcnt} users"),
            });
            users.found(looked.collect());
            (due.len(), users.told()["m"].clone())
        };
        let one = || "1 users".to_owned();
        assert_eq!(at(0, 1), (1, one()));
        // Five minutes of looks at the kernel every two seconds: at 5, 15, 35, 75, 155 s and no more.
        let looks: usize = (1..150).map(|n| at(n * 2, 1).0).sum();
        assert_eq!(looks, 5);
        assert_eq!(at(300, 2), (1, "2 users".to_owned()), "another count");
        assert_eq!(at(302, 2).0, 0);
        assert_eq!(at(305, 2).0, 1);
        assert!(users.due(BTreeMap::new(), &BTreeMap::new(), Duration::from_secs(400)).is_empty());
        assert!(users.told().is_empty(), "what does not wait any more is forgotten");
    }
}
