//! ClusterClaims with kernels.

use crate::api::ocm::ClusterClaim;
use crate::runtime::store::Projection;

/// What is read of a ClusterClaim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimView {
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.value`.
    pub value: String,
}

impl Projection for ClaimView {
    type Kind = ClusterClaim;

    fn project(claim: ClusterClaim) -> Self {
        Self { uid: claim.metadata.uid.unwrap_or_default(), value: claim.spec.value.unwrap_or_default() }
    }
}
