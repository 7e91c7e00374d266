//! What becomes of the worker's DaemonSet.

use crate::spoke::view::DaemonSetView;

/// What happens to the DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It is as it should be.
    Nothing,
    /// It is written.
    Apply,
    /// It is removed.
    Delete {
        /// `metadata.uid`.
        uid: String,
    },
}

/// The plan. `settled` is the generation that the server gave to what was written last: another one means that
/// somebody changed it. It is unknown after a start, when the hash alone counts.
pub(super) fn plan(wanted: bool, hash: &str, present: Option<&DaemonSetView>, settled: Option<i64>) -> Action {
    match present {
        None if wanted => Action::Apply,
        None => Action::Nothing,
        Some(set) if !wanted => Action::Delete { uid: set.uid.clone() },
        Some(set) if set.rendered_hash.as_deref() != Some(hash) => Action::Apply,
        Some(set) if settled.is_some_and(|settled| settled < set.generation) => Action::Apply,
        Some(_) => Action::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_only_when_something_is_different() {
        let set = |hash: &str, generation| DaemonSetView {
            uid: "u".into(),
            generation,
            rendered_hash: Some(hash.into()).filter(|hash: &String| !hash.is_empty()),
            publishes: false,
        };
        let table = [
            ("no node needs it", false, None, None, Action::Nothing),
            ("first node", true, None, None, Action::Apply),
            ("as it is, after a start", true, Some(set("h", 7)), None, Action::Nothing),
            ("as it was written", true, Some(set("h", 7)), Some(7), Action::Nothing),
            ("the watch is behind", true, Some(set("h", 7)), Some(8), Action::Nothing),
            ("changed by somebody", true, Some(set("h", 8)), Some(7), Action::Apply),
            ("another version", true, Some(set("old", 7)), None, Action::Apply),
            ("not ours", true, Some(set("", 1)), None, Action::Apply),
            ("last node gone", false, Some(set("h", 7)), Some(7), Action::Delete { uid: "u".into() }),
        ];
        for (what, wanted, present, settled, action) in table {
            assert_eq!(plan(wanted, "h", present.as_ref(), settled), action, "{what}");
        }
    }
}
