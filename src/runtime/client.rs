//! Calls to the API server: every one with a deadline, every failure with what was tried, every write counted.

use std::fmt::Debug;
use std::time::Duration;

use kube::api::{DeleteParams, PartialObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use super::error::{ApiError, Class, chain};
use super::writes::{Verb, counted};

/// Longest time that one call may take, retries of the client included.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for a call at most [`DEADLINE`]; `action` completes "failed to …".
pub async fn within<T>(
    action: impl FnOnce() -> String,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiError> {
    within_time(DEADLINE, action, call).await
}

pub(super) async fn within_time<T>(
    after: Duration,
    action: impl FnOnce() -> String,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(after, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(ApiError::Call { action: action(), source: Box::new(source) }),
        Err(_) => Err(ApiError::Deadline { action: action(), after }),
    }
}

pub(super) fn kind<K: Resource>() -> String
where
    K::DynamicType: Default,
{
    K::kind(&K::DynamicType::default()).into_owned()
}

/// Waits for a write and counts it; `what` names the object or a part of it.
async fn write<K, T>(
    verb: Verb,
    what: impl FnOnce(&str) -> String,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiError>
where
    K: Resource,
    K::DynamicType: Default,
{
    let kind = kind::<K>();
    counted(verb, &kind, within(|| what(&kind), call)).await
}

/// Server-side apply of `body` (a complete apply configuration) with force. Of the object, which can be large and which a
/// watch brings anyway, only the metadata comes back.
///
/// Fields that `manager` owned before and that `body` lacks are removed by the server.
pub async fn apply<K, B>(api: &Api<K>, name: &str, manager: &str, body: &B) -> Result<PartialObjectMeta<K>, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
    B: Serialize + Debug,
{
    apply_with(api, name, &PatchParams::apply(manager).force(), body).await
}

/// As [`apply`], but a field that somebody else has set to another value is a conflict and nothing is written.
pub async fn apply_unless_taken<K, B>(
    api: &Api<K>,
    name: &str,
    manager: &str,
    body: &B,
) -> Result<PartialObjectMeta<K>, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
    B: Serialize + Debug,
{
    apply_with(api, name, &PatchParams::apply(manager), body).await
}

async fn apply_with<K, B>(
    api: &Api<K>,
    name: &str,
    params: &PatchParams,
    body: &B,
) -> Result<PartialObjectMeta<K>, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
    B: Serialize + Debug,
{
    let patch = Patch::Apply(body);
    let call = api.patch_metadata(name, params, &patch);
    write::<K, _>(Verb::Apply, |kind| format!("apply {kind} {name}"), call).await
}

/// Server-side apply of the status subresource with force.
pub async fn apply_status<K, B>(api: &Api<K>, name: &str, manager: &str, body: &B) -> Result<K, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
    B: Serialize + Debug,
{
    let (params, patch) = (PatchParams::apply(manager).force(), Patch::Apply(body));
    let call = api.patch_status(name, &params, &patch);
    write::<K, _>(Verb::ApplyStatus, |kind| format!("apply the status of {kind} {name}"), call).await
}

/// JSON merge patch; for labels and annotations of objects that belong to others. The metadata comes back.
pub async fn merge<K, B>(api: &Api<K>, name: &str, manager: &str, body: &B) -> Result<PartialObjectMeta<K>, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
    B: Serialize + Debug,
{
    let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(body);
    let call = api.patch_metadata(name, &params, &patch);
    write::<K, _>(Verb::Patch, |kind| format!("patch {kind} {name}"), call).await
}

/// JSON merge patch of the status subresource; for what another writer left in a status of ours.
pub async fn merge_status<K, B>(api: &Api<K>, name: &str, manager: &str, body: &B) -> Result<K, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
    B: Serialize + Debug,
{
    let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(body);
    let call = api.patch_status(name, &params, &patch);
    write::<K, _>(Verb::PatchStatus, |kind| format!("patch the status of {kind} {name}"), call).await
}

/// JSON patch; for a change that must find what it was planned from, by `test` operations. The metadata comes back.
///
/// # Errors
/// As any call; a test that does not hold is [`Class::Invalid`]. [`ApiError::Operations`] if `operations` is no JSON patch.
pub async fn json_patch<K>(
    api: &Api<K>,
    name: &str,
    manager: &str,
    operations: serde_json::Value,
) -> Result<PartialObjectMeta<K>, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    let operations = serde_json::from_value(operations).map_err(|source| ApiError::Operations { source })?;
    let patch = Patch::Json::<()>(operations);
    let call = api.patch_metadata(name, &params, &patch);
    write::<K, _>(Verb::Patch, |kind| format!("patch {kind} {name}"), call).await
}

/// Creates the object; one that exists is a conflict.
pub async fn create<K>(api: &Api<K>, manager: &str, object: &K) -> Result<K, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug + Serialize,
    K::DynamicType: Default,
{
    let params = PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() };
    let name = object.meta().name.as_deref().unwrap_or_default();
    write::<K, _>(Verb::Create, |kind| format!("create {kind} {name}"), api.create(&params, object)).await
}

/// Writes the whole object anew; one that has another version by now is a conflict.
pub async fn replace<K>(api: &Api<K>, name: &str, manager: &str, object: &K) -> Result<K, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug + Serialize,
    K::DynamicType: Default,
{
    let params = PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() };
    write::<K, _>(Verb::Replace, |kind| format!("replace {kind} {name}"), api.replace(name, &params, object)).await
}

