//! Pauses between tries.

use std::time::Duration;

/// First pause after a failure of the kernel or of a registry.
pub const FIRST: Duration = Duration::from_secs(5);
/// The longest one.
pub const LONGEST: Duration = Duration::from_mins(5);

/// The pause after so many failures before this one: it doubles with each, up to the longest.
pub fn pause(first: Duration, longest: Duration, failures: u32) -> Duration {
    first.saturating_mul(2u32.saturating_pow(failures)).min(longest)
}
