//! The status of one ManagedClusterModule, from totals that are kept cluster by cluster.

mod apply;
mod news;
mod observe;
mod plan;
#[cfg(test)]
mod plan_tests;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::hub::events::publish;
use crate::hub::fleet::Fleet;
use crate::runtime::client::ApiError;
use crate::runtime::events::Events;
use crate::runtime::queue::Outcome;

/// Statuses that are written at a time.
const WORKERS: usize = 4;

/// The controller of statuses.
pub(super) struct Controller {
    client: kube::Client,
    events: Events,
    fleet: Arc<Fleet>,
}

impl Controller {
    /// A controller that has looked at nothing yet.
    pub(super) fn new(client: kube::Client, events: Events, fleet: Arc<Fleet>) -> Self {
        Self { client, events, fleet }
    }

    /// Plans and writes while this process leads.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let (queue, this) = (self.fleet.status_queue.clone(), Arc::new(self));
        let pass = move |module| {
            let this = Arc::clone(&this);
            async move { this.pass(&module).await }
        };
        queue.run(WORKERS, shutdown, pass).await;
    }

    async fn pass(&self, module: &Arc<str>) -> Result<Outcome, ApiError> {
        let Some(observed) = observe::observe(&self.fleet, module) else { return Ok(Outcome::Done) };
        let old = &observed.module.status;
        let Some(new) = plan::plan(old, &observed, Timestamp::now()) else { return Ok(Outcome::Done) };
        apply::apply(&self.client, &observed.module, &new).await?;
        for news in news::news(old, &new) {
            publish(&self.events, &observed.module, news.severity, news.reason, &news.note).await;
        }
        Ok(Outcome::Done)
    }
}
