//! One cluster with a real node: the product as pods from its image, down to the node's kernel and back.

#[path = "../support/mod.rs"]
mod support;

mod credentials;
mod host;
mod world;

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use kmm::api::names::WORKER_DAEMON_SET;
use kmm::api::{ModuleState, NodeModulesConfig};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use support::eventually;
use world::{MODULE, NODE, World};

/// Long enough for a pass of the planner and a look of the worker, had they meant to unload.
const QUIET: Duration = Duration::from_secs(12);

/// Pauses for up to so many milliseconds, and tells for how many.
#[allow(clippy::print_stdout, reason = "a failure is to be repeated with it")]
async fn random_pause(limit: u32) {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    let pause = seed / 1000 % limit;
    println!("SIGKILL after {pause} ms");
    tokio::time::sleep(Duration::from_millis(u64::from(pause))).await;
}

/// The sentences of this test hold one after the other on one node, because a node takes half a minute to boot.
#[tokio::test(flavor = "multi_thread")]
async fn a_module_is_loaded_stays_through_whatever_is_no_intent_and_goes_with_its_module() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let world = World::start().await?;
    let client = world.cluster.admin().await?;

    // A Module with a tag ends as a module in the kernel, proved by build id, and as a label on the node.
    world.apply_module().await?;
    // Wherever in the load this hits the worker, if there is one yet, the load ends right.
    random_pause(15_000).await;
    world.kill_worker().await?;
    let first = world.wait_loaded(MODULE).await?;
    ensure!(first.build_id.is_some() || first.srcversion.is_some(), "loaded without proof: {first:?}");
    ensure!(
        first.digest == Some(world.digest_of_running_kernel().await?),
        "another digest than the registry's: {first:?}"
    );
    world.wait_ready_label(true).await?;

    host::firmware_and_files_come_and_go(&world).await?;
    credentials::the_nodes_own_open_the_registry(&world).await?;

    // Cordon, a taint that nothing tolerates.
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
    let taint = json!({"spec": {"unschedulable": true, "taints": [
        {"key": "example.com/maintenance", "effect": "NoSchedule"}, {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
    ]}});
    nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(taint)).await?;
    world.stays_loaded(QUIET, "the node was cordoned and tainted").await?;
    let clean = json!({"spec": {"unschedulable": null, "taints": null}});
    nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(clean)).await?;

    // The NodeModulesConfig is deleted: it is made again and nothing is unloaded.
    let configs: Api<NodeModulesConfig> = Api::all(client.clone());
    let before = configs.get(NODE).await?.uid();
    configs.delete(NODE, &DeleteParams::default()).await?;
    eventually(Duration::from_mins(1), "the NodeModulesConfig to be made again", || async {
        Ok(configs.get_opt(NODE).await?.filter(|config| config.uid() != before))
    })
    .await?;
    world.stays_loaded(QUIET, "its NodeModulesConfig was deleted").await?;
    world.wait_loaded(MODULE).await?;

    // Worker and manager end hard and start again.
    let pid =
        "for p in /proc/[0-9]*; do grep -qa kmm $p/cmdline && grep -qa worker $p/cmdline && echo ${p#/proc/}; done";
    world.node.exec(&format!("kill -9 $({pid})")).await?;
    world.kill_manager_pod().await?;
    world.stays_loaded(QUIET, "worker and manager were killed").await?;
    world.wait_loaded(MODULE).await?;

    // The worker's DaemonSet is deleted: it is made again, and nothing is unloaded or told as anything but loaded.
    let born = host::birth(&world).await?;
    let (daemon_sets, pods) = (world.daemon_sets().await?, world.worker_pods().await?);
    daemon_sets.delete(WORKER_DAEMON_SET, &DeleteParams::background()).await?;
    eventually(Duration::from_mins(2), "another worker", || async {
        let config = configs.get(NODE).await?;
        let entries = config.status.unwrap_or_default().modules;
        let told: Vec<_> = entries.iter().map(|entry| (&entry.name, entry.state)).collect();
        let loaded = matches!(told[..], [(_, Some(ModuleState::Loaded))]);
        if !loaded || !world.in_kernel().await? {
            return Ok(Some(Err(anyhow!("without its worker the node says {told:?}"))));
        }
        let now = world.worker_pods().await?;
        let other = !now.is_empty() && now.iter().all(|(uid, ready)| *ready && !pods.iter().any(|(old, _)| old == uid));
        Ok(other.then_some(Ok(())))
    })
    .await??;
    world.stays_loaded(QUIET, "the worker's DaemonSet was deleted").await?;
    world.wait_loaded(MODULE).await?;
    ensure!(host::birth(&world).await? == born, "the kernel module was loaded again for a new worker");

    // Reboot: loaded again, told under the new boot id.
    let boot = first.boot_id.clone();
    world.node.reboot().await?;
    let second = world.wait_loaded_after(MODULE, boot.as_deref()).await?;
    ensure!(world.in_kernel().await?, "reported as loaded, but the kernel has no such module");

    // Reboot into another kernel: the file of that kernel.
    let other = support::bed()?.older_kernel().release.clone();
    world.node.reboot_into(&other).await?;
    let third = world.wait_loaded_after(MODULE, second.boot_id.as_deref()).await?;
    ensure!(third.digest == Some(world.digest_of_running_kernel().await?), "the image of another kernel: {third:?}");
    ensure!(third.digest != first.digest, "two kernels share one image");

    host::a_locked_down_kernel_keeps_what_it_has(&world).await?;

    // The Module is deleted: unloaded, confirmed, label and NodeModulesConfig and worker gone, then the Module itself.
    world.delete_module_and_wait(MODULE).await?;
    ensure!(!world.in_kernel().await?, "the Module is gone, but the kernel still has the module");
    world.wait_ready_label(false).await?;
    eventually(Duration::from_mins(1), "the NodeModulesConfig to go", || async {
        Ok(configs.list(&ListParams::default()).await?.items.is_empty().then_some(()))
    })
    .await?;
    ensure!(third.state == Some(ModuleState::Loaded));
    Ok(())
}
