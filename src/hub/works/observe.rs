//! What is seen of one cluster and one ManagedClusterModule: stores, and how long it has been waiting.

use std::sync::Arc;

use super::waits::{Waited, Waits};
use crate::hub::fleet::Fleet;
use crate::hub::standing::Removal;
use crate::hub::target::Target;
use crate::hub::view::{Cluster, FleetModule, Images, Work};
use crate::runtime::store::ObjectKey;

/// What the plan for one cluster is made from.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// What it is about.
    pub target: Target,
    /// The ManagedClusterModule.
    pub module: Option<Arc<FleetModule>>,
    /// The ManagedCluster.
    pub cluster: Option<Arc<Cluster>>,
    /// The ManagedClusterModule's images.
    pub images: Option<Arc<Images>>,
    /// The work of that name, if it has the label of ours.
    pub work: Option<Arc<Work>>,
    /// Whether works of the ManagedClusterModule may go.
    pub removal: Removal,
    /// How long it has been waiting for answers about its images, or to go, if it was.
    pub waited: Option<Waited>,
}

/// Reads the stores.
pub(super) fn observe(fleet: &Fleet, waits: &Waits, target: &Target) -> Observed {
    let module = fleet.modules.get(&ObjectKey::cluster(&*target.module));
    let removal = |module: &Arc<FleetModule>| fleet.removals.of(&module.name, &module.revision());
    Observed {
        removal: module.as_ref().map_or(Removal::Unknown, removal),
        module,
        cluster: fleet.clusters.get(&ObjectKey::cluster(&*target.cluster)),
        images: fleet.images.get(&fleet.images_key(&target.module)),
        work: fleet.works.get(&ObjectKey::new(&*target.cluster, &*target.module)),
        waited: waits.so_far(target),
        target: target.clone(),
    }
}
