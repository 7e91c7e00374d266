//! A module whose init function does not return, before the kubelet runs.

use anyhow::{Result, ensure};
use kmm::api::ModuleState::{Loaded, Loading};

use crate::life::{at_boot, passes, slow, slow_entry, unit_line};
use crate::world::{Options, PATIENCE, World};

#[tokio::test]
async fn what_hangs_at_boot_keeps_out_nothing_else_and_the_worker_that_comes_takes_over() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let image = world.push("both", &[world.mods.plain()?, slow(&world.mods.release)?]).await?;
    world.start_worker().await?;
    let wanted = || vec![slow_entry(&world, &image, 1, 1, 1), at_boot(world.entry("plain", "kmm_plain", &image, 1))];
    let generation = world.want(wanted(), vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded"), ("slow", Loaded, "Loaded")]).await?;
    world.end_worker("TERM").await?;

    // Nothing is loaded any more, and now one of them takes ten minutes to start.
    let line = unit_line(&world).await?;
    world
        .vm
        .run(&format!(
            "rmmod kmm_slow; rmmod kmm_plain; sed -i s/init_ms=1/init_ms=600000/ /var/lib/kmm/plan.json; \
             {line} >/var/log/once.log 2>&1 </dev/null &"
        ))
        .await?;
    passes(&world, "kmm_slow", "Loading").await?;
    passes(&world, "kmm_plain", "Live").await?;
    world.vm.wait_for(PATIENCE, "cat /var/log/once.log", |out| out.text().contains("left to it")).await?;
    let told = world.vm.run("cat /var/log/once.log").await?;
    ensure!(told.contains("the init function of module kmm_slow has not returned"), "{told}");

    world.start_worker().await?;
    let generation = world.want(wanted(), vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded"), ("slow", Loading, "Loading")]).await?;
    Ok(())
}
