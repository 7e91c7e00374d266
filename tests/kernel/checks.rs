//! What the kernel would refuse is told before it is asked, in words and no more strictly than the kernel is.

use anyhow::{Context, Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded, UnloadFailed};
use kmm::api::NodeModulesConfigStatus;

use crate::special::{patched, signed, signed_by_a_stranger, special};
use crate::support::bed;
use crate::support::images::{Image, Layer};
use crate::support::kmods::{Compression, Kmod, compress};
use crate::world::{Options, World, of};

/// An image with one file as it is, without depmod, which does not like all of them.
async fn push_raw(world: &World, repository: &str, file: &str, bytes: Vec<u8>) -> Result<String> {
    let path = format!("opt/lib/modules/{}/{file}", world.mods.release);
    world.push_image(repository, &Image::new().layer(Layer::new().file(path, bytes))).await
}

fn message(status: &NodeModulesConfigStatus, name: &str) -> Result<String> {
    Ok(of(status, name)?.message.clone().unwrap_or_default())
}

fn says(status: &NodeModulesConfigStatus, name: &str, words: &[&str]) -> Result<()> {
    let message = message(status, name)?;
    for word in words {
        ensure!(message.contains(word), "{name}: `{message}` lacks `{word}`");
    }
    Ok(())
}

/// What `insmod` of the same bytes leaves with.
async fn insmod(world: &World, bytes: &[u8]) -> Result<i32> {
    world.vm.put("/mods/asked.ko", 0o644, bytes).await?;
    let out = world.vm.exec("insmod /mods/asked.ko").await?;
    world.vm.exec("for name in kmm_plain kmm_param kmm_dash; do rmmod $name 2>/dev/null; done").await?;
    Ok(out.code)
}

#[tokio::test]
async fn a_file_that_does_not_fit_is_told_with_what_it_has_and_what_the_kernel_wants() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let release = &mods.release;
    let other_flags = patched(&mods.plain()?, " SMP ", " SMQ ")?;
    let other_release = patched(&mods.param()?, "vermagic=6.1.0-", "vermagic=6.2.0-")?;
    let no_depends = patched(&mods.top()?, "depends=kmm_base", "depends=\0mm_base")?;
    let mut other_machine = mods.plain()?.bytes;
    other_machine[18] = 183;
    let mut cut = mods.plain()?.bytes;
    cut.truncate(cut.len() / 2);
    let garbage = signed(&mods.dash()?, b"this is no signature")?;
    // The kernel itself agrees: what it takes is taken, what it refuses is refused.
    for (bytes, takes) in [(&other_flags, false), (&other_release, true), (&cut, false), (&garbage, false)] {
        assert_eq!(insmod(&world, bytes).await? == 0, takes);
    }
    let mut entries = Vec::new();
    for (name, module, bytes) in [
        ("flags", "kmm_plain", other_flags),
        ("release", "kmm_param", other_release),
        ("machine", "kmm_plain", other_machine),
        ("cut", "kmm_plain", cut),
        ("garbage", "kmm_dash", garbage),
        ("symbol", "kmm_top", no_depends),
        ("huge", "kmm_huge", special("kmm_huge")?.bytes),
    ] {
        let image = push_raw(&world, name, &format!("{module}.ko"), bytes).await?;
        entries.push(world.entry(name, module, &image, 1));
    }
    world.start_worker().await?;
    let generation = world.want(entries.clone(), vec![]).await?;
    let expected = [
        ("flags", Failed, "VermagicMismatch"),
        ("release", Loaded, "Loaded"),
        ("machine", Failed, "InvalidModule"),
        ("cut", Failed, "InvalidModule"),
        ("garbage", Failed, "SignatureRejected"),
        ("symbol", Failed, "SymbolMissing"),
        ("huge", Failed, "OutOfMemory"),
    ];
    let status = world.settled(generation, &expected).await?;
    says(&status, "flags", &[&format!("{release} SMQ"), &format!("{release} SMP")])?;
    says(&status, "machine", &["built for aarch64", "this machine is x86_64"])?;
    says(&status, "garbage", &["its signature is damaged", "EBADMSG"])?;
    says(&status, "symbol", &["the kernel lacks what it uses: kmm_base_answer"])?;
    says(&status, "huge", &["loading needs 6", "MiB of memory, the node has"])?;
    println!("cut: {}", message(&status, "cut")?);
    assert_eq!(world.loaded().await?, ["kmm_param"]);

    // The kernel is locked down at run time: what has no signature is not even tried.
    world
        .vm
        .run("mount -t securityfs securityfs /sys/kernel/security; echo integrity >/sys/kernel/security/lockdown")
        .await?;
    let plain = world.push("plain", &[mods.plain()?]).await?;
    let generation = world.want(vec![world.entry("plain", "kmm_plain", &plain, 1)], vec![world.intent("release", 1)]);
    let status = world.settled(generation.await?, &[("plain", Failed, "SignatureMissing")]).await?;
    says(&status, "plain", &["has no signature", "lockdown is `integrity`"])?;
    Ok(())
}

