//! The status pass: does each applied object exist, and what does it say.

use std::sync::Arc;

use kube::api::ApiResource;
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::apply::Mapping;
use super::config::ResourceMeta;
use super::feedback;
use super::kinds::{condition_status, list, said, set_condition, to_json};
use super::work::WorkAgent;

/// Looks at every object of a work and writes what has changed; gives the work as written.
///
/// # Errors
/// What the hub said to the status.
pub async fn sync(agent: &WorkAgent, work: &Value, woken: &Arc<Notify>) -> Result<Option<Value>, kube::Error> {
    let mut manifests = list(work, "/status/resourceStatus/manifests").to_vec();
    if manifests.is_empty() {
        return Ok(None);
    }
    for entry in &mut manifests {
        look_at(agent, work, entry, woken).await;
    }
    let count = |status: &str| {
        manifests.iter().filter(|entry| condition_status(list(entry, "/conditions"), "Available") == status).count()
    };
    let (missing, unknown, all) = (count("False"), count("Unknown"), manifests.len());
    let (value, reason, message) = if missing > 0 {
        ("False", "ResourcesNotAvailable", format!("{missing} of {all} resources are not available"))
    } else if unknown > 0 {
        ("Unknown", "ResourcesStatusUnknown", format!("{unknown} of {all} resources have unknown status"))
    } else {
        ("True", "ResourcesAvailable", "All resources are available".to_owned())
    };
    let mut conditions = list(work, "/status/conditions").to_vec();
    set_condition(&mut conditions, "Available", value, reason, &message, work["metadata"]["generation"].as_i64());
    let mut status = work["status"].clone();
    status["conditions"] = json!(conditions);
    status["resourceStatus"]["manifests"] = json!(manifests);
    agent.write_status(work, status).await
}

async fn look_at(agent: &WorkAgent, work: &Value, entry: &mut Value, woken: &Arc<Notify>) {
    let meta = ResourceMeta::read(&entry["resourceMeta"]);
    let mut conditions = list(entry, "/conditions").to_vec();
    let mut available = |status: &str, reason: &str, message: &str| {
        set_condition(&mut conditions, "Available", status, reason, message, None);
    };
    if meta.resource.is_empty() || meta.version.is_empty() || meta.name.is_empty() {
        available("Unknown", "IncompleteResourceMeta", "Resource meta is incomplete");
        entry["conditions"] = json!(conditions);
        return;
    }
    let gvk = GroupVersionKind::gvk(&meta.group, &meta.version, &meta.kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, &meta.resource);
    let mapping = Mapping { resource, namespaced: !meta.namespace.is_empty() };
    let found = mapping.api(&agent.spoke, &meta.namespace).get_opt(&meta.name).await;
    let object = match found {
        Ok(Some(object)) => {
            available("True", "ResourceAvailable", "Resource is available");
            Some(to_json(&object))
        }
        Ok(None) => {
            available("False", "ResourceNotAvailable", "Resource is not available");
            None
        }
        Err(error) => {
            available("Unknown", "FetchingResourceFailed", &format!("Failed to fetch resource: {}", said(&error)));
            None
        }
    };
    if let Some(object) = object {
        give_feedback(agent, work, entry, &mut conditions, &meta, &object);
        if meta.is_watched(work) {
            agent.watches.ensure(&mapping.resource, &meta.namespace, &meta.name, woken);
        }
    }
    entry["conditions"] = json!(conditions);
}

fn give_feedback(
    agent: &WorkAgent,
    work: &Value,
    entry: &mut Value,
    conditions: &mut Vec<Value>,
    meta: &ResourceMeta,
    object: &Value,
) {
    let rules = meta.config(work, "feedbackRules").as_array().map_or(&[][..], Vec::as_slice);
    let result = feedback::evaluate(rules, object, agent.options.raw_feedback);
    let kind = "StatusFeedbackSynced";
    if rules.is_empty() {
        set_condition(conditions, kind, "True", "NoStatusFeedbackSynced", "", None);
    } else if result.errors.is_empty() {
        set_condition(conditions, kind, "True", "StatusFeedbackSynced", "", None);
    } else {
        let message = format!("Sync status feedback failed with error {}", result.errors.join(", "));
        set_condition(conditions, kind, "False", "StatusFeedbackSyncFailed", &message, None);
    }
    entry["statusFeedback"] = if result.values.is_empty() { json!({}) } else { json!({"values": result.values}) };
}
