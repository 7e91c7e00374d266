//! Pauses between tries.

use std::time::Duration;

use crate::worker::facts::Trouble;

/// First pause after a failure of the kernel or of a registry.
pub const FIRST: Duration = Duration::from_secs(5);
/// The longest one.
pub const LONGEST: Duration = Duration::from_mins(5);

/// First and longest pause before an image is fetched again of which something else came than its digest names: whole
/// layers are moved for nothing.
const LATER: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(1));

/// When a preparation that failed may end otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Within seconds or minutes.
    Soon,
    /// Once somebody has mended what sends the wrong bytes.
    Later,
    /// When something else is asked for, in another way or by another worker: until then it always ends so.
    Never,
}

impl Again {
    /// When it is tried again after so many failures before this one.
    pub fn at(self, now: Duration, failures: u32) -> Duration {
        match self {
            Self::Soon => now.saturating_add(pause(FIRST, LONGEST, failures)),
            Self::Later => now.saturating_add(pause(LATER.0, LATER.1, failures)),
            Self::Never => Duration::MAX,
        }
    }
}

/// Why the files of an entry are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unready {
    /// Why.
    pub trouble: Trouble,
    /// When it is tried again.
    pub again: Again,
}

impl From<Trouble> for Unready {
    fn from(trouble: Trouble) -> Self {
        Self { trouble, again: Again::Soon }
    }
}

/// The pause after so many failures before this one: it doubles with each, up to the longest.
pub fn pause(first: Duration, longest: Duration, failures: u32) -> Duration {
    first.saturating_mul(2u32.saturating_pow(failures)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_proved_is_never_tried_again_and_wrong_bytes_are_much_later() {
        let minutes = |again: Again, failures| again.at(Duration::ZERO, failures).as_secs_f64() / 60.0;
        for (failures, soon, later) in [(0, 5.0 / 60.0, 1.0), (1, 10.0 / 60.0, 2.0), (6, 5.0, 60.0), (100, 5.0, 60.0)] {
            assert!((minutes(Again::Soon, failures) - soon).abs() < 0.001, "{failures}");
            assert!((minutes(Again::Later, failures) - later).abs() < 0.001, "{failures}");
            assert_eq!(Again::Never.at(Duration::from_secs(1), failures), Duration::MAX);
        }
    }
}
