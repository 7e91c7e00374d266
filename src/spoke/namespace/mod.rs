//! Namespaces that hold Modules, keyed by name.

mod apply;
mod observe;
mod plan;

use std::sync::Arc;

use kube::Client;

use crate::runtime::client::ApiError;
use crate::runtime::queue::Outcome;
use crate::runtime::store::ObjectKey;

use super::stores::Stores;

/// The controller of namespaces.
pub(super) struct Controller {
    client: Client,
    stores: Stores,
    /// Service account of the workers.
    worker: ObjectKey,
}

impl Controller {
    /// A controller that gives this service account its rights.
    pub(super) fn new(client: Client, stores: Stores, worker: ObjectKey) -> Self {
        Self { client, stores, worker }
    }

    /// One pass over one namespace.
    pub(super) async fn pass(self: Arc<Self>, name: String) -> Result<Outcome, ApiError> {
        for action in plan::plan(&observe::observe(&self.stores, &self.worker, &name)) {
            match apply::apply(&self.client, &name, action).await {
                // A namespace that is gone needs nothing.
                Err(error) if error.is_not_found() => return Ok(Outcome::Done),
                result => result?,
            }
        }
        Ok(Outcome::Done)
    }
}
