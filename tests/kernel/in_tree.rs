//! Modules that the kernel itself came with make room for a Module's, and come back.

use anyhow::{Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded};
use kmm::api::{LoadPolicy, NodeModuleSpec, UnloadIntent, UnloadReason};

use crate::world::{Options, World, of};

/// A kernel with `zram`, which uses `zsmalloc`, and `loop` with a parameter, all of the distribution.
async fn with_zram() -> Result<World> {
    let world = World::start(Options::default()).await?;
    world.vm.run("/usr/sbin/modprobe zram && /usr/sbin/modprobe loop max_loop=3").await?;
    Ok(world)
}

fn replacing(world: &World, name: &str, module: &str, image: &str, restore: bool) -> NodeModuleSpec {
    let mut entry = world.entry(name, module, image, 1);
    // In the wrong order and in the other spelling: holders go first all the same.
    entry.config.in_tree_modules_to_remove = vec!["zsmalloc".into(), "zram".into(), "loop".into(), "not-loaded".into()];
    entry.policy = Some(LoadPolicy { restore_in_tree_modules: restore, ..LoadPolicy::default() });
    entry
}

fn removal(world: &World, name: &str) -> UnloadIntent {
    UnloadIntent { reason: UnloadReason::Deleted, ..world.intent(name, 1) }
}

/// The parameter of `loop`, or that it is not there, and whether the others are.
async fn zram(world: &World) -> Result<String> {
    let out = world
        .vm
        .run("cat /sys/module/loop/parameters/max_loop 2>/dev/null || echo none; cd /sys/module; ls -d zram zsmalloc 2>/dev/null || true")
        .await?;
    Ok(out.split_whitespace().collect::<Vec<_>>().join(" "))
}

const THERE: &str = "3 zram zsmalloc";

#[tokio::test]
async fn in_tree_modules_make_room_and_come_back_with_their_parameters_when_asked_for() -> Result<()> {
    let world = with_zram().await?;
    let image = world.push("both", &[world.mods.plain()?, world.mods.dash()?, world.mods.fail()?]).await?;
    assert_eq!(zram(&world).await?, THERE);
    world.start_worker().await?;

    // A load that fails leaves the node with what it had.
    let generation = world.want(vec![replacing(&world, "fail", "kmm_fail", &image, true)], vec![]).await?;
    world.settled(generation, &[("fail", Failed, "KernelRefused")]).await?;
    assert_eq!(zram(&world).await?, THERE);
    let log = world.worker_log().await;
    ensure!(log.contains("loading again what the kernel came with"), "they had made room: {log}");
    let generation = world.want(vec![], vec![removal(&world, "fail")]).await?;
    world.settled(generation, &[]).await?;

    // Two Modules want them gone: they come back after the second, also where the worker was killed meanwhile.
    let plain = replacing(&world, "plain", "kmm_plain", &image, true);
    let dash = replacing(&world, "dash", "kmm-dash", &image, true);
    let generation = world.want(vec![plain.clone(), dash.clone()], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded"), ("dash", Loaded, "Loaded")]).await?;
    assert_eq!(zram(&world).await?, "none");
    let generation = world.want(vec![dash], vec![removal(&world, "plain")]).await?;
    world.settled(generation, &[("dash", Loaded, "Loaded")]).await?;
    assert_eq!(zram(&world).await?, "none");
    world.end_worker("KILL").await?;
    world.start_worker().await?;
    let generation = world.want(vec![], vec![removal(&world, "dash")]).await?;
    world.settled(generation, &[]).await?;
    assert_eq!(zram(&world).await?, THERE);
    assert_eq!(world.loaded().await?, [""; 0]);

    // One that is not there any more is told, and the removal counts as done in the end.
    let generation = world.want(vec![plain], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    world.vm.run("mv /lib/modules/$(uname -r)/kernel/drivers/block/zram /zram").await?;
    let generation = world.want(vec![], vec![removal(&world, "plain")]).await?;
    let status = world
        .status("the module that is not loaded again", |status| {
            status.modules.iter().any(|module| module.reason.as_deref() == Some("InTreeModuleNotRestored"))
        })
        .await?;
    let message = of(&status, "plain")?.message.clone().unwrap_or_default();
    ensure!(message.contains("zram"), "{message}");
    world.settled(generation, &[]).await?;
    Ok(())
}

#[tokio::test]
async fn in_tree_modules_that_made_room_stay_out_where_nobody_asks_for_them() -> Result<()> {
    let world = with_zram().await?;
    let image = world.push("plain", &[world.mods.plain()?]).await?;
    world.start_worker().await?;
    let generation = world.want(vec![replacing(&world, "plain", "kmm_plain", &image, false)], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    let generation = world.want(vec![], vec![removal(&world, "plain")]).await?;
    world.settled(generation, &[]).await?;
    assert_eq!(zram(&world).await?, "none");
    Ok(())
}

#[tokio::test]
async fn in_tree_modules_named_after_the_load_go_by_the_order_of_the_change() -> Result<()> {
    let world = with_zram().await?;
    let image = world.push("plain", &[world.mods.plain()?]).await?;
    world.start_worker().await?;
    let generation = world.want(vec![world.entry("plain", "kmm_plain", &image, 1)], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(zram(&world).await?, THERE);

    // Without the order nothing is touched, and it is said.
    let next = NodeModuleSpec { generation: Some(2), ..replacing(&world, "plain", "kmm_plain", &image, false) };
    let generation = world.want(vec![next.clone()], vec![]).await?;
    world.settled(generation, &[("plain", Failed, "LoadedOtherParameters")]).await?;
    assert_eq!(zram(&world).await?, THERE);
    let generation = world.want(vec![next], vec![world.intent("plain", 1)]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(zram(&world).await?, "none");
    assert_eq!(world.loaded().await?, ["kmm_plain"]);
    Ok(())
}
