//! Policies of a Module through the manager: what it orders, what it labels, what it says.

use anyhow::{Context, Result, ensure};
use kmm::api::NodeModulesConfigSpec;
use serde_json::{Value, json};

use crate::spoke_bed::{Bed, DIGEST, LIMIT};
use crate::support::eventually;
use crate::support::manager::Edition;

const KERNEL: &str = "6.1.0-1-cloud-amd64";

fn policy(policy: &Value) -> Value {
    json!({"moduleLoader": {"policy": policy}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_waits_for_a_reboot_and_a_removed_module_is_kept_where_the_policy_says_so() -> Result<()> {
    let mut bed = Bed::start(Edition::Standalone).await?;
    for node in ["n1", "n2"] {
        bed.node(node, KERNEL, json!({"gpu": "yes"})).await?;
    }
    let image = format!("registry.invalid/kmods/gpu@{DIGEST}");
    let careful = policy(&json!({"onChange": "OnReboot", "onRemoval": "Keep"}));
    bed.module("drivers", "gpu", &image, careful.clone()).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    let ready = ["drivers.gpu.ready", "worker"];
    let loaded = ["load drivers/gpu"];
    bed.labels_become("n1", &ready).await?;

    // A change is told and touches nothing; with the boot of a node it comes to that node.
    let parameters = json!({"spec": {"moduleLoader": {"container": {"modprobe": {"parameters": ["debug=1"]}}}}});
    bed.edit_module("drivers", "gpu", parameters).await?;
    eventually(LIMIT, "both nodes to wait", || async {
        let message = bed.ready("drivers", "gpu", "False", "NodesWaitingForReboot").await?;
        let both = "0 of 2 nodes have the module; 2 more run an older file of it until they boot again";
        ensure!(message == both, "{message}");
        Ok(Some(()))
    })
    .await?;
    bed.reboot("n1", KERNEL).await?;
    eventually(LIMIT, "one node to have the change", || async {
        let message = bed.ready("drivers", "gpu", "False", "NodesWaitingForReboot").await?;
        ensure!(message.starts_with("1 of 2 nodes have the module; 1 more"), "{message}");
        Ok(Some(()))
    })
    .await?;
    assert_eq!(bed.journal("n1"), ["load drivers/gpu", "load drivers/gpu"]);
    assert_eq!(bed.journal("n2"), loaded);
    bed.labels_become("n2", &ready).await?;

    // In a hurry after all: the policy is the order.
    bed.edit_module("drivers", "gpu", json!({"spec": policy(&json!({"onChange": "Reload"}))})).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    let replaced = ["load drivers/gpu", "unload drivers/gpu Changed", "load drivers/gpu"];
    assert_eq!(bed.journal("n2"), replaced);

    // De-selected and deleted, the Module leaves its entries without an order, and nobody waits for anybody.
    bed.patch_node("n2", json!({"metadata": {"labels": {"gpu": "no"}}})).await?;
    bed.labels_become("n2", &["worker"]).await?;
    eventually(LIMIT, "the kept module to be told", || async {
        let status = bed.config("n2").await?.context("no NodeModulesConfig")?.status.unwrap_or_default();
        let told: Vec<_> = status.modules.iter().filter_map(|module| module.reason.clone()).collect();
        Ok((told == ["Kept"]).then_some(()))
    })
    .await?;
    eventually(LIMIT, "the Module to say so", || async {
        let message = bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
        ensure!(message == "1 of 1 nodes have the module; 1 more keep it until they boot again", "{message}");
        Ok(Some(()))
    })
    .await?;
    bed.delete_module("drivers", "gpu").await?;
    let gone = || async { Ok(bed.get_module("drivers", "gpu").await?.is_none().then_some(())) };
    eventually(LIMIT, "the Module to go", gone).await?;
    for node in ["n1", "n2"] {
        bed.labels_become(node, &["worker"]).await?;
        let spec = bed.config(node).await?.context("no NodeModulesConfig")?.spec;
        assert_eq!(NodeModulesConfigSpec { container_runtime: None, ..spec }, NodeModulesConfigSpec::default());
    }
    assert_eq!(bed.journal("n2"), replaced);

    // Made again and equal, it adopts what was kept. Its policy is that of the moment at which it goes.
    let mut again = careful;
    again["moduleLoader"]["container"] = json!({"modprobe": {"parameters": ["debug=1"]}});
    bed.module("drivers", "gpu", &image, again).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    assert_eq!(bed.journal("n1"), ["load drivers/gpu", "load drivers/gpu"]);
    bed.edit_module("drivers", "gpu", json!({"spec": policy(&json!({"onRemoval": "Unload"}))})).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    bed.delete_module("drivers", "gpu").await?;
    eventually(LIMIT, "the Module to go", gone).await?;
    assert_eq!(bed.journal("n1"), ["load drivers/gpu", "load drivers/gpu", "unload drivers/gpu Deleted"]);

    // What stays is what nobody asks for any more; with the boot it goes, and then the object.
    assert_eq!(bed.journal("n2"), replaced);
    bed.reboot("n2", KERNEL).await?;
    let no_config = || async { Ok(bed.config("n2").await?.is_none().then_some(())) };
    eventually(LIMIT, "the NodeModulesConfig of a node that has booted", no_config).await?;
    bed.labels_become("n2", &[]).await?;
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}
