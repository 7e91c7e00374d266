//! The bare client: writes given objects and does nothing else.

use std::time::Instant;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::Value;

use crate::IN_FLIGHT;

/// One write: the kind, namespace (empty for cluster-scoped kinds), name, and the patch.
#[derive(Clone)]
pub(crate) struct Write {
    pub kind: ApiResource,
    pub namespace: String,
    pub name: String,
    pub patch: Patch<Value>,
}

/// Seconds that all writes take with [`IN_FLIGHT`] of them under way.
pub(crate) async fn time(client: &Client, writes: Vec<Write>) -> Result<f64> {
    let params = |patch: &Patch<Value>| match patch {
        Patch::Apply(_) => PatchParams::apply("bare").force(),
        _ => PatchParams { field_manager: Some("bare".into()), ..PatchParams::default() },
    };
    let started = Instant::now();
    stream::iter(writes)
        .map(|write| async move {
            let api: Api<DynamicObject> = if write.namespace.is_empty() {
                Api::all_with(client.clone(), &write.kind)
            } else {
                Api::namespaced_with(client.clone(), &write.namespace, &write.kind)
            };
            api.patch(&write.name, &params(&write.patch), &write.patch).await.map(drop)
        })
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<()>()
        .await?;
    Ok(started.elapsed().as_secs_f64())
}

/// An object as an apply configuration: without what only the server writes, under another name.
pub(crate) fn configuration(mut object: Value, name: &str) -> Value {
    if let Some(root) = object.as_object_mut() {
        root.remove("status");
    }
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.retain(|key, _| matches!(key.as_str(), "labels" | "annotations" | "namespace" | "ownerReferences"));
        meta.insert("name".into(), name.into());
    }
    object
}
