//! What is kept right for the node as a whole, when nothing else is to be done.

use super::{Job, Observed, Plan, Step};
use crate::api::ModuleState;
use crate::worker::record::Owner;

/// Plans for the search path of firmware.
pub(super) fn plan(observed: &Observed, plan: &mut Plan) {
    let node = Owner::node();
    let Some(firmware) = &observed.firmware else { return };
    let held_back = observed.held_back(&node, None);
    if let Some(trouble) = held_back {
        for report in &mut plan.reports {
            let concerned = report.loaded.as_ref().is_some_and(|loaded| loaded.entry.firmware.is_some());
            if concerned && report.state == ModuleState::Loaded && report.message.is_empty() {
                report.message.clone_from(&trouble.message);
            }
        }
    } else if plan.jobs.is_empty() && !firmware.is_right(&observed.record) {
        plan.jobs.push(Job { owner: node, identity: None, steps: vec![Step::Firmware] });
    }
}
