//! Pods of device plugins and DRA drivers leave before the kernel module that they use. Each is one of a real
//! DaemonSet with its real controller; the test binds them and ends those that are being deleted, as scheduler and kubelet
//! would.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kmm::api::NodeModulesConfigSpec;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::spoke_bed::{Bed, DIGEST, LIMIT};
use crate::support::eventually;
use crate::support::manager::Edition;

const KERNEL: &str = "6.1.0-1-cloud-amd64";
const READY: [&str; 2] = ["drivers.gpu.ready", "worker"];
/// Time in which a manager that did not wait would have given its order.
const A_WHILE: Duration = Duration::from_secs(4);

fn pods(bed: &Bed) -> Api<Pod> {
    Api::namespaced(bed.admin.clone(), "drivers")
}

fn labels(role: &str) -> Value {
    json!({"kmm.node.kubernetes.io/module.name": "gpu", "kmm.node.kubernetes.io/role": role})
}

/// Containers that never run.
fn pod_spec() -> Value {
    json!({"containers": [{"name": "main", "image": "registry.invalid/plugin:1"}]})
}

/// A Module on one node with a DaemonSet of this role, and its pod there.
async fn bed(role: &str) -> Result<(Bed, String)> {
    let mut bed = Bed::start(Edition::Standalone).await?;
    bed.node("n1", KERNEL, json!({"gpu": "yes"})).await?;
    bed.module("drivers", "gpu", &format!("registry.invalid/kmods/gpu@{DIGEST}"), json!({})).await?;
    bed.labels_become("n1", &READY).await?;
    let mut spec = pod_spec();
    spec["nodeSelector"] = json!({"kmm.node.kubernetes.io/drivers.gpu.ready": ""});
    let mut own = labels(role);
    own["app"] = json!("plugin");
    let set: DaemonSet = serde_json::from_value(json!({
        "metadata": {"name": "gpu-plugin"},
        "spec": {"selector": {"matchLabels": own}, "template": {"metadata": {"labels": own}, "spec": spec}},
    }))?;
    Api::namespaced(bed.admin.clone(), "drivers").create(&PostParams::default(), &set).await?;
    let pod = bind(&bed, "n1").await?;
    Ok((bed, pod))
}

/// Waits for a pod that is not bound yet and binds it; returns its name.
async fn bind(bed: &Bed, node: &str) -> Result<String> {
    let name = eventually(LIMIT, "a new pod of the DaemonSet", || async {
        let all = pods(bed).list(&ListParams::default()).await?.items;
        let new = all.iter().find(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()));
        Ok(new.map(ResourceExt::name_any))
    })
    .await?;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
    let _: Status = pods(bed).create_subresource("binding", &name, &PostParams::default(), &binding).await?;
    Ok(name)
}

/// Waits until the pod is being deleted, and checks that nothing else has happened before and for a while after.
async fn is_waited_for(bed: &Bed, pod: &str, standing: &NodeModulesConfigSpec, journal: &[&str]) -> Result<()> {
    let message = bed.ready("drivers", "gpu", "False", "WaitingForConsumers").await?;
    ensure!(message.contains("n1: ") && message.contains(pod), "{message}");
    bed.labels_become("n1", &["worker"]).await?;
    eventually(LIMIT, "the DaemonSet's controller to delete the pod", || async {
        Ok(pods(bed).get(pod).await?.metadata.deletion_timestamp.map(drop))
    })
    .await?;
    tokio::time::sleep(A_WHILE).await;
    let config = bed.config("n1").await?.context("no NodeModulesConfig")?;
    ensure!(config.spec == *standing, "{:?}", config.spec);
    ensure!(bed.journal("n1") == journal, "{:?}", bed.journal("n1"));
    Ok(())
}

