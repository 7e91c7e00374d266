//! The policies of a Module on a real kernel. One machine sees them all, because a machine takes its time to start.

use std::time::Duration;

use anyhow::{Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded, Orphaned, Pending};
use kmm::api::{LoadPolicy, NodeModuleSpec, OnChange, OnDrift, OnOtherFile, OnRemoval};

use crate::support::eventually;
use crate::world::{Options, PATIENCE, World, build_id, of};

fn under(policy: LoadPolicy, entry: NodeModuleSpec) -> NodeModuleSpec {
    NodeModuleSpec { policy: Some(policy), ..entry }
}

async fn version(world: &World) -> Result<String> {
    Ok(world.vm.run("cat /sys/module/kmm_plain/version").await?.trim().to_owned())
}

#[tokio::test]
async fn each_policy_decides_what_happens_to_a_loaded_module_and_a_boot_ends_what_waits() -> Result<()> {
    let world = World::start(Options { own_control_plane: true, ..Options::default() }).await?;
    let mods = &world.mods;
    let one = world.push("one", &[mods.plain()?, mods.base()?, mods.top()?, mods.param()?]).await?;
    let two = world.push("two", &[mods.plain_v2()?]).await?;
    world.vm.put("/mods/kmm_plain.ko", 0o644, &mods.plain_v2()?.bytes).await?;
    world.vm.run("insmod /mods/kmm_plain.ko").await?;
    world.start_worker().await?;

    // onOtherFile: a file that no Module brought is left, or replaced.
    let plain = || world.entry("plain", "kmm_plain", &one, 1);
    let generation = world.want(vec![plain()], vec![]).await?;
    world.settled(generation, &[("plain", Failed, "LoadedOtherFile")]).await?;
    assert_eq!(version(&world).await?, "2.0");
    let replace = LoadPolicy { on_other_file: OnOtherFile::Replace, ..LoadPolicy::default() };
    let generation = world.want(vec![under(replace, plain())], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(version(&world).await?, "1.0");

    // onDrift: what somebody took out is left out and told, or loaded again. onRemoval: what is kept is told.
    let report = LoadPolicy { on_drift: OnDrift::Report, load_at_boot: true, ..LoadPolicy::default() };
    let keep = LoadPolicy { on_removal: OnRemoval::Keep, ..LoadPolicy::default() };
    let param = |policy| under(policy, world.entry("param", "kmm_param", &one, 1));
    let top = || under(keep, world.entry("top", "kmm_top", &one, 1));
    let generation = world.want(vec![plain(), param(report), top()], vec![]).await?;
    let all = [("plain", Loaded, "Loaded"), ("param", Loaded, "Loaded"), ("top", Loaded, "Loaded")];
    world.settled(generation, &all).await?;
    let births = (world.birth("kmm_plain").await?, world.birth("kmm_top").await?);
    world.vm.run("rmmod kmm_param").await?;
    let missing = [("plain", Loaded, "Loaded"), ("param", Failed, "Missing"), ("top", Loaded, "Loaded")];
    world.settled(generation, &missing).await?;
    world.end_worker("KILL").await?;
    world.start_worker().await?;
    let generation = world.want(vec![plain(), param(report)], vec![]).await?;
    let kept = [("plain", Loaded, "Loaded"), ("param", Failed, "Missing"), ("top", Orphaned, "Kept")];
    world.settled(generation, &kept).await?;
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_plain", "kmm_top"]);
    let repair = LoadPolicy { load_at_boot: true, ..LoadPolicy::default() };
    let generation = world.want(vec![plain(), param(repair)], vec![]).await?;
    let repaired = [("plain", Loaded, "Loaded"), ("param", Loaded, "Loaded"), ("top", Orphaned, "Kept")];
    world.settled(generation, &repaired).await?;

    // onChange: the new image is fetched and the older file stays, whole and told.
    let waits = LoadPolicy { on_change: OnChange::OnReboot, ..LoadPolicy::default() };
    let newer = || under(waits, world.entry("plain", "kmm_plain", &two, 2));
    let generation = world.want(vec![newer(), param(repair)], vec![]).await?;
    let waiting = [("plain", Pending, "WaitingForReboot"), ("param", Loaded, "Loaded"), ("top", Orphaned, "Kept")];
    let status = world.settled(generation, &waiting).await?;
    let told = of(&status, "plain")?;
    assert_eq!(told.build_id, Some(build_id(&mods.plain()?)?));
    assert_eq!(told.config.as_ref().map(|config| config.container_image.as_str()), Some(one.as_str()));
    ensure!(told.message.as_ref().is_some_and(|why| why.contains("onChange is OnReboot")), "{told:?}");
    assert_eq!((world.birth("kmm_plain").await?, world.birth("kmm_top").await?), births, "a module was touched");

    // loadAtBoot: with API server and registry away, what asks for it is loaded at once, the rest after some patience.
    // With the boot the change has come and what was kept has gone.
    world.plane.stop_apiserver()?;
    world.registry.pause()?;
    world.vm.run("sync").await?;
    world.vm.reboot().await?;
    world.start_worker().await?;
    let first = eventually(PATIENCE, "the module that is to be loaded at boot", || async {
        let loaded = world.loaded().await?;
        Ok((!loaded.is_empty()).then_some(loaded))
    })
    .await?;
    assert_eq!(first, ["kmm_param"]);
    eventually(PATIENCE, "the other module", || async { Ok((world.loaded().await?.len() == 2).then_some(())) }).await?;
    assert_eq!(world.loaded().await?, ["kmm_param", "kmm_plain"]);
    assert_eq!(version(&world).await?, "2.0");
    world.plane.start_apiserver().await?;
    let boot = world.boot_id().await?;
    let status = world.status("a status of the new boot", |status| status.boot_id.as_ref() == Some(&boot)).await?;
    assert_eq!(crate::world::told(&status), ["param Loaded Loaded", "plain Loaded Loaded"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.loaded().await?, ["kmm_param", "kmm_plain"]);
    Ok(())
}
