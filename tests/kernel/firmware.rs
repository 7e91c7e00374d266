//! Firmware of Modules: the kernel finds it while they are there, and everything else as before.

use anyhow::{Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded};
use kmm::api::NodeModuleSpec;

use crate::support::asking::asking;
use crate::support::images::{Image, Layer, kmod_layer};
use crate::world::{Options, PATIENCE, World, of};

const SEARCH: &str = "/var/lib/kmm/firmware/search";
const VALUE: &str = "cat /sys/module/firmware_class/parameters/path";

/// A node, an image with the module `kmm_fw_a` or `kmm_fw_b` and firmware each.
struct Case {
    world: World,
    images: [String; 3],
}

impl Case {
    async fn new() -> Result<Self> {
        let world = World::start(Options::default()).await?;
        let mut images = Vec::new();
        for (repository, name, files) in [
            ("fw-a", "kmm_fw_a", &[("kmm/a.bin", "alpha"), ("both.bin", "shared"), ("kmm_fw_a.bin", "first")][..]),
            ("fw-b", "kmm_fw_b", &[("kmm/b.bin", "beta"), ("both.bin", "shared"), ("kmm_fw_b.bin", "second")]),
            ("fw-c", "kmm_fw_b", &[("both.bin", "another"), ("kmm_fw_b.bin", "second")]),
        ] {
            let module = asking(&world.mods.release, name)?;
            let mut layer = Layer::new().file("not/asked/for.bin", "x");
            for (file, content) in files {
                layer = layer.file(format!("lib/fw/{file}"), *content);
            }
            let modules = kmod_layer(&world.mods.release, &[(module.file_name.clone(), module.bytes)], "/opt")?;
            images.push(world.push_image(repository, &Image::new().layer(modules).layer(layer)).await?);
        }
        let images = images.try_into().map_err(|_| anyhow::anyhow!("three images"))?;
        Ok(Self { world, images })
    }

    fn entry(&self, name: &str, image: usize, generation: i64) -> NodeModuleSpec {
        let module = if image == 0 { "kmm_fw_a" } else { "kmm_fw_b" };
        let mut entry = self.world.entry(name, module, &self.images[image], generation);
        entry.config.modprobe.firmware_path = Some("/lib/fw".into());
        entry
    }

    /// What the module gets when it asks for a file now.
    async fn asks(&self, module: &str, file: &str) -> Result<String> {
        let world = &self.world;
        world.vm.run(&format!("echo {file} >/sys/module/{module}/parameters/ask")).await?;
        let line = world.vm.run(&format!("dmesg | grep '{module}: {file}: ' | tail -n 1")).await?;
        Ok(line.rsplit(": ").next().unwrap_or_default().trim().to_owned())
    }

    async fn value(&self) -> Result<String> {
        Ok(self.world.vm.run(VALUE).await?.trim().to_owned())
    }
}

