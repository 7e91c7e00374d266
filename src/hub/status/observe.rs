//! What is seen of one ManagedClusterModule as a whole: stores and totals.

use std::sync::Arc;

use crate::core::kernel::KernelVersion;
use crate::hub::fleet::Fleet;
use crate::hub::standing::{Held, Removal, Totals};
use crate::hub::view::FleetModule;
use crate::runtime::store::ObjectKey;

/// What a status is made from.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// The ManagedClusterModule.
    pub(super) module: Arc<FleetModule>,
    /// How its clusters stand.
    pub(super) totals: Totals,
    /// The removal that waits for a confirmation.
    pub(super) held: Option<Held>,
    /// The first kernels that wait for an image.
    pub(super) missing: Vec<Missing>,
    /// Why the server does not take the ModuleImagesConfig.
    pub(super) refused: Option<String>,
}

/// A kernel that waits for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// The kernel.
    pub(super) kernel: KernelVersion,
    /// The image; empty if it cannot be named.
    pub(super) image: String,
    /// What the last look-up came to, in one word; empty if there was none.
    pub(super) reason: Arc<str>,
    /// The same in one sentence.
    pub(super) message: Arc<str>,
    /// Clusters that wait for it.
    pub(super) clusters: usize,
}

/// Kernels that a message names.
const NAMED: usize = 3;

/// Reads stores and totals; `None` if there is nothing to say, or nobody can say it yet of this revision.
pub(super) fn observe(fleet: &Fleet, name: &Arc<str>) -> Option<Observed> {
    let module = fleet.modules.get(&ObjectKey::cluster(&**name)).filter(|module| !module.deleting)?;
    let totals = fleet.tally.totals(name, &module.revision())?;
    let held = match fleet.removals.of(name, &module.revision()) {
        Removal::Unknown => return None,
        Removal::Free => None,
        Removal::Held(held) => Some(held),
    };
    let images = fleet.images.get(&fleet.images_key(name)).filter(|images| images.is_owned_by(&module.uid));
    let missing = totals.held_back.iter().take(NAMED).map(|(kernel, clusters)| {
        let image = module.resolve(kernel).map(|resolved| resolved.image).unwrap_or_default();
        let fact = images.as_deref().and_then(|images| images.fact(kernel.as_str(), &image));
        Missing {
            kernel: kernel.clone(),
            reason: fact.map(|fact| Arc::clone(&fact.reason)).unwrap_or_default(),
            message: fact.map(|fact| Arc::clone(&fact.message)).unwrap_or_default(),
            image,
            clusters: *clusters,
        }
    });
    let missing = missing.collect();
    Some(Observed { module, totals, held, missing, refused: fleet.images_refused.get(name) })
}
