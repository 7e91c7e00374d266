//! Clusters without agents.

use anyhow::Result;
use kube::api::PostParams;
use serde_json::json;

use crate::ocm::crds;
use crate::ocm::fake::{WorkReport, fake_claims, fake_cluster, fake_work_status};
use crate::ocm::kinds::{condition_status, list, managed_clusters, manifest_works, to_json};
use crate::support::control_plane::ControlPlane;

#[tokio::test(flavor = "multi_thread")]
async fn a_fake_cluster_looks_joined_and_its_work_reports_what_it_is_told() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    plane.install_crds(&crds()).await?;
    let hub = plane.admin().await?;
    fake_cluster(&hub, "fake1", &[("zone", "a")], &[("z", "2"), ("kernels", "6.1")]).await?;
    fake_claims(&hub, "fake1", &[("kernels", "6.2"), ("a", "1")]).await?;
    let cluster = to_json(&managed_clusters(&hub).get("fake1").await?);
    assert_eq!(cluster["metadata"]["labels"], json!({"zone": "a"}));
    assert_eq!(
        cluster["status"]["clusterClaims"],
        json!([{"name": "a", "value": "1"}, {"name": "kernels", "value": "6.2"}])
    );
    assert_eq!(condition_status(list(&cluster, "/status/conditions"), "ManagedClusterConditionAvailable"), "True");
    assert!(fake_claims(&hub, "fake1", &[("kernels", &"x".repeat(1025))]).await.is_err());

    let work = json!({
        "apiVersion": "work.open-cluster-management.io/v1", "kind": "ManifestWork",
        "metadata": {"name": "w", "namespace": "fake1"},
        "spec": {"workload": {"manifests": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}},
            {"apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "Module", "metadata": {"name": "w", "namespace": "n"}},
        ]}},
    });
    let works = manifest_works(&hub, "fake1");
    works.create(&PostParams::default(), &serde_json::from_value(work)?).await?;
    let report = WorkReport::default().with_feedback("Module", &[("available", json!(4)), ("hash", json!("abc"))]);
    fake_work_status(&hub, "fake1", "w", &report).await?;
    let work = to_json(&works.get("w").await?);
    let seen: Vec<_> = list(&work, "/status/conditions")
        .iter()
        .map(|c| (&c["type"], &c["status"], &c["observedGeneration"]))
        .collect();
    assert_eq!(
        seen,
        [(&json!("Applied"), &json!("True"), &json!(1)), (&json!("Available"), &json!("True"), &json!(1))]
    );
    let module = &work["status"]["resourceStatus"]["manifests"][1];
    assert_eq!(module["resourceMeta"]["resource"], "modules");
    assert_eq!(
        module["statusFeedback"]["values"],
        json!([
            {"name": "available", "fieldValue": {"type": "Integer", "integer": 4}},
            {"name": "hash", "fieldValue": {"type": "String", "string": "abc"}},
        ])
    );
    let broken = WorkReport { applied: false, available: "Unknown", ..WorkReport::default() };
    fake_work_status(&hub, "fake1", "w", &broken).await?;
    let work = to_json(&works.get("w").await?);
    let conditions = list(&work, "/status/conditions");
    assert_eq!(
        (condition_status(conditions, "Applied"), condition_status(conditions, "Available")),
        ("False", "Unknown")
    );
    Ok(())
}
