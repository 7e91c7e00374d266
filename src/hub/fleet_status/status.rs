//! Totals → status and conditions, and what of it is worth an event. Pure.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::observe::{Missing, Observed};
use crate::api::names::{ClusterReason, ConditionType, EventReason, ImageReason};
use crate::api::{FailingCluster, ManagedClusterModuleStatus, NodeTotals};
use crate::core::conditions::{self, State, Wanted};
use crate::hub::standing::Standing;
use crate::hub::tally::Totals;
use crate::runtime::events::Severity;

/// The types of conditions that are written here.
const TYPES: [ConditionType; 3] = [ConditionType::Ready, ConditionType::ImagesResolved, ConditionType::Applied];
/// Why works are not applied, from what somebody must act upon to what passes.
const NOT_APPLIED: [ClusterReason; 3] =
    [ClusterReason::NotApplied, ClusterReason::OwnedByOther, ClusterReason::WorkRefused];

/// The status as it is to be, `None` if it is so already.
pub(super) fn status(
    old: &ManagedClusterModuleStatus,
    observed: &Observed,
    now: Timestamp,
) -> Option<ManagedClusterModuleStatus> {
    let Observed { module, totals, missing, refused } = observed;
    let mut ours = old.clone();
    ours.conditions.retain(|condition| TYPES.iter().any(|type_| type_.as_str() == condition.type_));
    let mut new = ours.clone();
    let wanted = match (&module.fault, &module.spec) {
        // Never read: nobody knows which clusters are meant, what was counted before stays.
        (Some(fault), None) => vec![ready(State::False, fault.reason, &fault.message)],
        (fault, _) => {
            count(&mut new, totals);
            let ready = match fault {
                Some(fault) => ready(State::False, fault.reason, &fault.message),
                None => ready_of(totals),
            };
            vec![ready, images_resolved(missing, totals, refused.as_deref()), applied(totals)]
        }
    };
    new.observed_generation = Some(module.generation);
    let changed = conditions::set(&mut new.conditions, &wanted, Some(module.generation), now);
    (changed || new != ours).then_some(new)
}

fn count(status: &mut ManagedClusterModuleStatus, totals: &Totals) {
    let number = |count: usize| Some(i32::try_from(count).unwrap_or(i32::MAX));
    status.number_desired = number(totals.desired);
    status.number_applied = number(totals.applied);
    status.number_degraded = number(totals.degraded);
    status.number_ready = number(totals.ready);
    status.number_waiting = number(totals.waiting);
    status.number_unknown = number(totals.unknown);
    status.nodes = Some(NodeTotals {
        matching: Some(totals.nodes.matching),
        desired: Some(totals.nodes.desired),
        available: Some(totals.nodes.available),
    });
    let failing = |(name, standing): &(Arc<str>, Standing)| FailingCluster {
        name: name.to_string(),
        reason: standing.reason.as_str().to_owned(),
        message: Some(standing.message.to_string()).filter(|message| !message.is_empty()),
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
        None => ready(State::True, ClusterReason::Ready, &format!("all {desired} clusters are ready")),
        Some((name, standing)) => {
            let message = format!("{count} of {desired} clusters are ready; {}", named(name, standing));
            ready(State::False, ClusterReason::ClustersNotReady, &message)
        }
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

/// Something that happened to a ManagedClusterModule as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct News {
    /// Good or bad.
    pub(super) severity: Severity,
    /// In one word.
    pub(super) reason: EventReason,
    /// In one sentence.
    pub(super) note: String,
}

/// What is worth an event: transitions only. What was told is in the old status, so a restart tells nothing again.
pub(super) fn news(old: &ManagedClusterModuleStatus, new: &ManagedClusterModuleStatus) -> Vec<News> {
    TYPES.iter().filter_map(|type_| transition(*type_, old, new)).collect()
}

fn transition(
    type_: ConditionType,
    old: &ManagedClusterModuleStatus,
    new: &ManagedClusterModuleStatus,
) -> Option<News> {
    let after = conditions::find(&new.conditions, type_.as_str())?;
    let before = conditions::find(&old.conditions, type_.as_str());
    let before = before.map_or(("", ""), |before| (before.status.as_str(), before.reason.as_str()));
    if before == (after.status.as_str(), after.reason.as_str()) {
        return None;
    }
    let holds = after.status == "True";
    let failed_look_up =
        |reason: &str| ImageReason::from_name(reason).is_some_and(|reason| reason != ImageReason::NotFound);
    let reason = match (type_, after.reason.as_str()) {
        (ConditionType::Ready, "InvalidSpec" | "Unreadable") => EventReason::InvalidSpec,
        (ConditionType::Ready, _) if holds => EventReason::Ready,
        (ConditionType::Ready, _) if before.0 == "True" => EventReason::NotReady,
        (ConditionType::ImagesResolved, _) if holds && before.0 == "False" => EventReason::ImagesResolved,
        (ConditionType::ImagesResolved, "NotFound") => EventReason::ImageNotFound,
        (ConditionType::ImagesResolved, reason) if failed_look_up(reason) && !failed_look_up(before.1) => {
            EventReason::ImageLookupFailed
        }
        (ConditionType::Applied, "NotApplied") => EventReason::ClusterNotApplied,
        (ConditionType::Applied, "OwnedByOther") => EventReason::WorkOwnedByOther,
        _ => return None,
    };
    let good = matches!(reason, EventReason::Ready | EventReason::ImagesResolved);
    let severity = if good { Severity::Normal } else { Severity::Warning };
    Some(News { severity, reason, note: after.message.clone() })
}
