//! The end of works and of manifests.

use std::time::Duration;

use anyhow::Result;
use kube::api::DeleteParams;
use serde_json::json;

use crate::ocm::OcmOptions;
use crate::ocm::kinds::{applied_manifest_works, condition_status, list, managed_clusters, text};
use crate::support::eventually;
use crate::world::{SOON, World, manifest_condition, manifests, merge};

#[tokio::test(flavor = "multi_thread")]
async fn a_work_ends_only_when_its_objects_are_really_gone() -> Result<()> {
    let world = World::join("ending", OcmOptions::quick()).await?;
    world.put_work("ending-work", &manifests(&[world.config_map("held", "1"), world.config_map("free", "1")])).await?;
    world.wait_for("ending-work", "Available", "True").await?;
    merge(&world.config_maps(), "held", json!({"metadata": {"finalizers": ["bed.example.com/hold"]}})).await?;
    let record = world.record("ending-work").await?;
    world.works().delete("ending-work", &DeleteParams::default()).await?;
    world.wait_gone(&world.config_maps(), "free").await?;
    let work = world.wait_until("ending-work", "Deleting", |work| {
        condition_status(list(work, "/status/conditions"), "Deleting") == "True"
    });
    assert!(!list(&work.await?, "/metadata/finalizers").is_empty());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(world.works().get_opt("ending-work").await?.is_some());
    assert!(world.config_maps().get("held").await?.metadata.deletion_timestamp.is_some());
    merge(&world.config_maps(), "held", json!({"metadata": {"finalizers": []}})).await?;
    world.wait_gone(&world.works(), "ending-work").await?;
    assert!(applied_manifest_works(&world.spoke).get_opt(text(&record, "/metadata/name")).await?.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn orphaned_objects_stay_without_an_owner_all_or_selected_ones() -> Result<()> {
    let world = World::join("orphan", OcmOptions::quick()).await?;
    let mut all = manifests(&[world.config_map("all", "1")]);
    all["deleteOption"] = json!({"propagationPolicy": "Orphan"});
    let mut some = manifests(&[world.config_map("kept", "1"), world.config_map("gone", "1")]);
    some["deleteOption"] = json!({"propagationPolicy": "SelectivelyOrphan", "selectivelyOrphans": {"orphaningRules": [
        {"group": "", "resource": "configmaps", "namespace": world.namespace, "name": "kept"}]}});
    for (name, spec) in [("orphan-all", &all), ("orphan-some", &some)] {
        world.put_work(name, spec).await?;
        world.wait_for(name, "Available", "True").await?;
    }
    for name in ["orphan-all", "orphan-some"] {
        world.works().delete(name, &DeleteParams::default()).await?;
        world.wait_gone(&world.works(), name).await?;
    }
    world.wait_gone(&world.config_maps(), "gone").await?;
    // A garbage collector with a reason to delete them has had its time by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for name in ["all", "kept"] {
        assert_eq!(world.config_maps().get(name).await?.metadata.owner_references, None, "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_leaves_the_work_loses_its_object() -> Result<()> {
    let world = World::join("leaving", OcmOptions::quick()).await?;
    world
        .put_work("leaving-work", &manifests(&[world.config_map("stays", "1"), world.config_map("leaves", "1")]))
        .await?;
    world.wait_for("leaving-work", "Available", "True").await?;
    world.put_work("leaving-work", &manifests(&[world.config_map("stays", "1")])).await?;
    world.wait_gone(&world.config_maps(), "leaves").await?;
    let work = world.wait_for("leaving-work", "Available", "True").await?;
    assert_eq!(list(&work, "/status/resourceStatus/manifests").len(), 1);
    assert!(world.config_maps().get_opt("stays").await?.is_some());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_two_works_goes_with_the_last_one() -> Result<()> {
    let world = World::join("sharing", OcmOptions::quick()).await?;
    for name in ["sharing-one", "sharing-two"] {
        world.put_work(name, &manifests(&[world.config_map("common", "1")])).await?;
        world.wait_for(name, "Available", "True").await?;
    }
    let owners = || async {
        anyhow::Ok(world.config_maps().get("common").await?.metadata.owner_references.unwrap_or_default().len())
    };
    assert_eq!(owners().await?, 2);
    world.works().delete("sharing-one", &DeleteParams::default()).await?;
    world.wait_gone(&world.works(), "sharing-one").await?;
    assert_eq!(owners().await?, 1);
    world.works().delete("sharing-two", &DeleteParams::default()).await?;
    world.wait_gone(&world.works(), "sharing-two").await?;
    world.wait_gone(&world.config_maps(), "common").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_with_a_failure_leaves_the_record_as_it_was() -> Result<()> {
    let world = World::join("failing", OcmOptions::quick()).await?;
    let broken =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "no-such-namespace"}});
    world.put_work("failing-work", &manifests(&[world.config_map("good", "1"), broken])).await?;
    let work = world.wait_for("failing-work", "Available", "False").await?;
    assert_eq!(manifest_condition(&work, 0, "Applied").0, "True");
    let (_, _, message) = manifest_condition(&work, 1, "Applied");
    assert_eq!(message, "Failed to apply manifest: namespaces \"no-such-namespace\" not found");
    assert!(list(&world.record("failing-work").await?, "/status/appliedResources").is_empty());
    // What was applied goes all the same, by its owner reference.
    world.works().delete("failing-work", &DeleteParams::default()).await?;
    world.wait_gone(&world.works(), "failing-work").await?;
    world.wait_gone(&world.config_maps(), "good").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_work_stays_terminating_while_the_agent_is_offline() -> Result<()> {
    let mut world = World::join("absent", OcmOptions::quick()).await?;
    world.put_work("absent-work", &manifests(&[world.config_map("left", "1")])).await?;
    world.wait_for("absent-work", "Available", "True").await?;
    world.ocm.pause();
    world.works().delete("absent-work", &DeleteParams::default()).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(world.works().get("absent-work").await?.metadata.deletion_timestamp.is_some());
    assert!(world.config_maps().get_opt("left").await?.is_some());
    world.ocm.resume().await?;
    world.wait_gone(&world.works(), "absent-work").await?;
    world.wait_gone(&world.config_maps(), "left").await
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_cluster_deletes_its_works_first() -> Result<()> {
    let world = World::join("departing", OcmOptions::quick()).await?;
    world.put_work("departing-work", &manifests(&[world.config_map("local", "1")])).await?;
    world.wait_for("departing-work", "Available", "True").await?;
    managed_clusters(&world.hub).delete("departing", &DeleteParams::default()).await?;
    world.wait_gone(&managed_clusters(&world.hub), "departing").await?;
    assert!(world.works().get_opt("departing-work").await?.is_none());
    world.wait_gone(&world.config_maps(), "local").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_applied_for_a_work_that_the_hub_has_lost_is_evicted_after_the_grace_period() -> Result<()> {
    let grace = Duration::from_secs(4);
    let mut world = World::join("losing", OcmOptions { eviction_grace: grace, ..OcmOptions::quick() }).await?;
    world.put_work("losing-work", &manifests(&[world.config_map("evicted", "1")])).await?;
    world.wait_for("losing-work", "Available", "True").await?;
    world.ocm.pause();
    world.works().delete("losing-work", &DeleteParams::default()).await?;
    merge(&world.works(), "losing-work", json!({"metadata": {"finalizers": []}})).await?;
    world.wait_gone(&world.works(), "losing-work").await?;
    world.ocm.resume().await?;
    eventually(SOON, "the beginning of the eviction", || async {
        let record = world.record("losing-work").await?;
        Ok((!text(&record, "/status/evictionStartTime").is_empty()).then_some(()))
    })
    .await?;
    assert!(world.config_maps().get_opt("evicted").await?.is_some(), "the grace period has not passed");
    world.wait_gone(&world.config_maps(), "evicted").await
}
