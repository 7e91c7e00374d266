//! Host tools find the module that runs, where its Module asks for it.

use anyhow::{Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded};
use kmm::api::{LoadPolicy, NodeModuleSpec, UnloadIntent, UnloadReason};

use crate::world::{Options, PATIENCE, World, of};

/// Starts the worker with a writable `/lib/modules`, or without.
async fn start(world: &World, writable: bool) -> Result<()> {
    let modules = if writable { "KMM_HOST_MODULES=/lib/modules" } else { "" };
    let command = format!(
        "{modules} KUBECONFIG=/etc/kubeconfig KMM_LOG_FORMAT=json KMM_HEALTH_ADDRESS=127.0.0.1:18181 \
         setsid /kmm worker --node-name {} >>/var/log/worker.log 2>&1 </dev/null & echo $! >/run/worker.log.pid",
        world.node
    );
    world.vm.run(&format!("mkdir -p /var/log /run; {command}")).await?;
    Ok(())
}

fn published(mut entry: NodeModuleSpec) -> NodeModuleSpec {
    entry.policy = Some(LoadPolicy { publish_on_host: true, ..LoadPolicy::default() });
    entry
}

#[tokio::test]
async fn modinfo_and_modprobe_on_the_host_find_a_published_module_while_it_is_there() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let image = world.push("all", &[world.mods.base()?, world.mods.top()?, world.mods.plain()?]).await?;
    let top = || published(world.entry("top", "kmm-top", &image, 1));
    let release = &world.mods.release;
    let folder = format!("/lib/modules/{release}/updates/kmm/{}.top", world.namespace);
    let index = format!("/lib/modules/{release}/modules.dep");
    world.vm.run(&format!("cp {index} /before; mkdir -p /lib/modules/5.0.0-gone/updates/kmm/x.y; touch /lib/modules/5.0.0-gone/updates/kmm/x.y/z.ko")).await?;

    // Where the host's folder cannot be written, the module is loaded all the same, and the entry says so.
    start(&world, false).await?;
    let generation = world.want(vec![top()], vec![]).await?;
    world.settled(generation, &[("top", Loaded, "Loaded")]).await?;
    let status =
        world.status("the message", |status| status.modules.iter().any(|module| module.message.is_some())).await?;
    let message = of(&status, "top")?.message.clone().unwrap_or_default();
    ensure!(message.contains("/lib/modules"), "{message}");
    world.end_worker("KILL").await?;

    start(&world, true).await?;
    let found = |text: &str| text.contains(&format!("{folder}/kmm_top.ko"));
    world.vm.wait_for(PATIENCE, "/usr/sbin/modinfo -n kmm_top 2>&1", |out| found(&out.text())).await?;
    let dry = world.vm.run("/usr/sbin/modprobe -n -v -r kmm_top").await?;
    ensure!(dry.trim() == "rmmod kmm_top", "{dry}");
    ensure!(world.vm.exec("/usr/sbin/modinfo -n kmm_plain").await?.code != 0, "only what is loaded is published");
    // What an older kernel had is gone, and what is there stays as it is for the distribution's own modules.
    world
        .vm
        .wait_for(PATIENCE, "[ -e /lib/modules/5.0.0-gone ] || echo cleared", |out| out.text().contains("cleared"))
        .await?;
    let rest = world
        .vm
        .run(&format!("grep -v updates/kmm {index} | sort >/after; sort /before | cmp - /after && echo same"))
        .await?;
    ensure!(rest.contains("same"), "{rest}");

    // A tool of the host takes it out; it is loaded again, and the tool could have loaded it too.
    let birth = world.birth("kmm_top").await?;
    world.vm.run("/usr/sbin/modprobe -r kmm_top").await?;
    world.vm.wait_for(PATIENCE, "cat /proc/modules", |out| out.text().contains("kmm_top ")).await?;
    ensure!(world.birth("kmm_top").await? != birth, "it was gone");

    // A Module that does not ask any more, and one that leaves.
    let generation = world.want(vec![world.entry("top", "kmm-top", &image, 1)], vec![]).await?;
    world.settled(generation, &[("top", Loaded, "Loaded")]).await?;
    let gone = || {
        world.vm.wait_for(PATIENCE, "/usr/sbin/modinfo -n kmm_top 2>&1; ls /lib/modules/*/updates 2>&1", |out| {
            out.text().contains("not found") && !out.text().contains("kmm\n")
        })
    };
    gone().await?;
    let generation = world.want(vec![top()], vec![]).await?;
    world.settled(generation, &[("top", Loaded, "Loaded")]).await?;
    world.vm.wait_for(PATIENCE, "/usr/sbin/modinfo -n kmm_top 2>&1", |out| found(&out.text())).await?;
    let generation = world.want(vec![], vec![world.intent("top", 1)]).await?;
    world.settled(generation, &[]).await?;
    gone().await?;
    ensure!(
        world
            .vm
            .run(&format!("sort {index} >/after; sort /before | cmp - /after && echo same"))
            .await?
            .contains("same")
    );
    Ok(())
}

