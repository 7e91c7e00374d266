//! Writes one manifest to the spoke by its update strategy, with the agent's own rights.

use std::collections::HashMap;
use std::sync::Mutex;

use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, Error};
use serde_json::{Map, Value, json};

use super::kinds::{is_not_found, said, split_api_version, text};

/// Who writes, unless a strategy names another field manager.
pub const FIELD_MANAGER: &str = "work-agent";

/// How a kind is reached.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub resource: ApiResource,
    pub namespaced: bool,
}

impl Mapping {
    /// The objects of this kind in the manifest's namespace.
    pub fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }
}

/// Looks kinds up on the spoke and remembers the ones that it found.
#[derive(Debug, Default)]
pub struct Mapper(Mutex<HashMap<(String, String), Mapping>>);

impl Mapper {
    /// # Errors
    /// The message for the condition: the type is unknown, or the spoke did not answer.
    pub async fn find(&self, client: &Client, api_version: &str, kind: &str) -> Result<Mapping, String> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.0.lock().map_err(|error| error.to_string())?.get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = split_api_version(api_version);
        let answer = if group.is_empty() {
            client.list_core_api_resources(version).await
        } else {
            client.list_api_group_resources(api_version).await
        };
        let unknown = || format!("the server doesn't have a resource type {kind:?}");
        let resources = match answer {
            Ok(list) => list.resources,
            Err(error) if is_not_found(&error) => return Err(unknown()),
            Err(error) => return Err(said(&error)),
        };
        let found = resources.iter().find(|one| one.kind == kind && !one.name.contains('/')).ok_or_else(unknown)?;
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let mapping =
            Mapping { resource: ApiResource::from_gvk_with_plural(&gvk, &found.name), namespaced: found.namespaced };
        self.0.lock().map_err(|error| error.to_string())?.insert(key, mapping.clone());
        Ok(mapping)
    }
}

/// One manifest, ready to be written.
#[derive(Debug)]
pub struct Manifest<'a> {
    pub object: &'a Value,
    pub mapping: &'a Mapping,
    /// `updateStrategy` of the matching `manifestConfigs` entry, null for the default.
    pub strategy: &'a Value,
    /// Reference to the `AppliedManifestWork`.
    pub owner: &'a Value,
    /// Whether the object goes with the work; if not, the reference is taken away.
    pub owned: bool,
}

/// Why a manifest was not applied.
#[derive(Debug, PartialEq)]
pub enum Failure {
    /// Tried again with a growing delay.
    Retry(String),
    /// A conflict of server-side apply: tried again only at the resync.
    Conflict(String),
}

