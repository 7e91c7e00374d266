//! Carries out the plan for a Module.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{ListParams, PartialObjectMeta};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tracing::info;

use crate::api::names::field_manager::MODULE_STATUS;
use crate::api::names::module_configured_label;
use crate::api::{Module, ModuleImagesConfig, ModuleImagesConfigSpec, ModuleStatus, NodeModulesConfig};
use crate::core::label;
use crate::runtime::client::{ApiError, apply_status, create, delete, json_patch, merge, merge_status, within};
use crate::runtime::guarded::Guarded;
use crate::runtime::queue::Outcome;
use crate::runtime::store::{ObjectKey, Store};
use crate::spoke::view::{Belongs, ModuleFacts, NodeView};

use super::plan::{ImagesAction, Plan};
use super::status::CONDITIONS;

/// Objects in one answer of the API server.
const PAGE: u32 = 100;
/// How long the end of a Module waits for the watch to show what the server has.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Writes what the plan says; a failure of one object does not keep the other from being written.
pub(super) async fn apply(
    client: &Client,
    nodes: &Store<NodeView>,
    facts: &ModuleFacts,
    plan: &Plan,
) -> Result<Outcome, ApiError> {
    let finalizers = match &plan.finalizers {
        Some(list) if facts.deleting => end(client, nodes, facts, list).await,
        Some(list) => write_finalizers(client, facts, list).await.map(|()| Outcome::Done),
        None => Ok(Outcome::Done),
    };
    let images = write_images(client, facts, &plan.images).await;
    finalizers.and_then(|outcome| images.map(|()| outcome))
}

/// Lets the Module go, unless the server knows of a node that wants it. The stores may not: a write whose answer was
/// lost, or that a broken watch has not shown yet, would leave an entry of a Module that nobody can take back any more.
async fn end(
    client: &Client,
    nodes: &Store<NodeView>,
    facts: &ModuleFacts,
    list: &[String],
) -> Result<Outcome, ApiError> {
    if let Some(node) = wanted_on(client, nodes, facts).await? {
        info!(module = %facts.key, node, "not gone yet: the API server knows a node that wants it, and the watch does not");
        return Ok(Outcome::Again(LOOK_AGAIN));
    }
    write_finalizers(client, facts, list).await.map(|()| Outcome::Done)
}

/// One of the nodes whose NodeModulesConfig, as it is on the server now, has an entry of the Module.
async fn wanted_on(client: &Client, nodes: &Store<NodeView>, facts: &ModuleFacts) -> Result<Option<String>, ApiError> {
    let api: Api<Guarded<NodeModulesConfig>> = Api::all(client.clone());
    let configured = module_configured_label(&facts.key.namespace, &facts.key.name);
    let mut params = ListParams::default().limit(PAGE);
    // Without the label, whose key would be too long, all of them are looked through.
    if label::is_key(&configured) {
        params = params.labels(&configured);
    }
    loop {
        let action = || format!("list the NodeModulesConfigs with entries of Module {}", facts.key);
        let page = within(action, api.list(&params)).await?;
        // One that cannot be read may have an entry: nobody can say that it has none.
        let wants = |config: Guarded<NodeModulesConfig>| match config.0 {
            Ok(config) if config.spec.modules.iter().any(|entry| entry.belongs_to(facts)) => config.metadata.name,
            Ok(_) => None,
            Err(unreadable) => unreadable.metadata.name,
        };
        let mut named = page.items.into_iter().filter_map(wants);
        // That of a node that is gone goes by its owner reference, whatever it says.
        let counts = |node: &NodeView| !node.released;
        if let Some(node) = named.find(|node| nodes.get(&ObjectKey::cluster(&**node)).is_some_and(|node| counts(&node)))
        {
            return Ok(Some(node));
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(None),
        }
    }
}

/// Sets the list if UID and list are still those that were seen: another controller's finalizer is never lost.
async fn write_finalizers(client: &Client, facts: &ModuleFacts, list: &[String]) -> Result<(), ApiError> {
    let seen = if facts.finalizers.is_empty() { Value::Null } else { json!(facts.finalizers) };
    let operations = json!([
        { "op": "test", "path": "/metadata/uid", "value": &*facts.uid },
        { "op": "test", "path": "/metadata/finalizers", "value": seen },
        { "op": "add", "path": "/metadata/finalizers", "value": list },
    ]);
    let api: Api<Module> = Api::namespaced(client.clone(), &facts.key.namespace);
    match json_patch(&api, &facts.key.name, MODULE_STATUS, operations).await {
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
            create(&api, MODULE_STATUS, &images).await.map(|_| ())
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

/// Writes the fields of the status that the Module controller owns, in the place of `old`; conditions of other writers are
/// theirs. Of the answer only metadata is read, because the object may be one that cannot be decoded.
pub(super) async fn write_status(
    client: &Client,
    facts: &ModuleFacts,
    old: &ModuleStatus,
    status: &ModuleStatus,
) -> Result<(), ApiError> {
    let key = &facts.key;
    let conditions: Vec<_> =
        status.conditions.iter().filter(|is| CONDITIONS.iter().any(|ours| ours.as_str() == is.type_)).collect();
    let api: Api<PartialObjectMeta<Module>> = Api::namespaced(client.clone(), &key.namespace);
    let mut body = json!({
        "apiVersion": Module::api_version(&()),
        "kind": Module::kind(&()),
        // The uid makes the server refuse where another Module has taken the name.
        "metadata": { "name": key.name, "uid": &*facts.uid },
        "status": {
            "conditions": conditions,
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
        let body = json!({ "metadata": { "uid": &*facts.uid }, "status": { "devicePlugin": status.device_plugin, "dra": status.dra } });
        written = merge_status(&api, &key.name, MODULE_STATUS, &body).await;
    }
    match written {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}
