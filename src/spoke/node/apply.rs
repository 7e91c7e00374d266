//! Carries out the plan for a node.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Api, Client, Resource};
use serde_json::{Map, Value, json};

use crate::api::names::field_manager::{LABELS, NODE_PLANNER};
use crate::api::{NodeModulesConfig, NodeModulesConfigSpec};
use crate::runtime::client::{self, ApiError, create, delete_unchanged, merge};

use super::plan::{ConfigAction, Plan};

/// Writes what the plan says; a failure of one object does not keep the other from being written.
///
/// The labels come first: no pod that needs one is placed any more when a worker hears of an order.
pub(super) async fn apply(client: &Client, name: &str, plan: &Plan) -> Result<(), ApiError> {
    let labels = if plan.labels.is_empty() { Ok(()) } else { write_labels(client, name, plan).await };
    let config = write_config(client, name, &plan.config).await;
    config.and(labels)
}

async fn write_config(client: &Client, name: &str, action: &ConfigAction) -> Result<(), ApiError> {
    let api: Api<NodeModulesConfig> = Api::all(client.clone());
    match action {
        ConfigAction::Nothing => Ok(()),
        ConfigAction::Delete { uid, resource_version } => delete_unchanged(&api, name, uid, resource_version).await,
        ConfigAction::Apply { resource_version: None, owner, labels, stale_labels: _, spec } => {
            let mut config = NodeModulesConfig::new(name, spec.clone());
            config.metadata = ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels.clone()),
                owner_references: Some(vec![node_owner(name, owner)]),
                ..ObjectMeta::default()
            };
            create(&api, NODE_PLANNER, &config).await.map(|_| ())
        }
        ConfigAction::Apply { resource_version: Some(version), owner, labels, stale_labels, spec } => {
            let body = json!({
                "apiVersion": NodeModulesConfig::api_version(&()),
                "kind": NodeModulesConfig::kind(&()),
                "metadata": {
                    "name": name,
                    "resourceVersion": version,
                    "labels": labels,
                    "ownerReferences": [node_owner(name, owner)],
                },
                "spec": spec_body(spec),
            });
            let written = client::apply(&api, name, NODE_PLANNER, &body).await?;
            let kept = written.metadata.labels.unwrap_or_default();
            // Labels that another writer set are not removed by server-side apply.
            let left: Map<_, _> = stale_labels
                .iter()
                .filter(|key| kept.contains_key(*key))
                .map(|key| (key.clone(), Value::Null))
                .collect();
            if left.is_empty() {
                return Ok(());
            }
            merge(&api, name, NODE_PLANNER, &json!({ "metadata": { "labels": left } })).await.map(|_| ())
        }
    }
}

/// Both lists are always sent: an absent one would leave what another writer put there.
fn spec_body(spec: &NodeModulesConfigSpec) -> Value {
    let mut body = json!({ "modules": spec.modules, "unload": spec.unload });
    if let Some(runtime) = &spec.container_runtime {
        body["containerRuntime"] = json!(runtime);
    }
    body
}

fn node_owner(name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: Node::api_version(&()).into_owned(),
        kind: Node::kind(&()).into_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

async fn write_labels(client: &Client, name: &str, plan: &Plan) -> Result<(), ApiError> {
    let api: Api<Node> = Api::all(client.clone());
    let body = json!({ "metadata": { "labels": plan.labels } });
    match merge(&api, name, LABELS, &body).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}
