//! Labels, annotations, finalizers, field managers and object names.
//!
//! "Upstream" names the place in KMM's Go sources where the same name is defined; "ours" means that KMM has
//! no such name.

mod reasons;

pub use reasons::*;

/// Label on a namespace that holds Modules; its deletion is refused by [`NAMESPACES_POLICY`]. Upstream: `internal/constants`, `NamespaceLabelKey`.
pub const NAMESPACE_CONTAINS_MODULES_LABEL: &str = "kmm.node.k8s.io/contains-modules";
/// Label on the pods of a Module, value its name. Upstream: `internal/constants`, `ModuleNameLabel`.
pub const MODULE_NAME_LABEL: &str = "kmm.node.kubernetes.io/module.name";
/// Label on cluster-wide objects of a Module, value its namespace; for DRA drivers, to come. Upstream: `internal/constants`.
pub const MODULE_NAMESPACE_LABEL: &str = "kmm.node.kubernetes.io/module.namespace";
/// Label on the pods of a Module, value what they are. Upstream: `internal/constants`, `DaemonSetRole`.
pub const ROLE_LABEL: &str = "kmm.node.kubernetes.io/role";
/// Value of [`ROLE_LABEL`] on the pods of a device plugin. Upstream: `internal/controllers`.
pub const DEVICE_PLUGIN_ROLE: &str = "device-plugin";
/// Value of [`ROLE_LABEL`] on the pods of a DRA driver. Upstream: `internal/controllers`.
pub const DRA_ROLE: &str = "dra";
/// Label on a ManifestWork, value the ManagedClusterModule's name. Upstream: `internal/constants`, `ManagedClusterModuleNameLabel`.
pub const MANAGED_CLUSTER_MODULE_LABEL: &str = "kmm.node.kubernetes.io/managedclustermodule.name";
/// Label on a node that the worker DaemonSet is bound to: a module is wanted there or must go. Ours.
pub const WORKER_NODE_LABEL: &str = "kmm.node.kubernetes.io/worker";

/// Annotation on a Module sent by a Hub, value the hash of what was sent. Ours.
pub const RENDERED_HASH_ANNOTATION: &str = "kmm.node.kubernetes.io/rendered-hash";
/// Annotation on a ManifestWork, value a JSON map from kernel to the id of the image that its digest was found for,
/// so that a digest once sent can be kept. Ours.
pub const SENT_IMAGES_ANNOTATION: &str = "kmm.node.kubernetes.io/sent-images";
/// Annotation on a ManagedClusterModule by which a person confirms that its present generation takes the module from many
/// clusters; value that generation. Ours.
pub const CONFIRM_REMOVAL_ANNOTATION: &str = "kmm.node.kubernetes.io/confirm-removal";
/// Annotation by which a person says that a node will not come back, so that no deletion waits for it. Ours.
pub const RELEASE_NODE_ANNOTATION: &str = "kmm.node.kubernetes.io/release";

/// Finalizer on a Module while a node has it or must lose it. Upstream: `internal/constants`, `ModuleFinalizer`.
pub const MODULE_FINALIZER: &str = "kmm.node.kubernetes.io/module-finalizer";
/// Finalizer on the pods of KMM's pod-based worker; left over after a change to this operator.
/// Upstream: `internal/controllers`, `nodeModulesConfigFinalizer`.
pub const OLD_WORKER_POD_FINALIZER: &str = "kmm.node.kubernetes.io/nodemodulesconfig-reconciler";

/// ClusterClaim with the kernels of a cluster, one to a line. Upstream: `internal/constants`, `KernelVersionsClusterClaimName`.
pub const KERNEL_CLAIM: &str = "kernel-versions.kmm.node.kubernetes.io";
/// What the name of every claim with kernels begins with. Ours, for lists that do not fit into one claim.
pub const KERNEL_CLAIM_PREFIX: &str = "kernel-versions.";
/// What the name of every claim with kernels ends with, so that one reserved suffix of OCM covers them all. Ours.
pub const KERNEL_CLAIM_SUFFIX: &str = ".kmm.node.kubernetes.io";

