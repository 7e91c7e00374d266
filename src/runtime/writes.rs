//! What this process writes to its API server: counted and timed, by verb, kind and result.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use super::durations::{Durations, durations};
use super::error::ApiError;

/// How something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verb {
    Apply,
    ApplyStatus,
    Create,
    Delete,
    Patch,
    PatchStatus,
    Replace,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::ApplyStatus => "apply_status",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Patch => "patch",
            Self::PatchStatus => "patch_status",
            Self::Replace => "replace",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    verb: &'static str,
    /// Of the few kinds that are written.
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    verb: &'static str,
    kind: String,
    result: &'static str,
}

#[derive(Debug)]
struct Writes {
    results: Family<ResultLabels, Counter>,
    durations: Durations<WriteLabels>,
}

/// Of the process, which has one API server: a call is a call, whoever makes it.
static WRITES: LazyLock<Writes> = LazyLock::new(|| Writes { results: Family::default(), durations: durations() });

/// Waits for a write and takes it down.
pub(super) async fn counted<T>(
    verb: Verb,
    kind: &str,
    call: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let begun = Instant::now();
    let result = call.await;
    count(verb, kind, &result, begun.elapsed());
    result
}

fn count<T>(verb: Verb, kind: &str, result: &Result<T, ApiError>, took: Duration) {
    let verb = verb.as_str();
    let result = match result {
        Ok(_) => "ok",
        Err(ApiError::Deadline { .. }) => "deadline",
        Err(error) if error.is_not_found() => "not_found",
        Err(error) => error.class().as_str(),
    };
    let kind = kind.to_owned();
    WRITES.durations.get_or_create(&WriteLabels { verb, kind: kind.clone() }).observe(took.as_secs_f64());
    WRITES.results.get_or_create(&ResultLabels { verb, kind, result }).inc();
}

pub(super) fn register(registry: &mut Registry) {
    let Writes { results, durations } = &*WRITES;
    registry.register("kmm_api_writes", "Writes to the API server, by verb, kind and result", results.clone());
    registry.register_with_unit(
        "kmm_api_write_duration",
        "Time until the API server had answered a write",
        Unit::Seconds,
        durations.clone(),
    );
}