/// Deletes the object if it is still the one with this uid; one that is gone or replaced is left alone.
pub async fn delete<K>(api: &Api<K>, name: &str, uid: &str) -> Result<(), ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    match delete_if(api, name, Preconditions { uid: Some(uid.to_owned()), resource_version: None }).await {
        Err(error) if error.class() == Class::Conflict => Ok(()),
        result => result,
    }
}

/// Deletes the object if it is still the one with this uid, in this version; one that was changed is a conflict, one that is
/// gone is left alone.
pub async fn delete_unchanged<K>(api: &Api<K>, name: &str, uid: &str, version: &str) -> Result<(), ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: Some(version.to_owned()) };
    delete_if(api, name, preconditions).await
}

async fn delete_if<K>(api: &Api<K>, name: &str, preconditions: Preconditions) -> Result<(), ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let params = DeleteParams::background().preconditions(preconditions);
    match write::<K, _>(Verb::Delete, |kind| format!("delete {kind} {name}"), api.delete(name, &params)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn a_chain_tells_what_was_tried_and_the_servers_words_once() {
        let status = Status::failure("roles is forbidden", "Forbidden").with_code(403);
        let error =
            ApiError::Call { action: "list roles".into(), source: Box::new(kube::Error::Api(Box::new(status))) };
        assert_eq!(chain(&error), "failed to list roles: roles is forbidden");
        assert_eq!(error.class(), Class::Denied);
    }

    #[tokio::test(start_paused = true)]
    async fn every_write_is_counted_with_what_became_of_it_and_nothing_waits_for_ever() {
        use axum::Router;
        use axum::http::{Method, StatusCode, Uri};
        use k8s_openapi::api::core::v1::Service;
        use serde_json::json;

        let server = Router::new().fallback(|method: Method, uri: Uri| async move {
            let name = uri.path().trim_end_matches("/status").rsplit('/').next().unwrap().to_owned();
            match name.as_str() {
                "stalls" => std::future::pending().await,
                "taken" => (StatusCode::CONFLICT, r#"{"kind":"Status","code":409}"#.to_owned()),
                "gone" => (StatusCode::NOT_FOUND, r#"{"kind":"Status","code":404}"#.to_owned()),
                _ if method == Method::DELETE => (StatusCode::OK, r#"{"kind":"Status","status":"Success"}"#.to_owned()),
                _ => (StatusCode::OK, format!(r#"{{"metadata":{{"name":"{name}","resourceVersion":"7"}}}}"#)),
            }
        });
        let api: Api<Service> = Api::default_namespaced(kube::Client::new(server, "default"));
        let body = json!({});
        for name in ["there", "taken", "gone", "stalls"] {
            let results = [
                apply(&api, name, "m", &body).await.map(drop),
                apply_unless_taken(&api, name, "m", &body).await.map(drop),
                apply_status(&api, name, "m", &body).await.map(drop),
                merge(&api, name, "m", &body).await.map(drop),
                merge_status(&api, name, "m", &body).await.map(drop),
                json_patch(&api, name, "m", json!([{"op": "remove", "path": "/data"}])).await.map(drop),
                delete(&api, name, "u").await,
                delete_unchanged(&api, name, "u", "7").await,
            ];
            assert_eq!(results.iter().all(Result::is_ok), name == "there", "{results:?}");
        }
        assert!(json_patch(&api, "there", "m", json!([{"op": "no such"}])).await.is_err());
        let object = Service::default();
        create(&api, "m", &object).await.unwrap();
        replace(&api, "there", "m", &object).await.unwrap();
        let text = crate::runtime::metrics::Metrics::default().encode().unwrap();
        let counted = |verb: &str, result: &str| {
            let line = format!("kmm_api_writes_total{{verb=\"{verb}\",kind=\"Service\",result=\"{result}\"}} ");
            text.lines().find_map(|metric| metric.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
        };
        for (verb, calls) in [("apply", 2), ("apply_status", 1), ("patch", 2), ("patch_status", 1), ("delete", 2)] {
            for result in ["ok", "conflict", "not_found", "deadline"] {
                assert_eq!(counted(verb, result), calls, "{verb} {result}\n{text}");
            }
        }
        assert_eq!((counted("create", "ok"), counted("replace", "ok")), (1, 1));
    }
}
