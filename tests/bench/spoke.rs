//! A Spoke: from a Module to a right NodeModulesConfig for every node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kmm::api::{Module, NodeModulesConfig};
use kube::ResourceExt;
use kube::api::{Api, ApiResource, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::bare::{Write, configuration, time};
use crate::hub::{writes, written};
use crate::report::Run;
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::eventually_every;
use crate::support::manager::{Edition, Manager, NAMESPACE, install};
use crate::{PAUSE, REST};

const IMAGE: &str = "registry.invalid/kmods/x@sha256:9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0";

pub(crate) async fn run(size: usize) -> Result<Run> {
    let cluster = ControlPlane::start(ControlPlaneOptions { audit: true, ..ControlPlaneOptions::default() }).await?;
    install(&cluster, Edition::Standalone).await?;
    let admin = cluster.admin().await?;
    let nodes: Api<Node> = Api::all(admin.clone());
    let made = (0..size).map(|index| {
        let nodes = nodes.clone();
        async move {
            let name = format!("node-{index:05}");
            let node: Node = serde_json::from_value(node(&name))?;
            let status = node.status.clone();
            nodes.create(&PostParams::default(), &node).await?;
            // The API server taints every new node; nobody else is here who takes that back.
            nodes.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"spec": {"taints": null}}))).await?;
            nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await?;
            anyhow::Ok(())
        }
    });
    stream::iter(made).buffer_unordered(16).try_collect::<()>().await?;
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "bench"}}))?;
    Api::all(admin.clone()).create(&PostParams::default(), &namespace).await?;

    let mut manager = Manager::start(&cluster, Edition::Standalone).await?;
    tokio::time::sleep(REST).await;
    let module: Module = serde_json::from_value(json!({
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "Module", "metadata": {"name": "x", "namespace": "bench"},
        "spec": {"selector": {}, "moduleLoader": {"container": {
            "modprobe": {"moduleName": "x"}, "kernelMappings": [{"regexp": "^.+$", "containerImage": IMAGE}],
        }}},
    }))?;
    Api::<Module>::namespaced(admin.clone(), "bench").create(&PostParams::default(), &module).await?;
    let configs: Api<NodeModulesConfig> = Api::all(admin.clone());
    let label = ListParams::default().labels(kmm::api::names::WORKER_NODE_LABEL).limit(1);
    eventually_every(
        PAUSE,
        Duration::from_mins(5),
        &format!("{size} NodeModulesConfigs and labelled nodes"),
        || async {
            let made = configs.list_metadata(&ListParams::default().limit(1)).await?;
            let made = made.items.len() + usize::try_from(made.metadata.remaining_item_count.unwrap_or(0))?;
            // A list by label tells no remaining count; the whole is asked for only at the end.
            if made < size {
                return Ok(None);
            }
            let labelled = nodes.list_metadata(&ListParams { limit: None, ..label.clone() }).await?.items.len();
            Ok((labelled >= size).then_some(()))
        },
    )
    .await?;
    let all = configs.list(&ListParams::default()).await?.items;
    for config in &all {
        let entry = config.spec.modules.first().context("an empty NodeModulesConfig")?;
        ensure!(entry.config.container_image == IMAGE, "{} is not right", config.name_any());
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let user = format!("system:serviceaccount:{NAMESPACE}:{}", Edition::Standalone.manager());
    let requests = cluster.requests()?;
    let configs_written = written(&requests, &user, "nodemodulesconfigs", "modules")?;
    let nodes_written = written(&requests, &user, "nodes", "modules")?;
    let written = configs_written.0.max(nodes_written.0);
    let product_seconds = configs_written.1.max(nodes_written.1);

    let before = writes(&cluster, &user)?;
    let working_bytes = manager.peak_memory()?;
    manager.restart().await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let writes_after_restart = writes(&cluster, &user)? - before;
    let peak_memory_bytes = working_bytes.max(manager.peak_memory()?);
    drop(manager);

    let (config_kind, node_kind) = (ApiResource::erase::<NodeModulesConfig>(&()), ApiResource::erase::<Node>(&()));
    let mut bare = Vec::new();
    for config in &all {
        let name = format!("bare-{}", config.name_any());
        let patch = Patch::Apply(configuration(serde_json::to_value(config)?, &name));
        bare.push(Write { kind: config_kind.clone(), namespace: String::new(), name, patch });
        let patch = Patch::Merge(json!({"metadata": {"labels": {"bare": ""}}}));
        bare.push(Write { kind: node_kind.clone(), namespace: String::new(), name: config.name_any(), patch });
    }
    let bare_seconds = time(&admin, bare).await?;
    Ok(Run {
        name: "Spoke, nodes".into(),
        objects: size,
        product_seconds,
        bare_seconds,
        writes_per_object: written as f64 / size as f64,
        writes_after_restart,
        peak_memory_bytes,
    })
}

/// A node of real size: fifty images with two names each, conditions, addresses, labels.
fn node(name: &str) -> serde_json::Value {
    let images: Vec<_> = (0..50)
        .map(|index| {
            json!({"names": [
                format!("registry.example.com/team-{}/service-{index}@sha256:{index:064x}", index % 7),
                format!("registry.example.com/team-{}/service-{index}:v1.{index}.0", index % 7),
            ], "sizeBytes": 100_000_000 + index})
        })
        .collect();
    let conditions: Vec<_> = ["MemoryPressure", "DiskPressure", "PIDPressure"]
        .iter()
        .map(|kind| json!({"type": kind, "status": "False", "reason": "KubeletHasSufficient", "message": "kubelet has sufficient of it"}))
        .chain([json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"})])
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "node.kubernetes.io/instance-type": "m6i.4xlarge", "topology.kubernetes.io/zone": "zone-a",
        }},
        "status": {
            "images": images, "conditions": conditions,
            "addresses": [{"type": "Hostname", "address": name}],
            "capacity": {"cpu": "16", "memory": "64Gi", "pods": "110"}, "allocatable": {"cpu": "15", "memory": "60Gi", "pods": "110"},
            "nodeInfo": {
                "architecture": "amd64", "bootID": format!("boot-{name}"), "containerRuntimeVersion": "containerd://2.1.0",
                "kernelVersion": "6.1.0-56-cloud-amd64", "kubeProxyVersion": "", "kubeletVersion": "v1.36.3",
                "machineID": name, "operatingSystem": "linux", "osImage": "test", "systemUUID": name,
            },
        },
    })
}
