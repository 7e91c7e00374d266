//! Modules that are changed while nodes have them, by people, by other operators and by what became of their kind.

use anyhow::{Context, Result, ensure};
use kmm::api::Module;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::spoke_bed::{Bed, DIGEST, LIMIT};
use crate::support::eventually;
use crate::support::manager::Edition;

const KERNEL: &str = "6.1.0-1-cloud-amd64";
const BOTH: [&str; 3] = ["drivers.gpu.ready", "other.gpu.ready", "worker"];

/// One node with the Modules `drivers/gpu` and `other/gpu`.
async fn bed() -> Result<Bed> {
    let mut bed = Bed::start(Edition::Standalone).await?;
    bed.node("n1", KERNEL, json!({"gpu": "yes"})).await?;
    for namespace in ["drivers", "other"] {
        bed.module(namespace, "gpu", &format!("registry.invalid/kmods/{namespace}@{DIGEST}"), json!({})).await?;
    }
    bed.labels_become("n1", &BOTH).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    Ok(bed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_loses_its_loader_is_unloaded_by_order_and_nothing_else_goes() -> Result<()> {
    let bed = bed().await?;
    let loaded = bed.journal("n1");
    // In use it stays, with the order standing; its label is gone at once.
    bed.nodes["n1"].kernel.lock().unwrap().in_use.insert("gpu".to_owned());
    bed.edit_module("drivers", "gpu", json!({"spec": {"moduleLoader": null}})).await?;
    bed.labels_become("n1", &["other.gpu.ready", "worker"]).await?;
    let ordered = || async {
        let spec = bed.config("n1").await?.context("no NodeModulesConfig")?.spec;
        let orders: Vec<String> = spec.unload.iter().map(|intent| intent.reason.to_string()).collect();
        ensure!(orders == ["NoModuleLoader"], "{orders:?}");
        assert_eq!(spec.modules.iter().map(|entry| entry.namespace.as_str()).collect::<Vec<_>>(), ["other"]);
        Ok(Some(()))
    };
    eventually(LIMIT, "the order", ordered).await?;
    assert_eq!(bed.journal("n1"), loaded);

    bed.nodes["n1"].kernel.lock().unwrap().in_use.clear();
    bed.journal_becomes("n1", &[&loaded[0], &loaded[1], "unload drivers/gpu NoModuleLoader"]).await?;
    let message = bed.ready("drivers", "gpu", "True", "NoModuleLoader").await?;
    assert_eq!(message, "there is nothing to load");
    let rests = || async {
        let spec = bed.config("n1").await?.context("no NodeModulesConfig")?.spec;
        Ok((spec.unload.is_empty() && spec.modules.len() == 1).then_some(()))
    };
    eventually(LIMIT, "the order to end", rests).await?;
    bed.labels_become("n1", &["other.gpu.ready", "worker"]).await?;
    bed.ready("other", "gpu", "True", "AllNodesReady").await?;
    assert_eq!(bed.journal("n1").len(), 3);

    // The Module itself is there, and goes without another order.
    let module = bed.get_module("drivers", "gpu").await?.context("the Module is gone")?;
    assert_eq!(module.finalizers().len(), 1);
    bed.delete_module("drivers", "gpu").await?;
    let gone = || async { Ok(bed.get_module("drivers", "gpu").await?.is_none().then_some(())) };
    eventually(LIMIT, "the Module to go", gone).await?;
    assert_eq!(bed.journal("n1").len(), 3);
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_of_an_earlier_operator_that_nobody_keeps_go() -> Result<()> {
    let bed = bed().await?;
    let api: Api<Module> = Api::namespaced(bed.admin.clone(), "drivers");
    let counted = json!({"desiredNumber": 5, "availableNumber": 5, "nodesMatchingSelectorNumber": 5});
    let earlier = json!({"status": {"devicePlugin": counted, "dra": counted, "moduleLoader": counted}});
    let params = PatchParams { field_manager: Some("manager".to_owned()), ..PatchParams::default() };
    api.patch_status("gpu", &params, &Patch::Merge(earlier)).await?;
    let right = || async {
        let status = api.get("gpu").await?.status.unwrap_or_default();
        ensure!(status.device_plugin.is_none() && status.dra.is_none(), "{status:?}");
        Ok((status.module_loader.unwrap_or_default().desired_number == Some(1)).then_some(()))
    };
    eventually(LIMIT, "what nobody counts to go", right).await?;
    bed.settled(Edition::Standalone).await?;
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_a_new_manager_cannot_read_says_so_keeps_its_nodes_and_can_be_deleted() -> Result<()> {
    let mut bed = bed().await?;
    let loaded = bed.journal("n1");
    let kind = "modules.kmm.sigs.x-k8s.io";
    bed.manager.kill();
    // As after a change of the kind that no longer fits what was stored.
    let loose = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    let patch = json!([{"op": "replace", "path": path, "value": loose}]).to_string();
    bed.cluster.kubectl(&["patch", "crd", kind, "--type=json", "-p", &patch]).await?;
    let wrong = json!({"spec": {"selector": ["wrong"]}}).to_string();
    eventually(LIMIT, "the kind to take anything", || async {
        bed.cluster.kubectl(&["patch", kind, "gpu", "-n", "drivers", "--type=merge", "-p", &wrong]).await?;
        Ok(Some(()))
    })
    .await?;
    bed.manager.restart().await?;

    let get = ["get", kind, "gpu", "-n", "drivers", "--ignore-not-found", "-o", "json"];
    let raw = || bed.cluster.kubectl(&get);
    let told = || async {
        let module: Value = serde_json::from_str(&raw().await?)?;
        let conditions = module["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready").unwrap_or_default();
        ensure!(ready["reason"] == "Unreadable", "{ready}");
        Ok(Some(ready["message"].as_str().unwrap_or_default().to_owned()))
    };
    let message = eventually(LIMIT, "the fault to be said", told).await?;
    ensure!(message.starts_with("what nodes have stays; the object cannot be read: "), "{message}");
    bed.settled(Edition::Standalone).await?;
    bed.ready("other", "gpu", "True", "AllNodesReady").await?;
    bed.labels_become("n1", &BOTH).await?;
    assert_eq!(bed.journal("n1"), loaded);

    bed.cluster.kubectl(&["delete", kind, "gpu", "-n", "drivers", "--wait=false"]).await?;
    let gone = || async { Ok(raw().await?.trim().is_empty().then_some(())) };
    eventually(LIMIT, "the Module to go", gone).await?;
    bed.journal_becomes("n1", &[&loaded[0], &loaded[1], "unload drivers/gpu Deleted"]).await?;
    bed.labels_become("n1", &["other.gpu.ready", "worker"]).await?;
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}
