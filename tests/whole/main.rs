//! The main job from end to end: a ManagedClusterModule on a Hub ends as a module in the kernel of a Spoke's node.
//!
//! Hub, Spoke and worker are the executable, each with the token and the rights that ship; Open Cluster Management's agents
//! carry between them; the images lie in a registry with a password.

#[path = "../support/ocm/mod.rs"]
mod ocm;
#[path = "../support/mod.rs"]
mod support;

mod world;

use std::time::Duration;

use anyhow::{Result, ensure};
use kmm::api::ModuleState;
use kube::api::DeleteParams;

use support::eventually;
use world::{CLUSTER, LIMIT, World};

/// How long nobody may write anything once all is well.
const QUIET: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_managed_cluster_module_is_loaded_on_a_spoke_costs_nothing_at_rest_and_leaves_with_the_selection()
-> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut world = World::start().await?;
    let digest = world.push().await?;
    world.apply().await?;
    world.becomes_ready().await?;
    ensure!(world.in_kernel().await?, "ready, and the kernel has no such module");
    let loaded = world.told().await?;
    assert_eq!((&loaded.state, loaded.digest.as_ref()), (&Some(ModuleState::Loaded), Some(&digest)));
    let work = world.work().await?.unwrap_or_default().to_string();
    ensure!(work.contains(&digest) && !work.contains(":v1"), "the work names no digest, or a tag: {work}");

    // Agents, heartbeats and a worker that looks: nobody of ours writes, events included, and nobody does after a restart.
    let before = world.settled_writes().await?;
    tokio::time::sleep(QUIET).await;
    assert_eq!(world.writes()?[before.len()..], [] as [String; 0], "writes in a world in which nothing changes");
    world.restart_managers().await?;
    tokio::time::sleep(QUIET / 4).await;
    assert_eq!(world.writes()?[before.len()..], [] as [String; 0], "writes after a restart");

    // NotReady and tainted is no reason to unload.
    world.lose_node().await?;
    tokio::time::sleep(QUIET / 4).await;
    ensure!(world.in_kernel().await?, "NotReady took the module out");
    world.find_node();

    // The cluster is selected no more: the module leaves the kernel, and then the work goes.
    world.label_cluster("other").await?;
    world.leaves_the_kernel().await?;
    eventually(LIMIT, "the work to go", || async { Ok(world.work().await?.is_none().then_some(())) }).await?;
    // What it says from here on is of the new selection.
    eventually(LIMIT, "no cluster to be counted", || async { Ok((world.ready_clusters().await? == 0).then_some(())) })
        .await?;
    world.label_cluster(CLUSTER).await?;
    world.becomes_ready().await?;
    ensure!(world.in_kernel().await?, "ready again, and the kernel has no such module");

    world.managed_cluster_modules().delete(world::NAME, &DeleteParams::foreground()).await?;
    world.leaves_the_kernel().await?;
    eventually(LIMIT, "the ManagedClusterModule to go", || async {
        Ok(world.managed_cluster_modules().get_opt(world::NAME).await?.is_none().then_some(()))
    })
    .await?;
    assert_eq!(world.forbidden()?, [] as [String; 0]);
    Ok(())
}
