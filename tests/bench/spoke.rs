//! A Spoke: from Modules to a right NodeModulesConfig for every node, and again after every node booted another kernel.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kmm::api::{Module, NodeModulesConfig};
use kube::api::{Api, ApiResource, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::bare::{Write, configuration, time};
use crate::hub::{writes, written};
use crate::report::{MEMORY_NOISE, Report};
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::eventually_every;
use crate::support::manager::{Edition, Manager, install, user};
use crate::{IN_FLIGHT, MIB, PAUSE, REST, goals};

const EDITION: Edition = Edition::Standalone;
const DIGEST: &str = "sha256:9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0";
const KERNELS: [&str; 3] = ["5.14.0-427.13.1.el9_4.x86_64", "6.1.0-56-cloud-amd64", "6.12.0+"];
/// For all nodes to be right: a bare client needs a minute for 5,000 nodes with 10 Modules.
const LIMIT: Duration = Duration::from_mins(20);

/// Nodes, and Modules that each of them has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) modules: usize,
}

impl Shape {
    pub(crate) fn name(self) -> String {
        match self.modules {
            1 => format!("spoke-{}", self.nodes),
            modules => format!("spoke-{}x{modules}", self.nodes),
        }
    }

    fn entries(self) -> f64 {
        (self.nodes * self.modules) as f64
    }
}

/// What one turn measured.
#[derive(Debug)]
pub(crate) struct Turn {
    product_seconds: f64,
    /// Not where memory alone is asked.
    bare_seconds: Option<f64>,
    writes_per_node: f64,
    writes_per_boot: f64,
    writes_after_restart: usize,
    cpu_of_creation: f64,
    cpu_of_boots: f64,
    /// Until all nodes were right, until they were after the boots, and of a manager that was started then.
    peaks: [u64; 3],
    at_rest: u64,
}

pub(crate) fn judge(report: &mut Report, name: &str, shape: Shape, turns: &[Turn]) {
    let figures = |of: &dyn Fn(&Turn) -> f64| turns.iter().map(of).collect::<Vec<_>>();
    let product = figures(&|turn| turn.product_seconds);
    if let Some(bare) = turns.iter().map(|turn| turn.bare_seconds).collect::<Option<Vec<_>>>() {
        let full = shape.modules > 1;
        let goal = if full { goals::SPOKE_RATIO } else { goals::RATIO };
        let noise = report.compare(name, "the bare client", &product, &bare, goal);
        // Modules that come one after the other may meet a node twice.
        let written = figures(&|turn| turn.writes_per_node);
        if full {
            report.tell(name, "writes per node", "", written);
        } else {
            report.judge(name, "writes per node", "", written, goals::WRITES, 0.0);
        }
        report.judge(name, "writes per boot", "", figures(&|turn| turn.writes_per_boot), goals::WRITES, 0.0);
        let after = figures(&|turn| turn.writes_after_restart as f64);
        report.judge(name, "writes after a restart", "", after, goals::WRITES_AFTER_RESTART, 0.0);
        let each = 1e3 / shape.entries();
        let cpu = figures(&|turn| turn.cpu_of_creation * each);
        report.judge(name, "CPU per entry that is new", "ms", cpu, goals::CPU_MILLISECONDS, noise);
        let cpu = figures(&|turn| turn.cpu_of_boots * each);
        report.judge(name, "CPU per entry that a boot changes", "ms", cpu, goals::CPU_MILLISECONDS, noise);
    } else {
        report.tell(name, "time", "s", product);
    }
    let goal = goals::spoke_mib(shape.nodes, shape.modules);
    for (index, until) in
        ["all nodes are right", "they are after a boot", "the same after a restart"].iter().enumerate()
    {
        let peaks = figures(&|turn| turn.peaks[index] as f64 / MIB);
        report.judge(name, &format!("peak memory until {until}"), "MiB", peaks, goal, MEMORY_NOISE);
    }
    report.judge(name, "memory at rest", "MiB", figures(&|turn| turn.at_rest as f64 / MIB), goal, MEMORY_NOISE);
}

