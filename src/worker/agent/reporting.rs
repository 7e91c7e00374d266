//! Writes the status: only if it says something new, and again until the API server has it.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use tracing::{debug, warn};

use crate::api::{NodeModulesConfig, NodeModulesConfigStatus};
use crate::runtime::client::{ApiError, chain};
use crate::worker::plan::Report;
use crate::worker::plan::pause::pause;
use crate::worker::report::{self, About};

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

    /// The status to write if there is something new to say, to the object with the uid `wanted`; it counts as being
    /// written from then on.
    pub(super) fn next_write(
        &mut self,
        (boot_id, release): (&str, &str),
        wanted: Option<&str>,
        now: Duration,
    ) -> Option<serde_json::Value> {
        let (object, generation) = (self.object.as_ref()?, self.generation?);
        let passing = self.busy_since.is_some_and(|since| now < since + PASSING);
        let elsewhere = wanted.is_none_or(|uid| Some(uid) != object.metadata.uid.as_deref());
        if self.writing || passing || elsewhere || (self.failures > 0 && now < self.not_before) {
            return None;
        }
        let old = self.known(object.status.clone().unwrap_or_default(), now);
        let about = About { boot_id, release, generation, unreadable: self.unreadable.as_deref() };
        let new = report::status(&old, &about, &self.reports, self.written, Timestamp::now())?;
        // With the uid, so that an object made again under the same name is not written to by mistake.
        let body = json!({
            "apiVersion": "kmm.sigs.x-k8s.io/v1beta1",
            "kind": "NodeModulesConfig",
            "metadata": { "name": object.metadata.name, "uid": object.metadata.uid },
            "status": new,
        });
        self.writing = true;
        self.sent = new;
        Some(body)
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
