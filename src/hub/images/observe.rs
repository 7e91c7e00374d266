//! What is seen of one ManagedClusterModule's images: stores only.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::core::kernel::KernelVersion;
use crate::hub::fleet::Fleet;
use crate::hub::intern::Sent;
use crate::hub::view::{FleetModule, Images, Kernels};
use crate::runtime::store::ObjectKey;

/// What the plan for the images is made from.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// Where the ModuleImagesConfig is to be.
    pub(super) key: ObjectKey,
    /// The ManagedClusterModule.
    pub(super) module: Option<Arc<FleetModule>>,
    /// Kernels of the selected clusters.
    pub(super) kernels: BTreeSet<KernelVersion>,
    /// What was sent to them.
    pub(super) sent: BTreeSet<Sent>,
    /// The ModuleImagesConfig that is there.
    pub(super) images: Option<Arc<Images>>,
}

/// Reads the stores; the only place that looks at the whole fleet, and only when some cluster needs an image that
/// was not asked for, or when the ManagedClusterModule changed.
pub(super) fn observe(fleet: &Fleet, name: &Arc<str>) -> Observed {
    let module = fleet.modules.get(&ObjectKey::cluster(&**name));
    let (mut kernels, mut sent) = (BTreeSet::new(), BTreeSet::new());
    let mut add = |kernel: &KernelVersion| {
        if !kernels.contains(kernel) {
            kernels.insert(kernel.clone());
        }
    };
    if let Some(module) = &module {
        fleet.clusters.for_each(|key, cluster| {
            if cluster.deleting || !module.selects(&cluster.labels) {
                return;
            }
            cluster.kernels.known().iter().for_each(&mut add);
            let work = fleet.works.get(&ObjectKey::new(&*key.name, &**name));
            for line in work.iter().flat_map(|work| work.sent.iter()) {
                if matches!(cluster.kernels, Kernels::Incomplete { .. }) {
                    // What the cluster cannot tell now it told before.
                    add(&line.kernel);
                }
                if !sent.contains(line) {
                    sent.insert(line.clone());
                }
            }
        });
    }
    let key = fleet.images_key(name);
    Observed { images: fleet.images.get(&key), key, module, kernels, sent }
}
