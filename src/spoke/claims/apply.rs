//! Carries out the plan for claims.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Api, Client, Resource};
use serde_json::json;

use crate::api::names::field_manager::CLAIMS;
use crate::api::names::{EventReason, KERNEL_CLAIM};
use crate::api::ocm::ClusterClaim;
use crate::core::claims::TooMany;
use crate::runtime::client::{self, ApiError, delete};
use crate::runtime::events::{Events, Severity};

use super::plan::Action;

/// Carries out the actions in their order.
pub(super) async fn apply(client: &Client, actions: Vec<Action>) -> Result<(), ApiError> {
    let api: Api<ClusterClaim> = Api::all(client.clone());
    for action in actions {
        match action {
            Action::Apply(claim) => {
                let body = json!({
                    "apiVersion": ClusterClaim::api_version(&()),
                    "kind": ClusterClaim::kind(&()),
                    "metadata": { "name": claim.name },
                    "spec": { "value": claim.value },
                });
                client::apply(&api, &claim.name, CLAIMS, &body).await?;
            }
            Action::Delete { name, uid } => delete(&api, &name, &uid).await?,
        }
    }
    Ok(())
}

/// Tells that the kernels do not fit into claims, on the first of these.
pub(super) async fn overflows(events: &Events, error: &TooMany) {
    let about = ObjectReference {
        api_version: Some(ClusterClaim::api_version(&()).into_owned()),
        kind: Some(ClusterClaim::kind(&()).into_owned()),
        name: Some(KERNEL_CLAIM.to_owned()),
        uid: Some(KERNEL_CLAIM.to_owned()),
        ..ObjectReference::default()
    };
    let note = format!("the Hub is not told the kernels of new nodes: {error}");
    events.publish(&about, Severity::Warning, EventReason::ClaimsOverflow.as_str(), "Claim", &note).await;
}
