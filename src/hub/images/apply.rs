//! Carries out the plan for one ModuleImagesConfig.

use kube::Api;

use super::plan::Plan;
use crate::api::ModuleImagesConfig;
use crate::api::names::field_manager;
use crate::runtime::client::{self, ApiError};
use crate::runtime::store::ObjectKey;

/// At most one write.
pub(super) async fn apply(client: &kube::Client, key: &ObjectKey, plan: &Plan) -> Result<(), ApiError> {
    let api: Api<ModuleImagesConfig> = Api::namespaced(client.clone(), &key.namespace);
    match plan {
        Plan::Nothing | Plan::OwnedByOther => Ok(()),
        Plan::Apply(images) => client::apply(&api, &key.name, field_manager::HUB, images.as_ref()).await.map(|_| ()),
        Plan::Delete { uid } => client::delete(&api, &key.name, uid).await,
    }
}
