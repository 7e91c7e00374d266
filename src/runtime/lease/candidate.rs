//! Who may take a lease, and what is written into it. Pure: the time comes from outside.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

/// How long a holder is believed to lead after the last sign of it.
pub(super) const VALID: Duration = Duration::from_secs(15);
/// How long after its last renewal a holder stops. What is missing to [`VALID`] is there for what was begun before and for clocks
/// that do not run at one speed.
pub(super) const STOP: Duration = Duration::from_secs(10);

/// One who waits for a lease. It believes no other clock than its own: a holder is gone if its lease has not changed for as long
/// as it is valid, whatever times are written in it.
#[derive(Debug)]
pub(super) struct Candidate {
    identity: String,
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    pub(super) fn new(identity: &str) -> Self {
        Self { identity: identity.to_owned(), seen: None }
    }

    /// Whether the lease may be taken, as it was read just now.
    pub(super) fn may_take(&mut self, lease: &LeaseSpec, now: Instant) -> bool {
        let holder = lease.holder_identity.as_deref().unwrap_or_default();
        // A holder of this name is an earlier process of this pod: of one that still runs there is none.
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let told =
            lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
        match &self.seen {
            Some((seen, since)) if seen == lease => now.duration_since(*since) >= told.unwrap_or_default().max(VALID),
            _ => {
                self.seen = Some((lease.clone(), now));
                false
            }
        }
    }
}

/// The lease as it is held by `identity` from `now` on, or still.
pub(super) fn held(before: &LeaseSpec, identity: &str, now: Timestamp) -> LeaseSpec {
    let goes_on = before.holder_identity.as_deref() == Some(identity);
    let transitions = before.lease_transitions.unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(VALID.as_secs()).ok(),
        acquire_time: if goes_on { before.acquire_time.clone() } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if goes_on { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, renewed: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            ..held(&LeaseSpec::default(), holder, renewed.parse().unwrap())
        }
    }

    #[test]
    fn a_lease_is_taken_only_from_nobody_from_oneself_or_after_it_has_not_changed_for_long() {
        let (old, new) = (lease("b", "2020-01-01T00:00:00Z"), lease("b", "2020-01-01T00:00:10Z"));
        let longer = LeaseSpec { lease_duration_seconds: Some(60), ..old.clone() };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let never = [(0, &old, false), (14, &old, false), (15, &new, false), (29, &new, false), (30, &new, true)];
        let mut candidate = Candidate::new("a");
        for (seconds, seen, may) in never {
            assert_eq!(candidate.may_take(seen, at(seconds)), may, "{seconds}");
        }
        let mut candidate = Candidate::new("a");
        for (seconds, may) in [(0, false), (59, false), (60, true)] {
            assert_eq!(candidate.may_take(&longer, at(seconds)), may, "{seconds}");
        }
        for free in [LeaseSpec::default(), lease("", "2020-01-01T00:00:00Z"), lease("a", "2020-01-01T00:00:00Z")] {
            assert!(Candidate::new("a").may_take(&free, start));
        }
    }

    #[test]
    fn a_renewal_keeps_since_when_it_is_held_and_a_new_holder_counts_as_a_transition() {
        let first = lease("a", "2020-01-01T00:00:00Z");
        let renewed = held(&first, "a", "2020-01-01T00:00:10Z".parse().unwrap());
        assert_eq!((renewed.acquire_time, renewed.lease_transitions), (first.acquire_time.clone(), Some(1)));
        let next = held(&first, "b", "2020-01-01T00:00:20Z".parse().unwrap());
        assert_eq!((next.acquire_time, next.lease_transitions), (next.renew_time, Some(2)));
    }
}
