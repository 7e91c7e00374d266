//! How a cluster stands by what is known of its work: what was applied, what was reported, and what is missing.

use crate::api::names::{ClusterReason, ModuleReason};
use crate::hub::view::{Applied, Feedback, Kernels, Report, Work};

use super::cluster::{Nodes, Phase, Standing};
use super::gaps::{Gaps, name_all};

impl Standing {
    /// The cluster whose work is as it should be, or stays as it is.
    ///
    /// `silent`: its agent is not heard of, so whatever it said last may have changed since.
    pub fn of_work(work: Option<&Work>, kernels: &Kernels, gaps: &Gaps, silent: bool) -> Self {
        let reported = work.map_or_else(Self::without_work, Self::reported);
        let standing = Self { held_back: gaps.waiting(), ..reported };
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
        if let Some(message) = name_all("no image yet for kernel", &gaps.held_back) {
            return standing.because(Phase::Waiting, ClusterReason::ImagesNotReady, &message);
        }
        match name_all("no usable mapping for kernel", &gaps.unmapped) {
            Some(message) if work.is_none() => {
                standing.because(Phase::Waiting, ClusterReason::NoMatchingKernel, &message)
            }
            // Kernels of nodes that the Module does not select need no mapping: the cluster knows.
            Some(message) if standing.phase != Phase::Ready && standing.reason == ClusterReason::NodesNotReady => {
                let message = format!("{message}; {}", standing.message);
                standing.because(Phase::Waiting, ClusterReason::SomeKernelsUnmapped, &message)
            }
            _ => standing,
        }
    }

    /// A cluster that is about to get a new work: whatever it said was about another one.
    pub fn of_sent(work: Option<&Work>, kernels: &Kernels, gaps: &Gaps) -> Self {
        let standing = Self::of_work(work, kernels, gaps, false);
        let before = Self { applied: false, nodes: Nodes::default(), ..standing };
        match before.reason {
            // What is missing is told although the rest is sent.
            ClusterReason::ImagesNotReady | ClusterReason::ClaimsInvalid => before,
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
            Applied::Yes => {
                let standing = match &work.feedback {
                    Feedback::None => {
                        Self::new(Phase::Unknown, ClusterReason::WaitingForStatus, "the cluster has not reported yet")
                    }
                    Feedback::Stale => {
                        Self::new(Phase::Unknown, ClusterReason::StaleStatus, "the cluster reports on an older version")
                    }
                    Feedback::Current(report) => Self::of_report(report),
                };
                Self { applied: true, ..standing }
            }
        }
    }

    fn of_report(report: &Report) -> Self {
        let reason = ModuleReason::from_name(&report.reason);
        let (phase, cluster_reason) = match (&*report.ready, reason) {
            (_, Some(ModuleReason::NoMatchingNodes)) => (Phase::Ready, ClusterReason::NoMatchingNodes),
            ("True", _) => (Phase::Ready, ClusterReason::Ready),
            (
                _,
                Some(
                    ModuleReason::NodesFailing
                    | ModuleReason::InvalidSpec
                    | ModuleReason::Unreadable
                    | ModuleReason::UnloadBlocked,
                ),
            ) => (Phase::Degraded, ClusterReason::NodesNotReady),
            ("False", _) if reason != Some(ModuleReason::NodesSilent) => (Phase::Waiting, ClusterReason::NodesNotReady),
            ("", _) => (Phase::Unknown, ClusterReason::WaitingForStatus),
            _ => (Phase::Unknown, ClusterReason::NodesNotReady),
        };
        let message = match phase {
            Phase::Ready => String::new(),
            Phase::Waiting | Phase::Unknown | Phase::Degraded => [&*report.reason, &*report.message]
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect::<Vec<_>>()
                .join(": "),
        };
        let nodes = Nodes { matching: report.matching, desired: report.desired, available: report.available };
        Self { nodes, ..Self::new(phase, cluster_reason, &message) }
    }
}
