//! What every long-running command is to the world: its client, its name, its exit codes.

use std::io::Write;
use std::process::ExitCode;

use kube::Client;

/// The API server cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("failed to find the API server: neither a ServiceAccount nor a kubeconfig (KUBECONFIG) can be used")]
    Config(#[source] Box<kube::config::InferConfigError>),
    #[error("failed to set up the client of the API server")]
    Client(#[source] Box<kube::Error>),
}

/// A client for the ServiceAccount of this pod, or for the current context of the kubeconfig.
pub(super) async fn client() -> Result<Client, ClientError> {
    let config = kube::Config::infer().await.map_err(|source| ClientError::Config(Box::new(source)))?;
    Client::try_from(config).map_err(|source| ClientError::Client(Box::new(source)))
}

/// Name of this replica or node process: the pod's name, else the host's.
pub(super) fn instance(pod_name: Option<String>) -> String {
    let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    pod_name.filter(|name| !name.is_empty()).or_else(host).unwrap_or_else(|| "kmm".to_owned())
}

/// Exit code for arguments that do not fit, as clap has it.
pub(super) const EXIT_USAGE: u8 = 2;
/// Exit code for everything that failed later.
pub(super) const EXIT_FAILURE: u8 = 1;

/// Tells the person at the terminal; the log may not be set up yet.
pub(super) fn fail(code: u8, message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "kmm: {message}");
    ExitCode::from(code)
}
