//! Images come from where the node's container runtime would take them, and stay as long as there is room.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded};

use crate::support::eventually;
use crate::support::faulty::{Fault, FaultyRegistry};
use crate::support::images::{self, Layer, kmod_image};
use crate::world::{Options, PATIENCE, World, of};

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
    world.vm.wait_for(PATIENCE, "ls -A /var/lib/kmm/trees | wc -l", |out| out.text().trim() == "0").await?;
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

/// Bytes that do not become fewer by packing.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn a_worker_killed_in_the_middle_of_a_pull_leaves_nothing_that_is_used_and_the_next_one_begins_anew() -> Result<()>
{
    let world = World::start(Options::default()).await?;
    let front = FaultyRegistry::start(&world.registry).await?;
    let filler = Layer::new().file(format!("opt/lib/modules/{}/filler", world.mods.release), noise(3 << 20));
    let artifact = kmod_image(&world.mods.release, &[world.mods.plain()?], "/opt")?.layer(filler).build()?;
    let large = artifact.blobs.iter().max_by_key(|blob| blob.len()).context("no layers")?;
    let (layer, size) = (format!("/blobs/{}", images::digest(large)), large.len());
    let digest = world.registry.push("large", "latest", &artifact).await?;
    let image = format!("{}/large@{digest}", front.address());
    let generation = world.want(vec![world.entry("plain", "kmm_plain", &image, 1)], vec![]).await?;

    let layer = layer.as_str();
    for (part, bytes) in [("/manifests/", 100), (layer, 0), (layer, 1), (layer, size / 3), (layer, size - 1)] {
        front.set_for(part, Fault::Stall(bytes));
        front.take_seen();
        world.start_worker().await?;
        eventually(PATIENCE, "the pull to stand still", || async {
            let asked = front.take_seen().iter().any(|seen| seen.path.contains(part));
            Ok(asked.then_some(()))
        })
        .await?;
        if part == layer {
            let name = layer.rsplit(':').next().unwrap_or_default();
            let there = format!("cat /var/lib/kmm/trees/.*.partial/{name} | wc -c");
            world.vm.wait_for(PATIENCE, &there, |out| out.text().trim().ends_with(&bytes.to_string())).await?;
        }
        world.end_worker("KILL").await?;
        assert_eq!(world.loaded().await?, [""; 0]);
        // What the one before left is gone, and what this one leaves has not the name of an image.
        let left = world.vm.run("ls -A /var/lib/kmm/trees").await?;
        let left: Vec<&str> = left.lines().collect();
        ensure!(left.len() <= 1 && left.iter().all(|name| name.starts_with('.')), "after {bytes} of {part}: {left:?}");
    }

    // Within one life what is there is not asked for again, however often the connection breaks.
    front.set_for(layer, Fault::Truncate);
    front.take_seen();
    world.start_worker().await?;
    let mut seen = Vec::new();
    let begun = Instant::now();
    while seen.iter().filter(|from: &&Option<u64>| from.is_some()).count() < 1 {
        ensure!(begun.elapsed() < PATIENCE, "the layer was not taken up again: {seen:?}\n{}", world.worker_log().await);
        seen.extend(front.take_seen().into_iter().filter(|seen| seen.path.contains(layer)).map(|seen| seen.from));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    front.set(Fault::None);
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(world.loaded().await?, ["kmm_plain"]);
    seen.extend(front.take_seen().into_iter().filter(|seen| seen.path.contains(layer)).map(|seen| seen.from));
    let half = size as u64 / 2;
    ensure!(seen[..2] == [None, Some(half)], "{seen:?}");
    ensure!(seen.is_sorted() && seen[2] == Some(half + (size as u64 - half) / 2), "{seen:?}");
    let left = world.vm.run("ls -A /var/lib/kmm/trees").await?;
    ensure!(left.lines().count() == 1 && !left.starts_with('.'), "{left}");
    Ok(())
}
