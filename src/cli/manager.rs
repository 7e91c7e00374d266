//! `kmm manager`.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::{EXIT_USAGE, LogArgs, Usage, fail};

#[derive(Args, Debug)]
pub(super) struct ManagerArgs {
    /// What this cluster is; standalone unless KMM_MANAGED is true
    #[arg(long, env = "KMM_MODE", value_enum)]
    mode: Option<Mode>,
    /// Whether a Hub manages this cluster: true means `--mode spoke`
    #[arg(long, env = "KMM_MANAGED", value_name = "BOOL")]
    managed: Option<String>,
    /// Namespace of this manager: its lease, the worker DaemonSet, on a Hub also images and pull secrets
    #[arg(long, env = "OPERATOR_NAMESPACE")]
    operator_namespace: String,
    /// Image of the worker; the image of the manager's own pod if empty
    #[arg(long, env = "RELATED_IMAGE_WORKER")]
    worker_image: Option<String>,
    /// ServiceAccount of the worker, in the operator namespace
    #[arg(long, env = "WORKER_SERVICE_ACCOUNT", default_value = "kmm-operator-worker")]
    worker_service_account: String,
    /// Name of this replica: holder of the lease, and the pod whose image the worker runs from
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, env = "KMM_HEALTH_ADDRESS", default_value = "0.0.0.0:8081")]
    health_address: SocketAddr,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Gives modules to the clusters of a fleet; loads none
    Hub,
    /// Loads modules that a Hub sends, and tells the Hub this cluster's kernels
    Spoke,
    /// A cluster without a Hub
    Standalone,
}

/// The values that Go's `strconv.ParseBool` knows: existing installations set them.
fn parse_bool(value: &str) -> Result<bool, Usage> {
    match value {
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        other => Err(Usage(format!("KMM_MANAGED (--managed) is `{other}`; write 1 or true on a Spoke, 0 or false elsewhere"))),
    }
}

/// Flag or variable, either is enough; both may be given if they agree.
fn mode(mode: Option<Mode>, managed: Option<&str>) -> Result<Mode, Usage> {
    let managed = managed.map(parse_bool).transpose()?;
    match (mode, managed) {
        (None, Some(true)) | (Some(Mode::Spoke), _) if managed != Some(false) => Ok(Mode::Spoke),
        (Some(Mode::Spoke), Some(false)) => {
            Err(Usage("--mode spoke (KMM_MODE) and KMM_MANAGED=0 disagree; drop one of them".to_owned()))
        }
        (Some(other), Some(true)) => {
            let name = if other == Mode::Hub { "hub" } else { "standalone" };
            Err(Usage(format!("--mode {name} (KMM_MODE) and KMM_MANAGED=1 disagree: a managed cluster is a Spoke; drop one of them")))
        }
        (mode, _) => Ok(mode.unwrap_or(Mode::Standalone)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_or_variable_is_enough_and_a_contradiction_is_an_error() {
        let table = [
            (None, None, Ok(Mode::Standalone)),
            (None, Some("0"), Ok(Mode::Standalone)),
            (None, Some(""), Ok(Mode::Standalone)),
            (None, Some("1"), Ok(Mode::Spoke)),
            (None, Some("True"), Ok(Mode::Spoke)),
            (Some(Mode::Spoke), None, Ok(Mode::Spoke)),
            (Some(Mode::Spoke), Some("t"), Ok(Mode::Spoke)),
            (Some(Mode::Spoke), Some("false"), Err(())),
            (Some(Mode::Hub), None, Ok(Mode::Hub)),
            (Some(Mode::Hub), Some("0"), Ok(Mode::Hub)),
            (Some(Mode::Hub), Some("1"), Err(())),
            (Some(Mode::Standalone), Some("1"), Err(())),
            (None, Some("yes"), Err(())),
        ];
        for (flag, variable, expected) in table {
            assert_eq!(mode(flag, variable).map_err(|_| ()), expected, "{flag:?} {variable:?}");
        }
    }
}
