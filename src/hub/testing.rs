//! Worlds for tests of the Hub's planners: objects as a server hands them out.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::ocm::{ManagedCluster, ManifestWork};
use crate::api::{ManagedClusterModule, ModuleImagesConfig};
use crate::core::kernel::KernelVersion;
use crate::hub::target::Target;
use crate::hub::view::{Cluster, FleetModule, Images, Work};
use crate::runtime::store::Projection;

pub(crate) const MODULE: &str = "gpu";
pub(crate) const UID: &str = "uid-of-gpu";

pub(crate) fn target(cluster: &str) -> Target {
    Target { module: MODULE.into(), cluster: cluster.into() }
}

pub(crate) fn kernel(text: &str) -> KernelVersion {
    KernelVersion::parse(text).unwrap()
}

/// The specification of most tests: any kernel, image by kernel, clusters with `gpu=yes`.
pub(crate) fn spec() -> Value {
    json!({
        "selector": {"gpu": "yes"},
        "spokeNamespace": "drivers",
        "moduleSpec": {
            "selector": {"feature": "gpu"},
            "imageRepoSecret": {"name": "pull"},
            "moduleLoader": {"container": {
                "modprobe": {"moduleName": "gpu", "dirName": "/opt"},
                "containerImage": "registry.test/gpu:${KERNEL_FULL_VERSION}",
                "registryTLS": {"insecure": true},
                "inTreeModulesToRemove": ["nouveau"],
                "build": {"dockerfileConfigMap": {"name": "dockerfile"}},
                "kernelMappings": [{"regexp": "^[0-9].*$", "containerImage": ""}],
            }},
        },
    })
}

pub(crate) fn module(spec: &Value) -> FleetModule {
    module_of(&json!({"name": MODULE, "uid": UID, "generation": 1}), spec)
}

pub(crate) fn module_of(metadata: &Value, spec: &Value) -> FleetModule {
    FleetModule::project(module_object(metadata, spec))
}

pub(crate) fn module_object(metadata: &Value, spec: &Value) -> ManagedClusterModule {
    let object = json!({
        "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1", "kind": "ManagedClusterModule",
        "metadata": metadata, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

/// A selected and accepted cluster that tells these kernels in one claim.
pub(crate) fn cluster(kernels: &[&str]) -> Cluster {
    cluster_of(&json!({"gpu": "yes"}), &claims(kernels))
}

pub(crate) fn cluster_of(labels: &Value, claims: &Value) -> Cluster {
    Cluster::project(cluster_object("any", labels, claims))
}

/// One claim with these kernels, none for no kernels.
pub(crate) fn claims(kernels: &[&str]) -> Value {
    match kernels {
        [] => json!([]),
        kernels => json!([{"name": "kernel-versions.kmm.node.kubernetes.io", "value": kernels.join("\n")}]),
    }
}

pub(crate) fn cluster_object(name: &str, labels: &Value, claims: &Value) -> ManagedCluster {
    let object = json!({
        "apiVersion": "cluster.open-cluster-management.io/v1", "kind": "ManagedCluster",
        "metadata": {"name": name, "labels": labels},
        "spec": {"hubAcceptsClient": true},
        "status": {"clusterClaims": claims},
    });
    serde_json::from_value(object).unwrap()
}

/// What the images controller knows: kernel, image, and digest or reason.
pub(crate) fn images(facts: &[(&str, &str, Result<&str, &str>)]) -> Images {
    Images::project(images_object(facts))
}

pub(crate) fn images_object(facts: &[(&str, &str, Result<&str, &str>)]) -> ModuleImagesConfig {
    let states: Vec<Value> = facts
        .iter()
        .map(|(kernel, image, known)| match known {
            Ok(digest) => {
                json!({"kernelVersion": kernel, "image": image, "status": "Exists", "digest": digest, "reason": "Resolved"})
            }
            Err(reason) => json!({"kernelVersion": kernel, "image": image, "status": "Unknown", "reason": reason}),
        })
        .collect();
    let asked: Vec<Value> =
        facts.iter().map(|(kernel, image, _)| json!({"kernelVersion": kernel, "image": image})).collect();
    serde_json::from_value(json!({
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "ModuleImagesConfig",
        "metadata": {"name": MODULE, "namespace": "kmm", "uid": "uid-of-images", "ownerReferences": [owner("ManagedClusterModule", MODULE, UID)]},
        "spec": {"images": asked},
        "status": {"imagesStates": states},
    }))
    .unwrap()
}

pub(crate) fn owner(kind: &str, name: &str, uid: &str) -> Value {
    let group = if kind == "ManagedClusterModule" { "hub.kmm.sigs.x-k8s.io/v1beta1" } else { "apps/v1" };
    json!({"apiVersion": group, "kind": kind, "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true})
}

/// `sha256:` and 64 times the digit.
pub(crate) fn digest(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

/// The work as a server hands it out that stored it, with fields of its own.
pub(crate) fn stored(work: &ManifestWork) -> Value {
    let mut value = serde_json::to_value(work).unwrap();
    value["metadata"]["uid"] = json!("uid-of-work");
    value["metadata"]["generation"] = json!(3);
    value["metadata"]["resourceVersion"] = json!("42");
    value["metadata"]["managedFields"] = json!([{"manager": "kmm-hub", "operation": "Apply"}]);
    value["spec"]["fieldOfANewerRelease"] = json!("default");
    value
}

/// The stored work after the agent applied it, with these values read back.
pub(crate) fn reported(mut work: Value, values: &[(&str, Value)]) -> Value {
    let values: Vec<Value> = values
        .iter()
        .map(|(name, value)| match value {
            Value::String(text) => json!({"name": name, "fieldValue": {"type": "String", "string": text}}),
            number => json!({"name": name, "fieldValue": {"type": "Integer", "integer": number}}),
        })
        .collect();
    work["status"] = json!({
        "conditions": [condition("Applied", "True", "")],
        "resourceStatus": {"manifests": [{
            "resourceMeta": {"ordinal": 1, "group": "kmm.sigs.x-k8s.io", "resource": "modules", "kind": "Module", "name": MODULE},
            "conditions": [],
            "statusFeedback": {"values": values},
        }]},
    });
    work
}

pub(crate) fn condition(type_: &str, status: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": "R", "message": message,
        "observedGeneration": 3, "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// The hash in the stored work's Module.
pub(crate) fn hash_in(work: &Value) -> Value {
    work["spec"]["workload"]["manifests"][1]["metadata"]["annotations"]["kmm.node.kubernetes.io/rendered-hash"].clone()
}

pub(crate) fn work(value: Value) -> Arc<Work> {
    Arc::new(Work::project(serde_json::from_value(value).unwrap()))
}
