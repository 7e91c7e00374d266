//! Leader election over a Lease.
//!
//! A lease is not a fence: what keeps two managers from harming each other is that every write is
//! idempotent and owned by one field manager. The lease only saves the double work.

use kube::Client;
use kube_lease_manager::{LeaseManagerBuilder, LeaseManagerError};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::readiness::Gate;

/// Seconds that a lease is valid after its last renewal.
const DURATION_SECS: u64 = 15;
/// Seconds before the end of validity at which the holder renews.
const GRACE_SECS: u64 = 5;

/// The lease could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Lease object cannot be read or made.
    #[error("failed to set up the lease {namespace}/{name}")]
    SetUp {
        /// Namespace of the lease.
        namespace: String,
        /// Name of the lease.
        name: String,
        /// What came back.
        #[source]
        source: Box<LeaseManagerError>,
    },
    /// Another replica took over, or renewals failed for too long.
    #[error("the lease {namespace}/{name} was lost")]
    Lost {
        /// Namespace of the lease.
        namespace: String,
        /// Name of the lease.
        name: String,
    },
}

/// Waits for the lease, runs `work`, and releases the lease after an orderly shutdown.
///
/// A replica that waits counts as ready (`gate`), so that a rolling update can go on. When the lease is
/// lost, `work` is cancelled and [`Error::Lost`] is returned: the process must end.
pub async fn lead<F>(
    client: Client,
    namespace: &str,
    name: &str,
    identity: &str,
    gate: Gate,
    shutdown: CancellationToken,
    work: F,
) -> Result<(), Error>
where
    F: Future<Output = ()>,
{
    let set_up = |source| Error::SetUp { namespace: namespace.into(), name: name.into(), source: Box::new(source) };
    let manager = LeaseManagerBuilder::new(client, name)
        .with_namespace(namespace)
        .with_identity(identity)
        .with_duration(DURATION_SECS)
        .with_grace(GRACE_SECS)
        .build()
        .await
        .map_err(set_up)?;
    let (mut leading, task) = manager.watch().await;
    gate.open();
    info!(lease = name, identity, "waiting for the lease");
    let led = tokio::select! {
        held = leading.wait_for(|held| *held) => held.is_ok(),
        () = shutdown.cancelled() => false,
    };
    let mut result = Ok(());
    if led {
        info!(lease = name, identity, "leading");
        let lost = Error::Lost { namespace: namespace.into(), name: name.into() };
        tokio::select! {
            () = work => {}
            _ = leading.wait_for(|held| !*held) => result = Err(lost),
        }
    }
    drop(leading);
    // The watching task ends once nobody listens and releases the lease, so that the next replica need
    // not wait for it to expire.
    match tokio::time::timeout(std::time::Duration::from_secs(5), task).await {
        Ok(Ok(Ok(manager))) => {
            if let Err(error) = manager.release().await {
                warn!(lease = name, %error, "lease not released");
            }
        }
        Ok(Ok(Err(error))) => warn!(lease = name, %error, "lease not released"),
        Ok(Err(_)) | Err(_) => warn!(lease = name, "lease not released in time"),
    }
    result
}