impl Manifest<'_> {
    fn name(&self) -> &str {
        text(self.object, "/metadata/name")
    }

    /// Applies the manifest; gives the object as the spoke has it now, `None` for `ReadOnly`.
    ///
    /// # Errors
    /// What the spoke's API server said.
    pub async fn apply(&self, spoke: &Client) -> Result<Option<DynamicObject>, Failure> {
        let api = self.mapping.api(spoke, text(self.object, "/metadata/namespace"));
        let retry = |error: Error| Failure::Retry(said(&error));
        let applied = match text(self.strategy, "/type") {
            "ReadOnly" => return Ok(None),
            "ServerSideApply" => self.server_side_apply(&api).await?,
            "CreateOnly" => match api.get_opt(self.name()).await.map_err(retry)? {
                Some(existing) => existing,
                None => self.create(&api).await.map_err(retry)?,
            },
            _ => match api.get_opt(self.name()).await.map_err(retry)? {
                Some(existing) => self.update(&api, existing).await.map_err(retry)?,
                None => self.create(&api).await.map_err(retry)?,
            },
        };
        self.reference_owner(&api, applied).await.map(Some).map_err(retry)
    }

    async fn create(&self, api: &Api<DynamicObject>) -> Result<DynamicObject, Error> {
        let mut object = self.object.clone();
        if self.owned {
            object["metadata"]["ownerReferences"] = json!([self.owner]);
        }
        let object: DynamicObject = serde_json::from_value(object).map_err(Error::SerdeError)?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        api.create(&params, &object).await
    }

    async fn server_side_apply(&self, api: &Api<DynamicObject>) -> Result<DynamicObject, Failure> {
        let manager = Some(text(self.strategy, "/serverSideApply/fieldManager")).filter(|name| !name.is_empty());
        let mut params = PatchParams::apply(manager.unwrap_or(FIELD_MANAGER));
        params.force = self.strategy.pointer("/serverSideApply/force") == Some(&Value::Bool(true));
        api.patch(self.name(), &params, &Patch::Apply(self.object)).await.map_err(|error| match &error {
            Error::Api(status) if status.code == 409 => Failure::Conflict(said(&error)),
            _ => Failure::Retry(said(&error)),
        })
    }

    async fn update(&self, api: &Api<DynamicObject>, existing: DynamicObject) -> Result<DynamicObject, Error> {
        let have = serde_json::to_value(&existing).map_err(Error::SerdeError)?;
        let Some(wanted) = merged(&have, self.object) else { return Ok(existing) };
        let object: DynamicObject = serde_json::from_value(wanted).map_err(Error::SerdeError)?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        api.replace(self.name(), &params, &object).await
    }

    /// A second patch sets or removes the owner reference, if it is not already right.
    async fn reference_owner(&self, api: &Api<DynamicObject>, object: DynamicObject) -> Result<DynamicObject, Error> {
        let owners = object.metadata.owner_references.clone().unwrap_or_default();
        let uid = text(self.owner, "/uid");
        if owners.iter().any(|owner| owner.uid == uid) == self.owned {
            return Ok(object);
        }
        let mut all: Vec<Value> = owners.iter().filter(|owner| owner.uid != uid).map(|owner| json!(owner)).collect();
        if self.owned {
            all.push(self.owner.clone());
        }
        let patch = json!({"metadata": {
            "ownerReferences": all,
            "resourceVersion": object.metadata.resource_version,
            "uid": object.metadata.uid,
        }});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        api.patch(self.name(), &params, &Patch::Merge(patch)).await
    }
}

/// The object to write for the strategy `Update`, `None` if the existing one will do.
///
/// Labels and annotations are merged and the rest of the metadata stays. Of a custom resource everything
/// but metadata and status is replaced, so fields that somebody else set or that the CRD defaulted are
/// put back. Kinds of Kubernetes itself are merged.
pub fn merged(have: &Value, manifest: &Value) -> Option<Value> {
    let mut want = manifest.clone();
    let (group, _) = split_api_version(text(manifest, "/apiVersion"));
    let built_in = group.is_empty() || !group.contains('.') || group.ends_with(".k8s.io");
    if built_in {
        want = have.clone();
        for (field, value) in manifest.as_object().into_iter().flatten().filter(|(field, _)| *field != "metadata") {
            overlay(&mut want[field], value);
        }
    }
    let mut metadata = have["metadata"].clone();
    for field in ["labels", "annotations"] {
        for (key, value) in manifest["metadata"][field].as_object().into_iter().flatten() {
            if metadata[field].is_null() {
                metadata[field] = json!({});
            }
            metadata[field][key] = value.clone();
        }
    }
    let same_metadata = metadata == have["metadata"];
    want["metadata"] = metadata;
    let content = |object: &Value| -> Map<String, Value> {
        let fields = object.as_object().into_iter().flatten();
        fields
            .filter(|(field, _)| !matches!(field.as_str(), "metadata" | "status"))
            .map(|(field, value)| (field.clone(), value.clone()))
            .collect()
    };
    (!same_metadata || content(&want) != content(have)).then_some(want)
}

fn overlay(have: &mut Value, want: &Value) {
    match (have, want) {
        (Value::Object(have), Value::Object(want)) => {
            for (key, value) in want {
                overlay(have.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (have, want) => *have = want.clone(),
    }
}

/// The place of a kind in the order of writing; kinds that Kubernetes does not know come last.
pub fn kind_rank(kind: &str) -> usize {
    const ORDER: [&str; 24] = [
        "CustomResourceDefinition",
        "Namespace",
        "PriorityClass",
        "ResourceQuota",
        "LimitRange",
        "NetworkPolicy",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "Secret",
        "ConfigMap",
        "StorageClass",
        "PersistentVolume",
        "PersistentVolumeClaim",
        "Service",
        "DaemonSet",
        "Deployment",
        "StatefulSet",
        "Job",
        "CronJob",
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
    ];
    ORDER.iter().position(|known| *known == kind).unwrap_or(ORDER.len())
}
