//! What must hold of the repository as a whole: generated files, names and the API that users rely on.

#![allow(clippy::unwrap_used, clippy::panic, clippy::format_collect, reason = "helpers of tests")]

mod crd_compat;
mod dependencies;
mod files;
mod graph;
mod imports;
mod names;
mod objects;
mod schema_facts;