#[tokio::test]
async fn firmware_of_several_modules_is_found_shared_and_the_old_search_path_comes_back() -> Result<()> {
    let case = Case::new().await?;
    let world = &case.world;
    world.vm.run("mkdir -p /srv/fw/kmm /lib/firmware && ln -s /srv/fw /opt/fw").await?;
    world
        .vm
        .run("echo -n admin >/srv/fw/kmm/admin.bin; echo -n top >/srv/fw/top.bin; echo -n dist >/lib/firmware/dist.bin")
        .await?;
    world.vm.run("echo -n /opt/fw >/sys/module/firmware_class/parameters/path").await?;
    world.start_worker().await?;
    let mut first = case.entry("a", 0, 1);
    first.config.modprobe.parameters = vec!["file=kmm/a.bin".into()];
    let generation = world.want(vec![first.clone()], vec![]).await?;
    world.settled(generation, &[("a", Loaded, "Loaded")]).await?;
    let said = world.vm.run("dmesg | grep 'kmm_fw_a: '").await?;
    ensure!(said.contains("kmm/a.bin: got alpha"), "its firmware is there when it is loaded: {said}");

    // A second one shares what is equal; the administrator's and the distribution's files are found as before.
    let generation = world.want(vec![first.clone(), case.entry("b", 1, 1)], vec![]).await?;
    world.settled(generation, &[("a", Loaded, "Loaded"), ("b", Loaded, "Loaded")]).await?;
    assert_eq!(case.value().await?, SEARCH);
    for (module, file, got) in [
        ("kmm_fw_a", "kmm/a.bin", "got alpha"),
        ("kmm_fw_a", "both.bin", "got shared"),
        ("kmm_fw_b", "kmm/b.bin", "got beta"),
        ("kmm_fw_b", "both.bin", "got shared"),
        ("kmm_fw_b", "kmm/admin.bin", "got admin"),
        ("kmm_fw_b", "top.bin", "got top"),
        ("kmm_fw_b", "dist.bin", "got dist"),
        ("kmm_fw_b", "nowhere.bin", "error -2"),
    ] {
        assert_eq!(case.asks(module, file).await?, got, "{file}");
    }

    // A worker that is killed and one that finds the path changed by somebody else.
    world.end_worker("KILL").await?;
    world
        .vm
        .run("echo -n /srv/fw >/sys/module/firmware_class/parameters/path; rm /var/lib/kmm/firmware/search")
        .await?;
    world.start_worker().await?;
    world.vm.wait_for(PATIENCE, VALUE, |out| out.text().trim() == SEARCH).await?;
    assert_eq!(case.asks("kmm_fw_a", "kmm/a.bin").await?, "got alpha");
    assert_eq!(case.asks("kmm_fw_a", "kmm/admin.bin").await?, "got admin");

    // One leaves, the other keeps its own and what they shared.
    let generation = world.want(vec![case.entry("b", 1, 1)], vec![world.intent("a", 1)]).await?;
    world.settled(generation, &[("b", Loaded, "Loaded")]).await?;
    for (file, got) in [("kmm/a.bin", "error -2"), ("both.bin", "got shared"), ("kmm/b.bin", "got beta")] {
        assert_eq!(case.asks("kmm_fw_b", file).await?, got, "{file}");
    }
    // After the last one nothing is left of it.
    let generation = world.want(vec![], vec![world.intent("b", 1)]).await?;
    world.settled(generation, &[]).await?;
    assert_eq!(case.value().await?, "/srv/fw");
    assert_eq!(
        world.vm.run("ls /var/lib/kmm; cat /srv/fw/kmm/admin.bin; ls /lib/firmware").await?.matches("firmware").count(),
        0
    );
    Ok(())
}

#[tokio::test]
async fn firmware_that_differs_or_is_missing_is_told_and_a_reboot_sets_the_path_again() -> Result<()> {
    let case = Case::new().await?;
    let world = &case.world;
    world.start_worker().await?;
    let mut missing = case.entry("missing", 1, 1);
    missing.config.modprobe.firmware_path = Some("/lib/absent".into());
    let generation = world.want(vec![case.entry("a", 0, 1)], vec![]).await?;
    world.settled(generation, &[("a", Loaded, "Loaded")]).await?;
    let generation = world.want(vec![case.entry("a", 0, 1), case.entry("c", 2, 1), missing], vec![]).await?;
    let expected = [("a", Loaded, "Loaded"), ("c", Failed, "Conflict"), ("missing", Failed, "FirmwareNotFound")];
    let status = world.settled(generation, &expected).await?;
    let message = of(&status, "c")?.message.clone().unwrap_or_default();
    ensure!(message.contains("both.bin") && message.contains("/a differ"), "{message}");
    assert_eq!(case.asks("kmm_fw_a", "both.bin").await?, "got shared");
    assert_eq!(world.loaded().await?, ["kmm_fw_a"]);

    // The registry is away; the kernel has forgotten the path; power was cut.
    let generation = world.want(vec![case.entry("a", 0, 1)], vec![]).await?;
    world.settled(generation, &[("a", Loaded, "Loaded")]).await?;
    world.registry.pause()?;
    world.vm.run("sync").await?;
    world.vm.power_cut().await?;
    assert_eq!(case.value().await?, "");
    world.start_worker().await?;
    let boot = world.boot_id().await?;
    world
        .status("the module of the new boot", |status| {
            status.boot_id.as_ref() == Some(&boot) && status.modules.iter().any(|module| module.state == Some(Loaded))
        })
        .await?;
    let said = world.vm.run("dmesg | grep 'kmm_fw_a: '").await?;
    ensure!(said.contains("kmm_fw_a.bin: got first"), "{said}");

    // Without a previous path it is empty again in the end, also where the worker is killed right after the unload.
    world.want(vec![], vec![world.intent("a", 1)]).await?;
    world.vm.wait_for(PATIENCE, "cat /proc/modules", |out| !out.text().contains("kmm_fw_a ")).await?;
    world.end_worker("KILL").await?;
    world.start_worker().await?;
    world.vm.wait_for(PATIENCE, VALUE, |out| out.text().trim().is_empty()).await?;
    Ok(())
}
