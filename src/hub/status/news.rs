//! What of a new status is worth an event. Pure.

use super::plan::TYPES;
use crate::api::ManagedClusterModuleStatus;
use crate::api::names::{ConditionType, EventReason, ImageReason};
use crate::core::conditions;
use crate::runtime::events::Severity;

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
        (ConditionType::Ready, _) if holds && before.0 != "True" => EventReason::Ready,
        (ConditionType::Ready, _) if !holds && before.0 == "True" => EventReason::NotReady,
        (ConditionType::ImagesResolved, _) if holds && before.0 == "False" => EventReason::ImagesResolved,
        (ConditionType::ImagesResolved, "NotFound") => EventReason::ImageNotFound,
        (ConditionType::ImagesResolved, reason) if failed_look_up(reason) && !failed_look_up(before.1) => {
            EventReason::ImageLookupFailed
        }
        (ConditionType::Applied, "NotApplied" | "AgentForbidden") => EventReason::ClusterNotApplied,
        (ConditionType::Applied, "OwnedByOther") => EventReason::WorkOwnedByOther,
        (ConditionType::RemovalConfirmed, "AwaitingConfirmation") => EventReason::RemovalAwaitsConfirmation,
        _ => return None,
    };
    let good = matches!(reason, EventReason::Ready | EventReason::ImagesResolved);
    let severity = if good { Severity::Normal } else { Severity::Warning };
    Some(News { severity, reason, note: after.message.clone() })
}
