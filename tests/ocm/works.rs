//! Applying: rights, conditions, failures, retries.

use std::time::Duration;

use anyhow::Result;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use crate::ocm::OcmOptions;
use crate::ocm::kinds::{condition_status, list, managed_clusters, text, to_json};
use crate::support::eventually;
use crate::world::{SOON, World, configured, manifest_condition, manifests, merge};

#[tokio::test(flavor = "multi_thread")]
async fn a_work_is_applied_by_the_agent_and_its_record_says_so() -> Result<()> {
    let world = World::join("apply", OcmOptions::quick()).await?;
    let spec = manifests(&[world.config_map("first", "1"), world.config_map("second", "2")]);
    world.put_work("apply-work", &spec).await?;
    let work = world.wait_for("apply-work", "Available", "True").await?;
    assert_eq!(work["metadata"]["finalizers"], json!(["cluster.open-cluster-management.io/manifest-work-cleanup"]));
    assert_eq!(condition_status(list(&work, "/status/conditions"), "Applied"), "True");
    let meta = json!({
        "ordinal": 1, "group": "", "version": "v1", "kind": "ConfigMap", "resource": "configmaps",
        "namespace": world.namespace, "name": "second",
    });
    assert_eq!(work["status"]["resourceStatus"]["manifests"][1]["resourceMeta"], meta);
    let record = world.record("apply-work").await?;
    let object = to_json(&world.config_maps().get("second").await?);
    assert_eq!(list(&record, "/status/appliedResources").len(), 2);
    let entry = json!({
        "group": "", "version": "v1", "resource": "configmaps", "namespace": world.namespace, "name": "second",
        "uid": object["metadata"]["uid"],
    });
    assert_eq!(record["status"]["appliedResources"][1], entry);
    let owner = json!([{
        "apiVersion": "work.open-cluster-management.io/v1", "kind": "AppliedManifestWork",
        "name": record["metadata"]["name"], "uid": record["metadata"]["uid"],
    }]);
    assert_eq!(object["metadata"]["ownerReferences"], owner);
    let managers: Vec<&str> = list(&object, "/metadata/managedFields").iter().map(|m| text(m, "/manager")).collect();
    assert_eq!(managers, ["work-agent"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_work_is_not_written_again() -> Result<()> {
    let world = World::join("quiet", OcmOptions::quick()).await?;
    let object = world.config_map("quiet", "1");
    let config = json!({"updateStrategy": {"type": "Update"}, "feedbackRules": [
        {"type": "JSONPaths", "jsonPaths": [{"name": "key", "path": ".data.key"}]}]});
    world.put_work("quiet-work", &configured(&object, "configmaps", &config)).await?;
    world.wait_for("quiet-work", "Available", "True").await?;
    let version = |object: &kube::api::DynamicObject| object.metadata.resource_version.clone();
    let (work, object) = (world.works().get("quiet-work").await?, world.config_maps().get("quiet").await?);
    let writes = world.writes_to_hub()?;
    assert!(writes > 0, "the audit log shows no write of the agent");
    // Several polls and resyncs pass by.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(world.writes_to_hub()?, writes);
    assert_eq!(version(&world.works().get("quiet-work").await?), version(&work));
    assert_eq!(version(&world.config_maps().get("quiet").await?), version(&object));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_resource_needs_a_role_that_is_aggregated_to_the_agent() -> Result<()> {
    let world =
        World::join("rights", OcmOptions { longest_retry: Duration::from_secs(1), ..OcmOptions::quick() }).await?;
    world.install_crd("Right").await?;
    world
        .put_work(
            "rights-work",
            &manifests(&[world.widget("Right", "w", &json!({"a": 1})), world.config_map("beside", "1")]),
        )
        .await?;
    let work = world.wait_for("rights-work", "Available", "Unknown").await?;
    let (status, reason, message) = manifest_condition(&work, 0, "Applied");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "AppliedManifestFailed"));
    let user = "system:serviceaccount:open-cluster-management-agent:klusterlet-work-sa";
    let said = format!(
        "Failed to apply manifest: rights.bed.example.com \"w\" is forbidden: User \"{user}\" cannot get resource"
    );
    assert!(message.starts_with(&said), "{message}");
    assert_eq!(manifest_condition(&work, 0, "Available").1, "FetchingResourceFailed");
    // The other manifest is not held up.
    assert_eq!(manifest_condition(&work, 1, "Applied").0, "True");
    assert_eq!(condition_status(list(&work, "/status/conditions"), "Applied"), "False");
    world.aggregate("Right").await?;
    world.wait_for("rights-work", "Available", "True").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crd_that_appears_does_not_wake_the_agent_but_a_label_does() -> Result<()> {
    // The first pause stands for one of the later ones of a real agent.
    let world =
        World::join("waking", OcmOptions { first_retry: Duration::from_mins(10), ..OcmOptions::quick() }).await?;
    world.aggregate("Late").await?;
    world.put_work("waking-work", &manifests(&[world.widget("Late", "w", &json!({}))])).await?;
    let work = world.wait_for("waking-work", "Available", "Unknown").await?;
    let (_, reason, message) = manifest_condition(&work, 0, "Applied");
    assert_eq!(reason, "AppliedManifestFailed");
    assert_eq!(message, "Failed to apply manifest: the server doesn't have a resource type \"Late\"");
    assert_eq!(manifest_condition(&work, 0, "Available").1, "IncompleteResourceMeta");
    assert_eq!(work["status"]["resourceStatus"]["manifests"][0]["resourceMeta"]["resource"], "");
    let objects = world.install_crd("Late").await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(objects.list(&ListParams::default()).await?.items.is_empty());
    merge(&world.works(), "waking-work", json!({"metadata": {"annotations": {"a": "b"}}})).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(objects.list(&ListParams::default()).await?.items.is_empty());
    merge(&world.works(), "waking-work", json!({"metadata": {"labels": {"nudge": "1"}}})).await?;
    world.wait_for("waking-work", "Available", "True").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_agent_offline_nothing_moves_until_it_is_back() -> Result<()> {
    let options = OcmOptions { lease_duration: Duration::from_secs(1), ..OcmOptions::quick() };
    let mut world = World::join("offline", options).await?;
    world.put_work("offline-work", &manifests(&[world.config_map("early", "1")])).await?;
    world.wait_for("offline-work", "Available", "True").await?;
    world.ocm.pause();
    world.put_work("offline-work", &manifests(&[world.config_map("early", "2")])).await?;
    let clusters = managed_clusters(&world.hub);
    eventually(SOON, "the taint of an unreachable cluster", || async {
        let cluster = to_json(&clusters.get("offline").await?);
        let unknown =
            condition_status(list(&cluster, "/status/conditions"), "ManagedClusterConditionAvailable") == "Unknown";
        let key = text(&cluster, "/spec/taints/0/key");
        Ok((unknown && key == "cluster.open-cluster-management.io/unreachable").then_some(()))
    })
    .await?;
    let work = world.work("offline-work").await?;
    assert_eq!(
        (&work["metadata"]["generation"], &work["status"]["conditions"][0]["observedGeneration"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(to_json(&world.config_maps().get("early").await?)["data"]["key"], "1");
    world.ocm.resume().await?;
    world.wait_for("offline-work", "Available", "True").await?;
    assert_eq!(to_json(&world.config_maps().get("early").await?)["data"]["key"], "2");
    eventually(SOON, "the taint to go", || async {
        Ok(list(&to_json(&clusters.get("offline").await?), "/spec/taints").is_empty().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stand_in_cannot_do_is_refused_and_not_ignored() -> Result<()> {
    let world = World::join("refuse", OcmOptions::quick()).await?;
    let object = world.config_map("refused", "1");
    let cases = [
        (
            "cel",
            json!({"conditionRules": [{"condition": "Progressing", "type": "CEL", "celExpressions": ["true"]}]}),
            "condition rules are not supported by this agent",
        ),
        (
            "ignore",
            json!({"updateStrategy": {"type": "ServerSideApply", "serverSideApply": {
            "ignoreFields": [{"condition": "OnSpokePresent", "jsonPaths": [".data"]}]}}}),
            "ignoreFields is not supported by this agent",
        ),
    ];
    for (name, config, reason) in cases {
        world.put_work(name, &configured(&object, "configmaps", &config)).await?;
        let work = world.wait_for(name, "Applied", "False").await?;
        assert_eq!(manifest_condition(&work, 0, "Applied").2, format!("Failed to apply manifest: {reason}"));
    }
    assert!(world.config_maps().get_opt("refused").await?.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_reaches_no_other_cluster_and_no_other_object_of_the_hub() -> Result<()> {
    let world = World::join("fenced", OcmOptions::quick()).await?;
    let agent = world.ocm.hub_client().await?;
    let works = |cluster: &str| crate::ocm::kinds::manifest_works(&agent, cluster);
    assert!(works("fenced").list(&ListParams::default()).await.is_ok());
    assert!(
        matches!(works("other").list(&ListParams::default()).await, Err(kube::Error::Api(status)) if status.code == 403)
    );
    let clusters = managed_clusters(&agent);
    assert!(clusters.get("fenced").await.is_ok());
    let patch = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    let patched = clusters.patch("fenced", &PatchParams::default(), &patch).await;
    assert!(matches!(patched, Err(kube::Error::Api(status)) if status.code == 403));
    Ok(())
}
