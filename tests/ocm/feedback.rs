//! Feedback on real objects; the rules themselves are in `pure`.

use std::time::Duration;

use anyhow::Result;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::ocm::OcmOptions;
use crate::world::{World, configured, manifest_condition};

fn rules(paths: &[(&str, &str)]) -> Value {
    let paths: Vec<Value> = paths.iter().map(|(name, path)| json!({"name": name, "path": path})).collect();
    json!([{"type": "JSONPaths", "jsonPaths": paths}])
}

#[tokio::test(flavor = "multi_thread")]
async fn feedback_is_typed_and_an_object_spoils_only_itself() -> Result<()> {
    let world = World::join("feedback", OcmOptions::quick()).await?;
    let objects = world.install_crd("Fed").await?;
    world.aggregate("Fed").await?;
    let paths = rules(&[
        ("moduleLoader.availableNumber", ".status.count"),
        ("phase", ".status.phase"),
        ("ready", r#".status.conditions[?(@.type=="Ready")].ok"#),
        ("missing", ".status.nothing.here"),
        ("object", ".status.conditions[0]"),
    ]);
    let config = json!({"updateStrategy": {"type": "ServerSideApply"}, "feedbackRules": paths});
    world.put_work("feedback-work", &configured(&world.widget("Fed", "w", &json!({"a": 1})), "feds", &config)).await?;
    let work = world.wait_for("feedback-work", "Available", "True").await?;
    assert_eq!(manifest_condition(&work, 0, "StatusFeedbackSynced").1, "StatusFeedbackSynced");
    let status = json!({"count": 3, "phase": "Good", "conditions": [{"type": "Ready", "ok": true}]});
    objects.patch_status("w", &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await?;
    let want = json!([
        {"name": "moduleLoader.availableNumber", "fieldValue": {"type": "Integer", "integer": 3}},
        {"name": "phase", "fieldValue": {"type": "String", "string": "Good"}},
        {"name": "ready", "fieldValue": {"type": "Boolean", "boolean": true}},
    ]);
    let pointer = "/status/resourceStatus/manifests/0/statusFeedback/values";
    let work = world.wait_until("feedback-work", "feedback", |work| work.pointer(pointer) == Some(&want)).await?;
    let (status, reason, message) = manifest_condition(&work, 0, "StatusFeedbackSynced");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "StatusFeedbackSyncFailed"));
    assert!(message.contains("the type map of the value for object is not found"), "{message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn watched_feedback_does_not_wait_for_the_next_poll() -> Result<()> {
    let slow = OcmOptions { status_sync_interval: Duration::from_hours(1), ..OcmOptions::quick() };
    let world = World::join("watched", OcmOptions { resync: Duration::from_hours(1), ..slow }).await?;
    let objects = world.install_crd("Wat").await?;
    world.aggregate("Wat").await?;
    let config = json!({"feedbackScrapeType": "Watch", "feedbackRules": rules(&[("count", ".status.count")])});
    let polled = json!({"feedbackRules": rules(&[("count", ".status.count")])});
    world.put_work("watched-work", &configured(&world.widget("Wat", "w", &json!({"a": 1})), "wats", &config)).await?;
    world.put_work("polled-work", &configured(&world.widget("Wat", "p", &json!({"a": 1})), "wats", &polled)).await?;
    world.wait_for("watched-work", "Available", "True").await?;
    world.wait_for("polled-work", "Available", "True").await?;
    for name in ["w", "p"] {
        let status = Patch::Merge(json!({"status": {"count": 5}}));
        objects.patch_status(name, &PatchParams::default(), &status).await?;
    }
    let pointer = "/status/resourceStatus/manifests/0/statusFeedback/values/0/fieldValue/integer";
    world.wait_until("watched-work", "feedback", |work| work.pointer(pointer) == Some(&json!(5))).await?;
    assert_eq!(world.work("polled-work").await?.pointer(pointer), None);
    Ok(())
}
