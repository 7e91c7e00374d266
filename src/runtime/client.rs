//! Calls to the API server: every one with a deadline, every failure with what was tried.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::time::Duration;

use kube::api::{DeleteParams, PartialObjectMeta, Patch, PatchParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest time that one call may take, retries of the client included.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How to go on after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Somebody else changed the object first: look again at once.
    Conflict,
    /// May pass by itself: retry with backoff.
    Transient,
    /// The server refuses what we sent: retrying alone will not help, though the backoff goes on, since
    /// a changed CRD or policy is not seen by any watch.
    Invalid,
    /// Not allowed: rights are missing.
    Denied,
}

impl Class {
    /// Label value for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Transient => "transient",
            Self::Invalid => "invalid",
            Self::Denied => "denied",
        }
    }
}

/// A failed call to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The server answered with an error, or could not be reached.
    #[error("failed to {action}")]
    Call {
        /// What was tried, with the object's name.
        action: String,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("failed to {action}: no answer from the API server within {} s", DEADLINE.as_secs())]
    Deadline {
        /// What was tried, with the object's name.
        action: String,
    },
}

impl ApiError {
    /// How to go on.
    pub fn class(&self) -> Class {
        match self {
            Self::Deadline { .. } => Class::Transient,
            Self::Call { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    409 => Class::Conflict,
                    401 | 403 => Class::Denied,
                    400 | 413 | 415 | 422 => Class::Invalid,
                    _ => Class::Transient,
                },
                _ => Class::Transient,
            },
        }
    }

    /// Whether the server said that the object (or its kind) does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { source, .. } if matches!(source.as_ref(), kube::Error::Api(status) if status.code == 404))
    }

    /// The server's own words, for a condition's message.
    pub fn reason(&self) -> String {
        match self {
            Self::Deadline { .. } => self.to_string(),
            Self::Call { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => status.message.clone(),
                other => other.to_string(),
            },
        }
    }
}

/// An error with its sources, without repeating a source whose text the error already holds.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        // Where the server answered, its own words are enough: kube shows the whole answer, and that twice.
        let answer = answer(error);
        let words = answer.map_or_else(|| error.to_string(), |status| status.message.clone());
        if text.is_empty() {
            text = words;
        } else if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = if answer.is_some() { None } else { error.source() };
    }
    text
}

fn answer<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a kube::core::Status> {
    let boxed = || error.downcast_ref::<Box<kube::Error>>().map(Box::as_ref);
    match error.downcast_ref::<kube::Error>().or_else(boxed) {
        Some(kube::Error::Api(status)) => Some(status),
        _ => None,
    }
}

/// Waits for a call at most [`DEADLINE`]; `action` completes "failed to …".
pub async fn within<T>(
    action: impl FnOnce() -> String,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(ApiError::Call { action: action(), source: Box::new(source) }),
        Err(_) => Err(ApiError::Deadline { action: action() }),
    }
}

fn kind<K: Resource>() -> String
where
    K::DynamicType: Default,
{
    K::kind(&K::DynamicType::default()).into_owned()
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
    within(|| format!("apply {} {name}", kind::<K>()), api.patch_metadata(name, params, &Patch::Apply(body))).await
}

/// Server-side apply of the status subresource with force.
pub async fn apply_status<K, B>(api: &Api<K>, name: &str, manager: &str, body: &B) -> Result<K, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
    B: Serialize + Debug,
{
    let params = PatchParams::apply(manager).force();
    within(
        || format!("apply the status of {} {name}", kind::<K>()),
        api.patch_status(name, &params, &Patch::Apply(body)),
    )
    .await
}

/// JSON merge patch; for labels and annotations of objects that belong to others. The metadata comes back.
pub async fn merge<K, B>(api: &Api<K>, name: &str, manager: &str, body: &B) -> Result<PartialObjectMeta<K>, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
    B: Serialize + Debug,
{
    let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    within(|| format!("patch {} {name}", kind::<K>()), api.patch_metadata(name, &params, &Patch::Merge(body))).await
}

/// JSON merge patch of the status subresource; for what another writer left in a status of ours.
pub async fn merge_status<K, B>(api: &Api<K>, name: &str, manager: &str, body: &B) -> Result<K, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
    B: Serialize + Debug,
{
    let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    within(
        || format!("patch the status of {} {name}", kind::<K>()),
        api.patch_status(name, &params, &Patch::Merge(body)),
    )
    .await
}

/// Deletes the object if it is still the one with this uid; one that is gone or replaced is left alone.
pub async fn delete<K>(api: &Api<K>, name: &str, uid: &str) -> Result<(), ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let params = DeleteParams::background()
        .preconditions(kube::api::Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    match within(|| format!("delete {} {name}", kind::<K>()), api.delete(name, &params)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.class() == Class::Conflict => Ok(()),
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
}
