//! Structured logs on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line, for machines.
    Json,
    /// For people.
    Text,
}

/// Installs the logger of the process. `filter` is a list such as `info,kmm::hub=debug`.
///
/// # Errors
/// The filter cannot be parsed.
pub fn init(format: Format, filter: &str) -> Result<(), ParseError> {
    // A failing watch is told by the store, with what is missing; kube tells the same in its own way.
    let filter = EnvFilter::builder().parse(format!("kube_runtime::watcher=off,{filter}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Json => builder.json().flatten_event(true).init(),
        Format::Text => builder.init(),
    }
    Ok(())
}
