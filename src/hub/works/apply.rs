//! Carries out the plan for one work.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PartialObjectMeta;

use super::plan::Action;
use crate::api::names::{MANAGED_CLUSTER_MODULE_LABEL, field_manager};
use crate::api::ocm::ManifestWork;
use crate::hub::standing::Standing;
use crate::hub::target::Target;
use crate::hub::view::Owner;
use crate::runtime::client::{self, ApiError, Class};

/// What came of an action.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Done {
    /// As planned.
    AsPlanned,
    /// Somebody else has a work of the name; nothing was written.
    Occupied(Standing),
}

/// Carries out the action; at most one write that the server takes.
pub(super) async fn apply(client: &kube::Client, target: &Target, action: &Action) -> Result<Done, ApiError> {
    let api: Api<ManifestWork> = Api::namespaced(client.clone(), &target.cluster);
    match action {
        Action::Nothing => Ok(Done::AsPlanned),
        Action::Delete { uid } => client::delete(&api, &target.module, uid).await.map(|()| Done::AsPlanned),
        Action::Apply { work, uid: Some(uid) } => {
            // With the uid, the server refuses to touch another work than the one that was looked at.
            let mut work = work.as_ref().clone();
            work.metadata.uid = Some(uid.to_string());
            client::apply(&api, &target.module, field_manager::HUB, &work).await.map(|_| Done::AsPlanned)
        }
        Action::Apply { work, uid: None } => {
            let (name, work) = (&target.module, work.as_ref());
            // Nearly always there is none. One of somebody else has other manifests, which makes a conflict.
            match client::apply_unless_taken(&api, name, field_manager::HUB, work).await {
                Err(error) if error.class() == Class::Conflict => {}
                written => return written.map(|_| Done::AsPlanned),
            }
            match other(&api, target, work).await? {
                Some(standing) => Ok(Done::Occupied(standing)),
                None => client::apply(&api, name, field_manager::HUB, work).await.map(|_| Done::AsPlanned),
            }
        }
    }
}

/// Stores hold only works with the label of ours. One without it would be taken over by an apply with force, so
/// the server is asked before. One with the label is on its way into the store.
async fn other(api: &Api<ManifestWork>, target: &Target, wanted: &ManifestWork) -> Result<Option<Standing>, ApiError> {
    let found: Option<PartialObjectMeta<ManifestWork>> =
        client::within(|| format!("look for ManifestWork {target}"), api.get_metadata_opt(&target.module)).await?;
    let Some(found) = found else { return Ok(None) };
    let label = |meta: &ObjectMeta| meta.labels.as_ref()?.get(MANAGED_CLUSTER_MODULE_LABEL).cloned();
    let labelled = label(&found.metadata) == label(&wanted.metadata);
    let owner = Owner::of(found.metadata.owner_references.as_deref());
    // One of ours that lost its label gets it back.
    let is_ours = owner == Owner::of(wanted.metadata.owner_references.as_deref());
    Ok(Some(Standing::occupied(&owner)).filter(|_| !labelled && !is_ours))
}
