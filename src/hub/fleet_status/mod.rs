//! The status of one ManagedClusterModule, from totals that are kept cluster by cluster.

mod apply;
mod observe;
mod status;
#[cfg(test)]
mod status_tests;

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

/// Runs the controller while this process leads.
pub(super) async fn run(client: kube::Client, events: Events, fleet: Arc<Fleet>, shutdown: CancellationToken) {
    let queue = fleet.status_queue.clone();
    queue
        .run(WORKERS, shutdown, move |module| {
            let (client, events, fleet) = (client.clone(), events.clone(), Arc::clone(&fleet));
            async move { pass(&client, &events, &fleet, &module).await }
        })
        .await;
}

async fn pass(client: &kube::Client, events: &Events, fleet: &Fleet, module: &Arc<str>) -> Result<Outcome, ApiError> {
    let Some(observed) = observe::observe(fleet, module) else { return Ok(Outcome::Done) };
    let old = &observed.module.status;
    let Some(new) = status::status(old, &observed, Timestamp::now()) else { return Ok(Outcome::Done) };
    apply::apply(client, &observed.module, &new).await?;
    for news in status::news(old, &new) {
        publish(events, &observed.module, news.severity, news.reason, &news.note).await;
    }
    Ok(Outcome::Done)
}
