//! Claims of the spoke in the status of the cluster.

use std::time::Duration;

use anyhow::Result;
use kube::Client;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::json;

use crate::ocm::OcmOptions;
use crate::ocm::kinds::{cluster_claims, list, managed_clusters, put, said, text, to_json};
use crate::support::eventually;
use crate::world::{SOON, World};

async fn put_claim(spoke: &Client, name: &str, value: &str) -> Result<DynamicObject, kube::Error> {
    let claim = json!({
        "apiVersion": "cluster.open-cluster-management.io/v1alpha1", "kind": "ClusterClaim",
        "metadata": {"name": name}, "spec": {"value": value},
    });
    cluster_claims(spoke).patch(name, &PatchParams::apply("claims").force(), &Patch::Apply(claim)).await
}

/// The claims of a cluster on the hub, as pairs.
async fn on_hub(hub: &Client, cluster: &str) -> Result<Vec<(String, String)>> {
    let object = to_json(&managed_clusters(hub).get(cluster).await?);
    let claims = list(&object, "/status/clusterClaims").iter();
    Ok(claims.map(|claim| (text(claim, "/name").to_owned(), text(claim, "/value").to_owned())).collect())
}

// One test, since claims belong to the whole spoke that all tests share.
#[tokio::test(flavor = "multi_thread")]
async fn claims_reach_the_hub_within_the_limits_and_the_rest_is_dropped_without_a_word() -> Result<()> {
    let world = World::join("claims", OcmOptions::quick()).await?;
    let suffixes =
        OcmOptions { reserved_claim_suffixes: vec![".kmm.node.kubernetes.io".to_owned()], ..OcmOptions::quick() };
    let reserving = World::join("reserving", suffixes).await?;
    let late = "kernel-versions.kmm.node.kubernetes.io";

    put_claim(&world.spoke, late, "6.1.0-1\n6.1.0-2").await?;
    eventually(SOON, "the claim on the hub", || async {
        let want = [(late.to_owned(), "6.1.0-1\n6.1.0-2".to_owned())];
        Ok((on_hub(&world.hub, "claims").await? == want).then_some(()))
    })
    .await?;

    // 1,024 characters pass, counted as characters; the next one is refused where it is written, and the old value stays.
    let longest = "é".repeat(1024);
    put_claim(&world.spoke, late, &longest).await?;
    let refused = put_claim(&world.spoke, late, &format!("{longest}e")).await.map_err(|error| said(&error));
    let message = refused.expect_err("1,025 characters were accepted");
    assert!(message.contains("spec.value: Too long: may not be more than 1024 bytes"), "{message}");
    let empty = put_claim(&world.spoke, late, "").await.map_err(|error| said(&error));
    assert!(empty.expect_err("an empty value was accepted").contains("spec.value"));
    eventually(SOON, "the long claim on the hub", || async {
        Ok((on_hub(&world.hub, "claims").await? == [(late.to_owned(), longest.clone())]).then_some(()))
    })
    .await?;

    // Twenty claims that sort before it push it out, except where its suffix is reserved.
    let names: Vec<String> = (10..30).map(|n| format!("a{n}.example.com")).collect();
    for name in &names {
        put_claim(&world.spoke, name, "x").await?;
    }
    put_claim(&world.spoke, "id.k8s.io", "me").await?;
    let local = json!({
        "apiVersion": "cluster.open-cluster-management.io/v1alpha1", "kind": "ClusterClaim",
        "metadata": {"name": "a00.local", "labels": {"open-cluster-management.io/spoke-only": ""}}, "spec": {"value": "x"},
    });
    put(&world.spoke, &local).await?;
    let with =
        |first: &[&str]| -> Vec<String> { first.iter().map(|name| (*name).to_owned()).chain(names.clone()).collect() };
    for (cluster, want) in [("claims", with(&["id.k8s.io"])), ("reserving", with(&["id.k8s.io", late]))] {
        eventually(SOON, &format!("twenty custom claims of {cluster}"), || async {
            let have: Vec<String> = on_hub(&world.hub, cluster).await?.into_iter().map(|(name, _)| name).collect();
            anyhow::ensure!(have == want, "the hub has {have:?}");
            Ok(Some(()))
        })
        .await?;
    }

    // Whatever somebody else writes there goes, and so does a claim that is deleted.
    cluster_claims(&world.spoke).delete(&names[0], &DeleteParams::default()).await?;
    let foreign = Patch::Merge(json!({"status": {"clusterClaims": [{"name": "foreign", "value": "x"}]}}));
    managed_clusters(&world.hub).patch_status("claims", &PatchParams::default(), &foreign).await?;
    eventually(SOON, "the dropped claim to take the free place", || async {
        let have = on_hub(&world.hub, "claims").await?;
        let at_end = have.last().is_some_and(|(name, value)| name == late && *value == longest);
        Ok((have.len() == 21 && at_end && have[1].0 == names[1]).then_some(()))
    })
    .await?;
    let version = to_json(&managed_clusters(&world.hub).get("claims").await?)["metadata"]["resourceVersion"].clone();
    // Events may still be on their way; after that a steady spoke writes nothing.
    eventually(SOON, "two equal versions five seconds apart", || async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let now = to_json(&managed_clusters(&world.hub).get("claims").await?)["metadata"]["resourceVersion"].clone();
        Ok((now == version).then_some(()))
    })
    .await?;
    drop(reserving);
    Ok(())
}
