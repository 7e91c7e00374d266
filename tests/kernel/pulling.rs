//! Images come from where the node's container runtime would take them, and stay as long as there is room.

use anyhow::{Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded};

use crate::support::images::{Layer, kmod_image};
use crate::world::{Options, World, of};

#[tokio::test]
async fn the_mirrors_of_the_node_are_used_and_a_module_that_comes_back_needs_no_registry() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let pushed = world.push("team/plain", &[world.mods.plain()?]).await?;
    let digest = pushed.split_once('@').map(|(_, digest)| digest.to_owned()).unwrap_or_default();
    let image = format!("registry.invalid/team/plain@{digest}");
    let mirror = world.registry.address();
    let certs = "/host/etc/containerd/certs.d/registry.invalid";
    world
        .vm
        .run(&format!(
            "mkdir -p {certs} /host/etc/containers && \
             printf '[host.\"http://{mirror}\"]\\n' >{certs}/hosts.toml && \
             printf '[[registry]]\\nlocation = \"registry.invalid\"\\nblocked = true\\n' >/host/etc/containers/registries.conf"
        ))
        .await?;
    world.start_worker().await?;
    let entry = |generation| vec![world.entry("plain", "kmm_plain", &image, generation)];

    // CRI-O's file blocks the registry, and says so.
    let generation = world.want_on(Some("cri-o://1.34.0"), entry(1), vec![]).await?;
    let status = world.settled(generation, &[("plain", Failed, "RegistryBlocked")]).await?;
    let message = of(&status, "plain")?.message.clone().unwrap_or_default();
    ensure!(message.contains("registries.conf") && message.contains(&image), "{message}");

    let generation = world.want_on(Some("containerd://2.1.4"), entry(2), vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(world.loaded().await?, ["kmm_plain"]);

    let generation = world.want_on(Some("containerd://2.1.4"), vec![], vec![world.intent("plain", 2)]).await?;
    world.settled(generation, &[]).await?;
    assert_eq!(world.loaded().await?, [""; 0]);
    world.registry.pause()?;
    let generation = world.want_on(Some("containerd://2.1.4"), entry(3), vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;

    // With no room for images that are not in use, the next time needs the registry again.
    world.end_worker("TERM").await?;
    world.vm.run("touch /var/lib/kmm/trees/stray && mkdir -p /var/lib/kmm/trees/.half.0-0.partial/tree").await?;
    world.start_with("KMM_STORE_LIMIT=0").await?;
    let generation = world.want_on(Some("containerd://2.1.4"), vec![], vec![world.intent("plain", 3)]).await?;
    world.settled(generation, &[]).await?;
    world
        .vm
        .wait_for(crate::world::PATIENCE, "ls -A /var/lib/kmm/trees | wc -l", |out| out.text().trim() == "0")
        .await?;
    let generation = world.want_on(Some("containerd://2.1.4"), entry(4), vec![]).await?;
    let status = world.settled(generation, &[("plain", Failed, "ImageUnreachable")]).await?;
    let message = of(&status, "plain")?.message.clone().unwrap_or_default();
    ensure!(message.contains(&format!("the mirror {mirror}")) && message.contains("registry.invalid"), "{message}");

    // A small disk has room for one of two images: the one that nobody needs makes room for the other.
    world.end_worker("TERM").await?;
    world.registry.resume().await?;
    world.vm.run("mount -t tmpfs -o size=4m tmpfs /var/lib/kmm").await?;
    let mut images = Vec::new();
    for name in ["one", "other"] {
        let filler = Layer::new().file(format!("opt/lib/modules/{}/{name}", world.mods.release), vec![0; 2 << 20]);
        let image = kmod_image(&world.mods.release, &[world.mods.plain()?], "/opt")?.layer(filler);
        images.push(world.push_image(&format!("filled-{name}"), &image).await?);
    }
    let entry = |image: usize, generation| vec![world.entry("filled", "kmm_plain", &images[image], generation)];
    // An order from before the worker starts would find nothing to do.
    let generation = world.want(entry(0, 1), vec![]).await?;
    world.start_worker().await?;
    world.settled(generation, &[("filled", Loaded, "Loaded")]).await?;
    let generation = world.want(vec![], vec![world.intent("filled", 1)]).await?;
    world.settled(generation, &[]).await?;
    assert_eq!(world.vm.run("ls -A /var/lib/kmm/trees | wc -l").await?.trim(), "1");
    let generation = world.want(entry(1, 2), vec![]).await?;
    world.settled(generation, &[("filled", Loaded, "Loaded")]).await?;
    assert_eq!(world.vm.run("ls -A /var/lib/kmm/trees | wc -l").await?.trim(), "1");
    let log = world.vm.run("grep -c StoreFull /var/log/worker.log").await?;
    ensure!(log.trim() != "0", "there was room for both");
    Ok(())
}
