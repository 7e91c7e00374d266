//! The worker's own disk: full, read only, or with its record lost.

use anyhow::{Result, ensure};
use kmm::api::ModuleState::{Loaded, Orphaned, UnloadFailed};
use kmm::api::NodeModulesConfigStatus;

use crate::world::{Options, World, told};

/// Waits until exactly this is told, of orders that are not carried out: as of the generation before them.
async fn tells(world: &World, generation: i64, expected: &[&str]) -> Result<NodeModulesConfigStatus> {
    let what = format!("generation {generation} with {expected:?}");
    world.status(&what, |status| status.observed_generation == Some(generation) && told(status) == expected).await
}

async fn pid(world: &World) -> Result<String> {
    world.vm.run("kill -0 $(cat /run/worker.log.pid) && cat /run/worker.log.pid").await
}

#[tokio::test]
async fn a_full_or_read_only_disk_is_told_and_what_was_asked_meanwhile_is_done_by_the_same_process() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let one = world.push("one", &[mods.plain()?, mods.base()?, mods.top()?, mods.param()?]).await?;
    let two = world.push("two", &[mods.plain_v2()?]).await?;
    world.vm.run("mkdir -p /var/lib/kmm && mount -t tmpfs -o size=16m state /var/lib/kmm").await?;
    world.start_worker().await?;
    let process = pid(&world).await?;
    let param = || world.entry("param", "kmm_param", &one, 1);
    let plain = |image: &str, generation| world.entry("plain", "kmm_plain", image, generation);
    let all = vec![plain(&one, 1), param(), world.entry("top", "kmm_top", &one, 1)];
    let before = world.want(all, vec![]).await?;
    let settled = [("param", Loaded, "Loaded"), ("plain", Loaded, "Loaded"), ("top", Loaded, "Loaded")];
    world.settled(before, &settled).await?;
    let births = (world.birth("kmm_plain").await?, world.birth("kmm_top").await?);

    // Not a block is free: nothing is replaced, unloaded or loaded again, and all of it is told.
    world.vm.run("dd if=/dev/zero of=/var/lib/kmm/fill bs=4k 2>/dev/null; true").await?;
    let orders = vec![world.intent("plain", 1), world.intent("top", 1)];
    let generation = world.want(vec![plain(&two, 2), param()], orders).await?;
    tells(&world, before, &["param Loaded Loaded", "plain Failed StoreFull", "top UnloadFailed StoreFull"]).await?;
    world.vm.run("rmmod kmm_param").await?;
    tells(&world, before, &["param Failed StoreFull", "plain Failed StoreFull", "top UnloadFailed StoreFull"]).await?;
    assert_eq!((world.birth("kmm_plain").await?, world.birth("kmm_top").await?), births, "a module was touched");
    world.vm.run("rm /var/lib/kmm/fill").await?;
    world.settled(generation, &[("param", Loaded, "Loaded"), ("plain", Loaded, "Loaded")]).await?;
    assert_eq!(world.loaded().await?, ["kmm_param", "kmm_plain"]);
    assert_eq!(world.vm.run("cat /sys/module/kmm_plain/version").await?.trim(), "2.0");
    assert_eq!(pid(&world).await?, process, "another process");

    // Read only, and then for a worker that starts on it as well.
    world.vm.run("mount -o remount,ro /var/lib/kmm").await?;
    let before = generation;
    let generation = world.want(vec![plain(&one, 3), param()], vec![world.intent("plain", 2)]).await?;
    tells(&world, before, &["param Loaded Loaded", "plain Failed StoreFailed"]).await?;
    assert_eq!(pid(&world).await?, process, "another process");
    world.end_worker("TERM").await?;
    world.start_worker().await?;
    let process = pid(&world).await?;
    world.vm.run("rmmod kmm_param").await?;
    tells(&world, before, &["param Failed StoreFailed", "plain Failed StoreFailed"]).await?;
    assert_eq!(world.loaded().await?, ["kmm_plain"]);
    world.vm.run("mount -o remount,rw /var/lib/kmm").await?;
    world.settled(generation, &[("param", Loaded, "Loaded"), ("plain", Loaded, "Loaded")]).await?;
    assert_eq!(world.vm.run("cat /sys/module/kmm_plain/version").await?.trim(), "1.0");
    assert_eq!(pid(&world).await?, process, "another process");
    Ok(())
}

#[tokio::test]
async fn a_record_that_was_lost_makes_nothing_be_told_as_gone_that_is_loaded() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let image = world.push("one", &[mods.plain()?, mods.base()?, mods.top()?]).await?;
    let plain = || world.entry("plain", "kmm_plain", &image, 1);
    world.start_worker().await?;
    let generation = world.want(vec![plain(), world.entry("top", "kmm_top", &image, 1)], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded"), ("top", Loaded, "Loaded")]).await?;
    let birth = world.birth("kmm_plain").await?;

    // The order finds by the status what the record does not know any more.
    world.end_worker("KILL").await?;
    world.vm.run("rm /var/lib/kmm/record.json").await?;
    let generation = world.want(vec![plain()], vec![world.intent("top", 1)]).await?;
    world.start_worker().await?;
    world.settled(generation, &[("plain", Loaded, "Adopted")]).await?;
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_plain"]);
    assert_eq!(world.birth("kmm_plain").await?, birth);

    // Neither wanted nor to go, with all of the folder lost; then the order comes.
    world.end_worker("TERM").await?;
    world.vm.run("rm -rf /var/lib/kmm").await?;
    let generation = world.want(vec![], vec![world.intent("other", 1)]).await?;
    world.start_worker().await?;
    world.settled(generation, &[("plain", Orphaned, "NotWanted")]).await?;
    let generation = world.want(vec![], vec![world.intent("plain", 1)]).await?;
    world.settled(generation, &[]).await?;
    assert_eq!(world.loaded().await?, ["kmm_base"]);

    // The status is lost as well: nothing proves whose the module is, so it stays and is told until it has gone.
    let generation = world.want(vec![plain()], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    world.end_worker("TERM").await?;
    world.vm.run("echo nonsense >/var/lib/kmm/record.json").await?;
    world.forget().await?;
    let generation = world.want(vec![], vec![world.intent("plain", 1)]).await?;
    world.start_worker().await?;
    let status = world.settled(generation, &[("plain", UnloadFailed, "RecordLost")]).await?;
    let message = status.modules[0].message.clone().unwrap_or_default();
    ensure!(message.contains("rmmod kmm_plain"), "{message}");
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_plain"]);
    world.vm.run("rmmod kmm_plain").await?;
    world.settled(generation, &[]).await?;
    Ok(())
}
