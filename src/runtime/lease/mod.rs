//! Leader election over a Lease, by the protocol of client-go: of two replicas at most one leads at any moment.
//!
//! A holder that cannot renew stops by its own clock before any other one may begin by its own. Every write carries the version
//! of the lease that it was decided from, so one that arrives late changes nothing. What a leader had begun to write when it
//! stopped may still arrive after the next one has begun: therefore writes are idempotent, and carry what they were planned from.

mod candidate;
#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::client::{ApiError, Class, chain, within_time};
use super::readiness::Gate;
use super::writes::{Verb, counted};
use candidate::{Candidate, STOP, held};

/// How often a holder renews, and how often others look.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest wait for one answer: after two that did not come, there is time for a third try.
const ANSWER: Duration = Duration::from_secs(2);
/// Pause after a try that failed.
const AGAIN: Duration = Duration::from_millis(500);

/// The lease was lost.
#[derive(Debug, thiserror::Error)]
#[error("the lease {namespace}/{name} was lost: another replica took it, or it could not be renewed in time")]
pub struct Lost {
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub name: String,
}

/// Waits for the lease, runs `work`, and releases the lease after an orderly shutdown.
///
/// `identity` is the pod's name: a process that begins anew in its pod leads on at once. A replica that waits counts as ready
/// (`gate`), so that a rolling update can go on.
///
/// # Errors
/// The lease was lost. `work` was dropped then, before any other replica may begin; the process must end.
pub async fn lead<F>(
    client: Client,
    namespace: &str,
    name: &str,
    identity: &str,
    gate: Gate,
    shutdown: CancellationToken,
    work: F,
) -> Result<(), Lost>
where
    F: Future<Output = ()>,
{
    let lock = Lock { api: Api::namespaced(client, namespace), name, identity };
    info!(lease = name, identity, "waiting for the lease");
    let mut term = tokio::select! {
        term = lock.acquire(&gate) => term,
        () = shutdown.cancelled() => return Ok(()),
    };
    info!(lease = name, identity, "leading");
    tokio::select! {
        () = work => {}
        () = lock.hold(&mut term) => return Err(Lost { namespace: namespace.to_owned(), name: name.to_owned() }),
    }
    lock.release(&term).await;
    Ok(())
}

/// A lease, to be had by one.
struct Lock<'a> {
    api: Api<Lease>,
    name: &'a str,
    identity: &'a str,
}

/// What a holder knows of its lease.
struct Term {
    version: String,
    spec: LeaseSpec,
    /// When the last renewal that the server took was sent: whoever sees it, sees it later.
    renewed: Instant,
}

