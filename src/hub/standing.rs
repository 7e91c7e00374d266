//! How one cluster stands with one ManagedClusterModule.

use std::sync::Arc;

use crate::api::names::ClusterReason;
use crate::api::names::ModuleReason;
use crate::hub::intern;
use crate::hub::view::{Applied, Feedback, Kernels, Report, Work};

/// The part of the status that one cluster contributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Into which counter it goes.
    pub phase: Phase,
    /// Why, in one word.
    pub reason: ClusterReason,
    /// Why, in one sentence; empty where the reason says it all.
    pub message: Arc<str>,
    /// The present generation of its work was applied.
    pub applied: bool,
    /// Its nodes, zero unless it reports on what it was sent.
    pub nodes: Nodes,
    /// Kernels that have a mapping and no image yet.
    pub held_back: Arc<[Arc<str>]>,
}

/// The counters that a cluster can be in; each cluster is in exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The module is loaded on every node that wants it.
    Ready,
    /// It is on its way, or waits for somebody.
    Waiting,
    /// Nothing valid is known of the cluster.
    Unknown,
    /// Something failed.
    Degraded,
}

/// Nodes of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Nodes that match the Module's selector.
    pub matching: i64,
    /// Nodes that are to have the module.
    pub desired: i64,
    /// Nodes that have it.
    pub available: i64,
}

/// Why no image is known for some kernels of a cluster, and which they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Kernels that have a mapping and no image yet, with what is known of the image.
    pub held_back: Vec<(Arc<str>, String)>,
    /// Kernels without a mapping, or for which the mapping's templates fail.
    pub unmapped: Vec<(Arc<str>, String)>,
    /// Images that were not asked for yet, or whose registry has not answered yet.
    pub unanswered: usize,
}

/// Names in a message before the rest is counted.
const NAMED: usize = 3;

impl Standing {
    /// A cluster of which only a reason is to be told.
    pub fn new(phase: Phase, reason: ClusterReason, message: &str) -> Self {
        Self {
            phase,
            reason,
            message: intern::text(message),
            applied: false,
            nodes: Nodes::default(),
            held_back: intern::texts(&[]),
        }
    }

    /// Another reason for the same cluster; what is known of its work stays.
    #[must_use]
    pub fn because(self, phase: Phase, reason: ClusterReason, message: &str) -> Self {
        Self { phase, reason, message: intern::text(message), ..self }
    }

    /// The cluster whose work is as it should be, or stays as it is.
    ///
    /// `silent`: its agent is not heard of, so whatever it said last may have changed since.
    pub fn of_work(work: Option<&Work>, kernels: &Kernels, gaps: &Gaps, silent: bool) -> Self {
        let reported = work.map_or_else(Self::without_work, Self::reported);
        let standing = Self { held_back: held_back(gaps), ..reported };
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

fn held_back(gaps: &Gaps) -> Arc<[Arc<str>]> {
    let kernels: Vec<Arc<str>> = gaps.held_back.iter().map(|(kernel, _)| Arc::clone(kernel)).collect();
    intern::texts(&kernels)
}

/// "no image yet for kernel a (why), b (why) and 2 more", `None` for no kernels.
fn name_all(what: &str, kernels: &[(Arc<str>, String)]) -> Option<String> {
    if kernels.is_empty() {
        return None;
    }
    let named: Vec<String> = kernels
        .iter()
        .take(NAMED)
        .map(|(kernel, why)| if why.is_empty() { kernel.to_string() } else { format!("{kernel} ({why})") })
        .collect();
    let more = kernels.len() - named.len();
    let tail = if more == 0 { String::new() } else { format!(" and {more} more") };
    Some(format!("{what} {}{tail}", named.join(", ")))
}
