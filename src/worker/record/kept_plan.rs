//! The last plan that was read, kept for a boot and for the time in which the API server does not answer.

use serde::{Deserialize, Serialize};

use super::VERSION;
use crate::api::{NodeModuleSpec, NodeModulesConfigSpec};

/// The last specification that was read from the API server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptPlan {
    /// Version of the file.
    pub version: u32,
    /// Uid of the NodeModulesConfig; empty if there was none.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// What it said.
    pub spec: NodeModulesConfigSpec,
}

impl KeptPlan {
    /// What was read, or an empty plan where there is no NodeModulesConfig.
    pub fn new(uid: impl Into<String>, generation: i64, spec: NodeModulesConfigSpec) -> Self {
        Self { version: VERSION, uid: uid.into(), generation, spec }
    }

    /// What may be carried out while the API server does not answer: entries that no order takes back. Orders themselves
    /// are not part of it: while nobody can take one back, nothing goes.
    #[must_use]
    pub fn without_orders(&self) -> NodeModulesConfigSpec {
        let taken_back = |spec: &NodeModuleSpec| self.spec.unload.iter().any(|intent| intent.covers(spec));
        let modules = self.spec.modules.iter().filter(|spec| !taken_back(spec)).cloned().collect();
        NodeModulesConfigSpec { modules, unload: Vec::new(), ..self.spec.clone() }
    }

    /// What of it may be carried out at once: entries that ask to be loaded at boot.
    #[must_use]
    pub fn at_boot(&self) -> NodeModulesConfigSpec {
        let mut spec = self.without_orders();
        spec.modules.retain(|spec| spec.policy.is_some_and(|policy| policy.load_at_boot));
        spec
    }
}
