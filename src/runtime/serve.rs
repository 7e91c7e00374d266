//! The HTTP server for probes and metrics.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use super::readiness::Readiness;

/// The server could not listen or broke.
#[derive(Debug, thiserror::Error)]
#[error("failed to serve probes and metrics on {address}")]
pub struct Error {
    /// Where it was to listen.
    pub address: SocketAddr,
    /// What the system said.
    #[source]
    pub source: std::io::Error,
}

/// How often a port that another process has is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// Serves `/healthz` (the process runs), `/readyz` (200, or 503 naming what is missing, one a line) and
/// `/metrics` until `shutdown`. A port that another process has is waited for as long as `patience`.
pub async fn serve(
    address: SocketAddr,
    patience: Duration,
    readiness: Readiness,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let failed = |source| Error { address, source };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(render).with_state(metrics));
    let begun = Instant::now();
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < patience => {
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    () = tokio::time::sleep(AGAIN) => {}
                }
            }
            Err(error) => return Err(failed(error)),
        }
    };
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await.map_err(failed)
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let missing = readiness.missing();
    if missing.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let lines: Vec<_> = missing.iter().map(|(name, reason)| format!("waiting for {name}: {reason}")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n")
}

async fn render(State(metrics): State<Metrics>) -> Result<([(&'static str, &'static str); 1], String), StatusCode> {
    let text = metrics.encode().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}
