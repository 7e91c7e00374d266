//! A node is a real one: pods run on it, privileged ones reach its kernel, and a reboot is a reboot.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;

use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::images::{self, Layer};
use crate::support::node::{Node, NodeOptions};
use crate::support::registry::{Registry, RegistryOptions};
use crate::support::{bed, eventually, kmods};

#[tokio::test]
async fn a_node_gets_ready_loads_a_module_from_a_privileged_pod_and_reboots_into_another_kernel() -> Result<()> {
    let (old, new) = (bed()?.older_kernel().release.clone(), bed()?.kernel().release.clone());
    let cluster = ControlPlane::start(ControlPlaneOptions::full()).await?;
    let registry = Registry::start(RegistryOptions { tls: true, ..RegistryOptions::default() }).await?;
    let mut layer = Layer::new();
    for release in [&old, &new] {
        layer = layer.file(format!("mods/{release}.ko"), kmods::for_kernel(release)?.plain()?.bytes);
    }
    let digest = registry.push("bed/loader", "1", &images::busybox()?.layer(layer).build()?).await?;

    let node = Node::start(
        &cluster,
        NodeOptions {
            name: "n1".into(),
            kernel: Some(old.clone()),
            registries: vec![(registry.address(), registry.ca_pem())],
            labels: vec![("bed.test/role".into(), "first".into())],
            ..NodeOptions::default()
        },
    )
    .await?;
    let object = node.object().await?;
    assert_eq!(object.metadata.labels.context("no labels")?["bed.test/role"], "first");

    let pods: Api<Pod> = Api::namespaced(cluster.admin().await?, "default");
    let load = "grep -q ^kmm_plain /proc/modules || insmod /mods/$(uname -r).ko; grep kmm_plain /proc/modules; exec sleep 1000000";
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "loader"},
        "spec": {
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "loader",
                "image": format!("{}/bed/loader@{digest}", registry.address()),
                "args": ["-c", load],
                "securityContext": {"privileged": true},
            }],
        },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    let limit = Duration::from_mins(3);
    let loaded = |out: &crate::support::machine::Output| out.text().contains("kmm_plain ");
    node.wait_for(limit, "cat /proc/modules", loaded).await?;
    ready_in(&pods, 0).await?;
    ensure!(node.pods().await?.len() == 1, "more than one pod is on the node");
    let log = cluster.kubectl(&["logs", "loader"]).await?;
    ensure!(log.contains("kmm_plain ") && log.contains(" Live "), "the pod's log is {log}");

    let before = boot(&node).await?;
    node.reboot_into(&new).await?;
    let after = boot(&node).await?;
    assert_eq!((before.1.as_str(), after.1.as_str()), (old.as_str(), new.as_str()));
    ensure!(before.0 != after.0, "the boot id is that of before");
    ready_in(&pods, 1).await?;
    node.wait_for(limit, "cat /proc/modules", loaded).await?;
    Ok(())
}

async fn boot(node: &Node) -> Result<(String, String)> {
    let info = node.object().await?.status.and_then(|s| s.node_info).context("no node info")?;
    Ok((info.boot_id, info.kernel_version))
}

async fn ready_in(pods: &Api<Pod>, restarts: i32) -> Result<()> {
    eventually(Duration::from_mins(3), "the pod to be ready", || async {
        let status = pods.get("loader").await?.status.unwrap_or_default();
        match status.container_statuses.iter().flatten().next() {
            Some(c) if c.ready && c.restart_count >= restarts => Ok(Some(())),
            Some(c) => bail!("{:?}", c.state),
            None => bail!("{:?}", status.conditions),
        }
    })
    .await
}
