//! Namespaces, and the objects that the manager keeps in them.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use crate::runtime::store::Projection;

/// A Namespace that says that it holds Modules; others are not watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceView;

impl Projection for NamespaceView {
    type Kind = Namespace;

    fn project(_: Namespace) -> Self {
        Self
    }
}

/// What is read of a Role.
#[derive(Clone, Debug, PartialEq)]
pub struct RoleView {
    /// `metadata.uid`.
    pub uid: String,
    /// The rights.
    pub rules: Vec<PolicyRule>,
}

impl Projection for RoleView {
    type Kind = Role;

    fn project(role: Role) -> Self {
        Self { uid: role.metadata.uid.unwrap_or_default(), rules: role.rules.unwrap_or_default() }
    }
}

/// What is read of a `RoleBinding`.
#[derive(Clone, Debug, PartialEq)]
pub struct RoleBindingView {
    /// `metadata.uid`.
    pub uid: String,
    /// Which role.
    pub role: RoleRef,
    /// Who has it.
    pub subjects: Vec<Subject>,
}

impl Projection for RoleBindingView {
    type Kind = RoleBinding;

    fn project(binding: RoleBinding) -> Self {
        Self {
            uid: binding.metadata.uid.unwrap_or_default(),
            role: binding.role_ref,
            subjects: binding.subjects.unwrap_or_default(),
        }
    }
}

/// What is read of a ServiceAccount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAccountView {
    /// Names of its pull secrets, sorted, each once.
    pub pull_secrets: Vec<String>,
}

impl Projection for ServiceAccountView {
    type Kind = ServiceAccount;

    fn project(account: ServiceAccount) -> Self {
        let secrets = account.image_pull_secrets.unwrap_or_default();
        let mut pull_secrets: Vec<String> =
            secrets.into_iter().map(|secret| secret.name).filter(|name| !name.is_empty()).collect();
        pull_secrets.sort();
        pull_secrets.dedup();
        Self { pull_secrets }
    }
}
