//! Where a wanted Module stands on a node, by what the worker said.

use crate::api::names::NodeReason;
use crate::api::{ModuleState, NodeModuleSpec, NodeModuleStatus, OnChange, UnloadIntent};
use crate::core::load::same_in_kernel;
use crate::spoke::outcome::{Standing, Trouble};

use super::here::Here;

/// Whether the worker proved that the entry is loaded as it stands. The caller knows that it spoke in this boot.
pub(super) fn is_loaded(entry: &NodeModuleSpec, report: &NodeModuleStatus) -> bool {
    report.state == Some(ModuleState::Loaded)
        && report.observed_generation >= entry.generation
        && report.config.as_ref().is_some_and(|loaded| same_in_kernel(loaded, &entry.config))
}

/// Whether the worker proved, in this boot, that an older file than the entry asks for is loaded, and the policy leaves
/// it there until the node boots again. The caller knows that no intent says otherwise.
pub(super) fn keeps_older(entry: &NodeModuleSpec, report: &NodeModuleStatus) -> bool {
    entry.policy.unwrap_or_default().on_change == OnChange::OnReboot
        && report.config.as_ref().is_some_and(|loaded| !same_in_kernel(loaded, &entry.config))
}

/// Where a Module stands whose entry and intent will be these.
pub(super) fn standing(
    here: Here<'_>,
    entry: &NodeModuleSpec,
    intent: Option<&UnloadIntent>,
    report: Option<&NodeModuleStatus>,
) -> Standing {
    if !here.in_this_boot() {
        // The object was there before this boot, or the worker never spoke: nobody knows what the kernel holds.
        return if here.entries().contains(entry) { Standing::Silent } else { Standing::Waiting };
    }
    let Some(report) = report else { return Standing::Waiting };
    let fallback = |text: &str| report.message.clone().unwrap_or_else(|| text.to_owned());
    let word = |text: &str| report.reason.clone().unwrap_or_else(|| text.to_owned());
    match report.state {
        Some(ModuleState::Loaded) if intent.is_none() && is_loaded(entry, report) => Standing::Available,
        Some(ModuleState::Loaded | ModuleState::Pending)
            if intent.is_none()
                && keeps_older(entry, report)
                && (report.observed_generation < entry.generation
                    || report.reason.as_deref() == Some(NodeReason::WaitingForReboot.as_str())) =>
        {
            Standing::WaitingForReboot
        }
        Some(ModuleState::Failed) if report.observed_generation >= entry.generation => {
            let kernel = &entry.config.kernel_version;
            Standing::Failing(Trouble::new(word("Failed"), fallback(&format!("loading failed on {kernel}"))))
        }
        Some(ModuleState::UnloadFailed) => {
            Standing::Failing(Trouble::new(word("UnloadFailed"), fallback("the loaded file cannot be unloaded")))
        }
        Some(
            ModuleState::Pending
            | ModuleState::Pulling
            | ModuleState::Loading
            | ModuleState::Loaded
            | ModuleState::Failed
            | ModuleState::Unloading
            | ModuleState::Orphaned
            | ModuleState::Unknown,
        )
        | None => Standing::Waiting,
    }
}