/// Lease of the manager on a Spoke or single cluster. Upstream: `config/manager`, `leaderElection.resourceID`.
pub const LEASE: &str = "kmm.sigs.x-k8s.io";
/// Lease of the manager on a Hub. Upstream: `config/manager-hub`, `leaderElection.resourceID`.
pub const HUB_LEASE: &str = "kmm-hub.sigs.x-k8s.io";

/// Service account that a node's worker runs under, as `config/` names it. Ours.
pub const WORKER_SERVICE_ACCOUNT: &str = "kmm-operator-worker";
/// DaemonSet of the worker. Ours.
pub const WORKER_DAEMON_SET: &str = "kmm-worker";
/// Role, and its binding, by which workers read the pull secrets of a namespace's Modules. Ours.
pub const PULL_SECRETS_ROLE: &str = "kmm-worker-pull-secrets";
/// Admission policy, and its binding, by which a worker writes the status of its own node's NodeModulesConfig only. Ours.
pub const WORKER_POLICY: &str = "kmm-operator-worker-own-node";
/// Admission policy, and its binding, by which namespaces that hold Modules are not deleted. Ours; KMM has a webhook.
pub const NAMESPACES_POLICY: &str = "kmm-operator-namespaces-with-modules";
/// Admission policy, and its binding, by which the manager writes no ClusterClaims but those with kernels. Ours.
pub const CLAIMS_POLICY: &str = "kmm-operator-own-cluster-claims";
/// What a Module's loader runs under where it names no service account. Upstream: `internal/nmc`.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// Field managers of server-side apply: one for each writer. Ours; KMM writes merge patches.
pub mod field_manager {
    /// Hub: ManifestWorks, ModuleImagesConfigs, status of ManagedClusterModules.
    pub const HUB: &str = "kmm-hub";
    /// Spoke: specification of NodeModulesConfigs.
    pub const NODE_PLANNER: &str = "kmm-spoke-node-planner";
    /// Spoke: status of Modules, and what belongs to a Module besides nodes.
    pub const MODULE_STATUS: &str = "kmm-spoke-module-status";
    /// Spoke: ClusterClaims with kernels.
    pub const CLAIMS: &str = "kmm-spoke-claims";
    /// Spoke: labels of nodes.
    pub const LABELS: &str = "kmm-spoke-labels";
    /// Spoke: DaemonSet of the worker.
    pub const WORKER_DAEMON_SET: &str = "kmm-spoke-worker-daemonset";
    /// Spoke: admission policies and their bindings.
    pub const ADMISSION: &str = "kmm-admission";
    /// Hub and Spoke: status of ModuleImagesConfigs.
    pub const IMAGES: &str = "kmm-images";
    /// Worker: status of its NodeModulesConfig.
    pub const WORKER: &str = "kmm-worker";
    /// OCM's work agent, for the manifests of ours. OCM demands the beginning `work-agent`.
    pub const WORK_AGENT: &str = "work-agent-kmm";
}

/// Domain of the labels on nodes. Upstream: `internal/utils/kmmlabels.go`.
const NODE_LABEL_DOMAIN: &str = "kmm.node.kubernetes.io/";
/// Domain of labels of ordered upgrades and on NodeModulesConfigs. Upstream: `internal/constants`.
const BETA_LABEL_DOMAIN: &str = "beta.kmm.node.kubernetes.io/";
/// End of the label on a NodeModulesConfig whose specification wants a Module. Upstream: `internal/nmc/labels.go`.
const CONFIGURED_LABEL_END: &str = ".module-configured";
/// End of the label on a NodeModulesConfig that names a Module in any way. Upstream: `internal/nmc/labels.go`.
const IN_USE_LABEL_END: &str = ".module-in-use";

/// Label on a node with the kernel module loaded, no value. Upstream: `GetKernelModuleReadyNodeLabel`.
#[must_use]
pub fn ready_label(namespace: &str, name: &str) -> String {
    format!("{NODE_LABEL_DOMAIN}{namespace}.{name}.ready")
}

/// Label on a node with the kernel module loaded, value its version. Upstream: `GetKernelModuleVersionReadyNodeLabel`.
#[must_use]
pub fn version_ready_label(namespace: &str, name: &str) -> String {
    format!("{NODE_LABEL_DOMAIN}{namespace}.{name}.version.ready")
}

