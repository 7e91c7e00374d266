//! Condition types, reasons and event reasons: closed lists, so that people and alerts can rely on them.
//!
//! All of them are ours: KMM has no conditions, and two event reasons, which are kept.

use crate::api::wire::closed_list;

closed_list! {
    /// Types of conditions on the kinds of ours.
    pub enum ConditionType {
        /// Everything is as wanted. Present on every kind; the other conditions say what is missing.
        Ready,
        /// The Module was applied to every selected cluster.
        Applied,
        /// Every image that is needed is there and its digest known.
        ImagesResolved,
        /// Something is still on its way.
        Progressing,
        /// Something failed and does not go away by waiting alone.
        Degraded,
        /// The specification can be carried out.
        Valid,
    }
}

closed_list! {
    /// What a look-up of an image came to.
    pub enum ImageReason {
        /// It was not looked up yet, or is being looked up again.
        Pending,
        /// Its digest is known.
        Resolved,
        /// The registry proved that it is not there.
        NotFound,
        /// The registry wants other credentials.
        Unauthorized,
        /// The registry knows the credentials and refuses.
        Forbidden,
        /// The registry wants fewer requests.
        RateLimited,
        /// The registry failed.
        RegistryError,
        /// The registry answered something that is no answer to the question.
        InvalidResponse,
        /// The registry did not answer in time.
        Timeout,
        /// The registry's name does not resolve, or nothing listens there.
        Unreachable,
        /// The registry's certificate is not trusted, or it speaks no TLS.
        TlsError,
        /// The image's name is none.
        InvalidReference,
        /// The pull secret does not exist.
        PullSecretMissing,
        /// The API server refuses to hand the pull secret out.
        PullSecretForbidden,
        /// The pull secret holds no credentials that can be read.
        PullSecretInvalid,
        /// The image has nothing for the node's architecture.
        PlatformMissing,
        /// `imagePullPolicy` is `Never`, and images come from registries only.
        NeverPulled,
    }
}

closed_list! {
    /// Why a node's module is in the state it is in.
    pub enum NodeReason {
        /// The kernel runs the file that the image holds, loaded by this worker.
        Loaded,
        /// The kernel runs the file that the image holds; it was loaded before this worker came.
        Adopted,
        /// The kernel runs the file that the image holds, and a parameter shows something else than was asked for.
        ParametersDiffer,
        /// Nothing done yet.
        Pending,
        /// The image is being fetched.
        Pulling,
        /// The module is being handed to the kernel.
        Loading,
        /// The module is being taken out of the kernel.
        Unloading,
        /// The module is out of the kernel.
        Unloaded,
        /// Loaded, neither wanted nor to go; it stays loaded.
        NotWanted,
        /// Loaded and not wanted any more; the policy leaves it in the kernel until the node boots again.
        Kept,
        /// Another file or other parameters are wanted; the policy leaves the loaded ones until the node boots again.
        WaitingForReboot,
        /// Somebody else took it out of the kernel; the policy leaves it out.
        Missing,
        /// The registry proved that the image is not there.
        ImageNotFound,
        /// The registry wants other credentials.
        ImageUnauthorized,
        /// The registry knows the credentials and refuses.
        ImageForbidden,
        /// The registry wants fewer requests.
        ImageRateLimited,
        /// The registry failed.
        ImageRegistryError,
        /// The registry answered something that is no answer to the question.
        ImageInvalidResponse,
        /// The registry did not answer in time.
        ImageTimeout,
        /// The registry's name does not resolve, or nothing listens there.
        ImageUnreachable,
        /// The registry's certificate is not trusted, or it speaks no TLS.
        ImageTlsError,
        /// The image is not named by digest, or its name is none.
        ImageInvalidReference,
        /// The image has nothing for the node's architecture.
        ImagePlatformMissing,
        /// `imagePullPolicy` is `Never`, and images come from registries only.
        ImageNeverPulled,
        /// The pull secret does not exist.
        PullSecretMissing,
        /// The worker may not read the pull secret.
        PullSecretForbidden,
        /// The pull secret holds no credentials that can be read.
        PullSecretInvalid,
        /// What was fetched is not what the digest names.
        DigestMismatch,
        /// The image holds paths or files that must not be unpacked.
        UnsafeImage,
        /// The image is larger than the worker accepts.
        ImageTooLarge,
        /// The image holds no such module for this kernel.
        ModuleNotFound,
        /// A module that this one needs is neither in the image nor in the kernel's own.
        DependencyMissing,
        /// The module's file is no kernel module, or for another machine.
        InvalidModule,
        /// The entry is for another kernel than the one that runs.
        WrongKernel,
        /// The module was built for another kernel.
        VermagicMismatch,
        /// The kernel lacks a symbol, or has it in another version.
        SymbolMissing,
        /// The module has no signature and the kernel takes only signed ones.
        SignatureMissing,
        /// The kernel does not trust the module's signature.
        SignatureRejected,
        /// The kernel, or its lockdown, forbids loading modules.
        NotPermitted,
        /// There is not enough memory for it.
        OutOfMemory,
        /// The kernel does not know a parameter, or refuses its value.
        ParameterRefused,
        /// The kernel refused for a reason that has no name of its own.
        KernelRefused,
        /// The kernel says that it is loaded, and its state or identity says otherwise.
        LoadNotProved,
        /// Another file is loaded under that name; it is not touched.
        LoadedOtherFile,
        /// The file is loaded with other parameters; it is not touched.
        LoadedOtherParameters,
        /// Two Modules want the same kernel module, or firmware of the same name, in different files.
        Conflict,
        /// The image holds no firmware where it should.
        FirmwareNotFound,
        /// The kernel has no search path for firmware that can be set.
        FirmwarePathRefused,
        /// A module of the kernel itself that is to be removed first is built in, in use or refused to go.
        InTreeModuleStays,
        /// The module's files could not be put below the host's `/lib/modules`, or not removed from there.
        NotPublished,
        /// A module of the kernel itself that was removed could not be loaded again.
        InTreeModuleNotRestored,
        /// It cannot be unloaded while something uses it.
        InUse,
        /// Arguments that this worker does not carry out.
        UnsupportedArgs,
        /// The worker's record of this boot was lost, and nothing proves that the loaded module is the Module's; it is not
        /// touched.
        RecordLost,
        /// The worker's own files could not be read or written.
        StoreFailed,
        /// The disk of the worker's files has no room, or less than the image needs.
        StoreFull,
        /// The configuration of the node's container runtime, from which mirrors and certificates come, cannot be used.
        RegistryConfigInvalid,
        /// The node's container runtime is configured not to pull from this registry.
        RegistryBlocked,
    }
}

