//! What is missing for some kernels of a cluster.

use std::sync::Arc;

use crate::core::kernel::KernelVersion;
use crate::hub::intern;

/// Why no image is known for some kernels of a cluster, and which they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Kernels that have a mapping and no image yet, with what is known of the image.
    pub held_back: Vec<(KernelVersion, String)>,
    /// Kernels without a mapping, or for which the mapping's templates fail.
    pub unmapped: Vec<(KernelVersion, String)>,
    /// Images that were not asked for yet, or whose registry has not answered yet.
    pub unanswered: usize,
}

/// Names in a message before the rest is counted.
const NAMED: usize = 3;

impl Gaps {
    /// The kernels that have a mapping and no image yet.
    pub(super) fn waiting(&self) -> Arc<[KernelVersion]> {
        let kernels: Vec<KernelVersion> = self.held_back.iter().map(|(kernel, _)| kernel.clone()).collect();
        intern::kernels(&kernels)
    }

    /// "no image yet for kernel a (why), b (why) and 2 more", `None` if every image is known.
    pub(super) fn without_image(&self) -> Option<String> {
        name_all("no image yet for kernel", &self.held_back)
    }

    /// "no usable mapping for kernel a, b and 2 more", `None` if every kernel has one.
    pub(super) fn without_mapping(&self) -> Option<String> {
        name_all("no usable mapping for kernel", &self.unmapped)
    }
}

fn name_all(what: &str, kernels: &[(KernelVersion, String)]) -> Option<String> {
    if kernels.is_empty() {
        return None;
    }
    let named: Vec<String> = kernels
        .iter()
        .take(NAMED)
        .map(|(kernel, why)| if why.is_empty() { kernel.to_string() } else { format!("{kernel} ({why})") })
        .collect();
    let more = kernels.len() - named.len();
    let tail = if more == 0 { String::new() } else { format!(" and {more} more") };
    Some(format!("{what} {}{tail}", named.join(", ")))
}
