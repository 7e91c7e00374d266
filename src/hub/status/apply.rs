//! Writes the status of one ManagedClusterModule.

use kube::Api;
use kube::api::PartialObjectMeta;
use serde_json::json;

use crate::api::names::field_manager;
use crate::api::{ManagedClusterModule, ManagedClusterModuleStatus};
use crate::hub::view::FleetModule;
use crate::runtime::client::{self, ApiError};

/// One write. Of the answer only metadata is read, because the object may be one that cannot be decoded.
pub(super) async fn apply(
    client: &kube::Client,
    module: &FleetModule,
    status: &ManagedClusterModuleStatus,
) -> Result<(), ApiError> {
    let api: Api<PartialObjectMeta<ManagedClusterModule>> = Api::all(client.clone());
    let body = json!({
        "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
        "kind": "ManagedClusterModule",
        "metadata": {"name": &*module.name, "uid": &*module.uid},
        "status": status,
    });
    match client::apply_status(&api, &module.name, field_manager::HUB, &body).await {
        Ok(_) => Ok(()),
        // It is gone, and with it everything that could be said.
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}
