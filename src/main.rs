//! Entry point: prints the CustomResourceDefinitions.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() != Some("crds") {
        eprintln!("usage: kmm crds");
        return ExitCode::from(2);
    }
    let printed = kmm::api::crds::to_yaml(&kmm::api::crds::crds())
        .map_err(std::io::Error::other)
        .and_then(|yaml| std::io::stdout().write_all(yaml.as_bytes()));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kmm crds: {error}");
            ExitCode::FAILURE
        }
    }
}
