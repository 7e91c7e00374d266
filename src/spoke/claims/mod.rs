//! Kernels out: one controller with one key, woken only when the set of kernels or a claim changed.

mod apply;
mod kernels;
mod plan;

pub(super) use kernels::Kernels;

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::Client;
use tracing::error;

use crate::core::claims::is_kernel_claim;
use crate::runtime::client::ApiError;
use crate::runtime::queue::Outcome;
use crate::runtime::store::Store;

use super::view::ClaimView;

/// The controller of claims.
pub(super) struct Controller {
    client: Client,
    store: Store<ClaimView>,
    kernels: Kernels,
}

impl Controller {
    /// A controller that tells these kernels.
    pub(super) fn new(client: Client, store: Store<ClaimView>, kernels: Kernels) -> Self {
        Self { client, store, kernels }
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
            Ok(actions) => apply::apply(&self.client, actions).await?,
            Err(error) => error!(%error, "claims stay as they are"),
        }
        Ok(Outcome::Done)
    }
}
