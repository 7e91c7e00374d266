//! A Module that Open Cluster Management's agent deletes because its Hub is lost, and one whose work was ended.

use anyhow::{Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kmm::api::{Module, ModuleState};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::ocm;
use crate::ocm::kinds::{applied_manifest_works, put};
use crate::spoke_bed::{Bed, DIGEST, LIMIT};
use crate::support::eventually;
use crate::support::manager::Edition;

const KERNEL: &str = "6.1.0-1-cloud-amd64";

/// A loaded Module that the agent applied for a work.
async fn applied(bed: &Bed, name: &str) -> Result<()> {
    let record = put(
        &bed.admin,
        &json!({
            "apiVersion": "work.open-cluster-management.io/v1", "kind": "AppliedManifestWork",
            "metadata": {"name": format!("hub-{name}")}, "spec": {"hubHash": "hub", "manifestWorkName": name},
        }),
    )
    .await?;
    bed.module("drivers", name, &format!("registry.invalid/kmods/{name}@{DIGEST}"), json!({})).await?;
    let owner = json!({
        "apiVersion": "work.open-cluster-management.io/v1", "kind": "AppliedManifestWork",
        "name": record.metadata.name, "uid": record.metadata.uid,
    });
    bed.edit_module("drivers", name, json!({"metadata": {"ownerReferences": [owner]}})).await?;
    bed.ready("drivers", name, "True", "AllNodesReady").await?;
    Ok(())
}

async fn gone(bed: &Bed, name: &str) -> Result<()> {
    eventually(LIMIT, &format!("the end of {name}"), || async {
        Ok(bed.get_module("drivers", name).await?.is_none().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_is_evicted_leaves_its_kernel_module_and_one_whose_work_ended_takes_it_along() -> Result<()> {
    let mut bed = Bed::start(Edition::Spoke).await?;
    bed.cluster.install_crds(&ocm::crds()).await?;
    bed.node("n1", KERNEL, json!({"gpu": "yes"})).await?;
    for name in ["evicted", "ended"] {
        applied(&bed, name).await?;
    }
    let since = Patch::Merge(json!({"status": {"evictionStartTime": "2026-01-01T00:00:00Z"}}));
    applied_manifest_works(&bed.admin).patch_status("hub-evicted", &PatchParams::default(), &since).await?;
    for name in ["evicted", "ended"] {
        bed.delete_module("drivers", name).await?;
        gone(&bed, name).await?;
    }
    assert_eq!(bed.journal("n1"), ["load drivers/evicted", "load drivers/ended", "unload drivers/ended Deleted"]);
    eventually(LIMIT, "the worker to say that it stays", || async {
        let status = bed.config("n1").await?.and_then(|config| config.status).unwrap_or_default();
        let told: Vec<_> = status.modules.iter().map(|module| (module.name.as_str(), module.state)).collect();
        ensure!(told == [("evicted", Some(ModuleState::Orphaned))], "{told:?}");
        Ok(Some(()))
    })
    .await?;
    let events = Api::<Event>::all(bed.admin.clone()).list(&ListParams::default()).await?.items;
    let said: Vec<_> = events
        .iter()
        .filter(|event| event.reason.as_deref() == Some("ModuleEvicted"))
        .filter_map(|event| event.regarding.as_ref()?.name.clone())
        .collect();
    assert_eq!(said, ["evicted"]);

    // The Hub comes back: what is loaded is adopted.
    bed.module("drivers", "evicted", &format!("registry.invalid/kmods/evicted@{DIGEST}"), json!({})).await?;
    bed.ready("drivers", "evicted", "True", "AllNodesReady").await?;
    assert_eq!(bed.journal("n1").len(), 3);
    assert_eq!(bed.count::<Module>().await?, 1);
    assert_eq!(bed.forbidden()?, Vec::<String>::new());
    Ok(())
}
