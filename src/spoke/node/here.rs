//! The node, and what stands about it: what every decision about one of its Modules looks at.

use k8s_openapi::api::core::v1::Toleration;

use crate::api::names::ready_label;
use crate::api::{NodeModuleSpec, NodeModuleStatus, UnloadIntent};
use crate::spoke::outcome::Standing;
use crate::spoke::view::{Belongs, ConfigView, ModuleFacts, NodeView};

/// The node and what stands about it.
#[derive(Clone, Copy)]
pub(super) struct Here<'a> {
    /// The Node.
    pub node: &'a NodeView,
    /// Its NodeModulesConfig; not that of an earlier Node of the name.
    pub config: Option<&'a ConfigView>,
    /// Tolerations of every Module of the cluster, besides its own.
    pub tolerations: &'a [Toleration],
}

/// What stands about one Module.
#[derive(Clone, Copy, Default)]
pub(super) struct Present<'a> {
    /// What is asked for.
    pub entry: Option<&'a NodeModuleSpec>,
    /// What was ordered.
    pub intent: Option<&'a UnloadIntent>,
    /// What the worker said, in whichever boot.
    pub report: Option<&'a NodeModuleStatus>,
}

/// What becomes of one Module's part of the NodeModulesConfig, and what that means for the Module.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    /// What is asked for.
    pub entry: Option<NodeModuleSpec>,
    /// What is ordered.
    pub intent: Option<UnloadIntent>,
    /// Where the Module then stands.
    pub standing: Standing,
}

impl Present<'_> {
    /// Whether the node has never had anything of the Module, as far as the object tells.
    pub(super) fn is_nothing(&self) -> bool {
        self.entry.is_none() && self.intent.is_none() && self.report.is_none()
    }
}

impl Part {
    /// Nothing is asked for, nothing ordered.
    pub(super) fn nothing(standing: Standing) -> Self {
        Self { entry: None, intent: None, standing }
    }
}

impl<'a> Here<'a> {
    /// What stands about this Module.
    pub(super) fn present(self, facts: &ModuleFacts) -> Present<'a> {
        Present {
            entry: self.entries().iter().find(|entry| entry.belongs_to(facts)),
            intent: self.intents().iter().find(|intent| *intent.module_uid == *facts.uid),
            report: self.reports().iter().find(|report| report.belongs_to(facts)),
        }
    }

    /// The node's container runtime; while a kubelet that starts anew has not told it, the one that was known.
    pub(super) fn runtime(self) -> Option<String> {
        let told = Some(&self.node.runtime).filter(|runtime| !runtime.is_empty());
        told.or(self.config.and_then(|config| config.spec.container_runtime.as_ref())).cloned()
    }

    /// Everything that is asked for.
    pub(super) fn entries(self) -> &'a [NodeModuleSpec] {
        self.config.map(|config| config.spec.modules.as_slice()).unwrap_or_default()
    }

    /// Everything that was ordered.
    pub(super) fn intents(self) -> &'a [UnloadIntent] {
        self.config.map(|config| config.spec.unload.as_slice()).unwrap_or_default()
    }

    /// Everything that the worker said, in whichever boot.
    pub(super) fn reports(self) -> &'a [NodeModuleStatus] {
        self.config.map(|config| config.report.modules.as_slice()).unwrap_or_default()
    }

    /// Whether a worker of the node's present boot has spoken.
    pub(super) fn in_this_boot(self) -> bool {
        self.config.is_some_and(|config| {
            !self.node.boot_id.is_empty() && config.report.boot_id.as_deref() == Some(self.node.boot_id.as_str())
        })
    }

    /// Whether the worker of the present boot has taken the present specification into its record.
    pub(super) fn is_settled(self) -> bool {
        self.in_this_boot()
            && self.config.is_some_and(|config| config.report.observed_generation == Some(config.generation))
    }

    /// Whether the Node's label says that the module was loaded, while the object that would say more was lost and its
    /// worker has not spoken since. A worker that finds nothing to unload confirms that at once.
    pub(super) fn may_have_lost(self, facts: &ModuleFacts) -> bool {
        let (namespace, name) = (&facts.key.namespace, &facts.key.name);
        !self.is_settled()
            && self.node.labels.contains_key(&ready_label(namespace, name))
            && !self.entries().iter().any(|entry| (&entry.namespace, &entry.name) == (namespace, name))
    }
}