/// What a kubelet does once the containers have ended.
async fn end(bed: &Bed, pod: &str) -> Result<()> {
    pods(bed).delete(pod, &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

async fn with_parameters(bed: &Bed, parameters: &[&str]) -> Result<()> {
    let modprobe = json!({"modprobe": {"parameters": parameters}});
    bed.edit_module("drivers", "gpu", json!({"spec": {"moduleLoader": {"container": modprobe}}})).await?;
    Ok(())
}

async fn module_gone(bed: &Bed) -> Result<()> {
    let gone = || async { Ok(bed.get_module("drivers", "gpu").await?.is_none().then_some(())) };
    eventually(LIMIT, "the Module to go", gone).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_is_told_to_unload_only_when_its_device_plugin_has_left() -> Result<()> {
    let (bed, pod) = bed("device-plugin").await?;
    let spec = || async { Ok::<_, anyhow::Error>(bed.config("n1").await?.context("no NodeModulesConfig")?.spec) };
    let standing = spec().await?;

    // Replaced: the entry with the new file comes with the order, not before.
    with_parameters(&bed, &["debug=1"]).await?;
    is_waited_for(&bed, &pod, &standing, &["load drivers/gpu"]).await?;

    // Called off before it was ordered: as if nothing had been.
    with_parameters(&bed, &[]).await?;
    bed.labels_become("n1", &READY).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    end(&bed, &pod).await?;
    let pod = bind(&bed, "n1").await?;
    assert_eq!((spec().await?, bed.journal("n1")), (standing.clone(), vec!["load drivers/gpu".to_owned()]));

    with_parameters(&bed, &["debug=1"]).await?;
    is_waited_for(&bed, &pod, &standing, &["load drivers/gpu"]).await?;
    end(&bed, &pod).await?;
    let replaced = ["load drivers/gpu", "unload drivers/gpu Changed", "load drivers/gpu"];
    bed.journal_becomes("n1", &replaced).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    let pod = bind(&bed, "n1").await?;

    // A cordon asks for nothing, and the node is still one that loses the Module in order. A restart forgets nothing.
    bed.patch_node("n1", json!({"spec": {"unschedulable": true}})).await?;
    let before = bed.settled(Edition::Standalone).await?;
    let standing = spec().await?;
    bed.delete_module("drivers", "gpu").await?;
    is_waited_for(&bed, &pod, &standing, &replaced).await?;
    let mut bed = bed;
    bed.manager.restart().await?;
    is_waited_for(&bed, &pod, &standing, &replaced).await?;
    // The finalizer stays, and nothing but the node's labels and the Module's status was written.
    let written = bed.writes(Edition::Standalone)?;
    let others =
        written[before.len()..].iter().filter(|write| !write.contains(" nodes/") && !write.contains("/status"));
    assert_eq!(others.collect::<Vec<_>>(), [] as [&String; 0]);
    end(&bed, &pod).await?;
    module_gone(&bed).await?;
    assert_eq!(bed.journal("n1")[replaced.len()..], ["unload drivers/gpu Deleted"]);
    bed.labels_become("n1", &[]).await?;
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_stays_is_named_with_the_way_out_and_only_what_runs_on_the_node_is_waited_for() -> Result<()> {
    let (mut bed, pod) = bed("dra").await?;
    bed.node("n2", KERNEL, json!({"gpu": "yes"})).await?;
    bed.labels_become("n2", &READY).await?;
    let lost = bind(&bed, "n2").await?;
    // One that has ended counts for nothing, and neither does one that is no device plugin or DRA driver.
    let ended = json!({"status": {"phase": "Failed"}});
    for (name, role) in [("ended", "dra"), ("other", "module-loader"), ("stubborn", "dra")] {
        let mut spec = pod_spec();
        spec["nodeName"] = json!("n1");
        let stays = json!({"metadata": {"name": name, "labels": labels(role)}, "spec": spec});
        pods(&bed).create(&PostParams::default(), &serde_json::from_value(stays)?).await?;
    }
    pods(&bed).patch_status("ended", &PatchParams::default(), &Patch::Merge(ended)).await?;

    bed.delete_module("drivers", "gpu").await?;
    bed.labels_become("n1", &["worker"]).await?;
    end(&bed, &pod).await?;
    let way_out = "n1: these pods use the module and have to leave first: stubborn; if one stays, give its DaemonSet the \
                   nodeSelector kmm.node.kubernetes.io/drivers.gpu.ready: \"\", or delete the pod and what makes it \
                   (and 1 more nodes)";
    eventually(LIMIT, "the one that stays to be named", || async {
        let message = bed.ready("drivers", "gpu", "False", "WaitingForConsumers").await?;
        ensure!(message == way_out, "{message}");
        Ok(Some(()))
    })
    .await?;
    let status = bed.get_module("drivers", "gpu").await?.and_then(|module| module.status).context("no status")?;
    let named: Vec<_> = status.nodes_failing.iter().map(|node| (&*node.name, &*node.reason)).collect();
    assert_eq!(named, [("n1", "WaitingForConsumers"), ("n2", "WaitingForConsumers")]);

    // With its Node a pod holds nothing up, whatever becomes of it.
    bed.nodes.remove("n2");
    Api::<Node>::all(bed.admin.clone()).delete("n2", &DeleteParams::default()).await?;
    assert!(pods(&bed).get_opt(&lost).await?.is_some());
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(bed.journal("n1"), ["load drivers/gpu"]);
    end(&bed, "stubborn").await?;
    module_gone(&bed).await?;
    bed.journal_becomes("n1", &["load drivers/gpu", "unload drivers/gpu Deleted"]).await?;
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}
