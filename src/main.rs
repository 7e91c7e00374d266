//! The `kmm` executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    kmm::cli::main()
}
