//! `make demo`: a ManagedClusterModule on a Hub ends as a loaded module in the kernels of two Spokes' nodes.
//!
//! Everything is real but the agents of Open Cluster Management, for which the bed has a stand-in: control planes,
//! nodes with their own kernels, a registry, the product installed by its kustomize overlays.

#[path = "../support/ocm/mod.rs"]
mod ocm;
#[path = "../support/mod.rs"]
mod support;

mod screen;
mod world;

use std::time::Duration;

use anyhow::{Context, Result};

use screen::Screen;
use world::World;

fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let keep = std::env::var("KEEP").is_ok_and(|value| !value.is_empty() && value != "0");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(keep))
}

async fn run(keep: bool) -> Result<()> {
    let screen = Screen::new();
    screen
        .step("Three clusters: a Hub and two Spokes, each with one real node; the Spokes' nodes run different kernels");
    let mut world = World::start(&screen).await?;

    screen.step("The product, installed by `kubectl apply -k`: config/default-hub and config/default-spoke");
    world.install(&screen).await?;

    screen.step("Open Cluster Management joins the Spokes to the Hub; each Spoke tells its kernels by a ClusterClaim");
    world.show_claims(&screen).await?;

    screen.step("A ManagedClusterModule on the Hub");
    screen.show(&world.managed_cluster_module());
    let sent = std::time::Instant::now();
    world.apply_managed_cluster_module().await?;
    world.wait_ready(&screen).await.context("waiting for the ManagedClusterModule to be ready")?;
    screen.note(&format!("loaded everywhere {:.1} s after it was applied", sent.elapsed().as_secs_f64()));

    screen.step("What came of it: one ManifestWork per Spoke, its own kernel, the image by digest");
    screen.show(&world.table().await?);
    screen.note("and the nodes' own kernels say, in /proc/modules:");
    screen.show(&world.proc_modules().await?);
    screen.note(&world.memory()?);

    if keep {
        screen.step("Left running (KEEP=1); Ctrl-C ends it");
        screen.show(&world.how_to_look());
        tokio::signal::ctrl_c().await?;
        return Ok(());
    }

    screen.step("The ManagedClusterModule is deleted: the modules leave the kernels before the objects go");
    world.delete_managed_cluster_module().await?;
    world.wait_unloaded(Duration::from_secs(180)).await?;
    screen.show(&world.proc_modules().await?);
    screen.step("Done");
    Ok(())
}
