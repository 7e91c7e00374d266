//! Kernels out: one controller with one key, woken only when the set of kernels or a claim changed.

mod apply;
mod kernels;
mod plan;

pub(super) use kernels::Kernels;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kube::Client;
use tracing::error;

use crate::core::claims::is_kernel_claim;
use crate::runtime::client::ApiError;
use crate::runtime::events::Events;
use crate::runtime::queue::Outcome;
use crate::runtime::store::Store;

use super::view::ClaimView;

/// The controller of claims.
pub(super) struct Controller {
    client: Client,
    store: Store<ClaimView>,
    kernels: Kernels,
    events: Events,
    /// Whether it was told that the kernels do not fit.
    told: AtomicBool,
}

impl Controller {
    /// A controller that tells these kernels.
    pub(super) fn new(client: Client, store: Store<ClaimView>, kernels: Kernels, events: Events) -> Self {
        Self { client, store, kernels, events, told: AtomicBool::default() }
    }

    /// Waits for the first complete list of claims. Their kind belongs to OCM and may come later.
    pub(super) async fn wait_until_ready(&self) {
        self.store.wait_until_ready().await;
    }

    /// One pass over all claims.
    pub(super) async fn pass(self: Arc<Self>, _: String) -> Result<Outcome, ApiError> {
        let mut present = BTreeMap::new();
        self.store.for_each(|key, claim| {
            if is_kernel_claim(&key.name) {
                present.insert(key.name.clone(), (**claim).clone());
            }
        });
        match plan::plan(&self.kernels.set(), &present) {
            Ok(actions) => {
                self.told.store(false, Ordering::SeqCst);
                apply::apply(&self.client, actions).await?;
            }
            Err(error) => {
                error!(%error, "claims stay as they are");
                if !self.told.swap(true, Ordering::SeqCst) {
                    apply::overflows(&self.events, &error).await;
                }
            }
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::extract::Request;
    use axum::http::Method;

    use super::*;
    use crate::core::kernel::KernelVersion;
    use crate::runtime::store::store;
    use crate::spoke::testing::a_node;
    use crate::spoke::view::NodeView;

    #[tokio::test]
    async fn kernels_that_do_not_fit_into_claims_are_told_once() {
        let kernels = Kernels::default();
        for number in 0..60_000 {
            let kernel = KernelVersion::parse(&format!("{number}-{}", "k".repeat(100)));
            kernels.change(None, Some(&NodeView { kernel, ..a_node() }));
        }
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let server = Router::new().fallback(move |request: Request| {
            seen.lock().unwrap().push((request.method().clone(), request.uri().path().to_owned()));
            async { "{}" }
        });
        let client = Client::new(server, "default");
        let events = Events::new(client.clone(), "kmm", None);
        let controller = Arc::new(Controller::new(client, store().0, kernels, events));
        for _ in 0..2 {
            Arc::clone(&controller).pass(String::new()).await.unwrap();
        }
        let told = [(Method::POST, "/apis/events.k8s.io/v1/namespaces/default/events".to_owned())];
        assert_eq!(*asked.lock().unwrap(), told);
    }
}
