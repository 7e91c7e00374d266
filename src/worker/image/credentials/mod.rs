//! Credentials for an image: those of pull secrets, and then the node's own.

mod kubelet;
mod node;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use self::node::{Found, NodeCredentials};
use crate::api::NodeModuleSpec;
use crate::api::names::NodeReason;
use crate::core::image::ImageRef;
use crate::oci::auth::credentials::Credentials;
use crate::runtime::client::{ApiError, Class, chain, within};
use crate::worker::facts::Trouble;
use crate::worker::settings::WorkerSettings;

/// Where credentials are looked for.
#[derive(Clone)]
pub(super) struct Wallet {
    client: Client,
    /// `None` where the node's own are not to be used.
    node: Option<Arc<NodeCredentials>>,
}

/// Credentials that serve an image, in the order in which they are tried, and what was passed over.
pub(super) struct Gathered {
    pub(super) credentials: Credentials,
    passed_over: Vec<String>,
}

impl Wallet {
    /// Reads pull secrets through `client`.
    pub(super) fn new(client: Client, settings: &WorkerSettings) -> Self {
        let node = settings.network.node_credentials.clone();
        let node = node.map(|own| Arc::new(NodeCredentials::new(settings.proc.clone(), own)));
        Self { client, node }
    }

    /// The Module's own secret, without which nothing is fetched, then those of its service account, then what is the
    /// node's. Of all but the first the kubelet passes over what it cannot use, and so does the worker.
    pub(super) async fn gather(&self, spec: &NodeModuleSpec, image: &ImageRef) -> Result<Gathered, Trouble> {
        let own = spec.image_repo_secret.as_ref().map(|secret| secret.name.as_str()).filter(|name| !name.is_empty());
        let mut credentials = match own {
            Some(name) => self.secret(&spec.namespace, name).await?,
            None => Credentials::anonymous(),
        };
        let mut passed_over = Vec::new();
        for more in &spec.image_pull_secrets {
            match self.secret(&spec.namespace, &more.name).await {
                Ok(more) => credentials.extend(more),
                Err(trouble) => passed_over.push(trouble.message),
            }
        }
        if let Some(node) = &self.node {
            let Found { credentials: of_node, passed_over: by_node } = Arc::clone(node).of(image.name()).await;
            credentials.extend_after(of_node);
            passed_over.extend(by_node);
        }
        Ok(Gathered { credentials, passed_over })
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Credentials, Trouble> {
        let which = format!("pull secret {namespace}/{name}");
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = match within(|| format!("read {which}"), api.get_opt(name)).await {
            Ok(Some(secret)) => secret,
            Ok(None) => return Err(Trouble::new(NodeReason::PullSecretMissing, format!("{which} does not exist"))),
            Err(error) => return Err(unread(&which, &error)),
        };
        let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
        Credentials::from_secret_data(&data)
            .map(|credentials| credentials.named(&format!("the {which}")))
            .map_err(|error| Trouble::new(NodeReason::PullSecretInvalid, format!("{which}: {}", chain(&error))))
    }
}

impl Gathered {
    /// A refusal with what might have prevented it. Some registries say of what is closed to somebody that it is not there.
    pub(super) fn explain(&self, mut trouble: Trouble) -> Trouble {
        use NodeReason::{ImageForbidden, ImageNotFound, ImageUnauthorized};
        if matches!(trouble.reason, ImageUnauthorized | ImageForbidden | ImageNotFound) {
            for why in &self.passed_over {
                trouble.message.push_str("; passed over: ");
                trouble.message.push_str(why);
            }
        }
        trouble
    }
}

/// Only a refusal says something of the secret. An API server that is away for a moment says nothing, of the image neither.
fn unread(which: &str, error: &ApiError) -> Trouble {
    match error.class() {
        Class::Denied => Trouble::new(NodeReason::PullSecretForbidden, chain(error)),
        Class::Conflict | Class::Transient | Class::Invalid => {
            Trouble::new(NodeReason::Pending, format!("{which} could not be read, it is tried again: {}", chain(error)))
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn only_a_refusal_of_the_api_server_says_that_the_secret_may_not_be_read() {
        for (code, expected) in [
            (401, NodeReason::PullSecretForbidden),
            (403, NodeReason::PullSecretForbidden),
            (429, NodeReason::Pending),
            (500, NodeReason::Pending),
            (503, NodeReason::Pending),
        ] {
            let source = Box::new(kube::Error::Api(Box::new(Status::failure("no", "No").with_code(code))));
            let trouble = unread("pull secret a/b", &ApiError::Call { action: "read it".into(), source });
            assert_eq!(trouble.reason, expected, "{code}");
        }
        let trouble = unread(
            "pull secret a/b",
            &ApiError::Deadline { action: "read it".into(), after: std::time::Duration::from_secs(30) },
        );
        assert_eq!(trouble.reason, NodeReason::Pending);
    }
}
