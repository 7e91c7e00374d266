//! `status.conditions` of our kinds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The longest message of a condition, in characters (metav1.Condition).
pub const MAX_MESSAGE: usize = 32_768;
/// The longest reason of a condition, in characters (metav1.Condition).
pub const MAX_REASON: usize = 1024;

/// The three values of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// What the type says holds.
    True,
    /// It does not hold.
    False,
    /// Nobody can tell now.
    Unknown,
}

impl State {
    /// The value as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for State {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// A condition as a plan wants it: without times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The condition's type.
    pub type_: &'static str,
    /// Its value.
    pub state: State,
    /// One word of a closed list; characters that a reason may not have are left out.
    pub reason: String,
    /// One sentence; cut at [`MAX_MESSAGE`].
    pub message: String,
}

impl Wanted {
    /// A condition from its four parts.
    pub fn new(type_: &'static str, state: State, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { type_, state, reason: reason.into(), message: message.into() }
    }
}

/// Sets the wanted conditions in the list and says whether anything of it is different now.
///
/// - `lastTransitionTime` becomes `now` only where the value flips or the condition is new.
/// - Conditions of other types stay.
/// - The list ends up sorted by type with one entry for each type; of two entries of a type the first counts.
/// - `observedGeneration` is set on every wanted condition.
/// - Reasons and messages are cut to what the API accepts.
///
/// Setting the same again changes nothing, whatever `now` is: a caller that compares whole statuses needs no answer.
pub fn set(
    conditions: &mut Vec<Condition>,
    wanted: &[Wanted],
    observed_generation: Option<i64>,
    now: Timestamp,
) -> bool {
    let before = conditions.clone();
    for wanted in wanted {
        let next = Condition {
            type_: wanted.type_.to_owned(),
            status: wanted.state.as_str().to_owned(),
            reason: legal_reason(&wanted.reason),
            message: truncate(&wanted.message, MAX_MESSAGE),
            observed_generation,
            last_transition_time: Time(now),
        };
        match conditions.iter_mut().find(|c| c.type_ == wanted.type_) {
            Some(old) => {
                let since = if old.status == next.status {
                    old.last_transition_time.clone()
                } else {
                    next.last_transition_time.clone()
                };
                *old = Condition { last_transition_time: since, ..next };
            }
            None => conditions.push(next),
        }
    }
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    conditions.dedup_by(|later, earlier| later.type_ == earlier.type_);
    *conditions != before
}

/// The condition of that type, if it is there.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// At most `max` characters of the text; a cut one ends with `…`.
pub fn truncate(text: &str, max: usize) -> String {
    if text.chars().nth(max).is_none() {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(max.saturating_sub(1)).collect();
    if max > 0 {
        cut.push('…');
    }
    cut
}

/// The API wants a letter first, then letters, digits, `_`, `,`, `:`, and neither `,` nor `:` last.
fn legal_reason(reason: &str) -> String {
    let kept: String = reason
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ',' | ':'))
        .skip_while(|c| !c.is_ascii_alphabetic())
        .take(MAX_REASON)
        .collect();
    match kept.trim_end_matches([',', ':']) {
        "" => "Unknown".to_owned(),
        legal => legal.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn condition(type_: &str, status: &str, reason: &str, generation: i64, second: i64) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: "m".to_owned(),
            observed_generation: Some(generation),
            last_transition_time: Time(at(second)),
        }
    }

    fn wanted(type_: &'static str, state: State, reason: &str) -> Wanted {
        Wanted::new(type_, state, reason, "m")
    }

    #[test]
    fn the_time_moves_only_when_the_value_flips() {
        let mut list = vec![];
        assert!(set(&mut list, &[wanted("Ready", State::False, "A")], Some(1), at(10)));
        assert_eq!(list, [condition("Ready", "False", "A", 1, 10)]);
        // Same again, later: nothing.
        assert!(!set(&mut list, &[wanted("Ready", State::False, "A")], Some(1), at(20)));
        assert_eq!(list, [condition("Ready", "False", "A", 1, 10)]);
        // Another reason or generation: a change, but not of the time.
        assert!(set(&mut list, &[wanted("Ready", State::False, "B")], Some(2), at(30)));
        assert_eq!(list, [condition("Ready", "False", "B", 2, 10)]);
        // A flip.
        assert!(set(&mut list, &[wanted("Ready", State::Unknown, "B")], Some(2), at(40)));
        assert_eq!(list, [condition("Ready", "Unknown", "B", 2, 40)]);
    }

    #[test]
    fn conditions_of_others_stay_and_the_list_is_sorted_without_doubles() {
        let mut list = vec![
            condition("Zebra", "True", "Z", 1, 1),
            condition("Ready", "True", "First", 1, 2),
            condition("Ready", "False", "Second", 1, 3),
        ];
        assert!(set(&mut list, &[wanted("Applied", State::from(true), "A")], Some(3), at(9)));
        assert_eq!(
            list,
            [
                condition("Applied", "True", "A", 3, 9),
                condition("Ready", "True", "First", 1, 2),
                condition("Zebra", "True", "Z", 1, 1),
            ]
        );
    }

    #[test]
    fn reasons_and_messages_are_cut_to_what_the_api_accepts() {
        let table = [
            ("NotFound", "NotFound"),
            ("not found!", "notfound"),
            ("4xx", "xx"),
            ("A:", "A"),
            ("", "Unknown"),
            ("::", "Unknown"),
        ];
        for (given, expected) in table {
            assert_eq!(legal_reason(given), expected, "{given}");
        }
        assert_eq!(legal_reason(&"r".repeat(2000)).len(), MAX_REASON);
        let mut list = vec![];
        let long = Wanted::new("Ready", State::True, "R", "ü".repeat(MAX_MESSAGE + 5));
        assert!(set(&mut list, &[long], None, at(0)));
        assert_eq!(list[0].message.chars().count(), MAX_MESSAGE);
        assert!(list[0].message.ends_with("ü…"));
        assert_eq!(truncate("abc", 3), "abc");
        assert_eq!(truncate("abcd", 3), "ab…");
        assert_eq!(truncate("abcd", 0), "");
    }
}
