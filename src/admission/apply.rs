//! Calls to the API server about policies.

use std::fmt::Debug;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::core::CustomResourceExt;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::names::field_manager::ADMISSION;
use crate::api::{Module, NodeModulesConfig, NodeModulesConfigSpec};
use crate::runtime::client::{ApiError, Class, apply, replace, within};

use super::plan::Action;
use super::policies::IN_FORCE;

/// The user that the API server takes this process for.
pub(super) async fn user(client: &Client) -> Result<String, ApiError> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let question = SelfSubjectReview::default();
    let answer = within(|| "ask who this manager is".to_owned(), api.create(&PostParams::default(), &question)).await?;
    Ok(answer.status.and_then(|status| status.user_info).and_then(|user| user.username).unwrap_or_default())
}

/// What policies go with: the CustomResourceDefinition of Modules, `None` if it is not there.
pub(super) async fn owner(client: &Client) -> Result<Option<OwnerReference>, ApiError> {
    let name = Module::crd_name();
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let found = within(|| format!("read CustomResourceDefinition {name}"), api.get_metadata_opt(name)).await?;
    Ok(found.map(|crd| OwnerReference {
        api_version: CustomResourceDefinition::api_version(&()).into_owned(),
        kind: CustomResourceDefinition::kind(&()).into_owned(),
        name: name.to_owned(),
        uid: crd.metadata.uid.unwrap_or_default(),
        ..OwnerReference::default()
    }))
}

/// Carries an action out on the object that `object` makes of its metadata; whether anything was written.
pub(super) async fn carry_out<K>(
    client: &Client,
    name: &str,
    owner: &OwnerReference,
    action: Action,
    object: impl FnOnce(ObjectMeta) -> K,
) -> Result<bool, ApiError>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let meta = |resource_version| ObjectMeta {
        name: Some(name.to_owned()),
        owner_references: Some(vec![owner.clone()]),
        resource_version,
        ..ObjectMeta::default()
    };
    match action {
        Action::Nothing => return Ok(false),
        Action::Create => drop(apply(&api, name, ADMISSION, &object(meta(None))).await?),
        Action::Replace { resource_version } => {
            replace(&api, name, ADMISSION, &object(meta(Some(resource_version)))).await?;
        }
    }
    Ok(true)
}

/// Whether the API server refuses what only the policy `name` refuses. Nothing is written in either case.
///
/// It speaks for the API server that answers; where there are several, the others follow within seconds.
pub(super) async fn is_in_force(client: &Client, name: &str, question: &str) -> Result<bool, ApiError> {
    let api: Api<NodeModulesConfig> = Api::all(client.clone());
    let params = PostParams { dry_run: true, field_manager: Some(ADMISSION.to_owned()) };
    let object = NodeModulesConfig::new(question, NodeModulesConfigSpec::default());
    match within(|| format!("ask whether the policy {name} is in force"), api.create(&params, &object)).await {
        Ok(_) => Ok(false),
        Err(error) if error.class() == Class::Invalid && error.reason().contains(IN_FORCE) => Ok(true),
        Err(error) => Err(error),
    }
}
