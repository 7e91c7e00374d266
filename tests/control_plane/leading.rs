//! Two managers of one cluster: one leads, and what it leaves the other takes over.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kmm::api::names::LEASE;
use kube::api::Api;
use serde_json::json;

use crate::spoke_bed::{Bed, DIGEST, LIMIT};
use crate::support::eventually;
use crate::support::manager::{Edition, Manager, NAMESPACE};

async fn holder(bed: &Bed) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(bed.admin.clone(), NAMESPACE);
    let holder = leases.get(LEASE).await?.spec.and_then(|spec| spec.holder_identity);
    holder.filter(|holder| !holder.is_empty()).context("nobody leads")
}

/// Waits until another one than `before` leads, and has a change of the Module carried out.
async fn another_leads(bed: &Bed, before: &str, number: usize) -> Result<String> {
    let image = format!("registry.invalid/kmods/gpu-{number}@{DIGEST}");
    let mappings = json!([{"regexp": "^6\\.", "containerImage": image}]);
    let loader = json!({"container": {"modprobe": {"moduleName": "gpu"}, "kernelMappings": mappings}});
    bed.edit_module("drivers", "gpu", json!({"spec": {"moduleLoader": loader}})).await?;
    eventually(LIMIT, &format!("{before} to be followed"), || async {
        let (now, config) = (holder(bed).await?, bed.config("n1").await?.context("no NodeModulesConfig")?);
        ensure!(now != before, "{now} leads");
        ensure!(config.spec.modules.iter().any(|module| module.config.container_image == image), "{:?}", config.spec);
        Ok(Some(now))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_managers_one_leads_and_the_other_follows_when_the_first_ends_or_is_killed() -> Result<()> {
    let mut bed = Bed::start(Edition::Standalone).await?;
    bed.node("n1", "6.1.0-1-cloud-amd64", json!({"gpu": "yes"})).await?;
    bed.module("drivers", "gpu", &format!("registry.invalid/kmods/gpu@{DIGEST}"), json!({})).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    let first = holder(&bed).await?;

    // One that waits is ready: a rolling update would never end otherwise. It does nothing else.
    let mut second = Manager::start(&bed.cluster, Edition::Standalone).await?;
    assert_eq!(holder(&bed).await?, first);
    let passes = |metrics: &str| metrics.lines().filter(|line| line.starts_with("kmm_reconcile_total{")).count();
    let (leading, waiting) = (bed.manager.metrics().await?, second.metrics().await?);
    ensure!(passes(&leading) > 0 && passes(&waiting) == 0, "{leading}\n----\n{waiting}");
    ensure!(waiting.contains("# TYPE kmm_queue_depth gauge"), "{waiting}");

    assert_eq!(bed.manager.terminate().await?, Some(0));
    let next = another_leads(&bed, &first, 1).await?;
    ensure!(second.log_tail(200).contains("leading"), "{}", second.log_tail(20));

    bed.manager.restart().await?;
    assert_eq!(holder(&bed).await?, next);
    second.kill();
    another_leads(&bed, &next, 2).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    assert_eq!(bed.journal("n1").len(), 1, "a change of managers touched the kernel: {:?}", bed.journal("n1"));
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}