impl NodeReason {
    /// The reason on a node for what a fetch came to; `None` for an image that resolved, which is no failure.
    #[must_use]
    pub const fn from_image(reason: ImageReason) -> Option<Self> {
        Some(match reason {
            ImageReason::Resolved => return None,
            ImageReason::Pending => Self::Pending,
            ImageReason::NotFound => Self::ImageNotFound,
            ImageReason::Unauthorized => Self::ImageUnauthorized,
            ImageReason::Forbidden => Self::ImageForbidden,
            ImageReason::RateLimited => Self::ImageRateLimited,
            ImageReason::RegistryError => Self::ImageRegistryError,
            ImageReason::InvalidResponse => Self::ImageInvalidResponse,
            ImageReason::Timeout => Self::ImageTimeout,
            ImageReason::Unreachable => Self::ImageUnreachable,
            ImageReason::TlsError => Self::ImageTlsError,
            ImageReason::InvalidReference => Self::ImageInvalidReference,
            ImageReason::PullSecretMissing => Self::PullSecretMissing,
            ImageReason::PullSecretForbidden => Self::PullSecretForbidden,
            ImageReason::PullSecretInvalid => Self::PullSecretInvalid,
            ImageReason::PlatformMissing => Self::ImagePlatformMissing,
            ImageReason::NeverPulled => Self::ImageNeverPulled,
        })
    }
}

closed_list! {
    /// Why a NodeModulesConfig is, or is not, ready.
    pub enum NodeConfigReason {
        /// Every module is as wanted.
        AllLoaded,
        /// A module is on its way into or out of the kernel.
        InProgress,
        /// A module could not be loaded or unloaded.
        ModulesFailing,
        /// A module is loaded that is neither wanted nor to go.
        OrphanedModules,
        /// A module waits for the node to boot again.
        WaitingForReboot,
        /// The specification could not be read.
        Unreadable,
    }
}

