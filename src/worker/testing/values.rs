//! Files, entries and orders of the simulated world.

use std::path::PathBuf;

use crate::api::{ModprobeSpec, ModuleConfig, NodeModuleSpec, UnloadIntent, UnloadReason};
use crate::core::kmod::names::Packing;
use crate::core::kmod::order::Role;
use crate::core::kmod::{FileFacts, Identity};
use crate::worker::plan::LoadFile;

pub(in crate::worker) const RELEASE: &str = "6.12.1+";
/// Path of the folder of links to firmware.
pub(in crate::worker) const OURS: &str = "/state/firmware/search";

/// In the simulated world a file's path says all: `/<id>/<name>/<needs joined by commas>`.
fn path_of(name: &str, id: &str, needs: &[&str]) -> PathBuf {
    PathBuf::from(format!("/{id}/{name}/{}", needs.join(",")))
}

/// The identity of the file with this id; `?` is a file that cannot be told from another.
pub(in crate::worker) fn identity(id: &str) -> Identity {
    Identity { build_id: (id != "?").then(|| id.to_owned()), srcversion: None }
}

/// A file of an image.
pub(in crate::worker) fn file(name: &str, id: &str, role: Role, needs: &[&str]) -> LoadFile {
    LoadFile {
        name: name.into(),
        path: path_of(name, id, needs),
        packing: Packing::Plain,
        role,
        identity: identity(id),
        preset: String::new(),
        facts: FileFacts::default(),
    }
}

/// An entry for a Module `drivers/<module>` with uid `uid-<module>`; the digest is made of one letter.
pub(in crate::worker) fn spec(module: &str, kernel_module: &str, digest: char, generation: i64) -> NodeModuleSpec {
    NodeModuleSpec {
        config: ModuleConfig {
            container_image: format!("registry.example/kmm@sha256:{}", digest.to_string().repeat(64)),
            kernel_version: "6.12.1".into(),
            modprobe: ModprobeSpec { module_name: Some(kernel_module.into()), ..ModprobeSpec::default() },
            ..ModuleConfig::default()
        },
        generation: Some(generation),
        module_uid: Some(format!("uid-{module}")),
        name: module.into(),
        namespace: "drivers".into(),
        service_account_name: "default".into(),
        ..NodeModuleSpec::default()
    }
}

/// An order to unload what a Module has up to a generation.
pub(in crate::worker) fn intent(module: &str, generation: i64) -> UnloadIntent {
    UnloadIntent {
        generation,
        module_uid: format!("uid-{module}"),
        name: module.into(),
        namespace: "drivers".into(),
        reason: UnloadReason::Changed,
    }
}
