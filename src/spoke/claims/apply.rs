//! Carries out the plan for claims.

use kube::{Api, Client, Resource};
use serde_json::json;

use crate::api::names::field_manager::CLAIMS;
use crate::api::ocm::ClusterClaim;
use crate::runtime::client::{self, ApiError, delete};

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
