//! Kernels out: one controller with one key, woken only when the set of kernels or a claim changed.

mod plan;

pub(super) use plan::{Action, Kernels, plan};

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::{Api, Resource};
use serde_json::json;
use tracing::error;

use crate::api::names::field_manager::CLAIMS;
use crate::api::ocm::ClusterClaim;
use crate::core::claims::is_kernel_claim;
use crate::runtime::client::{ApiError, apply, delete};
use crate::runtime::queue::Outcome;

use super::Context;

/// One pass over all claims.
pub(super) async fn reconcile(context: Arc<Context>, _: String) -> Result<Outcome, ApiError> {
    let Some(store) = &context.stores.claims else { return Ok(Outcome::Done) };
    let mut present = BTreeMap::new();
    store.for_each(|key, claim| {
        if is_kernel_claim(&key.name) {
            present.insert(key.name.clone(), (**claim).clone());
        }
    });
    let kernels = context.kernels().set();
    let actions = match plan(&kernels, &present) {
        Ok(actions) => actions,
        Err(error) => {
            error!(%error, "claims stay as they are");
            return Ok(Outcome::Done);
        }
    };
    let api: Api<ClusterClaim> = Api::all(context.client.clone());
    for action in actions {
        match action {
            Action::Apply(claim) => {
                let body = json!({
                    "apiVersion": ClusterClaim::api_version(&()),
                    "kind": ClusterClaim::kind(&()),
                    "metadata": { "name": claim.name },
                    "spec": { "value": claim.value },
                });
                apply(&api, &claim.name, CLAIMS, &body).await?;
            }
            Action::Delete { name, uid } => delete(&api, &name, &uid).await?,
        }
    }
    Ok(Outcome::Done)
}
