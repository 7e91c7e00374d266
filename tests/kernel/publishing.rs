//! Host tools find the module that runs, where its Module asks for it.

use anyhow::{Result, ensure};
use kmm::api::ModuleState::Loaded;
use kmm::api::{LoadPolicy, NodeModuleSpec};

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
