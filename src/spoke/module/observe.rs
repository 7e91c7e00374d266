//! What a Module's plan and status are made from, out of stores and totals.

use std::sync::Arc;

use k8s_openapi::api::core::v1::LocalObjectReference;

use crate::runtime::store::ObjectKey;
use crate::spoke::outcome::Deletion;
use crate::spoke::stores::Stores;
use crate::spoke::tally::{Count, ModuleTotals, Tally};
use crate::spoke::view::{ImagesView, ModuleFacts};

/// What a Module's plan is made from.
#[derive(Clone, Debug)]
pub(in crate::spoke) struct Observed {
    /// The Module.
    pub facts: Arc<ModuleFacts>,
    /// The ModuleImagesConfig of the same name, if there is one.
    pub images: Option<Arc<ImagesView>>,
    /// Pull secrets of its service account, sorted.
    pub pull_secrets: Vec<LocalObjectReference>,
    /// What all nodes mean for the Module; `None` until each node was looked at once.
    pub totals: Option<ModuleTotals>,
    /// Whether each node was planned with the Module as it is.
    pub counted: bool,
    /// Whose wish it is that the Module goes, if it is being deleted; `None` while nobody knows.
    pub deletion: Option<Deletion>,
}

/// Everything about one Module that is there. Only stores and totals are read.
pub(super) fn observe(stores: &Stores, tally: &Tally, key: &ObjectKey) -> Option<Observed> {
    // The Module is read before the totals: whoever planned a node later knew at least this much of it.
    let facts = Arc::clone(&stores.modules.get(key)?.facts);
    let warm = tally.is_warm();
    let totals = tally.lock();
    Some(Observed {
        images: stores.images.get(key),
        pull_secrets: stores.pull_secrets(&facts),
        totals: warm.then(|| totals.of(&facts.uid)),
        counted: matches!(totals.count(&facts), Count::Complete(_)),
        deletion: totals.deletion(&facts),
        facts,
    })
}
