//! What the record says that is to be published below the host's `/lib/modules`. Pure.

use super::{Entry, Owner};
use crate::api::NodeModuleSpec;
use crate::core::hash;

/// The folder of ours in the folder of a kernel.
pub const OURS: &str = "updates/kmm";
/// Name of a Module's folder.
pub fn folder(owner: &Owner) -> String {
    format!("{}.{}", owner.namespace, owner.name)
}

/// What is to be in a Module's folder.
pub fn content(entry: &Entry) -> String {
    let ids = entry.modules.iter().map(|module| format!("{}\0{}", module.name, module.identity.describe()));
    let parts: Vec<String> = ids.chain(entry.files.iter().map(|file| file.display().to_string())).collect();
    hash::hash_bytes(parts.join("\0").as_bytes())
}

/// Whether the entry asks for it.
pub fn asks(spec: &NodeModuleSpec) -> bool {
    spec.policy.is_some_and(|policy| policy.publish_on_host)
}
