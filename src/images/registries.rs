//! Answers questions by asking the registry, with the pull secret that the object names.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::lookup::{Oracle, Reply};
use super::observe::{Answer, Question};
use crate::api::names::ImageReason;
use crate::core::image::ImageRef;
use crate::oci::auth::credentials::Credentials;
use crate::oci::http::registry;
use crate::oci::route::proxies::Proxies;
use crate::runtime::client::{ApiError, Class, within};
use crate::runtime::metrics::Metrics;
use crate::runtime::store::ObjectKey;

/// Longest time that one look-up may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// The registries, as the manager reaches them.
pub struct Registries {
    client: Client,
    proxies: Proxies,
    lookups: Family<Labels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    reason: &'static str,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registries")
    }
}

impl Registries {
    /// Reads secrets through `client`, each time that a question needs one: nothing secret is kept.
    pub fn new(client: Client, proxies: Proxies, metrics: &Metrics) -> Self {
        let lookups = Family::default();
        metrics.register(|registry| {
            let help = "Look-ups of images in their registries, by what they came to";
            registry.register("kmm_image_lookups", help, Family::clone(&lookups));
        });
        Self { client, proxies, lookups }
    }

    async fn look_up(&self, question: &Question) -> Reply {
        let image: ImageRef = match question.image.parse() {
            Ok(image) => image,
            Err(error) => return failed(ImageReason::InvalidReference, error.to_string()),
        };
        let (credentials, passed_over) = match self.all_credentials(question).await {
            Ok(credentials) => credentials,
            Err((reason, message)) => return failed(reason, format!("image {}: {message}", question.image)),
        };
        match registry::resolve(&image, &credentials, &question.options(), &self.proxies, DEADLINE).await {
            Ok(digest) => Reply { answer: Answer::Found(digest), rest: None },
            Err(error) => {
                let reason = error.reason();
                // Some registries say of what is closed to somebody that it is not there.
                let denied =
                    matches!(reason, ImageReason::Unauthorized | ImageReason::Forbidden | ImageReason::NotFound);
                let told = passed_over.iter().filter(|_| denied).map(|why| format!("; passed over: {why}"));
                let message = std::iter::once(error.to_string()).chain(told).collect();
                Reply { rest: error.retry_after(), ..failed(reason, message) }
            }
        }
    }

    /// What to try, in order: the object's own secret, without which nothing is asked, then those of a service account,
    /// of which the kubelet passes over what it cannot use, and so do we; the second value says which and why.
    async fn all_credentials(&self, question: &Question) -> Result<(Credentials, Vec<String>), (ImageReason, String)> {
        let mut credentials = match &question.secret {
            None => Credentials::anonymous(),
            Some(secret) => self.credentials(secret).await?,
        };
        let mut passed_over = Vec::new();
        for secret in &question.pull_secrets {
            match self.credentials(secret).await {
                Ok(more) => credentials.extend(more),
                Err((ImageReason::Pending, message)) => return Err((ImageReason::Pending, message)),
                Err((_, message)) => passed_over.push(message),
            }
        }
        Ok((credentials, passed_over))
    }

    async fn credentials(&self, secret: &ObjectKey) -> Result<Credentials, (ImageReason, String)> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &secret.namespace);
        let found = within(|| format!("read the pull secret {secret}"), api.get(&secret.name)).await;
        let data = found.map_err(|error| refused(secret, &error))?.data.unwrap_or_default();
        let bytes = data.iter().map(|(key, value)| (key.clone(), &value.0[..])).collect();
        Credentials::from_secret_data(&bytes)
            .map(|credentials| credentials.named(&format!("the pull secret {secret}")))
            .map_err(|error| (ImageReason::PullSecretInvalid, format!("pull secret {secret}: {error}")))
    }
}

impl Oracle for Registries {
    fn ask(&self, question: Question) -> Pin<Box<dyn Future<Output = Reply> + Send + '_>> {
        Box::pin(async move {
            let reply = self.look_up(&question).await;
            let reason = match &reply.answer {
                Answer::Found(_) => ImageReason::Resolved,
                Answer::Failed { reason, .. } => *reason,
            };
            self.lookups.get_or_create(&Labels { reason: reason.as_str() }).inc();
            reply
        })
    }
}

fn failed(reason: ImageReason, message: String) -> Reply {
    Reply { answer: Answer::Failed { reason, message }, rest: None }
}

fn refused(secret: &ObjectKey, error: &ApiError) -> (ImageReason, String) {
    if error.is_not_found() {
        return (ImageReason::PullSecretMissing, format!("pull secret {secret} does not exist"));
    }
    let message = format!("pull secret {secret} cannot be read: {}", error.reason());
    match error.class() {
        Class::Denied => (ImageReason::PullSecretForbidden, message),
        // The API server is away for a moment: nothing is known of the image, and nothing of the secret.
        Class::Conflict | Class::Transient | Class::Invalid => (ImageReason::Pending, message),
    }
}
