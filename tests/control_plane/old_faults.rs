//! Faults that the pod-based operator is known for, tried on the manager.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kmm::api::names::NAMESPACE_CONTAINS_MODULES_LABEL;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::spoke_bed::{Bed, DIGEST, LIMIT};
use crate::support::eventually;
use crate::support::manager::Edition;

const KERNEL: &str = "6.1.0-1-cloud-amd64";
const READY: [&str; 2] = ["drivers.gpu.ready", "worker"];

async fn bed() -> Result<Bed> {
    let mut bed = Bed::start(Edition::Standalone).await?;
    bed.node("n1", KERNEL, json!({"gpu": "yes"})).await?;
    bed.module("drivers", "gpu", &format!("registry.invalid/kmods/gpu@{DIGEST}"), json!({})).await?;
    bed.labels_become("n1", &READY).await?;
    Ok(bed)
}

async fn select(bed: &Bed, value: &str) -> Result<()> {
    bed.patch_node("n1", json!({"metadata": {"labels": {"gpu": value}}})).await
}

fn container(container: &Value) -> Value {
    json!({"spec": {"moduleLoader": {"container": container}}})
}

/// Waits until the NodeModulesConfig orders so many modules out.
async fn orders(bed: &Bed, count: usize) -> Result<()> {
    eventually(LIMIT, &format!("{count} intents"), || async {
        let config = bed.config("n1").await?.context("no NodeModulesConfig")?;
        Ok((config.spec.unload.len() == count).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_wanted_again_while_it_is_being_unloaded_ends_loaded() -> Result<()> {
    let bed = bed().await?;
    // While it cannot go because it is in use, and while nobody has begun.
    for in_use in [true, false] {
        {
            let mut kernel = bed.nodes["n1"].kernel.lock().unwrap();
            kernel.in_use = if in_use { ["gpu".to_owned()].into() } else { [].into() };
            kernel.asleep = !in_use;
        }
        select(&bed, "no").await?;
        orders(&bed, 1).await?;
        bed.labels_become("n1", &["worker"]).await?;
        select(&bed, "yes").await?;
        orders(&bed, 0).await?;
        bed.nodes["n1"].kernel.lock().unwrap().asleep = false;
        bed.labels_become("n1", &READY).await?;
        bed.nodes["n1"].kernel.lock().unwrap().in_use.clear();
        bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    }
    assert_eq!(bed.journal("n1"), ["load drivers/gpu"]);

    // And where it was quicker.
    select(&bed, "no").await?;
    bed.journal_becomes("n1", &["load drivers/gpu", "unload drivers/gpu NotSelected"]).await?;
    select(&bed, "yes").await?;
    bed.labels_become("n1", &READY).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_ends_when_a_change_begins_and_how_an_image_is_fetched_is_no_change() -> Result<()> {
    let bed = bed().await?;
    bed.nodes["n1"].kernel.lock().unwrap().asleep = true;
    bed.edit_module("drivers", "gpu", container(&json!({"modprobe": {"parameters": ["debug=1"]}}))).await?;
    bed.labels_become("n1", &["worker"]).await?;
    assert_eq!(bed.journal("n1"), ["load drivers/gpu"], "readiness ended before anything was done");
    bed.nodes["n1"].kernel.lock().unwrap().asleep = false;
    bed.labels_become("n1", &READY).await?;
    let replaced = ["load drivers/gpu", "unload drivers/gpu Changed", "load drivers/gpu"];
    assert_eq!(bed.journal("n1"), replaced);

    let entry = || async {
        let config = bed.config("n1").await?.context("no NodeModulesConfig")?;
        config.spec.modules.into_iter().next().context("no entry")
    };
    let before = entry().await?;
    let way = json!({"imagePullPolicy": "Always", "registryTLS": {"insecureSkipTLSVerify": true}});
    bed.edit_module("drivers", "gpu", container(&way)).await?;
    let rest = json!({"imageRepoSecret": {"name": "pull"}, "tolerations": [{"operator": "Exists"}],
        "moduleLoader": {"serviceAccountName": "loader"}});
    bed.edit_module("drivers", "gpu", json!({"spec": rest})).await?;
    let after = eventually(LIMIT, "the new way to the image", || async {
        let entry = entry().await?;
        Ok((entry.config.insecure_pull && entry.service_account_name == "loader").then_some(entry))
    })
    .await?;
    assert_eq!(after.generation, before.generation);
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    bed.labels_become("n1", &READY).await?;
    assert_eq!(bed.journal("n1"), replaced);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_before_a_boot_counts_for_nothing_after_it_and_holds_no_deletion_up() -> Result<()> {
    let bed = bed().await?;
    bed.nodes["n1"].kernel.lock().unwrap().asleep = true;
    bed.reboot("n1", KERNEL).await?;
    bed.labels_become("n1", &["worker"]).await?;
    let message = bed.ready("drivers", "gpu", "Unknown", "NodesSilent").await?;
    ensure!(message.contains("n1: no worker has reported since the node started"), "{message}");
    // Deleted in the middle of the boot: nothing is loaded, and the worker says so as soon as it is there.
    bed.delete_module("drivers", "gpu").await?;
    orders(&bed, 1).await?;
    assert!(bed.get_module("drivers", "gpu").await?.is_some(), "nobody has said that it is gone");
    bed.nodes["n1"].kernel.lock().unwrap().asleep = false;
    let gone = || async { Ok(bed.get_module("drivers", "gpu").await?.is_none().then_some(())) };
    eventually(LIMIT, "the Module to go", gone).await?;
    assert_eq!(bed.journal("n1"), ["load drivers/gpu"], "what a boot has taken is not unloaded");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrected_image_is_taken_up_and_a_module_without_image_or_namespace_goes() -> Result<()> {
    let bed = bed().await?;
    let typo = "127.0.0.1:1/kmods/net:typo";
    for namespace in ["storage", "network"] {
        bed.module(namespace, "net", typo, json!({})).await?;
        bed.ready(namespace, "net", "False", "ImagesNotReady").await?;
    }
    let pinned = format!("registry.invalid/kmods/net@{DIGEST}");
    let mapping = json!([{"regexp": "^6\\.", "containerImage": pinned}]);
    bed.edit_module("storage", "net", container(&json!({"kernelMappings": mapping}))).await?;
    bed.ready("storage", "net", "True", "AllNodesReady").await?;
    // Its image never came: there is nothing to wait for.
    bed.delete_module("network", "net").await?;
    let gone = || async { Ok(bed.get_module("network", "net").await?.is_none().then_some(())) };
    eventually(LIMIT, "the Module without an image to go", gone).await?;

    // With its namespace a Module is unloaded like any other, which takes nothing from that namespace. The deletion is
    // refused until somebody takes the mark away, which the manager puts back a moment later.
    let namespaces: Api<Namespace> = Api::all(bed.admin.clone());
    let unmarked = json!({"metadata": {"labels": {NAMESPACE_CONTAINS_MODULES_LABEL: null}}});
    eventually(LIMIT, "the namespace to be deleted", || async {
        namespaces.patch("storage", &PatchParams::default(), &Patch::Merge(&unmarked)).await?;
        Ok(namespaces.delete("storage", &DeleteParams::default()).await.ok().map(drop))
    })
    .await?;
    eventually(LIMIT, "the namespace to go", || async {
        Ok(namespaces.get_opt("storage").await?.is_none().then_some(()))
    })
    .await?;
    assert_eq!(bed.journal("n1"), ["load drivers/gpu", "load storage/net", "unload storage/net Deleted"]);
    bed.labels_become("n1", &READY).await?;
    Ok(())
}