/// Label of releases that did not know the namespace; removed where it is found. Upstream: `internal/utils/kmmlabels.go`.
#[must_use]
pub fn deprecated_ready_label(name: &str) -> String {
    format!("{NODE_LABEL_DOMAIN}{name}.ready")
}

/// Label on a node by which an administrator asks for a version; for ordered upgrades, to come. Upstream: `GetModuleVersionLabelName`.
#[must_use]
pub fn requested_version_label(namespace: &str, name: &str) -> String {
    format!("{NODE_LABEL_DOMAIN}version-module.{namespace}.{name}")
}

/// Label on a node, value the version whose kernel module may be loaded; for ordered upgrades, to come. Upstream: `GetWorkerPodVersionLabelName`.
#[must_use]
pub fn worker_version_label(namespace: &str, name: &str) -> String {
    format!("{BETA_LABEL_DOMAIN}version-worker-pod.{namespace}.{name}")
}

/// Label on a node, value the version whose pods beside the module may run; for ordered upgrades, to come. Upstream: `GetSchedulePodVersionLabelName`.
#[must_use]
pub fn schedule_version_label(namespace: &str, name: &str) -> String {
    format!("{BETA_LABEL_DOMAIN}version-schedule-pod.{namespace}.{name}")
}

/// Namespace and name of the Module whose [`ready_label`] this is, `None` for any other label.
///
/// A Module's name may have dots, a namespace has none, so the first dot separates them. The label of a
/// Module `a.version` is the same as the version label of `a`; it is read as the latter.
#[must_use]
pub fn parse_ready_label(key: &str) -> Option<(&str, &str)> {
    let owner = key.strip_prefix(NODE_LABEL_DOMAIN)?.strip_suffix(".ready")?;
    let (namespace, name) = owner.split_once('.')?;
    let whole = !namespace.is_empty() && !name.is_empty() && name != "version" && !name.ends_with(".version");
    whole.then_some((namespace, name))
}

/// Whether this is a [`ready_label`], a [`version_ready_label`] or a [`deprecated_ready_label`] of some Module.
#[must_use]
pub fn is_ready_label(key: &str) -> bool {
    let owner = key.strip_prefix(NODE_LABEL_DOMAIN).and_then(|rest| rest.strip_suffix(".ready"));
    owner.is_some_and(|owner| !owner.is_empty() && !owner.starts_with('.') && !owner.ends_with('.'))
}

/// Label on a NodeModulesConfig that wants a Module, no value. Upstream: `ModuleConfiguredLabel`.
#[must_use]
pub fn module_configured_label(namespace: &str, name: &str) -> String {
    format!("{BETA_LABEL_DOMAIN}{namespace}.{name}{CONFIGURED_LABEL_END}")
}

/// Label on a NodeModulesConfig that names a Module in any way, no value. Upstream: `ModuleInUseLabel`.
#[must_use]
pub fn module_in_use_label(namespace: &str, name: &str) -> String {
    format!("{BETA_LABEL_DOMAIN}{namespace}.{name}{IN_USE_LABEL_END}")
}

/// Whether this is a [`module_configured_label`] or a [`module_in_use_label`] of some Module.
#[must_use]
pub fn is_module_label(key: &str) -> bool {
    key.strip_prefix(BETA_LABEL_DOMAIN)
        .is_some_and(|rest| rest.ends_with(CONFIGURED_LABEL_END) || rest.ends_with(IN_USE_LABEL_END))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_label_is_parsed_back_to_the_module_it_was_built_from() {
        for (namespace, name) in [("drivers", "gpu"), ("a", "b"), ("default", "gpu.v2"), ("ns-1", "x.y.z")] {
            assert_eq!(parse_ready_label(&ready_label(namespace, name)), Some((namespace, name)));
        }
    }

    #[test]
    fn other_labels_are_no_ready_labels() {
        for key in [
            version_ready_label("drivers", "gpu"),
            deprecated_ready_label("gpu"),
            requested_version_label("drivers", "gpu"),
            worker_version_label("drivers", "gpu"),
            "kmm.node.kubernetes.io/.gpu.ready".into(),
            "kmm.node.kubernetes.io/drivers..ready".into(),
            "kubernetes.io/hostname".into(),
            String::new(),
        ] {
            assert_eq!(parse_ready_label(&key), None, "{key}");
        }
    }
}
