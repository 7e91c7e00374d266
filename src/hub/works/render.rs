//! The ManifestWork of one cluster: a pure, byte-stable function of what is wanted and of the images.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::api::names::{
    MANAGED_CLUSTER_MODULE_LABEL, RENDERED_HASH_ANNOTATION, SENT_IMAGES_ANNOTATION, field_manager,
};
use crate::api::ocm::{
    DeleteOption, ManifestConfig, ManifestWork, ManifestWorkSpec, ManifestsTemplate, OrphaningRule, ResourceIdentifier,
    SelectivelyOrphan, ServerSideApply, UpdateStrategy, values,
};
use crate::api::{KernelMapping, ModuleSpec, TLSOptions};
use crate::core::hash;
use crate::core::kernel::KernelVersion;
use crate::hub::view::{FleetModule, feedback, rendered_hash};

/// One kernel of a cluster with everything resolved for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The kernel, without a trailing `+`.
    pub kernel: KernelVersion,
    /// The image that travels, with digest; empty where only the kernel is remembered.
    pub image: Arc<str>,
    /// [`source_id`](crate::core::pin::source_id) of the image that the digest was found for.
    pub source: Arc<str>,
    /// How its registry is talked to.
    pub registry_tls: TLSOptions,
    /// Modules of the kernel itself to be unloaded first.
    pub in_tree_modules_to_remove: Vec<String>,
}

impl Line {
    /// Whether the kernel gets a mapping.
    pub(super) fn is_sent(&self) -> bool {
        !self.image.is_empty()
    }
}

/// The ManifestWork of `cluster`. `lines` are ordered by kernel, each kernel once.
///
/// Without a `moduleLoader` no line is needed; with one, at least one that is sent, because the API demands a mapping.
///
/// # Errors
/// Something has no JSON form.
pub(super) fn render(
    module: &FleetModule,
    spec: &ModuleSpec,
    cluster: &str,
    lines: &[Line],
) -> Result<ManifestWork, hash::Error> {
    let (name, namespace) = (&*module.name, module.spoke_namespace());
    let mut manifest = json!({
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1",
        "kind": "Module",
        "metadata": {"name": name, "namespace": namespace},
        "spec": serde_json::to_value(trimmed(spec, lines))?,
    });
    manifest["metadata"]["annotations"] = json!({ RENDERED_HASH_ANNOTATION: rendered_hash(&manifest)? });
    let sources: BTreeMap<&str, &str> = lines.iter().map(|line| (line.kernel.as_str(), &*line.source)).collect();
    Ok(ManifestWork {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(cluster.to_owned()),
            labels: Some([(MANAGED_CLUSTER_MODULE_LABEL.to_owned(), module.label_value())].into()),
            annotations: Some([(SENT_IMAGES_ANNOTATION.to_owned(), serde_json::to_string(&sources)?)].into()),
            owner_references: Some(vec![module.owner_reference()]),
            ..ObjectMeta::default()
        },
        spec: ManifestWorkSpec {
            workload: ManifestsTemplate { manifests: vec![namespace_manifest(namespace), manifest] },
            manifest_configs: vec![namespace_config(namespace), module_config(name, namespace)],
            delete_option: Some(DeleteOption {
                propagation_policy: Some(values::DELETE_SELECTIVELY_ORPHAN.to_owned()),
                selectively_orphans: Some(SelectivelyOrphan {
                    orphaning_rules: vec![OrphaningRule {
                        resource: "namespaces".to_owned(),
                        name: namespace.to_owned(),
                        ..OrphaningRule::default()
                    }],
                }),
            }),
        },
        status: None,
    })
}

/// A copy of the specification with one literal mapping for each line, and nothing else that selects an image.
fn trimmed(spec: &ModuleSpec, lines: &[Line]) -> ModuleSpec {
    let mut spec = spec.clone();
    if let Some(loader) = &mut spec.module_loader {
        let container = &mut loader.container;
        container.build = None;
        container.sign = None;
        container.container_image = None;
        container.registry_tls = None;
        container.in_tree_module_to_remove = None;
        container.in_tree_modules_to_remove = None;
        container.kernel_mappings = lines.iter().filter(|line| line.is_sent()).map(mapping).collect();
    }
    spec
}

fn mapping(line: &Line) -> KernelMapping {
    KernelMapping {
        container_image: line.image.to_string(),
        literal: Some(line.kernel.to_string()),
        registry_tls: Some(line.registry_tls.clone()).filter(|tls| *tls != TLSOptions::default()),
        in_tree_modules_to_remove: Some(line.in_tree_modules_to_remove.clone()).filter(|modules| !modules.is_empty()),
        ..KernelMapping::default()
    }
}

fn namespace_manifest(namespace: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
}

/// The namespace is made if it is missing, and otherwise left alone: it may be somebody else's.
fn namespace_config(namespace: &str) -> ManifestConfig {
    ManifestConfig {
        resource_identifier: ResourceIdentifier {
            resource: "namespaces".to_owned(),
            name: namespace.to_owned(),
            ..ResourceIdentifier::default()
        },
        update_strategy: Some(UpdateStrategy { type_: values::UPDATE_CREATE_ONLY.to_owned(), server_side_apply: None }),
        feedback_scrape_type: Some(FEEDBACK_POLL.to_owned()),
        feedback_rules: Vec::new(),
    }
}

/// `feedbackScrapeType`: the agent looks every few seconds. A watch would be faster for one Module and would
/// hand every change of every node's state in the fleet to the Hub.
const FEEDBACK_POLL: &str = "Poll";

fn module_config(name: &str, namespace: &str) -> ManifestConfig {
    ManifestConfig {
        resource_identifier: ResourceIdentifier {
            group: "kmm.sigs.x-k8s.io".to_owned(),
            resource: "modules".to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
        },
        update_strategy: Some(UpdateStrategy {
            type_: values::UPDATE_SERVER_SIDE_APPLY.to_owned(),
            server_side_apply: Some(ServerSideApply {
                force: true,
                field_manager: Some(field_manager::WORK_AGENT.to_owned()),
            }),
        }),
        feedback_scrape_type: Some(FEEDBACK_POLL.to_owned()),
        feedback_rules: feedback::rules(),
    }
}