impl Lock<'_> {
    async fn acquire(&self, gate: &Gate) -> Term {
        let (mut candidate, mut told) = (Candidate::new(self.identity), String::new());
        loop {
            match self.try_acquire(&mut candidate, gate).await {
                Ok(Some(term)) => return term,
                Ok(None) => told.clear(),
                Err(error) => {
                    let text = chain(&error);
                    if text != told {
                        warn!(lease = self.name, error = %text, "the lease cannot be had, trying again");
                    }
                    gate.waiting(text.clone());
                    told = text;
                }
            }
            sleep(PERIOD).await;
        }
    }

    async fn try_acquire(&self, candidate: &mut Candidate, gate: &Gate) -> Result<Option<Term>, ApiError> {
        let lease = self.read().await?;
        gate.open();
        let sent = Instant::now();
        let (version, before) = match lease {
            Some(lease) => (Some(lease.metadata.resource_version.unwrap_or_default()), lease.spec.unwrap_or_default()),
            None => (None, LeaseSpec::default()),
        };
        if !candidate.may_take(&before, sent) {
            return Ok(None);
        }
        let spec = held(&before, self.identity, Timestamp::now());
        match self.write(version.as_deref(), &spec).await {
            Ok(version) => Ok(Some(Term { version, spec, renewed: sent })),
            // Another one was faster.
            Err(error) if error.class() == Class::Conflict => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Renews until the lease is another's, or could not be renewed for [`STOP`].
    async fn hold(&self, term: &mut Term) {
        loop {
            sleep_until(term.renewed + PERIOD).await;
            let stop = term.renewed + STOP;
            let renewed = tokio::select! {
                biased;
                () = sleep_until(stop) => false,
                renewed = self.renew(term) => renewed,
            };
            if !renewed {
                return;
            }
        }
    }

    /// Tries until the lease is renewed (true) or another's (false).
    async fn renew(&self, term: &mut Term) -> bool {
        loop {
            let sent = Instant::now();
            let spec = held(&term.spec, self.identity, Timestamp::now());
            match self.write(Some(&term.version), &spec).await {
                Ok(version) => {
                    *term = Term { version, spec, renewed: sent };
                    return true;
                }
                Err(error) if error.class() == Class::Conflict => match self.read().await {
                    Ok(found) => {
                        let Some(version) = found.and_then(|lease| self.version_if_ours(lease)) else { return false };
                        // A renewal whose answer was lost, or somebody changed something else of it.
                        term.version = version;
                    }
                    Err(error) => warn!(lease = self.name, error = %chain(&error), "not renewed, trying again"),
                },
                Err(error) if error.is_not_found() => return false,
                Err(error) => warn!(lease = self.name, error = %chain(&error), "not renewed, trying again"),
            }
            sleep(AGAIN).await;
        }
    }

    fn version_if_ours(&self, lease: Lease) -> Option<String> {
        let holder = lease.spec.and_then(|spec| spec.holder_identity);
        lease.metadata.resource_version.filter(|_| holder.as_deref() == Some(self.identity))
    }

    /// Lets the next replica begin at once. Where that fails, it waits until the lease is not valid any more.
    async fn release(&self, term: &Term) {
        let spec = LeaseSpec { lease_transitions: term.spec.lease_transitions, ..LeaseSpec::default() };
        let mut result = self.write(Some(&term.version), &spec).await;
        // A renewal may have been under way when the work ended.
        if result.as_ref().is_err_and(|error| error.class() == Class::Conflict)
            && let Ok(Some(found)) = self.read().await
        {
            let Some(version) = self.version_if_ours(found) else { return };
            result = self.write(Some(&version), &spec).await;
        }
        if let Err(error) = result {
            warn!(lease = self.name, error = %chain(&error), "lease not released");
        }
    }

    async fn read(&self) -> Result<Option<Lease>, ApiError> {
        within_time(ANSWER, || format!("read Lease {}", self.name), self.api.get_opt(self.name)).await
    }

    /// Writes the lease if it is still of this version, or makes it if there was none; returns its new version.
    async fn write(&self, version: Option<&str>, spec: &LeaseSpec) -> Result<String, ApiError> {
        let written = if let Some(version) = version {
            let body = json!({
                "metadata": { "resourceVersion": version },
                "spec": {
                    "holderIdentity": spec.holder_identity,
                    "leaseDurationSeconds": spec.lease_duration_seconds,
                    "acquireTime": spec.acquire_time,
                    "renewTime": spec.renew_time,
                    "leaseTransitions": spec.lease_transitions,
                },
            });
            let (params, patch) = (PatchParams::default(), Patch::Merge(body));
            let call = self.api.patch(self.name, &params, &patch);
            let action = || format!("write Lease {}", self.name);
            counted(Verb::Patch, "Lease", within_time(ANSWER, action, call)).await?
        } else {
            let metadata = ObjectMeta { name: Some(self.name.to_owned()), ..ObjectMeta::default() };
            let (params, lease) = (PostParams::default(), Lease { metadata, spec: Some(spec.clone()) });
            let call = self.api.create(&params, &lease);
            let action = || format!("create Lease {}", self.name);
            counted(Verb::Create, "Lease", within_time(ANSWER, action, call)).await?
        };
        Ok(written.metadata.resource_version.unwrap_or_default())
    }
}