pub(crate) async fn run(shape: Shape, compare: bool) -> Result<Turn> {
    let cluster = ControlPlane::start(ControlPlaneOptions { audit: true, ..ControlPlaneOptions::default() }).await?;
    install(&cluster, EDITION).await?;
    let admin = cluster.admin().await?;
    make_nodes(&admin, shape.nodes).await?;
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "bench"}}))?;
    Api::all(admin.clone()).create(&PostParams::default(), &namespace).await?;

    let mut manager = Manager::start(&cluster, EDITION).await?;
    tokio::time::sleep(REST).await;
    let idle = manager.cpu_seconds()?;
    let modules: Api<Module> = Api::namespaced(admin.clone(), "bench");
    let objects = (0..shape.modules).map(module).collect::<Result<Vec<_>>>()?;
    let params = PostParams::default();
    try_join_all(objects.iter().map(|module| modules.create(&params, module))).await?;
    let all = right(&admin, shape, 0).await?;
    // What follows (status) belongs to the writes, not to the time.
    tokio::time::sleep(REST * 2).await;
    let user = user(EDITION.manager());
    let requests = cluster.requests()?;
    let configs_written = written(&requests, &user, "nodemodulesconfigs", "modules")?;
    let nodes_written = written(&requests, &user, "nodes", "modules")?;
    let product_seconds = configs_written.1.max(nodes_written.1);
    let created = (manager.cpu_seconds()?, manager.peak_memory()?);

    boot(&admin, shape.nodes).await?;
    right(&admin, shape, 1).await?;
    tokio::time::sleep(REST * 2).await;
    let rewritten = written(&cluster.requests()?, &user, "nodemodulesconfigs", "modules")?.0 - configs_written.0;
    let booted = (manager.cpu_seconds()?, manager.peak_memory()?);
    let at_rest = manager.resident_memory()?;

    let before = writes(&cluster, &user)?;
    manager.restart().await?;
    // Time to plan every node once more.
    tokio::time::sleep(Duration::from_secs(10) + Duration::from_millis(4) * u32::try_from(shape.nodes)?).await;
    let writes_after_restart = writes(&cluster, &user)? - before;
    let peaks = [created.1, booted.1, manager.peak_memory()?];
    drop(manager);

    let bare_seconds = if compare { Some(time(&admin, bare(&all)?).await?) } else { None };
    let turn = Turn {
        product_seconds,
        bare_seconds,
        writes_per_node: configs_written.0.max(nodes_written.0) as f64 / shape.nodes as f64,
        writes_per_boot: rewritten as f64 / shape.nodes as f64,
        writes_after_restart,
        cpu_of_creation: created.0 - idle,
        cpu_of_boots: booted.0 - created.0,
        peaks,
        at_rest,
    };
    println!("{}: {turn:?}", shape.name());
    Ok(turn)
}

/// The kernel that a node runs after so many boots.
fn kernel(node: usize, boots: usize) -> &'static str {
    KERNELS[(node + boots) % KERNELS.len()]
}

fn node_name(index: usize) -> String {
    format!("node-{index:05}")
}

async fn make_nodes(admin: &Client, size: usize) -> Result<()> {
    let nodes: Api<Node> = Api::all(admin.clone());
    let made = (0..size).map(|index| {
        let nodes = nodes.clone();
        async move {
            let name = node_name(index);
            let node: Node = serde_json::from_value(node(&name, kernel(index, 0)))?;
            let status = node.status.clone();
            nodes.create(&PostParams::default(), &node).await?;
            // The API server taints every new node; nobody else is here who takes that back.
            nodes.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"spec": {"taints": null}}))).await?;
            nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await?;
            anyhow::Ok(())
        }
    });
    stream::iter(made).buffer_unordered(IN_FLIGHT).try_collect::<()>().await
}