#[tokio::test]
async fn a_kernel_that_takes_only_signed_modules_gets_no_others() -> Result<()> {
    let world = World::start(Options {
        append: "module.sig_enforce=1 module_blacklist=kmm_param,other".into(),
        ..Options::default()
    })
    .await?;
    let mods = &world.mods;
    let host = bed()?.kernel().modules.join("kernel/drivers/net/dummy.ko");
    let dummy = Kmod::read(&host).context("a module of the kernel's own build")?;
    let mut entries = Vec::new();
    for (name, module, file, bytes) in [
        ("unsigned", "kmm_plain", "kmm_plain.ko", mods.plain()?.bytes),
        ("packed", "kmm_base", "kmm_base.ko.xz", compress(&mods.base()?.bytes, Compression::Xz)?),
        ("garbage", "kmm_dash", "kmm-dash.ko", signed(&mods.dash()?, b"this is no signature")?),
        ("stranger", "kmm_soft", "kmm_soft.ko", signed_by_a_stranger(&mods.soft()?)?),
        ("blacklisted", "kmm_param", "kmm_param.ko", mods.param()?.bytes),
        ("known", "dummy", "dummy.ko", dummy.bytes),
    ] {
        let image = push_raw(&world, name, file, bytes).await?;
        entries.push(world.entry(name, module, &image, 1));
    }
    world.start_worker().await?;
    let generation = world.want(entries.clone(), vec![]).await?;
    let expected = [
        ("unsigned", Failed, "SignatureMissing"),
        ("packed", Failed, "SignatureMissing"),
        ("garbage", Failed, "SignatureRejected"),
        ("stranger", Failed, "SignatureRejected"),
        ("blacklisted", Failed, "NotPermitted"),
        ("known", Loaded, "Loaded"),
    ];
    let status = world.settled(generation, &expected).await?;
    for name in ["unsigned", "packed"] {
        says(&status, name, &["has no signature", "module.sig_enforce is on"])?;
    }
    says(&status, "stranger", &["the kernel does not know the key", "a stranger"])?;
    says(&status, "blacklisted", &["module_blacklist="])?;
    println!("garbage: {}\nstranger: {}", message(&status, "garbage")?, message(&status, "stranger")?);

    // No module comes or goes any more, and both are told.
    world.vm.run("echo 1 >/proc/sys/kernel/modules_disabled").await?;
    let plain = entries.swap_remove(0);
    let generation = world.want(vec![plain], vec![world.intent("known", 1)]).await?;
    let expected = [("unsigned", Failed, "NotPermitted"), ("known", UnloadFailed, "NotPermitted")];
    let status = world.settled(generation, &expected).await?;
    says(&status, "unsigned", &["kernel.modules_disabled is 1"])?;
    says(&status, "known", &["modules_disabled"])?;
    ensure!(world.vm.run("cat /proc/modules").await?.contains("dummy "), "it cannot have gone");
    Ok(())
}
