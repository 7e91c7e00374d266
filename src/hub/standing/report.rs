//! How a cluster stands by what is known of its work: what was applied, what was reported, and what is missing.

use crate::api::names::{ClusterReason, ModuleReason};
use crate::core::conditions::State;
use crate::hub::intern;
use crate::hub::view::{Applied, Feedback, Kernels, Nodes, Said, Work};

use super::cluster::{Coverage, Phase, Standing};
use super::gaps::Gaps;

impl Standing {
    /// The cluster whose work is as it should be, or stays as it is.
    ///
    /// `silent`: its agent is not heard of, so whatever it said last may have changed since.
    pub fn of_work(work: Option<&Work>, kernels: &Kernels, gaps: &Gaps, silent: bool) -> Self {
        let reported = work.map_or_else(Self::without_work, Self::reported);
        let coverage = if silent { Coverage::Unknown } else { coverage(work, kernels, gaps) };
        let standing = Self { held_back: gaps.waiting(), coverage, ..reported };
        // From the strongest reason to the weakest: silence, since whatever else is known may have changed; what
        // failed; what is not known; what is waited for.
        if silent && work.is_some() {
            return standing.because(Phase::Unknown, ClusterReason::Unavailable, "the cluster's agent is not heard of");
        }
        if standing.phase == Phase::Degraded {
            return standing;
        }
        match kernels {
            Kernels::Absent => {
                return standing.because(Phase::Unknown, ClusterReason::NoClaims, "the cluster tells no kernels");
            }
            Kernels::Invalid(why) => return standing.because(Phase::Unknown, ClusterReason::ClaimsInvalid, why),
            Kernels::Incomplete { missing, .. } => {
                return standing.because(Phase::Unknown, ClusterReason::ClaimsInvalid, missing);
            }
            Kernels::Complete(_) => {}
        }
        // Which nodes the Module selects only the cluster knows: it may have no use for the image, or for the mapping.
        let is_missed = standing.coverage != Coverage::Covered;
        match (gaps.without_image().filter(|_| is_missed), gaps.without_mapping()) {
            (Some(message), _) => standing.because(Phase::Waiting, ClusterReason::ImagesNotReady, &message),
            (None, Some(message)) if work.is_none() => {
                standing.because(Phase::Waiting, ClusterReason::NoMatchingKernel, &message)
            }
            _ => standing,
        }
    }

    /// A cluster that is about to get a new work: whatever it said was about another one.
    pub fn of_sent(work: Option<&Work>, kernels: &Kernels, gaps: &Gaps) -> Self {
        let standing = Self::of_work(work, kernels, gaps, false);
        let before =
            Self { applied: false, nodes: Nodes::default(), coverage: coverage(None, kernels, gaps), ..standing };
        match (before.reason, gaps.without_image()) {
            // What is missing is told although the rest is sent.
            (ClusterReason::ClaimsInvalid, _) => before,
            (_, Some(message)) => before.because(Phase::Waiting, ClusterReason::ImagesNotReady, &message),
            _ => before.because(Phase::Waiting, ClusterReason::WaitingForApply, "the cluster has not applied it yet"),
        }
    }

    fn without_work() -> Self {
        Self::new(Phase::Waiting, ClusterReason::WaitingForApply, "no work was made yet")
    }

    fn reported(work: &Work) -> Self {
        match &work.applied {
            Applied::NotYet => {
                Self::new(Phase::Waiting, ClusterReason::WaitingForApply, "the cluster has not applied it yet")
            }
            Applied::Failed(why) => Self::new(Phase::Degraded, ClusterReason::NotApplied, why),
            Applied::Forbidden(why) => Self::new(Phase::Degraded, ClusterReason::AgentForbidden, why),
            Applied::Yes => {
                let standing = match &work.feedback {
                    Feedback::None => {
                        Self::new(Phase::Unknown, ClusterReason::WaitingForStatus, "the cluster has not reported yet")
                    }
                    Feedback::Stale => {
                        Self::new(Phase::Unknown, ClusterReason::StaleStatus, "the cluster reports on an older version")
                    }
                    Feedback::CountersOnly(nodes) => Self::of_counters(*nodes),
                    Feedback::Current(report) => Self { nodes: report.nodes, ..Self::of_ready(report.ready.as_ref()) },
                };
                Self { applied: true, ..standing }
            }
        }
    }

    /// A cluster in which KMM runs: its numbers may lag behind what it was sent, so they get a reason of their own.
    fn of_counters(nodes: Nodes) -> Self {
        let Nodes { desired, available, .. } = nodes;
        let phase = if available >= desired { Phase::Ready } else { Phase::Waiting };
        let message =
            format!("{available} of {desired} nodes have the module; the cluster does not tell of which version");
        Self { nodes, ..Self::new(phase, ClusterReason::CountersOnly, &message) }
    }

    fn of_ready(ready: Option<&Said>) -> Self {
        let Some(Said { state, reason, why }) = ready else {
            return Self::new(Phase::Unknown, ClusterReason::WaitingForStatus, "");
        };
        match (state, ModuleReason::from_name(reason)) {
            (_, Some(ModuleReason::NoMatchingNodes)) => Self::new(Phase::Ready, ClusterReason::NoMatchingNodes, ""),
            (State::True, _) => Self::new(Phase::Ready, ClusterReason::Ready, ""),
            (
                _,
                Some(
                    ModuleReason::NodesFailing
                    | ModuleReason::InvalidSpec
                    | ModuleReason::Unreadable
                    | ModuleReason::UnloadBlocked,
                ),
            ) => Self::new(Phase::Degraded, ClusterReason::NodesNotReady, why),
            (State::False, reason) if reason != Some(ModuleReason::NodesSilent) => {
                Self::new(Phase::Waiting, ClusterReason::NodesNotReady, why)
            }
            _ => Self::new(Phase::Unknown, ClusterReason::NodesNotReady, why),
        }
    }
}

/// Whether every selected node gets the module. The cluster knows; of one that does not tell, what is missing on the Hub
/// decides.
fn coverage(work: Option<&Work>, kernels: &Kernels, gaps: &Gaps) -> Coverage {
    let feedback = work.filter(|work| work.applied == Applied::Yes).map(|work| &work.feedback);
    let said = match feedback {
        Some(Feedback::Current(report)) => report.covered.as_ref(),
        _ => None,
    };
    match said.map(|said| said.state) {
        Some(State::True) => return Coverage::Covered,
        Some(State::Unknown) => return Coverage::Unknown,
        Some(State::False) | None => {}
    }
    let not_covered = |reason, message: &str| Coverage::NotCovered { reason, message: intern::message(message) };
    if let Some(message) = gaps.without_image() {
        return not_covered(ClusterReason::ImagesNotReady, &message);
    }
    if let Some(Said { reason, why, .. }) = said {
        let reason = match ClusterReason::from_name(reason) {
            Some(known @ (ClusterReason::NoMatchingKernel | ClusterReason::SomeKernelsUnmapped)) => known,
            _ => ClusterReason::NodesNotCovered,
        };
        return not_covered(reason, why);
    }
    if let Some(message) = gaps.without_mapping() {
        let all = gaps.unmapped.len() == kernels.known().len();
        let reason = if all { ClusterReason::NoMatchingKernel } else { ClusterReason::SomeKernelsUnmapped };
        return not_covered(reason, &message);
    }
    match (feedback, kernels) {
        (Some(Feedback::Current(_) | Feedback::CountersOnly(_)), Kernels::Complete(_)) => Coverage::Covered,
        _ => Coverage::Unknown,
    }
}
