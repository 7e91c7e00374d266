//! Namespaces that hold Modules, keyed by name.

mod plan;

pub use plan::{Action, Observed, plan};

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{Api, Resource};
use serde_json::{Value, json};

use crate::api::names::field_manager::MODULE_STATUS;
use crate::api::names::{NAMESPACE_CONTAINS_MODULES_LABEL, PULL_SECRETS_ROLE};
use crate::runtime::client::{ApiError, apply, delete, merge};
use crate::runtime::queue::Outcome;
use crate::runtime::store::ObjectKey;

use super::Context;

fn observe(context: &Context, name: &str) -> Observed {
    let stores = &context.stores;
    let mut modules = Vec::new();
    stores.modules.for_each(|key, module| {
        if key.namespace == name {
            modules.push(Arc::clone(&module.facts));
        }
    });
    let role = ObjectKey::new(name, PULL_SECRETS_ROLE);
    let pull_secrets = modules.iter().flat_map(|module| stores.pull_secrets(module)).map(|secret| secret.name);
    Observed {
        pull_secrets: pull_secrets.collect(),
        modules,
        marked: stores.namespaces.get(&ObjectKey::cluster(name)).is_some(),
        role: stores.roles.get(&role),
        binding: stores.bindings.get(&role),
        worker: context.settings.worker_account(),
    }
}

/// One pass over one namespace.
pub(super) async fn reconcile(context: Arc<Context>, name: String) -> Result<Outcome, ApiError> {
    for action in plan(&observe(&context, &name)) {
        match carry_out(&context, &name, action).await {
            // A namespace that is gone needs nothing.
            Err(error) if error.is_not_found() => return Ok(Outcome::Done),
            result => result?,
        }
    }
    Ok(Outcome::Done)
}

async fn carry_out(context: &Context, namespace: &str, action: Action) -> Result<(), ApiError> {
    let client = context.client.clone();
    let roles: Api<Role> = Api::namespaced(client.clone(), namespace);
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
    match action {
        Action::Mark(marked) => {
            let api: Api<Namespace> = Api::all(client);
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
            apply(&roles, PULL_SECRETS_ROLE, MODULE_STATUS, &body).await.map(|_| ())
        }
        Action::ApplyBinding { role, subject } => {
            let body = json!({
                "apiVersion": RoleBinding::api_version(&()),
                "kind": RoleBinding::kind(&()),
                "metadata": { "name": PULL_SECRETS_ROLE },
                "roleRef": role,
                "subjects": [subject],
            });
            apply(&bindings, PULL_SECRETS_ROLE, MODULE_STATUS, &body).await.map(|_| ())
        }
        Action::DeleteBinding { uid } => delete(&bindings, PULL_SECRETS_ROLE, &uid).await,
        Action::DeleteRole { uid } => delete(&roles, PULL_SECRETS_ROLE, &uid).await,
    }
}
