//! Modules on nodes: what comes, what goes, and above all what stays.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kmm::api::NodeModulesConfig;
use kmm::api::ocm::ClusterClaim;
use kmm::core::claims::{self, KernelReport};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::ocm;
use crate::spoke_bed::{Bed, DIGEST, LIMIT};
use crate::support::eventually;
use crate::support::images::{Image, Layer};
use crate::support::kubelet::Kubelet;
use crate::support::manager::{Edition, NAMESPACE};
use crate::support::registry::{Registry, RegistryOptions};

const KERNEL: &str = "6.1.0-1-cloud-amd64";
const ALONE: Edition = Edition::Standalone;

fn pinned(name: &str) -> String {
    format!("registry.invalid/kmods/{name}@{DIGEST}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_comes_to_selected_nodes_rests_and_goes_only_when_asked() -> Result<()> {
    let mut bed = Bed::start(ALONE).await?;
    for (node, gpu) in [("n1", "yes"), ("n2", "yes"), ("n3", "no")] {
        bed.node(node, KERNEL, json!({"gpu": gpu})).await?;
    }
    bed.module("drivers", "gpu", &pinned("gpu"), json!({"imageRepoSecret": {"name": "pull"}})).await?;
    bed.module("other", "gpu", &pinned("other"), json!({})).await?;
    for namespace in ["drivers", "other"] {
        bed.ready(namespace, "gpu", "True", "AllNodesReady").await?;
    }
    let labels = ["drivers.gpu.ready", "other.gpu.ready", "worker"];
    for node in ["n1", "n2"] {
        bed.labels_become(node, &labels).await?;
        bed.journal_becomes(node, &["load drivers/gpu", "load other/gpu"]).await?;
    }
    bed.labels_become("n3", &[]).await?;
    assert!(bed.config("n3").await?.is_none());
    let status = bed.get_module("drivers", "gpu").await?.and_then(|module| module.status).context("no status")?;
    let counted = status.module_loader.unwrap_or_default();
    let numbers = (counted.nodes_matching_selector_number, counted.desired_number, counted.available_number);
    assert_eq!(numbers, (Some(2), Some(2), Some(2)));
    let role = Api::<Role>::namespaced(bed.admin.clone(), "drivers").get("kmm-worker-pull-secrets").await?;
    assert_eq!(role.rules.unwrap_or_default()[0].resource_names, Some(vec!["pull".to_owned()]));
    Api::<RoleBinding>::namespaced(bed.admin.clone(), "drivers").get("kmm-worker-pull-secrets").await?;
    let sets: Api<DaemonSet> = Api::namespaced(bed.admin.clone(), NAMESPACE);
    let desired = || async {
        let set = sets.get("kmm-worker").await?;
        ensure!(set.status.as_ref().map(|s| s.desired_number_scheduled) == Some(2), "{:?}", set.status);
        Ok(Some(()))
    };
    eventually(LIMIT, "the worker to be bound to two nodes", desired).await?;
    let told = || async {
        let events = Api::<Event>::all(bed.admin.clone()).list(&ListParams::default()).await?.items;
        let loaded = events.iter().filter(|event| event.reason.as_deref() == Some("ModuleLoaded"));
        let about = |event: &Event| event.regarding.as_ref().and_then(|about| about.kind.clone());
        let kinds: BTreeSet<_> = loaded.filter_map(about).collect();
        Ok((kinds.len() == 2).then_some(()))
    };
    eventually(LIMIT, "events on Module and Node", told).await?;

    // A minute of heartbeats, and a restart in it, cost no write.
    let before = bed.settled(ALONE).await?;
    println!("{} writes for two Modules on two nodes", before.len());
    tokio::time::sleep(Duration::from_secs(30)).await;
    bed.manager.restart().await?;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(bed.writes(ALONE)?[before.len()..], [] as [String; 0]);

    // Cordon, a taint and NotReady leave the module in; so does the loss of the object.
    bed.patch_node("n1", json!({"spec": {"unschedulable": true, "taints": [{"key": "a", "effect": "NoExecute"}]}}))
        .await?;
    Api::<NodeModulesConfig>::all(bed.admin.clone()).delete("n2", &DeleteParams::default()).await?;
    let again = || async { Ok(bed.config("n2").await?.filter(|config| config.spec.modules.len() == 2).map(|_| ())) };
    eventually(LIMIT, "the NodeModulesConfig to be made again", again).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    for node in ["n1", "n2"] {
        bed.labels_become(node, &labels).await?;
        bed.journal_becomes(node, &["load drivers/gpu", "load other/gpu"]).await?;
    }

    // Another parameter replaces what is loaded, on both nodes, and of this Module only.
    let parameters = json!({"spec": {"moduleLoader": {"container": {"modprobe": {"parameters": ["debug=1"]}}}}});
    bed.edit_module("drivers", "gpu", parameters).await?;
    let replaced = ["load drivers/gpu", "load other/gpu", "unload drivers/gpu Changed", "load drivers/gpu"];
    for node in ["n1", "n2"] {
        bed.journal_becomes(node, &replaced).await?;
    }
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;

    // De-selection takes it from one node.
    bed.patch_node("n2", json!({"metadata": {"labels": {"gpu": "no"}}})).await?;
    bed.labels_become("n2", &[]).await?;
    let journal = bed.journal("n2");
    assert_eq!(journal[replaced.len()..], ["unload drivers/gpu NotSelected", "unload other/gpu NotSelected"]);
    let no_config = || async { Ok(bed.config("n2").await?.is_none().then_some(())) };
    eventually(LIMIT, "the NodeModulesConfig of a node without modules to go", no_config).await?;

    // Deletion waits for a module that is in use, and says so.
    bed.nodes["n1"].kernel.lock().unwrap().in_use.insert("gpu".to_owned());
    bed.delete_module("drivers", "gpu").await?;
    let message = bed.ready("drivers", "gpu", "False", "UnloadBlocked").await?;
    assert_eq!(message, "cannot be unloaded: n1: used by 1");
    bed.labels_become("n1", &["other.gpu.ready", "worker"]).await?;
    bed.nodes["n1"].kernel.lock().unwrap().in_use.clear();
    let gone = || async { Ok(bed.get_module("drivers", "gpu").await?.is_none().then_some(())) };
    eventually(LIMIT, "the Module to go", gone).await?;
    assert_eq!(bed.journal("n1")[replaced.len()..], ["unload drivers/gpu Deleted"]);

    bed.delete_module("other", "gpu").await?;
    bed.labels_become("n1", &[]).await?;
    let cleaned = || async {
        let roles = Api::<Role>::namespaced(bed.admin.clone(), "drivers").get_opt("kmm-worker-pull-secrets").await?;
        let marked = ListParams::default().labels("kmm.node.k8s.io/contains-modules");
        let namespaces = Api::<Namespace>::all(bed.admin.clone()).list(&marked).await?.items;
        let left = (bed.count::<NodeModulesConfig>().await?, sets.get_opt("kmm-worker").await?.is_some());
        ensure!(left == (0, false), "{left:?}");
        ensure!(roles.is_none() && namespaces.is_empty(), "{roles:?} {namespaces:?}");
        Ok(Some(()))
    };
    eventually(LIMIT, "everything to be cleaned up", cleaned).await?;
    assert_eq!(bed.journal("n1")[replaced.len() + 1..], ["unload other/gpu Deleted"]);
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_resolved_once_and_new_kernels_reboots_and_lost_nodes_end_well() -> Result<()> {
    let mut bed = Bed::start(ALONE).await?;
    let registry = Registry::start(RegistryOptions::default()).await?;
    let layer = Layer::new().file(format!("opt/lib/modules/{KERNEL}/net.ko"), b"net".to_vec());
    let digest = registry.push("kmods/net", KERNEL, &Image::new().layer(layer).build()?).await?;
    bed.node("n1", KERNEL, json!({"gpu": "yes"})).await?;
    let image = format!("{}/kmods/net:${{KERNEL_FULL_VERSION}}", registry.address());
    let tls = json!({"moduleLoader": {"container": {"registryTLS": {"insecure": true}}}});
    bed.module("drivers", "net", &image, tls).await?;
    bed.ready("drivers", "net", "True", "AllNodesReady").await?;
    let config = bed.config("n1").await?.context("no NodeModulesConfig")?;
    let expected = format!("{}/kmods/net@{digest}", registry.address());
    assert_eq!(config.spec.modules[0].config.container_image, expected);

    // A new kernel whose image is not there: told, and the entry stays. With the image it follows.
    let newer = "6.1.0-2-cloud-amd64";
    bed.reboot("n1", newer).await?;
    let message = bed.ready("drivers", "net", "False", "ImagesNotReady").await?;
    ensure!(message.contains("n1") && message.contains(newer), "{message}");
    let kept = bed.config("n1").await?.context("no NodeModulesConfig")?.spec;
    assert_eq!((kept.modules[0].config.container_image.as_str(), kept.unload.len()), (expected.as_str(), 0));
    let layer = Layer::new().file(format!("opt/lib/modules/{newer}/net.ko"), b"net2".to_vec());
    registry.push("kmods/net", newer, &Image::new().layer(layer).build()?).await?;
    bed.ready("drivers", "net", "True", "AllNodesReady").await?;
    assert!(bed.journal("n1").iter().all(|line| line.starts_with("load")), "{:?}", bed.journal("n1"));

    // A node that never comes back holds nothing up once it is released, or gone.
    for lost in ["released", "removed"] {
        bed.node(lost, KERNEL, json!({"gpu": "yes"})).await?;
        bed.labels_become(lost, &["drivers.net.ready", "worker"]).await?;
        bed.nodes.remove(lost);
    }
    bed.delete_module("drivers", "net").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(bed.get_module("drivers", "net").await?.is_some(), "two nodes have not said that it is gone");
    bed.patch_node("released", json!({"metadata": {"annotations": {"kmm.node.kubernetes.io/release": "burnt"}}}))
        .await?;
    Api::<Node>::all(bed.admin.clone()).delete("removed", &DeleteParams::default()).await?;
    let gone = || async { Ok(bed.get_module("drivers", "net").await?.is_none().then_some(())) };
    eventually(LIMIT, "the Module to go", gone).await?;
    let collected = || async { Ok(bed.config("removed").await?.is_none().then_some(())) };
    eventually(LIMIT, "the NodeModulesConfig to go with its Node", collected).await?;
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_that_vanish_behind_the_managers_back_stay_loaded() -> Result<()> {
    let mut bed = Bed::start(ALONE).await?;
    bed.node("n1", KERNEL, json!({"gpu": "yes"})).await?;
    bed.module("drivers", "gpu", &pinned("gpu"), json!({})).await?;
    bed.labels_become("n1", &["drivers.gpu.ready", "worker"]).await?;
    let before = bed.config("n1").await?.context("no NodeModulesConfig")?.spec;
    bed.manager.kill();
    bed.edit_module("drivers", "gpu", json!({"metadata": {"finalizers": null}})).await?;
    bed.delete_module("drivers", "gpu").await?;
    assert!(bed.get_module("drivers", "gpu").await?.is_none());
    bed.manager.restart().await?;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(bed.config("n1").await?.context("no NodeModulesConfig")?.spec, before);
    bed.journal_becomes("n1", &["load drivers/gpu"]).await?;
    bed.labels_become("n1", &["drivers.gpu.ready", "worker"]).await?;

    // Made again, the Module takes over what is loaded.
    bed.module("drivers", "gpu", &pinned("gpu"), json!({})).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_become_claims_as_soon_as_there_are_claims_and_follow_the_nodes() -> Result<()> {
    let mut bed = Bed::start(Edition::Spoke).await?;
    bed.node("n00", "6.12.0+", json!({"gpu": "yes"})).await?;
    bed.module("drivers", "gpu", &pinned("gpu"), json!({})).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    bed.cluster.install_crds(&ocm::crds()).await?;
    let report = || async {
        let all = Api::<ClusterClaim>::all(bed.admin.clone()).list(&ListParams::default()).await?.items;
        let values = all.iter().map(|claim| (claim.name_any(), claim.spec.value.clone().unwrap_or_default()));
        let values: Vec<(String, String)> = values.collect();
        Ok::<_, anyhow::Error>((claims::decode(values.iter().map(|(n, v)| (n.as_str(), v.as_str()))), values))
    };
    let kernels = |wanted: Vec<String>| async move {
        eventually(Duration::from_secs(90), &format!("{} kernels in claims", wanted.len()), || async {
            let found = match report().await?.0 {
                KernelReport::Complete(found) => found,
                other => anyhow::bail!("{other:?}"),
            };
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            ensure!(found == wanted, "{found:?}");
            Ok(Some(()))
        })
        .await
    };
    kernels(vec!["6.12.0+".to_owned()]).await?;
    let many: Vec<String> = (10..70).map(|n| format!("6.6.{n}-100.some.flavour.x86_64")).collect();
    for (n, kernel) in many.iter().enumerate() {
        Kubelet::join(bed.admin.clone(), &format!("m{n}"), &json!({}), kernel, "boot-1").await?;
    }
    let all: Vec<String> = std::iter::once("6.12.0+".to_owned()).chain(many).collect();
    kernels(all).await?;
    let (_, values) = report().await?;
    ensure!(values.len() > 1 && values.iter().all(|(_, value)| value.chars().count() <= 1024), "{values:?}");
    for n in 0..60 {
        Api::<Node>::all(bed.admin.clone()).delete(&format!("m{n}"), &DeleteParams::default()).await?;
    }
    kernels(vec!["6.12.0+".to_owned()]).await?;
    bed.nodes.clear();
    Api::<Node>::all(bed.admin.clone()).delete("n00", &DeleteParams::default()).await?;
    let none = || async { Ok(report().await?.1.is_empty().then_some(())) };
    eventually(LIMIT, "no claims without nodes", none).await?;
    assert_eq!(bed.forbidden()?, [] as [String; 0]);

    // Its rights go no further than its own claims.
    let foreign: ClusterClaim = serde_json::from_value(json!({
        "apiVersion": "cluster.open-cluster-management.io/v1alpha1", "kind": "ClusterClaim",
        "metadata": {"name": "id.k8s.io"}, "spec": {"value": "spoke"},
    }))?;
    Api::<ClusterClaim>::all(bed.admin.clone()).create(&PostParams::default(), &foreign).await?;
    let kubeconfig = bed.cluster.service_account_kubeconfig(NAMESPACE, Edition::Spoke.manager()).await?;
    let claims: Api<ClusterClaim> = Api::all(bed.cluster.client(&kubeconfig).await?);
    let stolen = Patch::Merge(json!({"spec": {"value": "another"}}));
    let written = claims.patch("id.k8s.io", &PatchParams::default(), &stolen).await.map(drop);
    let deleted = claims.delete("id.k8s.io", &DeleteParams::default()).await.map(drop);
    for answer in [written, deleted] {
        let told = answer.err().context("it was allowed")?.to_string();
        ensure!(told.contains("the manager may only write the ClusterClaims with kernels"), "{told}");
    }
    Ok(())
}
