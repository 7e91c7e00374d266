//! Writes the status: only if it says something new, and again until the API server has it.

use std::time::Duration;

use jiff::Timestamp;
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::{debug, warn};

use super::Agent;
use super::tasks::{Finished, pause};
use crate::api::names::field_manager;
use crate::api::{NodeModulesConfig, NodeModulesConfigStatus};
use crate::runtime::client::{self, ApiError, chain};
use crate::worker::plan::Report;
use crate::worker::status::{self, Node};

/// What is only passing is told if it lasts longer than this.
const PASSING: Duration = Duration::from_secs(1);
/// First and longest pause after a failed write.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// What the API server does not keep as it was sent is sent again after this: it may keep it by then.
const SEND_AGAIN: Duration = Duration::from_mins(10);

/// What is to be told and what has been.
#[derive(Debug, Default)]
pub(super) struct Reporting {
    /// The object as the API server showed it last.
    object: Option<NodeModulesConfig>,
    reports: Vec<Report>,
    /// Generation that the reports speak of; `None` before the first plan.
    generation: Option<i64>,
    /// Why a newer specification cannot be read.
    pub(super) unreadable: Option<String>,
    /// Since when something is on its way.
    busy_since: Option<Duration>,
    writing: bool,
    failures: u32,
    not_before: Duration,
    written: Option<Timestamp>,
    /// What is being sent.
    sent: NodeModulesConfigStatus,
    told: Option<Told>,
}

/// A status that the API server took and did not keep as it was sent: a webhook changed it.
#[derive(Debug)]
struct Told {
    sent: NodeModulesConfigStatus,
    kept: NodeModulesConfigStatus,
    at: Duration,
}

impl Reporting {
    /// What counts as told already, given what the API server shows.
    fn known(&self, shown: NodeModulesConfigStatus, now: Duration) -> NodeModulesConfigStatus {
        match &self.told {
            Some(told) if told.kept == shown && now < told.at + SEND_AGAIN => told.sent.clone(),
            _ => shown,
        }
    }

    /// The API server took what was sent, and shows this now.
    fn took(&mut self, kept: NodeModulesConfigStatus, now: Duration) {
        let sent = std::mem::take(&mut self.sent);
        if kept == sent {
            self.told = None;
            return;
        }
        if self.told.is_none() {
            warn!("the API server does not keep the status as it is sent; does a webhook change it?");
        }
        self.told = Some(Told { sent, kept, at: now });
    }

    /// The API server showed the object.
    pub(super) fn know(&mut self, object: NodeModulesConfig) {
        if self.object.as_ref().is_none_or(|known| known.uid() != object.uid()) {
            self.told = None;
        }
        self.object = Some(object);
    }

    /// The object as the API server showed it last.
    pub(super) fn object(&self) -> Option<&NodeModulesConfig> {
        self.object.as_ref()
    }

    /// There is no object to write to.
    pub(super) fn forget(&mut self) {
        self.object = None;
        self.written = None;
    }

    /// Replaces what is to be told.
    pub(super) fn reports(&mut self, reports: Vec<Report>, generation: i64, quiet: bool, now: Duration) {
        self.reports = reports;
        self.generation = Some(generation);
        self.busy_since = if quiet { None } else { self.busy_since.or(Some(now)) };
    }

    /// When a write that waits is due.
    pub(super) fn due(&self) -> Option<Duration> {
        let passing = self.busy_since.map(|since| since + PASSING);
        [passing, (self.failures > 0).then_some(self.not_before)].into_iter().flatten().max()
    }

    /// A write ended.
    pub(super) fn written(&mut self, result: Result<NodeModulesConfig, ApiError>, now: Duration) {
        self.writing = false;
        match result {
            Ok(object) => {
                self.failures = 0;
                self.written = Some(Timestamp::now());
                // One that was made again meanwhile is told by the watch.
                if self.object.as_ref().is_some_and(|known| known.uid() == object.uid()) {
                    self.took(object.status.clone().unwrap_or_default(), now);
                    self.object = Some(NodeModulesConfig {
                        spec: self.object.take().map(|known| known.spec).unwrap_or_default(),
                        ..object
                    });
                }
            }
            Err(error) => {
                let pause = pause(FIRST_PAUSE, LONGEST_PAUSE, self.failures);
                self.failures = self.failures.saturating_add(1);
                self.not_before = now + pause;
                if error.is_not_found() {
                    debug!("the NodeModulesConfig has gone meanwhile");
                } else {
                    warn!("{}", chain(&error));
                }
            }
        }
    }
}

impl Agent {
    /// Starts to write the status if there is something new to say.
    pub(super) fn write_status(&mut self) {
        let now = self.now();
        let reporting = &self.reporting;
        let (Some(object), Some(generation)) = (&reporting.object, reporting.generation) else { return };
        let passing = reporting.busy_since.is_some_and(|since| now < since + PASSING);
        let elsewhere = self.wanted.as_ref().is_none_or(|wanted| Some(&wanted.uid) != object.metadata.uid.as_ref());
        if reporting.writing || passing || elsewhere || (reporting.failures > 0 && now < reporting.not_before) {
            return;
        }
        let node = Node {
            boot_id: &self.boot_id,
            release: &self.release,
            generation,
            unreadable: reporting.unreadable.as_deref(),
        };
        let old = reporting.known(object.status.clone().unwrap_or_default(), now);
        let Some(new) = status::status(&old, &node, &reporting.reports, reporting.written, Timestamp::now()) else {
            return;
        };
        // With the uid, so that an object made again under the same name is not written to by mistake.
        let body = json!({
            "apiVersion": "kmm.sigs.x-k8s.io/v1beta1",
            "kind": "NodeModulesConfig",
            "metadata": { "name": self.settings.node_name, "uid": object.metadata.uid },
            "status": new,
        });
        let api: Api<NodeModulesConfig> = Api::all(self.client.clone());
        let name = self.settings.node_name.clone();
        self.reporting.writing = true;
        self.reporting.sent = new;
        self.tasks.spawn(async move {
            let written = client::apply_status(&api, &name, field_manager::WORKER, &body).await;
            Finished::Written(written.map(Box::new))
        });
    }
}