#[tokio::test]
async fn what_comes_back_is_the_kernels_own_also_where_the_module_was_published_under_its_name() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let image = world.push("plain", &[world.mods.plain()?]).await?;
    let broken = world.push("broken", &[world.mods.fail()?]).await?;
    let own = format!("/lib/modules/{}/kernel/drivers/kmm_plain.ko", world.mods.release);
    world.vm.put(&own, 0o644, &world.mods.plain_v2()?.bytes).await?;
    world.vm.run("/usr/sbin/depmod && /usr/sbin/modprobe kmm_plain").await?;
    let version =
        || async { Ok::<_, anyhow::Error>(world.vm.run("cat /sys/module/kmm_plain/version").await?.trim().to_owned()) };
    assert_eq!(version().await?, "2.0");
    let entry = |module: &str, image: &str, generation| {
        let mut entry = world.entry("plain", module, image, generation);
        entry.config.in_tree_modules_to_remove = vec!["kmm_plain".into()];
        let policy = LoadPolicy { publish_on_host: true, restore_in_tree_modules: true, ..LoadPolicy::default() };
        NodeModuleSpec { policy: Some(policy), ..entry }
    };
    start(&world, true).await?;
    let generation = world.want(vec![entry("kmm_plain", &image, 1)], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(version().await?, "1.0");
    let published =
        || world.vm.wait_for(PATIENCE, "/usr/sbin/modinfo -n kmm_plain", |out| out.text().contains("updates/kmm"));
    published().await?;

    // What comes in its place cannot be loaded.
    let next = vec![entry("kmm_fail", &broken, 2)];
    let generation = world.want(next, vec![world.intent("plain", 1)]).await?;
    world.settled(generation, &[("plain", Failed, "KernelRefused")]).await?;
    assert_eq!(version().await?, "2.0");

    let removal = |generation| UnloadIntent { reason: UnloadReason::Deleted, ..world.intent("plain", generation) };
    let generation = world.want(vec![entry("kmm_plain", &image, 3)], vec![world.intent("plain", 2)]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(version().await?, "1.0");
    published().await?;
    let generation = world.want(vec![], vec![removal(3)]).await?;
    world.settled(generation, &[]).await?;
    assert_eq!(version().await?, "2.0");
    let found = world.vm.run("/usr/sbin/modinfo -n kmm_plain").await?;
    ensure!(found.trim() == own, "{found}");
    Ok(())
}

#[tokio::test]
async fn what_is_published_is_there_after_the_power_was_cut_and_what_was_damaged_is_put_there_again() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let image = world.push("plain", &[world.mods.plain()?]).await?;
    let folder = format!("/lib/modules/{}/updates/kmm", world.mods.release);
    let file = format!("{folder}/{}.plain/kmm_plain.ko", world.namespace);
    start(&world, true).await?;
    let generation = world.want(vec![published(world.entry("plain", "kmm-plain", &image, 1))], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    let complete = format!("[ -e {file} ] && ! [ -e {folder}/.stale ] && echo complete");
    let is_complete = || world.vm.wait_for(PATIENCE, &complete, |out| out.text().contains("complete"));
    is_complete().await?;
    world.vm.power_cut().await?;

    // The host alone, before any worker.
    world.vm.run("/usr/sbin/modprobe kmm_plain").await?;
    ensure!(world.loaded().await? == ["kmm_plain"]);

    let length = world.vm.run(&format!("stat -c %s {file}")).await?;
    world.vm.run(&format!(": >{file}")).await?;
    start(&world, true).await?;
    let whole = |out: &str| out.trim() == length.trim();
    world.vm.wait_for(PATIENCE, &format!("stat -c %s {file}"), |out| whole(&out.text())).await?;
    is_complete().await?;
    Ok(())
}
