//! The worker's DaemonSet.

use k8s_openapi::api::apps::v1::DaemonSet;

use crate::api::names::RENDERED_HASH_ANNOTATION;
use crate::runtime::store::Projection;

/// Where a worker that may publish Modules on its host can write to the host's `/lib/modules`.
pub const HOST_MODULES: &str = "/host/lib/modules";

/// What is read of a DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSetView {
    /// `metadata.uid`.
    pub uid: String,
    /// Rises with every change of the specification, by whomever.
    pub generation: i64,
    /// Hash of what the manager rendered when it wrote it last.
    pub rendered_hash: Option<String>,
    /// Whether its workers may write below the host's `/lib/modules`.
    pub publishes: bool,
}

impl Projection for DaemonSetView {
    type Kind = DaemonSet;

    fn project(set: DaemonSet) -> Self {
        let meta = set.metadata;
        let pod = set.spec.and_then(|spec| spec.template.spec);
        let mounts =
            pod.iter().flat_map(|pod| &pod.containers).flat_map(|container| container.volume_mounts.iter().flatten());
        let publishes = mounts.into_iter().any(|mount| mount.mount_path == HOST_MODULES);
        Self {
            publishes,
            uid: meta.uid.unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            rendered_hash: meta.annotations.and_then(|mut all| all.remove(RENDERED_HASH_ANNOTATION)),
        }
    }
}
