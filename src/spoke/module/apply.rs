//! Carries out the plan for a Module.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{PartialObjectMeta, PostParams};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};

use crate::api::names::field_manager::MODULE_STATUS;
use crate::api::{Module, ModuleImagesConfig, ModuleImagesConfigSpec, ModuleStatus};
use crate::runtime::client::{ApiError, apply_status, delete, merge, merge_status, within};
use crate::runtime::store::ObjectKey;
use crate::spoke::view::ModuleFacts;

use super::plan::{ImagesAction, Plan};

/// Writes what the plan says; a failure of one object does not keep the other from being written.
pub(super) async fn carry_out(client: &Client, facts: &ModuleFacts, plan: &Plan) -> Result<(), ApiError> {
    let finalizers = match &plan.finalizers {
        Some(list) => write_finalizers(client, facts, list).await,
        None => Ok(()),
    };
    let images = write_images(client, facts, &plan.images).await;
    finalizers.and(images)
}

/// Sets the list if UID and list are still those that were seen: another controller's finalizer is never lost.
async fn write_finalizers(client: &Client, facts: &ModuleFacts, list: &[String]) -> Result<(), ApiError> {
    let action = || format!("set the finalizers of Module {}", facts.key);
    let seen = if facts.finalizers.is_empty() { Value::Null } else { json!(facts.finalizers) };
    let operations = json!([
        { "op": "test", "path": "/metadata/uid", "value": &*facts.uid },
        { "op": "test", "path": "/metadata/finalizers", "value": seen },
        { "op": "add", "path": "/metadata/finalizers", "value": list },
    ]);
    let url = format!(
        "{}/{}?fieldManager={MODULE_STATUS}",
        Module::url_path(&(), Some(&facts.key.namespace)),
        facts.key.name
    );
    let request = http::Request::patch(url)
        .header(http::header::CONTENT_TYPE, "application/json-patch+json")
        .body(operations.to_string().into_bytes());
    let request = request
        .map_err(|source| ApiError::Call { action: action(), source: Box::new(kube::Error::HttpError(source)) })?;
    match within(action, client.request::<Value>(request)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

async fn write_images(client: &Client, facts: &ModuleFacts, action: &ImagesAction) -> Result<(), ApiError> {
    let ObjectKey { namespace, name } = &facts.key;
    let api: Api<ModuleImagesConfig> = Api::namespaced(client.clone(), namespace);
    match action {
        ImagesAction::Nothing => Ok(()),
        ImagesAction::Create(spec) => {
            let mut images = ModuleImagesConfig::new(name, (**spec).clone());
            images.metadata = ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                owner_references: Some(vec![owner(facts)]),
                ..ObjectMeta::default()
            };
            let params = PostParams { field_manager: Some(MODULE_STATUS.to_owned()), ..PostParams::default() };
            let call = api.create(&params, &images);
            within(|| format!("create ModuleImagesConfig {}", facts.key), call).await.map(|_| ())
        }
        ImagesAction::Update { spec, adopt } => {
            let mut body = replacement(spec);
            if *adopt {
                body["metadata"] = json!({ "ownerReferences": [owner(facts)] });
            }
            merge(&api, name, MODULE_STATUS, &body).await.map(|_| ())
        }
        ImagesAction::Delete { uid } => delete(&api, name, uid).await,
    }
}

fn owner(facts: &ModuleFacts) -> OwnerReference {
    OwnerReference {
        api_version: Module::api_version(&()).into_owned(),
        kind: Module::kind(&()).into_owned(),
        name: facts.key.name.clone(),
        uid: facts.uid.to_string(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The whole specification as a merge patch: what is absent is removed, whoever wrote it.
fn replacement(spec: &ModuleImagesConfigSpec) -> Value {
    let ModuleImagesConfigSpec {
        image_pull_policy,
        image_pull_secrets,
        image_rebuild_trigger_generation,
        image_repo_secret,
        images,
        push_built_image,
        tolerations,
    } = spec;
    json!({ "spec": {
        "imagePullPolicy": image_pull_policy,
        "imagePullSecrets": if image_pull_secrets.is_empty() { Value::Null } else { json!(image_pull_secrets) },
        "imageRebuildTriggerGeneration": image_rebuild_trigger_generation,
        "imageRepoSecret": image_repo_secret,
        "images": images,
        "pushBuiltImage": push_built_image,
        "tolerations": tolerations,
    }})
}

/// Writes the fields of the status that the Module controller owns, in the place of `old`. Of the answer only metadata is
/// read, because the object may be one that cannot be decoded.
pub(super) async fn write_status(
    client: &Client,
    key: &ObjectKey,
    old: &ModuleStatus,
    status: &ModuleStatus,
) -> Result<(), ApiError> {
    let api: Api<PartialObjectMeta<Module>> = Api::namespaced(client.clone(), &key.namespace);
    let mut body = json!({
        "apiVersion": Module::api_version(&()),
        "kind": Module::kind(&()),
        "metadata": { "name": key.name },
        "status": {
            "conditions": status.conditions,
            "moduleLoader": status.module_loader,
            "nodesFailing": status.nodes_failing,
            "observedGeneration": status.observed_generation,
            "renderedHash": status.rendered_hash,
            "imageRebuildTriggerGeneration": status.image_rebuild_trigger_generation,
        },
    });
    // Server-side apply takes null for a value; what is absent must not be there at all.
    if let Some(status) = body.get_mut("status").and_then(Value::as_object_mut) {
        status.retain(|_, value| !value.is_null());
    }
    let mut written = apply_status(&api, &key.name, MODULE_STATUS, &body).await;
    // What another writer counted is not removed by server-side apply.
    let left = |of: &ModuleStatus| (of.device_plugin.is_some(), of.dra.is_some());
    if written.is_ok() && left(old) != left(status) {
        let body = json!({ "status": { "devicePlugin": status.device_plugin, "dra": status.dra } });
        written = merge_status(&api, &key.name, MODULE_STATUS, &body).await;
    }
    match written {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}
