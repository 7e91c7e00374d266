//! Carries a plan out.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::core::Resource;
use kube::{Api, Client};
use serde_json::json;

use super::plan::{Plan, Told};
use crate::api::names::{EventReason, field_manager};
use crate::api::{ModuleImagesConfig, ModuleImagesConfigStatus};
use crate::runtime::client::{ApiError, apply_status};
use crate::runtime::events::{Events, Severity};
use crate::runtime::store::ObjectKey;

/// Writes the status, if there is one to be written, and then tells what is worth telling.
///
/// An object that is gone, or was made again under its name, is left alone.
pub async fn apply(client: &Client, events: &Events, key: &ObjectKey, uid: &str, plan: &Plan) -> Result<(), ApiError> {
    let Some(status) = &plan.status else { return Ok(()) };
    match write(client, key, uid, status).await {
        Ok(()) => {}
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    }
    if let Some(told) = &plan.event {
        tell(events, key, uid, told).await;
    }
    Ok(())
}

async fn write(client: &Client, key: &ObjectKey, uid: &str, status: &ModuleImagesConfigStatus) -> Result<(), ApiError> {
    let api: Api<ModuleImagesConfig> = Api::namespaced(client.clone(), &key.namespace);
    // The uid makes the server refuse where another object has taken the name.
    let body = json!({
        "apiVersion": ModuleImagesConfig::api_version(&()),
        "kind": ModuleImagesConfig::kind(&()),
        "metadata": { "name": key.name, "namespace": key.namespace, "uid": uid },
        "status": status,
    });
    apply_status(&api, &key.name, field_manager::IMAGES, &body).await.map(|_| ())
}

async fn tell(events: &Events, key: &ObjectKey, uid: &str, told: &Told) {
    let about = ObjectReference {
        api_version: Some(ModuleImagesConfig::api_version(&()).into_owned()),
        kind: Some(ModuleImagesConfig::kind(&()).into_owned()),
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    };
    let severity = if told.reason == EventReason::ImagesResolved { Severity::Normal } else { Severity::Warning };
    events.publish(&about, severity, told.reason.as_str(), "LookUp", &told.note).await;
}
