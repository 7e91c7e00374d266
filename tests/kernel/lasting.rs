//! What is right stays right over restarts, reboots and the loss of everything around the node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kmm::api::ModuleState::Loaded;

use crate::support::eventually;
use crate::world::{Options, PATIENCE, World};

#[tokio::test]
async fn restarts_and_a_deleted_object_touch_nothing_and_a_reboot_loads_again() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let image = world.push("all", &[mods.plain()?, mods.base()?, mods.top()?]).await?;
    world.start_worker().await?;
    let wanted = || vec![world.entry("plain", "kmm_plain", &image, 1), world.entry("top", "kmm_top", &image, 1)];
    let both = [("plain", Loaded, "Loaded"), ("top", Loaded, "Loaded")];
    let generation = world.want(wanted(), vec![]).await?;
    world.settled(generation, &both).await?;
    let births = (world.birth("kmm_plain").await?, world.birth("kmm_top").await?);

    // At rest: little memory of its own (pages of the executable depend on the build), and no writes.
    let status = world.vm.run("grep -E '^(VmRSS|RssAnon):' /proc/$(cat /run/worker.log.pid)/status").await?;
    let anonymous: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or(u64::MAX);
    println!("{status}");
    ensure!(anonymous <= 10 * 1024, "the worker holds {anonymous} KiB");
    let before = world.writes()?;
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(world.writes()?, before, "a status that did not change was written");

    for signal in ["KILL", "TERM"] {
        world.end_worker(signal).await?;
        world.start_worker().await?;
    }
    let generation = world
        .want(
            wanted()
                .into_iter()
                .map(|mut entry| {
                    entry.generation = Some(2);
                    entry
                })
                .collect(),
            vec![],
        )
        .await?;
    world.settled(generation, &both).await?;
    world.forget().await?;
    world.vm.wait_for(PATIENCE, "tail -n 3 /var/log/worker.log", |out| out.text().contains("\"modules\":0")).await?;
    world.end_worker("KILL").await?;
    world.start_worker().await?;
    let generation = world.want(wanted(), vec![]).await?;
    world.settled(generation, &both).await?;
    assert_eq!((world.birth("kmm_plain").await?, world.birth("kmm_top").await?), births, "a module was touched");

    // After a reboot everything comes back from the node's own disk: the registry is away.
    world.registry.pause()?;
    let boot = world.boot_id().await?;
    world.vm.run("sync").await?;
    world.vm.reboot().await?;
    assert_eq!(world.loaded().await?, [""; 0]);
    world.start_worker().await?;
    let status = world
        .status("the modules of the new boot", |status| {
            status.boot_id.as_ref().is_some_and(|id| *id != boot)
                && status.modules.iter().filter(|module| module.state == Some(Loaded)).count() == 2
        })
        .await?;
    ensure!(status.modules.iter().all(|module| module.boot_id == status.boot_id), "{status:?}");
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_plain", "kmm_top"]);
    Ok(())
}

#[tokio::test]
async fn without_an_api_server_the_node_keeps_what_it_has_and_loads_what_it_had() -> Result<()> {
    let world = World::start(Options { own_control_plane: true, ..Options::default() }).await?;
    let image = world.push("plain", &[world.mods.plain()?]).await?;
    world.start_worker().await?;
    let generation = world.want(vec![world.entry("plain", "kmm_plain", &image, 1)], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    world.plane.stop_apiserver()?;
    world.vm.run("rmmod kmm_plain").await?;
    is_loaded(&world, "after drift").await?;
    world.vm.run("sync").await?;
    world.vm.reboot().await?;
    world.start_worker().await?;
    is_loaded(&world, "after a reboot").await?;
    world.plane.start_apiserver().await?;
    let boot = world.boot_id().await?;
    world.status("a status of the new boot", |status| status.boot_id.as_ref() == Some(&boot)).await?;
    Ok(())
}

async fn is_loaded(world: &World, when: &str) -> Result<()> {
    let what = format!("kmm_plain in the kernel {when}");
    let found =
        eventually(PATIENCE, &what, || async { Ok((world.loaded().await? == ["kmm_plain"]).then_some(())) }).await;
    if found.is_err() {
        return found.context(world.worker_log().await);
    }
    Ok(())
}
