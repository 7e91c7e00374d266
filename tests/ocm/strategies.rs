//! Update strategies, drift and the resync.

use std::time::Duration;

use anyhow::Result;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use crate::ocm::OcmOptions;
use crate::ocm::kinds::{condition_status, list, put, to_json};
use crate::support::eventually;
use crate::world::{World, configured, manifest_condition, manifests, merge};

/// Waits for the resync to bring `field` to `want`.
async fn repaired(world: &World, api: &Api<DynamicObject>, name: &str, pointer: &str, want: &Value) -> Result<()> {
    eventually(world.ocm.resync() + Duration::from_secs(30), &format!("{pointer} of {name} to be {want}"), || async {
        let object = to_json(&api.get(name).await?);
        Ok((object.pointer(pointer).unwrap_or(&Value::Null) == want).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn update_puts_back_at_the_resync_what_others_set_in_a_custom_resource() -> Result<()> {
    let world = World::join("update", OcmOptions::quick()).await?;
    let objects = world.install_crd("Upd").await?;
    world.aggregate("Upd").await?;
    world.put_work("update-work", &manifests(&[world.widget("Upd", "w", &json!({"a": 1}))])).await?;
    world.wait_for("update-work", "Available", "True").await?;
    merge(&objects, "w", json!({"metadata": {"labels": {"mine": "1"}}, "spec": {"a": 2, "size": 9, "other": true}}))
        .await?;
    let status = Patch::Merge(json!({"status": {"seen": 1}}));
    objects.patch_status("w", &PatchParams::default(), &status).await?;
    repaired(&world, &objects, "w", "/spec", &json!({"a": 1, "size": 7})).await?;
    let object = to_json(&objects.get("w").await?);
    assert_eq!(object["metadata"]["labels"], json!({"mine": "1"}));
    assert_eq!(object["status"], json!({"seen": 1}));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_not_seen_before_the_resync() -> Result<()> {
    let world = World::join("drift", OcmOptions { resync: Duration::from_mins(4), ..OcmOptions::quick() }).await?;
    world.put_work("drift-work", &manifests(&[world.config_map("drift", "1")])).await?;
    world.wait_for("drift-work", "Available", "True").await?;
    merge(&world.config_maps(), "drift", json!({"data": {"key": "changed"}})).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(to_json(&world.config_maps().get("drift").await?)["data"]["key"], "changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn server_side_apply_repairs_its_own_fields_and_leaves_those_of_others() -> Result<()> {
    let world = World::join("ssa", OcmOptions::quick()).await?;
    let objects = world.install_crd("Ssa").await?;
    world.aggregate("Ssa").await?;
    let config = json!({"updateStrategy": {"type": "ServerSideApply", "serverSideApply": {"force": true, "fieldManager": "work-agent-bed"}}});
    world.put_work("ssa-work", &configured(&world.widget("Ssa", "w", &json!({"a": 1})), "ssas", &config)).await?;
    world.wait_for("ssa-work", "Available", "True").await?;
    merge(&objects, "w", json!({"spec": {"a": 2, "other": true}})).await?;
    repaired(&world, &objects, "w", "/spec", &json!({"a": 1, "size": 7, "other": true})).await?;
    let object = to_json(&objects.get("w").await?);
    let applied: Vec<&Value> = list(&object, "/metadata/managedFields")
        .iter()
        .filter(|m| m["operation"] == "Apply")
        .map(|m| &m["manager"])
        .collect();
    assert_eq!(applied, ["work-agent-bed"]);
    assert_eq!(list(&object, "/metadata/ownerReferences").len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_of_server_side_apply_is_reported_and_force_takes_the_field() -> Result<()> {
    let world = World::join("conflict", OcmOptions::quick()).await?;
    put(&world.spoke, &world.config_map("shared", "theirs")).await?;
    let config =
        |force: bool| json!({"updateStrategy": {"type": "ServerSideApply", "serverSideApply": {"force": force}}});
    let manifest = world.config_map("shared", "ours");
    world.put_work("conflict-work", &configured(&manifest, "configmaps", &config(false))).await?;
    let work = world.wait_for("conflict-work", "Applied", "False").await?;
    let (_, reason, message) = manifest_condition(&work, 0, "Applied");
    assert_eq!(reason, "AppliedManifestFailed");
    assert!(
        message.starts_with("Failed to apply manifest: Apply failed with 1 conflict: conflict with \"ocm-test-bed\""),
        "{message}"
    );
    world.put_work("conflict-work", &configured(&manifest, "configmaps", &config(true))).await?;
    world.wait_for("conflict-work", "Applied", "True").await?;
    assert_eq!(to_json(&world.config_maps().get("shared").await?)["data"]["key"], "ours");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn create_only_never_changes_what_is_there() -> Result<()> {
    let world = World::join("createonly", OcmOptions::quick()).await?;
    let config = json!({"updateStrategy": {"type": "CreateOnly"}});
    world.put_work("co-work", &configured(&world.config_map("once", "1"), "configmaps", &config)).await?;
    world.wait_for("co-work", "Available", "True").await?;
    world.put_work("co-work", &configured(&world.config_map("once", "2"), "configmaps", &config)).await?;
    world.wait_for("co-work", "Available", "True").await?;
    let object = to_json(&world.config_maps().get("once").await?);
    assert_eq!((&object["data"]["key"], list(&object, "/metadata/ownerReferences").len()), (&json!("1"), 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_writes_nothing_and_an_absent_object_is_applied_but_not_available() -> Result<()> {
    let world = World::join("readonly", OcmOptions::quick()).await?;
    let config = json!({"updateStrategy": {"type": "ReadOnly"}});
    world.put_work("ro-work", &configured(&world.config_map("seen", "1"), "configmaps", &config)).await?;
    let work = world.wait_for("ro-work", "Available", "False").await?;
    assert_eq!(condition_status(list(&work, "/status/conditions"), "Applied"), "True");
    assert_eq!(manifest_condition(&work, 0, "Available").1, "ResourceNotAvailable");
    put(&world.spoke, &world.config_map("seen", "theirs")).await?;
    world.wait_for("ro-work", "Available", "True").await?;
    let object = to_json(&world.config_maps().get("seen").await?);
    assert_eq!((&object["data"]["key"], &object["metadata"]["ownerReferences"]), (&json!("theirs"), &Value::Null));
    assert!(list(&world.record("ro-work").await?, "/status/appliedResources").is_empty());
    Ok(())
}
