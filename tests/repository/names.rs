//! Names that live in clusters: a change breaks selectors, alerts or upgrades, so each stands here once more.

use kmm::api::names::{self, field_manager};
use kmm::api::{ImageStatus, ModuleState, UnloadReason};

#[test]
fn labels_annotations_finalizers_and_object_names_are_those_that_clusters_hold() {
    let golden = [
        (names::NAMESPACE_CONTAINS_MODULES_LABEL, "kmm.node.k8s.io/contains-modules"),
        (names::MODULE_NAME_LABEL, "kmm.node.kubernetes.io/module.name"),
        (names::MODULE_NAMESPACE_LABEL, "kmm.node.kubernetes.io/module.namespace"),
        (names::ROLE_LABEL, "kmm.node.kubernetes.io/role"),
        (names::DEVICE_PLUGIN_ROLE, "device-plugin"),
        (names::DRA_ROLE, "dra"),
        (names::MANAGED_CLUSTER_MODULE_LABEL, "kmm.node.kubernetes.io/managedclustermodule.name"),
        (names::WORKER_NODE_LABEL, "kmm.node.kubernetes.io/worker"),
        (names::RENDERED_HASH_ANNOTATION, "kmm.node.kubernetes.io/rendered-hash"),
        (names::CONFIRM_REMOVAL_ANNOTATION, "kmm.node.kubernetes.io/confirm-removal"),
        (names::RELEASE_NODE_ANNOTATION, "kmm.node.kubernetes.io/release"),
        (names::MODULE_FINALIZER, "kmm.node.kubernetes.io/module-finalizer"),
        (names::OLD_WORKER_POD_FINALIZER, "kmm.node.kubernetes.io/nodemodulesconfig-reconciler"),
        (names::KERNEL_CLAIM, "kernel-versions.kmm.node.kubernetes.io"),
        (names::KERNEL_CLAIM_PREFIX, "kernel-versions."),
        (names::KERNEL_CLAIM_SUFFIX, ".kmm.node.kubernetes.io"),
        (names::LEASE, "kmm.sigs.x-k8s.io"),
        (names::HUB_LEASE, "kmm-hub.sigs.x-k8s.io"),
        (names::WORKER_SERVICE_ACCOUNT, "kmm-operator-worker"),
        (names::WORKER_DAEMON_SET, "kmm-worker"),
        (names::PULL_SECRETS_ROLE, "kmm-worker-pull-secrets"),
        (names::WORKER_POLICY, "kmm-operator-worker-own-node"),
        (names::NAMESPACES_POLICY, "kmm-operator-namespaces-with-modules"),
        (names::CLAIMS_POLICY, "kmm-operator-own-cluster-claims"),
        (names::DEFAULT_SERVICE_ACCOUNT, "default"),
        (field_manager::HUB, "kmm-hub"),
        (field_manager::NODE_PLANNER, "kmm-spoke-node-planner"),
        (field_manager::MODULE_STATUS, "kmm-spoke-module-status"),
        (field_manager::CLAIMS, "kmm-spoke-claims"),
        (field_manager::LABELS, "kmm-spoke-labels"),
        (field_manager::WORKER_DAEMON_SET, "kmm-spoke-worker-daemonset"),
        (field_manager::ADMISSION, "kmm-admission"),
        (field_manager::IMAGES, "kmm-images"),
        (field_manager::WORKER, "kmm-worker"),
        (field_manager::WORK_AGENT, "work-agent-kmm"),
    ];
    for (name, expected) in golden {
        assert_eq!(name, expected);
    }
}

#[test]
fn labels_of_a_module_hold_its_namespace_and_name() {
    let golden = [
        (names::ready_label("drivers", "gpu"), "kmm.node.kubernetes.io/drivers.gpu.ready"),
        (names::version_ready_label("drivers", "gpu"), "kmm.node.kubernetes.io/drivers.gpu.version.ready"),
        (names::deprecated_ready_label("gpu"), "kmm.node.kubernetes.io/gpu.ready"),
        (names::requested_version_label("drivers", "gpu"), "kmm.node.kubernetes.io/version-module.drivers.gpu"),
        (names::worker_version_label("drivers", "gpu"), "beta.kmm.node.kubernetes.io/version-worker-pod.drivers.gpu"),
        (
            names::schedule_version_label("drivers", "gpu"),
            "beta.kmm.node.kubernetes.io/version-schedule-pod.drivers.gpu",
        ),
    ];
    for (name, expected) in golden {
        assert_eq!(name, expected);
    }
}

