//! Carries out the plan for a node.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Api, Client, Resource};
use serde_json::{Map, Value, json};

use crate::api::names::field_manager::{LABELS, NODE_PLANNER};
use crate::api::{NodeModulesConfig, NodeModulesConfigSpec};
use crate::runtime::client::{self, ApiError, create, delete_unchanged, merge};

use super::plan::{ConfigAction, Plan};

/// Writes what the plan says. The labels come first: no pod that needs one is placed any more when a worker hears of an
/// order. Without them no order is given; else a failure of one object does not keep the other from being written.
pub(super) async fn apply(client: &Client, name: &str, plan: &Plan) -> Result<(), ApiError> {
    let labels = if plan.labels.is_empty() { Ok(()) } else { write_labels(client, name, plan).await };
    if labels.is_err() && orders(&plan.config) {
        return labels;
    }
    let config = write_config(client, name, &plan.config).await;
    config.and(labels)
}

fn orders(action: &ConfigAction) -> bool {
    matches!(action, ConfigAction::Apply { spec, .. } if !spec.unload.is_empty())
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
    // The uid makes the server refuse where another Node has taken the name: labels are a memory of what was loaded.
    let body = json!({ "metadata": { "uid": plan.node, "labels": plan.labels } });
    match merge(&api, name, LABELS, &body).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::to_bytes;
    use axum::extract::Request;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;

    use super::*;
    use crate::api::UnloadIntent;

    #[tokio::test]
    async fn no_order_is_given_while_the_label_that_pods_need_cannot_be_taken_and_labels_are_those_of_one_node() {
        for (unload, written) in [(vec![UnloadIntent::default()], 0), (vec![], 1)] {
            let asked = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&asked);
            let server = Router::new().fallback(move |request: Request| {
                let seen = Arc::clone(&seen);
                async move {
                    let path = request.uri().path().to_owned();
                    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
                    let body: Value = serde_json::from_slice(&body).unwrap();
                    let refused = path.ends_with("/nodes/n");
                    seen.lock().unwrap().push((path, body));
                    let status = if refused { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
                    let object = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "n"}});
                    (status, object.to_string()).into_response()
                }
            });
            let plan = Plan {
                config: ConfigAction::Apply {
                    resource_version: Some("1".into()),
                    owner: "node-uid".into(),
                    labels: std::collections::BTreeMap::new(),
                    stale_labels: vec![],
                    spec: NodeModulesConfigSpec { unload, ..NodeModulesConfigSpec::default() },
                },
                node: "node-uid".into(),
                labels: [("a".to_owned(), None)].into(),
                outcomes: None,
            };
            apply(&Client::new(server, "default"), "n", &plan).await.expect_err("the label was not taken");
            let asked = asked.lock().unwrap();
            assert_eq!(asked.iter().filter(|(path, _)| path.contains("nodemodulesconfigs")).count(), written);
            assert_eq!(asked[0].1, json!({"metadata": {"uid": "node-uid", "labels": {"a": null}}}));
        }
    }
}
