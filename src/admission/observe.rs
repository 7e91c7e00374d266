//! What is read of a policy and of its binding.

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicyBindingSpec,
    ValidatingAdmissionPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::runtime::store::Projection;

/// An object that is there; `S` is its specification.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Present<S> {
    /// `metadata.resourceVersion`.
    pub(super) resource_version: String,
    /// `metadata.uid` of each owner.
    pub(super) owners: Vec<String>,
    /// The specification; an object without one does nothing.
    pub(super) spec: Option<S>,
}

impl<S> Present<S> {
    fn new(meta: ObjectMeta, spec: Option<S>) -> Self {
        let owners = meta.owner_references.unwrap_or_default().into_iter().map(|owner| owner.uid).collect();
        Self { resource_version: meta.resource_version.unwrap_or_default(), owners, spec }
    }
}

/// What is read of a `ValidatingAdmissionPolicy`.
pub(super) type PolicyView = Present<ValidatingAdmissionPolicySpec>;
/// What is read of a `ValidatingAdmissionPolicyBinding`.
pub(super) type BindingView = Present<ValidatingAdmissionPolicyBindingSpec>;

impl Projection for PolicyView {
    type Kind = ValidatingAdmissionPolicy;

    fn project(policy: ValidatingAdmissionPolicy) -> Self {
        Self::new(policy.metadata, policy.spec)
    }
}

impl Projection for BindingView {
    type Kind = ValidatingAdmissionPolicyBinding;

    fn project(binding: ValidatingAdmissionPolicyBinding) -> Self {
        Self::new(binding.metadata, binding.spec)
    }
}