/// Every node boots the next kernel.
async fn boot(admin: &Client, size: usize) -> Result<()> {
    let nodes: Api<Node> = Api::all(admin.clone());
    let booted = (0..size).map(|index| {
        let nodes = nodes.clone();
        async move {
            let name = node_name(index);
            let info = json!({"kernelVersion": kernel(index, 1), "bootID": format!("boot-2-{name}")});
            let patch = Patch::Merge(json!({"status": {"nodeInfo": info}}));
            nodes.patch_status(&name, &PatchParams::default(), &patch).await.map(drop)
        }
    });
    Ok(stream::iter(booted).buffer_unordered(IN_FLIGHT).try_collect::<()>().await?)
}

/// Waits until every node has its label and a NodeModulesConfig with every Module for the kernel of this boot.
async fn right(admin: &Client, shape: Shape, boots: usize) -> Result<Vec<NodeModulesConfig>> {
    let configs: Api<NodeModulesConfig> = Api::all(admin.clone());
    let nodes: Api<Node> = Api::all(admin.clone());
    let is_right = |config: &NodeModulesConfig| {
        let index = config.name_any().strip_prefix("node-").and_then(|index| index.parse().ok());
        // A plus at the end is no part of the kernel's name there.
        let expected = index.map(|index| kernel(index, boots).trim_end_matches('+'));
        let entries = &config.spec.modules;
        entries.len() == shape.modules
            && entries.iter().all(|entry| {
                Some(&*entry.config.kernel_version) == expected && entry.config.container_image.ends_with(DIGEST)
            })
    };
    // All are read only once a few are right: that costs the API server something too.
    let few: Vec<_> = (0..5).map(|part| node_name(part * (shape.nodes - 1) / 4)).collect();
    eventually_every(PAUSE, LIMIT, &format!("{} right NodeModulesConfigs", shape.nodes), || async {
        let made = configs.list_metadata(&ListParams::default().limit(1)).await?;
        let made = made.items.len() + usize::try_from(made.metadata.remaining_item_count.unwrap_or(0))?;
        if made < shape.nodes {
            return Ok(None);
        }
        for name in &few {
            if !is_right(&configs.get(name).await?) {
                return Ok(None);
            }
        }
        let label = ListParams::default().labels(kmm::api::names::WORKER_NODE_LABEL);
        if nodes.list_metadata(&label).await?.items.len() < shape.nodes {
            return Ok(None);
        }
        let all = configs.list(&ListParams::default()).await?.items;
        Ok((all.len() == shape.nodes && all.iter().all(is_right)).then_some(all))
    })
    .await
}

/// The same objects and as many labels of nodes.
fn bare(all: &[NodeModulesConfig]) -> Result<Vec<Write>> {
    let (config_kind, node_kind) = (ApiResource::erase::<NodeModulesConfig>(&()), ApiResource::erase::<Node>(&()));
    let mut writes = Vec::new();
    for config in all {
        let name = format!("bare-{}", config.name_any());
        let patch = Patch::Apply(configuration(serde_json::to_value(config)?, &name));
        writes.push(Write { kind: config_kind.clone(), namespace: String::new(), name, patch });
        let patch = Patch::Merge(json!({"metadata": {"labels": {"bare": ""}}}));
        writes.push(Write { kind: node_kind.clone(), namespace: String::new(), name: config.name_any(), patch });
    }
    Ok(writes)
}

fn module(index: usize) -> Result<Module> {
    let image = format!("registry.invalid/kmods/x{index}@{DIGEST}");
    serde_json::from_value(json!({
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "Module",
        "metadata": {"name": format!("x{index}"), "namespace": "bench"},
        "spec": {"selector": {}, "moduleLoader": {"container": {
            "modprobe": {"moduleName": format!("x{index}")},
            "kernelMappings": [{"regexp": "^.+$", "containerImage": image}],
        }}},
    }))
    .context("a Module")
}

/// A node of real size: fifty images with two names each, conditions, addresses, labels.
fn node(name: &str, kernel: &str) -> Value {
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
                "kernelVersion": kernel, "kubeProxyVersion": "", "kubeletVersion": "v1.36.3",
                "machineID": name, "operatingSystem": "linux", "osImage": "test", "systemUUID": name,
            },
        },
    })
}
