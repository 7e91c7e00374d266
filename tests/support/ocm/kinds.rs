//! The foreign kinds, untyped on purpose: the stand-in shares no type with the product, so it cannot
//! share a misunderstanding with it either.

use anyhow::{Context, Result};
use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, Error};
use serde_json::{Value, json};

pub const CLUSTER_GROUP: &str = "cluster.open-cluster-management.io";
pub const WORK_GROUP: &str = "work.open-cluster-management.io";
/// On a `ManifestWork`: held until everything that was applied is gone.
pub const WORK_FINALIZER: &str = "cluster.open-cluster-management.io/manifest-work-cleanup";
/// On an `AppliedManifestWork`: held until the objects that it lists are gone.
pub const APPLIED_FINALIZER: &str = "cluster.open-cluster-management.io/applied-manifest-work-cleanup";
/// On a `ManagedCluster`: held until its works are gone.
pub const CLUSTER_FINALIZER: &str = "cluster.open-cluster-management.io/api-resource-cleanup";

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

pub fn managed_clusters(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &resource(CLUSTER_GROUP, "v1", "ManagedCluster", "managedclusters"))
}

pub fn cluster_claims(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &resource(CLUSTER_GROUP, "v1alpha1", "ClusterClaim", "clusterclaims"))
}

/// The works of one cluster; its namespace has the cluster's name.
pub fn manifest_works(client: &Client, cluster: &str) -> Api<DynamicObject> {
    let resource = resource(WORK_GROUP, "v1", "ManifestWork", "manifestworks");
    Api::namespaced_with(client.clone(), cluster, &resource)
}

pub fn applied_manifest_works(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &resource(WORK_GROUP, "v1", "AppliedManifestWork", "appliedmanifestworks"))
}

/// Server-side apply as an administrator, of any object given as JSON.
pub async fn put(client: &Client, object: &Value) -> Result<DynamicObject> {
    let (api_version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
    let (group, version) = split_api_version(api_version);
    let plural = match kind {
        "NetworkPolicy" => "networkpolicies".to_owned(),
        kind => format!("{}s", kind.to_lowercase()),
    };
    let resource = resource(group, version, kind, &plural);
    let api: Api<DynamicObject> = match object.pointer("/metadata/namespace").and_then(Value::as_str) {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = text(object, "/metadata/name");
    let params = PatchParams::apply("ocm-test-bed").force();
    api.patch(name, &params, &Patch::Apply(object)).await.with_context(|| format!("{kind} {name} cannot be applied"))
}

/// Group (empty for the core group) and version.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// The string at a JSON pointer, empty if there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The list at a JSON pointer, empty if there is none.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub fn to_json(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

pub fn is_deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null())
}

pub fn has_finalizer(object: &Value, finalizer: &str) -> bool {
    list(object, "/metadata/finalizers").iter().any(|have| have == finalizer)
}

/// A merge patch that adds or removes one finalizer, tied to the version that was read.
pub fn finalizer_patch(object: &Value, finalizer: &str, wanted: bool) -> Value {
    let mut all: Vec<Value> =
        list(object, "/metadata/finalizers").iter().filter(|have| *have != finalizer).cloned().collect();
    if wanted {
        all.push(json!(finalizer));
    }
    json!({"metadata": {"finalizers": all, "resourceVersion": object["metadata"]["resourceVersion"]}})
}

/// Now, in the resolution that the API has for times.
pub fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Sets one condition by type; the transition time moves only with the status.
pub fn set_condition(
    conditions: &mut Vec<Value>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
) {
    let mut new =
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()});
    if let Some(generation) = generation {
        new["observedGeneration"] = json!(generation);
    }
    match conditions.iter_mut().find(|old| old["type"] == kind) {
        Some(old) => {
            if old["status"] == status {
                new["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// Status of a condition (`True`, `False`, `Unknown`), empty if the condition is not there.
pub fn condition_status<'a>(conditions: &'a [Value], kind: &str) -> &'a str {
    conditions.iter().find(|condition| condition["type"] == kind).map_or("", |condition| text(condition, "/status"))
}

/// What the API server said, without the client's wrapping.
pub fn said(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

pub fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

pub fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 409)
}