/// Compares a closed list with one line that holds all its names, and checks that each is read back.
macro_rules! assert_list {
    ($list:ty, $golden:expr) => {
        let members: Vec<&str> = <$list>::ALL.iter().map(|member| member.as_str()).collect();
        let golden: Vec<&str> = $golden.split_whitespace().collect();
        assert_eq!(members, golden, stringify!($list));
        for member in <$list>::ALL {
            assert_eq!(<$list>::from_name(member.as_str()), Some(*member));
            assert!(member.as_str().chars().all(|c| c.is_ascii_alphanumeric()), "{member} is no condition reason");
        }
        assert_eq!(<$list>::from_name("no such name"), None);
    };
}

#[test]
fn states_and_reasons_are_the_documented_ones() {
    assert_list!(ModuleState, "Pending Pulling Loading Loaded Failed Unloading UnloadFailed Orphaned Unknown");
    assert_list!(UnloadReason, "Deleted NoModuleLoader NotSelected Changed Unknown");
    assert_list!(ImageStatus, "Exists DoesNotExist NeedsBuilding NeedsSigning Unknown");
    assert_list!(
        names::ConditionType,
        "Ready Covered Applied ImagesResolved RemovalConfirmed Progressing Degraded Valid"
    );
    assert_list!(
        names::ImageReason,
        "Pending Resolved NotFound Unauthorized Forbidden RateLimited RegistryError InvalidResponse Timeout Unreachable
         TlsError InvalidReference PullSecretMissing PullSecretForbidden PullSecretInvalid PlatformMissing NeverPulled"
    );
    assert_list!(
        names::NodeReason,
        "Loaded Adopted ParametersDiffer Pending Pulling Loading Unloading Unloaded NotWanted Kept WaitingForReboot Missing
         ImageNotFound ImageUnauthorized ImageForbidden ImageRateLimited ImageRegistryError ImageInvalidResponse
         ImageTimeout ImageUnreachable ImageTlsError ImageInvalidReference ImagePlatformMissing ImageNeverPulled
         PullSecretMissing PullSecretForbidden PullSecretInvalid
         DigestMismatch UnsafeImage ImageTooLarge ModuleNotFound DependencyMissing InvalidModule
         WrongKernel VermagicMismatch SymbolMissing SignatureMissing SignatureRejected NotPermitted OutOfMemory
         ParameterRefused KernelRefused
         LoadNotProved LoadedOtherFile LoadedOtherParameters Conflict
         FirmwareNotFound FirmwarePathRefused InTreeModuleStays NotPublished InTreeModuleNotRestored InUse UnsupportedArgs RecordLost
         StoreFailed StoreFull RegistryConfigInvalid RegistryBlocked"
    );
    assert_list!(
        names::NodeConfigReason,
        "AllLoaded InProgress ModulesFailing OrphanedModules WaitingForReboot Unreadable"
    );
    assert_list!(
        names::ModuleReason,
        "AllNodesReady AllNodesCovered NoMatchingNodes NoMatchingKernel SomeKernelsUnmapped NodesTainted NoModuleLoader ImagesNotReady
         ImagesResolved NodesNotReady NodesFailing NodesWaitingForReboot NodesSilent WaitingForConsumers Unloading
         UnloadBlocked InvalidSpec Unreadable Settled"
    );
    assert_list!(
        names::ClusterReason,
        "Ready NoClaims ClaimsInvalid NoMatchingKernel SomeKernelsUnmapped ImagesNotReady ImagesResolved NotAccepted
         Unavailable ClusterMissing WaitingForApply NotApplied AgentForbidden Applied WaitingForStatus StaleStatus CountersOnly NodesNotReady
         Covered NodesNotCovered ClustersNotCovered CoverageUnknown NoMatchingNodes ClustersNotReady NoMatchingClusters OwnedByOther AwaitingConfirmation InvalidSpec WorkRefused Deleting Unreadable Settled"
    );
    assert_list!(
        names::EventReason,
        "ModuleLoaded ModuleUnloaded ModuleLoadFailed ModuleUnloadFailed ModuleInUse ModuleOrphaned ModuleFileDiffers
         ModuleKept ModuleEvicted ModuleWaitsForReboot ModuleMissing
         ImagesResolved ImageNotFound ImageLookupFailed ImageTagMoved Ready NotReady ClusterNotApplied
         WorkOwnedByOther RemovalAwaitsConfirmation ClaimsOverflow InvalidSpec NodeReleased"
    );
}

#[test]
fn every_failed_fetch_has_its_reason_on_the_node() {
    for reason in names::ImageReason::ALL {
        let on_node = names::NodeReason::from_image(*reason).map(names::NodeReason::as_str);
        let expected = match reason.as_str() {
            "Resolved" => None,
            same @ ("Pending" | "PullSecretMissing" | "PullSecretForbidden" | "PullSecretInvalid") => {
                Some(same.to_owned())
            }
            other => Some(format!("Image{other}")),
        };
        assert_eq!(on_node.map(str::to_owned), expected);
    }
}
