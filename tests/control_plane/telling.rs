//! What happens on nodes is told: in the status of the Module, and as events on Module and Node, once each.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::spoke_bed::{Bed, DIGEST, LIMIT};
use crate::support::eventually;
use crate::support::manager::Edition;

const KERNEL: &str = "6.1.0-1-cloud-amd64";
const WHY: &str = "module gpu (/x/gpu.ko) has no signature, and the kernel takes only signed modules";

/// `reason kind/name: note`, and how often it was told again, sorted.
async fn told(bed: &Bed, kind: &str) -> Result<Vec<String>> {
    let events = Api::<Event>::all(bed.admin.clone()).list(&ListParams::default()).await?.items;
    let mut told: Vec<String> = events
        .iter()
        .filter(|event| event.reason.as_ref().is_some_and(|reason| reason.starts_with("Module")))
        .filter(|event| event.regarding.as_ref().and_then(|about| about.kind.as_deref()) == Some(kind))
        .map(|event| {
            let name = event.regarding.as_ref().and_then(|about| about.name.clone()).unwrap_or_default();
            let again =
                event.series.as_ref().map(|series| format!(" (told {} times)", series.count)).unwrap_or_default();
            let (reason, note) =
                (event.reason.as_deref().unwrap_or_default(), event.note.as_deref().unwrap_or_default());
            format!("{} {reason} {name}: {note}{again}", event.type_.as_deref().unwrap_or_default())
        })
        .collect();
    told.sort();
    Ok(told)
}

async fn becomes(bed: &Bed, kind: &str, wanted: &[String]) -> Result<()> {
    let mut wanted = wanted.to_vec();
    wanted.sort();
    eventually(LIMIT, &format!("these events on {kind}: {wanted:#?}"), || async {
        let found = told(bed, kind).await?;
        ensure!(found == wanted, "{found:#?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_and_each_success_is_told_once_on_module_and_node_with_reason_and_duration() -> Result<()> {
    let mut bed = Bed::start(Edition::Standalone).await?;
    for node in ["n1", "n2"] {
        bed.node(node, KERNEL, json!({"gpu": "yes"})).await?;
    }
    let refuse = |why: Option<(&'static str, &'static str)>| {
        bed.nodes["n1"].kernel.lock().unwrap().refuses = why;
    };
    refuse(Some(("SignatureMissing", WHY)));
    bed.module("drivers", "gpu", &format!("registry.invalid/kmods/gpu@{DIGEST}"), json!({})).await?;
    let message = bed.ready("drivers", "gpu", "False", "NodesFailing").await?;
    ensure!(message.contains("n1") && message.contains("no signature"), "{message}");
    let status = bed.get_module("drivers", "gpu").await?.and_then(|module| module.status).context("no status")?;
    let failing: Vec<_> = status
        .nodes_failing
        .iter()
        .map(|node| (node.name.as_str(), node.reason.as_str(), node.message.as_deref().unwrap_or_default()))
        .collect();
    assert_eq!(failing, [("n1", "SignatureMissing", WHY)]);

    let on = |about: &str, prefix: &str| {
        let loaded = |node: &str| format!("module loaded into the kernel of node {node} in 0.1s");
        [
            ("n1", format!("Warning ModuleLoadFailed {about}: {prefix}module could not be loaded on node n1: {WHY}")),
            ("n2", format!("Normal ModuleLoaded {about}: {prefix}{}", loaded("n2"))),
            ("n1", format!("Normal ModuleLoaded {about}: {prefix}{}", loaded("n1"))),
            ("n1", format!("Warning ModuleInUse {about}: {prefix}module is in use on node n1: used by 1")),
            ("n1", format!("Normal ModuleUnloaded {about}: {prefix}module unloaded from the kernel of node n1")),
            ("n2", format!("Normal ModuleUnloaded {about}: {prefix}module unloaded from the kernel of node n2")),
        ]
    };
    // The first so many of the story, on the Module and on both nodes.
    let so_far = |count: usize| {
        let lines = |about: &str, prefix: &str| on(about, prefix).into_iter().take(count);
        let module: Vec<String> = lines("gpu", "").map(|(_, line)| line).collect();
        let nodes = ["n1", "n2"].into_iter();
        let nodes = nodes.flat_map(|node| lines(node, "drivers/gpu: ").filter(move |(of, _)| *of == node));
        (module, nodes.map(|(_, line)| line).collect::<Vec<_>>())
    };
    let check = async |count: usize| -> Result<()> {
        let (module, nodes) = so_far(count);
        becomes(&bed, "Module", &module).await?;
        becomes(&bed, "Node", &nodes).await
    };
    check(2).await?;
    // Another sentence for the same reason is no news.
    refuse(Some(("SignatureMissing", "another sentence")));
    tokio::time::sleep(Duration::from_secs(3)).await;
    check(2).await?;
    refuse(None);
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    check(3).await?;
    bed.nodes["n1"].kernel.lock().unwrap().in_use.insert("gpu".to_owned());
    bed.delete_module("drivers", "gpu").await?;
    let gone_from_n2 = || async {
        Ok(told(&bed, "Module")
            .await?
            .iter()
            .any(|line| line.contains("unloaded from the kernel of node n2"))
            .then_some(()))
    };
    eventually(LIMIT, "the unload of n2", gone_from_n2).await?;
    bed.ready("drivers", "gpu", "False", "UnloadBlocked").await?;
    bed.nodes["n1"].kernel.lock().unwrap().in_use.clear();
    check(6).await
}
