//! Carries out the plan for a namespace.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};

use crate::api::names::field_manager::MODULE_STATUS;
use crate::api::names::{NAMESPACE_CONTAINS_MODULES_LABEL, PULL_SECRETS_ROLE};
use crate::runtime::client::{self, ApiError, delete, merge};

use super::plan::Action;

/// Carries out one action.
pub(super) async fn apply(client: &Client, namespace: &str, action: Action) -> Result<(), ApiError> {
    let roles: Api<Role> = Api::namespaced(client.clone(), namespace);
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
    match action {
        Action::Mark(marked) => {
            let api: Api<Namespace> = Api::all(client.clone());
            let value = if marked { Value::from("") } else { Value::Null };
            let body = json!({ "metadata": { "labels": { NAMESPACE_CONTAINS_MODULES_LABEL: value } } });
            merge(&api, namespace, MODULE_STATUS, &body).await.map(|_| ())
        }
        Action::ApplyRole(rules) => {
            let body = json!({
                "apiVersion": Role::api_version(&()),
                "kind": Role::kind(&()),
                "metadata": { "name": PULL_SECRETS_ROLE },
                "rules": rules,
            });
            client::apply(&roles, PULL_SECRETS_ROLE, MODULE_STATUS, &body).await.map(|_| ())
        }
        Action::ApplyBinding { role, subject } => {
            let body = json!({
                "apiVersion": RoleBinding::api_version(&()),
                "kind": RoleBinding::kind(&()),
                "metadata": { "name": PULL_SECRETS_ROLE },
                "roleRef": role,
                "subjects": [subject],
            });
            client::apply(&bindings, PULL_SECRETS_ROLE, MODULE_STATUS, &body).await.map(|_| ())
        }
        Action::DeleteBinding { uid } => delete(&bindings, PULL_SECRETS_ROLE, &uid).await,
        Action::DeleteRole { uid } => delete(&roles, PULL_SECRETS_ROLE, &uid).await,
    }
}
