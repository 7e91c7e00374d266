//! Totals → status and conditions. Pure.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::observe::{Missing, Observed};
use crate::api::names::{CONFIRM_REMOVAL_ANNOTATION, ClusterReason, ConditionType};
use crate::api::{FailingCluster, ManagedClusterModuleStatus, NodeTotals};
use crate::core::conditions::{self, State, Wanted};
use crate::hub::standing::{Coverage, Held, Standing, Totals};

/// The types of conditions that are written here.
pub(super) const TYPES: [ConditionType; 5] = [
    ConditionType::Ready,
    ConditionType::Covered,
    ConditionType::ImagesResolved,
    ConditionType::Applied,
    ConditionType::RemovalConfirmed,
];
/// Why works are not applied, from what somebody must act upon to what passes.
const NOT_APPLIED: [ClusterReason; 4] =
    [ClusterReason::AgentForbidden, ClusterReason::NotApplied, ClusterReason::OwnedByOther, ClusterReason::WorkRefused];

/// The status as it is to be, `None` if it is so already.
pub(super) fn plan(
    old: &ManagedClusterModuleStatus,
    observed: &Observed,
    now: Timestamp,
) -> Option<ManagedClusterModuleStatus> {
    let Observed { module, totals, held, missing, refused } = observed;
    let mut ours = old.clone();
    ours.conditions.retain(|condition| TYPES.iter().any(|type_| type_.as_str() == condition.type_));
    let mut new = ours.clone();
    let wanted = match (&module.fault, &module.spec) {
        // Never read: nobody knows which clusters are meant, what was counted before stays.
        (Some(fault), None) => vec![ready(State::False, fault.reason, &fault.message)],
        (fault, _) => {
            count(&mut new, totals, now);
            new.number_awaiting_removal = Some(number(held.as_ref().map_or(0, |held| held.leaving)));
            let asked = held.as_ref().map(|held| question(&module.name, held, totals));
            let ready = match (fault, &asked) {
                (Some(fault), _) => ready(State::False, fault.reason, &fault.message),
                (None, Some(asked)) => ready(State::False, ClusterReason::AwaitingConfirmation, asked),
                (None, None) => ready_of(totals),
            };
            let images = images_resolved(missing, totals, refused.as_deref());
            vec![ready, covered(totals), images, applied(totals), removal_confirmed(asked)]
        }
    };
    // Whatever the store holds by now: the status speaks of what was counted.
    new.observed_generation = Some(totals.generation);
    let changed = conditions::set(&mut new.conditions, &wanted, Some(totals.generation), now);
    (changed || new != ours).then_some(new)
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn count(status: &mut ManagedClusterModuleStatus, totals: &Totals, now: Timestamp) {
    status.number_desired = Some(number(totals.desired));
    status.number_applied = Some(number(totals.applied));
    status.number_degraded = Some(number(totals.degraded));
    status.number_ready = Some(number(totals.ready));
    status.number_waiting = Some(number(totals.waiting));
    status.number_unknown = Some(number(totals.unknown));
    status.nodes = Some(NodeTotals {
        matching: Some(totals.nodes.matching),
        desired: Some(totals.nodes.desired),
        available: Some(totals.nodes.available),
    });
    let before = std::mem::take(&mut status.clusters);
    let failing = |(name, standing): &(Arc<str>, Standing)| {
        let reason = standing.reason.as_str();
        let named = before.iter().find(|before| before.name == **name && before.reason == reason);
        FailingCluster {
            name: name.to_string(),
            reason: reason.to_owned(),
            message: Some(standing.message.to_string()).filter(|message| !message.is_empty()),
            since: named.and_then(|before| before.since.clone()).or(Some(Time(now))),
        }
    };
    status.clusters = totals.first.iter().map(failing).collect();
}

fn ready(state: State, reason: ClusterReason, message: &str) -> Wanted {
    Wanted::new(ConditionType::Ready.as_str(), state, reason.as_str(), message)
}

fn ready_of(totals: &Totals) -> Wanted {
    let Totals { desired, ready: count, .. } = totals;
    if *desired == 0 {
        return ready(State::False, ClusterReason::NoMatchingClusters, "no cluster matches the selector");
    }
    match totals.first.first() {
        None => match totals.reasons.get(&ClusterReason::CountersOnly) {
            None => ready(State::True, ClusterReason::Ready, &format!("all {desired} clusters are ready")),
            Some((counted, name, _)) => {
                let message = format!(
                    "all {desired} clusters are ready, {counted} of them by numbers alone, which do not tell of which \
                     version; the first is {name}"
                );
                ready(State::True, ClusterReason::CountersOnly, &message)
            }
        },
        Some((name, standing)) => {
            let message = format!("{count} of {desired} clusters are ready; {}", named(name, standing));
            ready(State::False, ClusterReason::ClustersNotReady, &message)
        }
    }
}

fn covered(totals: &Totals) -> Wanted {
    let wanted = |state, reason: ClusterReason, message: String| {
        Wanted::new(ConditionType::Covered.as_str(), state, reason.as_str(), message)
    };
    let Totals { desired, covered, not_covered, .. } = totals;
    match &totals.first_not_covered {
        _ if *desired == 0 => {
            wanted(State::False, ClusterReason::NoMatchingClusters, "no cluster matches the selector".to_owned())
        }
        Some((name, Standing { coverage: Coverage::NotCovered { reason, message }, .. })) => {
            let message = format!(
                "{not_covered} of {desired} clusters have selected nodes that do not get the module; {name} ({reason}: \
                 {message})"
            );
            wanted(State::False, ClusterReason::ClustersNotCovered, message)
        }
        _ if covered == desired => {
            let message = format!("every selected node of all {desired} clusters gets the module");
            wanted(State::True, ClusterReason::Covered, message)
        }
        _ => {
            let unknown = desired.saturating_sub(*covered);
            let message = format!("{unknown} of {desired} clusters have not told it of their nodes");
            wanted(State::Unknown, ClusterReason::CoverageUnknown, message)
        }
    }
}

/// What waits for a confirmation, and what to do about it.
fn question(module: &str, held: &Held, totals: &Totals) -> String {
    let Held { having, leaving, first } = held;
    let more = leaving - first.len();
    let tail = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!(
        "{leaving} of {having} clusters that have the module are not selected any more: {}{tail}; they keep it, and no \
         other cluster gets it, until you confirm that they lose it: kubectl annotate managedclustermodule {module} \
         --overwrite {CONFIRM_REMOVAL_ANNOTATION}={}; or put spec.selector or the labels of the clusters right",
        first.join(", "),
        totals.generation
    )
}

fn removal_confirmed(asked: Option<String>) -> Wanted {
    let type_ = ConditionType::RemovalConfirmed.as_str();
    match asked {
        Some(asked) => Wanted::new(type_, State::False, ClusterReason::AwaitingConfirmation.as_str(), asked),
        None => Wanted::new(type_, State::True, ClusterReason::Settled.as_str(), "nothing waits for a confirmation"),
    }
}

/// "c1 (`NotApplied`: the agent's words)"
fn named(name: &str, standing: &Standing) -> String {
    if standing.message.is_empty() {
        format!("{name} ({})", standing.reason)
    } else {
        format!("{name} ({}: {})", standing.reason, standing.message)
    }
}

fn images_resolved(missing: &[Missing], totals: &Totals, refused: Option<&str>) -> Wanted {
    let type_ = ConditionType::ImagesResolved.as_str();
    if let Some(why) = refused {
        let message = format!("images cannot be asked for: the ModuleImagesConfig cannot be written: {why}");
        return Wanted::new(type_, State::False, ClusterReason::ImagesNotReady.as_str(), message);
    }
    let Some(first) = missing.first() else {
        return Wanted::new(
            type_,
            State::True,
            ClusterReason::ImagesResolved.as_str(),
            "every image that is needed is known",
        );
    };
    let kernels: Vec<String> = missing.iter().map(describe).collect();
    let more = totals.held_back.len().saturating_sub(missing.len());
    let tail = if more == 0 { String::new() } else { format!("; and {more} more kernels") };
    let reason = if first.reason.is_empty() { ClusterReason::ImagesNotReady.as_str() } else { &*first.reason };
    Wanted::new(type_, State::False, reason, kernels.join("; ") + &tail)
}

/// "kernel 6.1 on 3 clusters waits for registry/image:tag (`NotFound`: …)"
fn describe(missing: &Missing) -> String {
    let Missing { kernel, image, reason, message, clusters } = missing;
    let why = match (&**reason, &**message) {
        ("", _) => "not looked up yet".to_owned(),
        (reason, "") => reason.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    };
    let on = if *clusters == 1 { "1 cluster".to_owned() } else { format!("{clusters} clusters") };
    format!("kernel {kernel} on {on} waits for {image} ({why})")
}

fn applied(totals: &Totals) -> Wanted {
    let wanted = |state, reason: ClusterReason, message: String| {
        Wanted::new(ConditionType::Applied.as_str(), state, reason.as_str(), message)
    };
    let Totals { desired, applied, .. } = totals;
    if *desired == 0 {
        return wanted(State::False, ClusterReason::NoMatchingClusters, "no cluster matches the selector".to_owned());
    }
    if applied == desired {
        return wanted(State::True, ClusterReason::Applied, format!("applied on all {desired} clusters"));
    }
    let failed = NOT_APPLIED.iter().find_map(|reason| Some((*reason, totals.reasons.get(reason)?)));
    let (reason, detail) = match failed {
        Some((reason, (count, name, standing))) => {
            (reason, format!("; {count} failed, the first is {}", named(name, standing)))
        }
        None => (ClusterReason::WaitingForApply, String::new()),
    };
    wanted(State::False, reason, format!("applied on {applied} of {desired} clusters{detail}"))
}