closed_list! {
    /// Why a Module is, or is not, ready.
    pub enum ModuleReason {
        /// Every node that wants it has it.
        AllNodesReady,
        /// No node matches the selector.
        NoMatchingNodes,
        /// No matching node runs a kernel of its mappings.
        NoMatchingKernel,
        /// Some matching nodes run a kernel of no mapping; the others have it.
        SomeKernelsUnmapped,
        /// It has no `moduleLoader`: there is nothing to load.
        NoModuleLoader,
        /// An image is missing, or cannot be looked up.
        ImagesNotReady,
        /// Every image is there.
        ImagesResolved,
        /// Nodes are loading it.
        NodesNotReady,
        /// Nodes failed to load or unload it.
        NodesFailing,
        /// Nodes run an older file of it until they boot again, as the policy says; the others are ready.
        NodesWaitingForReboot,
        /// Nodes have it, and nobody there has said so in their current boot.
        NodesSilent,
        /// It is to be unloaded or replaced on nodes on which pods of its device plugin or DRA driver still are.
        WaitingForConsumers,
        /// It is being deleted and nodes are unloading it.
        Unloading,
        /// It is being deleted and a node cannot unload it, for instance because it is in use.
        UnloadBlocked,
        /// Its specification cannot be carried out.
        InvalidSpec,
        /// The object cannot be read.
        Unreadable,
        /// Nothing is on its way.
        Settled,
    }
}

closed_list! {
    /// Why a cluster, or a ManagedClusterModule, is or is not ready.
    pub enum ClusterReason {
        /// The module is loaded on every node that wants it.
        Ready,
        /// The cluster tells no kernels.
        NoClaims,
        /// What the cluster tells of its kernels is incomplete or cannot be read.
        ClaimsInvalid,
        /// No kernel of the cluster has a mapping.
        NoMatchingKernel,
        /// Some kernels of the cluster have no mapping.
        SomeKernelsUnmapped,
        /// An image is missing, or cannot be looked up.
        ImagesNotReady,
        /// Every image is there.
        ImagesResolved,
        /// The cluster is not accepted by the Hub.
        NotAccepted,
        /// The cluster's agent is not heard of.
        Unavailable,
        /// The work is there, the cluster's agent has not applied it yet.
        WaitingForApply,
        /// The cluster's agent could not apply the work.
        NotApplied,
        /// Applied on every selected cluster.
        Applied,
        /// Applied, and the cluster has not reported on what was applied.
        WaitingForStatus,
        /// The cluster reports on something older than what was applied.
        StaleStatus,
        /// The cluster reports nodes that are not ready.
        NodesNotReady,
        /// No node of the cluster matches.
        NoMatchingNodes,
        /// Some clusters are not ready; the first are named.
        ClustersNotReady,
        /// No cluster matches the selector.
        NoMatchingClusters,
        /// A work of that name belongs to somebody else.
        OwnedByOther,
        /// The specification cannot be carried out.
        InvalidSpec,
        /// The API server refused the work, for instance because it is too large.
        WorkRefused,
        /// The work is being deleted.
        Deleting,
        /// The object cannot be read.
        Unreadable,
        /// Nothing is on its way.
        Settled,
    }
}

closed_list! {
    /// Reasons of events.
    pub enum EventReason {
        /// A module was loaded on a node. Upstream: `internal/controllers`, NodeModulesConfig reconciler.
        ModuleLoaded,
        /// A module was unloaded on a node. Upstream: `internal/controllers`, NodeModulesConfig reconciler.
        ModuleUnloaded,
        /// A module could not be loaded on a node.
        ModuleLoadFailed,
        /// A module could not be unloaded on a node.
        ModuleUnloadFailed,
        /// A module cannot be unloaded on a node while something uses it.
        ModuleInUse,
        /// A module is loaded on a node and neither wanted nor to go.
        ModuleOrphaned,
        /// Another file than the wanted one is loaded on a node.
        ModuleFileDiffers,
        /// A module is not wanted any more and stays in the kernel of a node until that boots again.
        ModuleKept,
        /// A module that is to be replaced stays in the kernel of a node until that boots again.
        ModuleWaitsForReboot,
        /// Somebody else took a module out of the kernel of a node, and it is not loaded again.
        ModuleMissing,
        /// Every image of an owner is there.
        ImagesResolved,
        /// An image is not in its registry.
        ImageNotFound,
        /// An image cannot be looked up.
        ImageLookupFailed,
        /// A tag names another image than before; the known one stays in use.
        ImageTagMoved,
        /// Everything is as wanted.
        Ready,
        /// Something is not as wanted any more.
        NotReady,
        /// A cluster's agent could not apply a work.
        ClusterNotApplied,
        /// A work of that name belongs to somebody else.
        WorkOwnedByOther,
        /// The kernels of a cluster do not fit into the claims that reach a Hub.
        ClaimsOverflow,
        /// The specification cannot be carried out.
        InvalidSpec,
        /// A person released a node, and a deletion does not wait for it any more.
        NodeReleased,
    }
}
