//! Arguments and environment → validated settings → dispatch. The only reader of the environment.

mod args;
mod manager;
mod process;
mod worker;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::process::{EXIT_FAILURE, fail};
use crate::api::crds;

/// Kernel modules for fleets of Kubernetes clusters.
#[derive(Debug, Parser)]
#[command(name = "kmm", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the manager of a Hub, a Spoke or a single cluster
    Manager(manager::ManagerArgs),
    /// Run the worker of one node: loads and unloads kernel modules and reports what the kernel holds
    Worker(worker::WorkerArgs),
    /// Print the CustomResourceDefinitions as YAML
    Crds,
}

/// Runs the command line of this process.
///
/// Exit codes: 0 done or ended by a signal, 1 failed, 2 wrong arguments.
pub fn main() -> ExitCode {
    // Fails only if a provider was installed before; either way one is there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Cli::parse().command {
        Command::Manager(args) => manager::run(args),
        Command::Worker(args) => worker::run(args),
        Command::Crds => print_crds(),
    }
}

fn print_crds() -> ExitCode {
    let printed = crds::to_yaml(&crds::crds())
        .map_err(|error| error.to_string())
        .and_then(|yaml| std::io::stdout().lock().write_all(yaml.as_bytes()).map_err(|error| error.to_string()));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(EXIT_FAILURE, &format!("failed to print the CustomResourceDefinitions: {error}")),
    }
}
