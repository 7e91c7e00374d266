//! Options that several commands have, and the settings that they stand for.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use crate::oci::route::proxies::Proxies;
use crate::runtime::telemetry::{self, Format};
use crate::worker::NodeCredentialSettings;

/// Options of every long-running command.
#[derive(Args, Debug)]
pub(super) struct LogArgs {
    /// Form of the log on standard error
    #[arg(long, env = "KMM_LOG_FORMAT", value_enum, default_value = "json")]
    log_format: LogFormat,
    /// What is logged, for instance `info` or `info,kmm::hub=debug`
    #[arg(long, env = "KMM_LOG", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogFormat {
    Json,
    Text,
}

impl LogArgs {
    pub(super) fn init(&self) -> Result<(), Usage> {
        let format = match self.log_format {
            LogFormat::Json => Format::Json,
            LogFormat::Text => Format::Text,
        };
        telemetry::init(format, &self.log).map_err(|error| {
            Usage(format!("--log (KMM_LOG) `{}`: {error}; write for instance `info,kube=warn`", self.log))
        })
    }
}

/// Proxies on the way to registries. As everywhere in Kubernetes, the lower-case variables count where the upper-case
/// ones are not set.
#[derive(Args)]
pub(super) struct ProxyArgs {
    /// Proxy for registries that speak HTTPS
    #[arg(long = "https-proxy", env = "HTTPS_PROXY", hide_env_values = true, value_name = "URL")]
    https: Option<String>,
    /// Proxy for registries that speak plain HTTP
    #[arg(long = "http-proxy", env = "HTTP_PROXY", hide_env_values = true, value_name = "URL")]
    http: Option<String>,
    /// Hosts, domains, addresses and networks that are reached without a proxy
    #[arg(long = "no-proxy", env = "NO_PROXY", value_name = "LIST")]
    exceptions: Option<String>,
}

impl std::fmt::Debug for ProxyArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The addresses may hold passwords.
        f.debug_struct("ProxyArgs").field("exceptions", &self.exceptions).finish_non_exhaustive()
    }
}

impl ProxyArgs {
    pub(super) fn proxies(&self) -> Result<Proxies, Usage> {
        #[expect(clippy::disallowed_methods, reason = "this is the reader of the environment")]
        let or = |given: &Option<String>, variable: &str| {
            given.clone().filter(|value| !value.is_empty()).or_else(|| std::env::var(variable).ok()).unwrap_or_default()
        };
        let (http, https) = (or(&self.http, "http_proxy"), or(&self.https, "https_proxy"));
        Proxies::new(&http, &https, &or(&self.exceptions, "no_proxy")).map_err(|error| Usage(error.to_string()))
    }
}

/// The node's own credentials for registries.
#[derive(Args, Debug)]
pub(super) struct NodeCredentialArgs {
    /// Whether a node's own credentials are used where those of pull secrets do not do: its kubelet's docker
    /// configuration and credential provider plugins
    #[arg(long, env = NODE_CREDENTIALS, default_value = "true", action = ArgAction::Set, value_name = "BOOL")]
    node_credentials: bool,
    /// File or folder that names the plugins, where the kubelet's command line does not say
    #[arg(long, env = PROVIDER_CONFIG, value_name = "PATH")]
    image_credential_provider_config: Option<PathBuf>,
    /// Folder with the plugins, where the kubelet's command line does not say
    #[arg(long, env = PROVIDER_BIN_DIR, value_name = "PATH")]
    image_credential_provider_bin_dir: Option<PathBuf>,
}

const NODE_CREDENTIALS: &str = "KMM_NODE_CREDENTIALS";
const PROVIDER_CONFIG: &str = "KMM_IMAGE_CREDENTIAL_PROVIDER_CONFIG";
const PROVIDER_BIN_DIR: &str = "KMM_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR";

impl NodeCredentialArgs {
    /// `None` if they are not to be used.
    pub(super) fn settings(&self) -> Result<Option<NodeCredentialSettings>, Usage> {
        let path = |given: &Option<PathBuf>, name| match given.clone() {
            Some(path) if !path.is_absolute() => {
                Err(Usage(format!("{name} is `{}`; write the whole path on the node", path.display())))
            }
            path => Ok(path),
        };
        let settings = NodeCredentialSettings {
            provider_config: path(&self.image_credential_provider_config, PROVIDER_CONFIG)?,
            provider_bin_dir: path(&self.image_credential_provider_bin_dir, PROVIDER_BIN_DIR)?,
        };
        Ok(self.node_credentials.then_some(settings))
    }
}

/// The variables by which a worker is told the same.
pub(super) fn node_credential_variables(settings: Option<&NodeCredentialSettings>) -> Vec<(&'static str, String)> {
    let Some(settings) = settings else { return vec![(NODE_CREDENTIALS, "false".to_owned())] };
    let paths = [(PROVIDER_CONFIG, &settings.provider_config), (PROVIDER_BIN_DIR, &settings.provider_bin_dir)];
    paths.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?.display().to_string()))).collect()
}

/// Arguments that do not fit together; the text names the argument, its value and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Given {
        #[command(flatten)]
        node: NodeCredentialArgs,
    }

    fn settings(arguments: &[&str]) -> Result<Option<NodeCredentialSettings>, Usage> {
        let given = Given::try_parse_from(["kmm"].iter().chain(arguments));
        given.map_err(|error| Usage(error.to_string()))?.node.settings()
    }

    #[test]
    fn a_worker_reads_of_the_nodes_credentials_what_its_manager_was_told() {
        let (config, folder) = ("--image-credential-provider-config", "--image-credential-provider-bin-dir");
        for (arguments, count) in [
            (&[][..], 0),
            (&["--node-credentials=false"], 1),
            (&["--node-credentials", "true", config, "/etc/providers.yaml", folder, "/opt/providers"], 2),
        ] {
            let told = settings(arguments).unwrap();
            let variables = node_credential_variables(told.as_ref());
            assert_eq!(variables.len(), count, "{arguments:?}");
            let flag = |(name, value): &(&'static str, String)| {
                format!("--{}={value}", name.trim_start_matches("KMM_").to_lowercase().replace('_', "-"))
            };
            let arguments: Vec<String> = variables.iter().map(flag).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            assert_eq!(settings(&arguments).unwrap(), told);
        }
        for arguments in [&["--node-credentials=perhaps"][..], &[config, "etc/providers.yaml"], &[folder, "."]] {
            assert!(settings(arguments).is_err(), "{arguments:?}");
        }
    }
}
