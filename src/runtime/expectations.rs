//! Writes of this process that a watch has not shown yet, so that nobody plans from what was there before them.
//!
//! The answer to a write tells the version that came of it. A store remembers it until it holds that version or a later one.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::time::Instant;

use super::key::ObjectKey;

/// Longest wait for a watch to show a write. A watch that lags for longer costs writes that change nothing, or that the
/// server refuses; waiting on would let a broken watch stop its controllers.
pub const LONGEST: Duration = Duration::from_secs(5);

/// `metadata.resourceVersion`.
///
/// Those of one kind compare as unsigned integers, as API servers promise since Kubernetes 1.35 and have done before. Any
/// other text equals only itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// The usual form.
    Number(u64),
    /// Anything else; empty if the object has none.
    Text(Box<str>),
}

impl Version {
    /// That of an object.
    pub fn of(meta: &ObjectMeta) -> Self {
        let text = meta.resource_version.as_deref().unwrap_or_default();
        // What is printed must be what was read: a precondition is compared as text.
        let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        match text.parse() {
            Ok(number) if canonical => Self::Number(number),
            _ => Self::Text(text.into()),
        }
    }

    /// Whether an object of this version is what was written as `written`, or came after it.
    fn shows(&self, written: &Self) -> bool {
        match (self, written) {
            (Self::Number(now), Self::Number(then)) => now >= then,
            (now, then) => now == then,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[derive(Debug)]
enum Expected {
    /// This version or a later one.
    Version(Version),
    /// That the object is gone, or at least another than this: what the watch shows next is never older.
    AnotherThan(Version),
}

#[derive(Debug)]
struct Expectation {
    expected: Expected,
    until: Instant,
    /// Somebody was told to wait.
    asked: bool,
}

/// What a store is expected to show, by object.
#[derive(Debug, Default)]
pub(super) struct Expectations(Mutex<HashMap<ObjectKey, Expectation>>);

impl Expectations {
    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Expectation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object was written; `held` is the version in the store.
    pub(super) fn written(&self, key: &ObjectKey, written: Version, held: Option<&Version>) {
        if !held.is_some_and(|held| held.shows(&written)) {
            self.expect(key, Expected::Version(written));
        }
    }

    /// The object was deleted; `held` is the version in the store.
    pub(super) fn deleted(&self, key: &ObjectKey, held: Option<&Version>) {
        match held {
            Some(held) => self.expect(key, Expected::AnotherThan(held.clone())),
            None => drop(self.lock().remove(key)),
        }
    }

    fn expect(&self, key: &ObjectKey, expected: Expected) {
        let expectation = Expectation { expected, until: Instant::now() + LONGEST, asked: false };
        self.lock().insert(key.clone(), expectation);
    }

    /// Until when to wait for the object at most; `None` if nothing is expected of it.
    pub(super) fn until(&self, key: &ObjectKey) -> Option<Instant> {
        let mut all = self.lock();
        let expectation = all.get_mut(key)?;
        if expectation.until <= Instant::now() {
            all.remove(key);
            return None;
        }
        expectation.asked = true;
        Some(expectation.until)
    }

    /// The watch showed the object in this version, or that it is gone. Returns whether somebody waits for that.
    pub(super) fn shown(&self, key: &ObjectKey, version: Option<&Version>) -> bool {
        let mut all = self.lock();
        let Some(expectation) = all.get(key) else { return false };
        let met = match (&expectation.expected, version) {
            (_, None) => true,
            (Expected::Version(written), Some(now)) => now.shows(written),
            (Expected::AnotherThan(held), Some(now)) => now != held,
        };
        met && all.remove(key).is_some_and(|expectation| expectation.asked)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Forgets what nobody has asked about in time.
    pub(super) fn tidy(&self) {
        let now = Instant::now();
        self.lock().retain(|_, expectation| expectation.until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::of(&ObjectMeta { resource_version: Some(text.to_owned()), ..ObjectMeta::default() })
    }

    #[test]
    fn versions_compare_as_integers_and_any_other_text_by_equality() {
        for (now, written, shows) in [
            ("9", "10", false),
            ("10", "10", true),
            ("10", "9", true),
            ("18446744073709551616", "9", false),
            ("18446744073709551616", "18446744073709551616", true),
            ("a", "a", true),
            ("b", "a", false),
            ("010", "9", false),
            ("+10", "9", false),
            ("", "", true),
        ] {
            assert_eq!(version(now).shows(&version(written)), shows, "{now} {written}");
            assert_eq!(version(now).to_string(), now);
        }
    }
}
