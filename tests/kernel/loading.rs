//! Modules of every kind get into the kernel, and the status proves it.

use anyhow::{Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded};

use crate::special::patched;
use crate::support::bed;
use crate::support::images::{Image, Layer};
use crate::support::kmods::{Compression, compress};
use crate::world::{Options, World, build_id, of};

#[tokio::test]
async fn modules_of_every_kind_are_loaded_and_proved() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let all = world.push("all", &[mods.plain()?, mods.base()?, mods.top()?, mods.param()?, mods.soft()?]).await?;
    let packed: Vec<(String, Vec<u8>)> =
        vec![("kmm-dash.ko.xz".into(), compress(&mods.dash()?.bytes, Compression::Xz)?)];
    let dash = world.push_files("dash", &packed).await?;
    world.start_worker().await?;
    let mut param = world.entry("param", "kmm_param", &all, 4);
    param.config.modprobe.parameters =
        vec!["number=0x2a".into(), "text=two words".into(), "flag=on".into(), "list=1,2,3".into(), "unknown=1".into()];
    let generation = world
        .want(
            vec![
                param,
                world.entry("top", "kmm-top", &all, 1),
                world.entry("dash", "kmm-dash", &dash, 1),
                world.entry("plain", "kmm_plain", &all, 7),
            ],
            vec![],
        )
        .await?;
    let status = world
        .settled(
            generation,
            &[
                ("param", Loaded, "Loaded"),
                ("top", Loaded, "Loaded"),
                ("dash", Loaded, "Loaded"),
                ("plain", Loaded, "Loaded"),
            ],
        )
        .await?;
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_dash", "kmm_param", "kmm_plain", "kmm_top"]);
    assert_eq!(world.parameter("kmm_param", "number").await?, "42");
    assert_eq!(world.parameter("kmm_param", "text").await?, "two words");
    assert_eq!(world.parameter("kmm_param", "flag").await?, "Y");
    assert_eq!(world.parameter("kmm_param", "list").await?, "1,2,3");
    for (name, module) in
        [("param", mods.param()?), ("top", mods.top()?), ("dash", mods.dash()?), ("plain", mods.plain()?)]
    {
        let entry = of(&status, name)?;
        assert_eq!(entry.build_id, Some(build_id(&module)?), "{name}");
        assert_eq!(entry.boot_id, Some(world.boot_id().await?));
        ensure!(entry.config.is_some() && entry.duration.is_some() && entry.message.is_none(), "{entry:?}");
    }
    assert_eq!(of(&status, "plain")?.observed_generation, Some(7));
    assert_eq!(status.conditions[0].status, "True");
    assert_eq!(status.kernel_version.as_deref(), Some(mods.release.as_str()));

    // A parameter that somebody changes is told, and nothing is touched for it.
    let birth = world.birth("kmm_param").await?;
    let told = |reason| {
        [("param", Loaded, reason), ("top", Loaded, "Loaded"), ("dash", Loaded, "Loaded"), ("plain", Loaded, "Loaded")]
    };
    world.vm.run("echo 7 >/sys/module/kmm_param/parameters/number").await?;
    let status = world.settled(generation, &told("ParametersDiffer")).await?;
    let message = of(&status, "param")?.message.clone().unwrap_or_default();
    ensure!(message.contains("number is `7`, asked for `0x2a`"), "{message}");
    assert_eq!((world.birth("kmm_param").await?, status.conditions[0].status.as_str()), (birth, "True"));
    world.vm.run("echo 42 >/sys/module/kmm_param/parameters/number").await?;
    world.settled(generation, &told("Loaded")).await?;
    Ok(())
}

#[tokio::test]
async fn packed_files_without_modules_dep_are_loaded_in_the_right_order() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let folder = format!("opt/lib/modules/{}", mods.release);
    let layer = Layer::new()
        .file(format!("{folder}/deep/er/kmm_base.ko.gz"), compress(&mods.base()?.bytes, Compression::Gz)?)
        .file(format!("{folder}/kmm_top.ko.zst"), compress(&mods.top()?.bytes, Compression::Zst)?)
        .symlink(format!("{folder}/host"), format!("/host/lib/modules/{}", mods.release));
    let image = world.push_image("bare", &Image::new().layer(layer)).await?;
    world.start_worker().await?;
    let generation = world.want(vec![world.entry("top", "kmm_top", &image, 1)], vec![]).await?;
    world.settled(generation, &[("top", Loaded, "Loaded")]).await?;
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_top"]);

    // Files that do not even say what they need: their symbols do.
    let generation = world.want(vec![], vec![world.intent("top", 1)]).await?;
    world.settled(generation, &[]).await?;
    let mute = patched(&mods.top()?, "depends=kmm_base", "depenxs=kmm_base")?;
    let base = mods.base()?;
    let image = world.push_files("mute", &[(base.file_name, base.bytes), (mods.top()?.file_name, mute)]).await?;
    let generation = world.want(vec![world.entry("top", "kmm_top", &image, 2)], vec![]).await?;
    world.settled(generation, &[("top", Loaded, "Loaded")]).await?;
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_top"]);
    Ok(())
}

#[tokio::test]
async fn native_loading_does_what_modprobe_does() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let modules = [mods.plain()?, mods.dash()?, mods.soft()?];
    // modprobe first, on the same files.
    for module in &modules {
        let path = format!("/tree/lib/modules/{}/extra/{}", mods.release, module.file_name);
        world.vm.put(&path, 0o644, &module.bytes).await?;
    }
    let tree = format!("/tree/lib/modules/{}", mods.release);
    world
        .vm
        .run(&format!("touch {tree}/modules.order {tree}/modules.builtin; /usr/sbin/depmod -b /tree {}", mods.release))
        .await?;
    world.vm.run("/usr/sbin/modprobe -d /tree kmm_soft").await?;
    let by_modprobe = world.loaded().await?;
    world.vm.run("/usr/sbin/rmmod kmm_soft kmm_plain kmm_dash").await?;
    let image = world.push("soft", &modules).await?;
    world.start_worker().await?;
    let generation = world.want(vec![world.entry("soft", "kmm_soft", &image, 1)], vec![]).await?;
    world.settled(generation, &[("soft", Loaded, "Loaded")]).await?;
    assert_eq!(world.loaded().await?, by_modprobe);
    assert_eq!(by_modprobe, ["kmm_dash", "kmm_plain", "kmm_soft"]);
    Ok(())
}

#[tokio::test]
async fn a_kernel_with_a_plus_in_its_release_is_served() -> Result<()> {
    let kernel = bed()?.plus_kernel()?.release.clone();
    let world = World::start(Options { kernel: Some(kernel), ..Options::default() }).await?;
    let image = world.push("plain", &[world.mods.plain()?]).await?;
    world.start_worker().await?;
    let mut other = world.entry("other", "kmm_plain", &image, 1);
    other.config.kernel_version = "6.1.0-0-other".into();
    let generation = world.want(vec![world.entry("plain", "kmm_plain", &image, 1), other], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded"), ("other", Failed, "WrongKernel")]).await?;
    assert_eq!(world.loaded().await?, ["kmm_plain"]);
    Ok(())
}
