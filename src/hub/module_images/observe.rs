//! What is seen of one ManagedClusterModule's images: stores only.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::hub::fleet::Fleet;
use crate::hub::view::{FleetModule, Images};
use crate::runtime::store::ObjectKey;

/// What the plan for the images is made from.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// Where the ModuleImagesConfig is to be.
    pub(super) key: ObjectKey,
    /// The ManagedClusterModule.
    pub(super) module: Option<Arc<FleetModule>>,
    /// Kernels of the selected clusters.
    pub(super) kernels: BTreeSet<Arc<str>>,
    /// The ModuleImagesConfig that is there.
    pub(super) images: Option<Arc<Images>>,
}

/// Reads the stores; the only place that looks at the whole fleet, and only when some cluster needs an image that
/// was not asked for, or when the ManagedClusterModule changed.
pub(super) fn observe(fleet: &Fleet, name: &Arc<str>) -> Observed {
    let module = fleet.modules.get(&ObjectKey::cluster(&**name));
    let mut kernels = BTreeSet::new();
    if let Some(module) = &module {
        fleet.clusters.for_each(|_, cluster| {
            if !cluster.deleting && module.selects(&cluster.labels) {
                for kernel in cluster.kernels.known() {
                    if !kernels.contains(kernel) {
                        kernels.insert(Arc::clone(kernel));
                    }
                }
            }
        });
    }
    let key = fleet.images_key(name);
    Observed { images: fleet.images.get(&key), key, module, kernels }
}
