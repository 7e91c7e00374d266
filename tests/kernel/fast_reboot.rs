//! Fast reboots: the next kernel is started by the running one, and no firmware clears anything.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded};

use crate::life::{at_boot, passes, said, slow, slow_entry, unit_line};
use crate::support::{bed, eventually};
use crate::world::{Options, PATIENCE, World, compiled, of};

/// Starts a kernel of the bed out of the running one, and waits until the machine obeys in the new boot.
async fn fast_reboot(world: &World, release: &str) -> Result<()> {
    let kernel = bed()?.kernel_named(release)?;
    for (path, file) in [("/root/vmlinuz", &kernel.vmlinuz), ("/root/initrd", &kernel.initrd)] {
        let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        world.vm.put(path, 0o600, &bytes).await?;
    }
    let before = world.boot_id().await?;
    world.vm.run("(sleep 0.2; /kexec /root/vmlinuz /root/initrd >/dev/console 2>&1) >/dev/null 2>&1 &").await?;
    let booted = eventually(PATIENCE, "another boot", || async {
        // A question that the machine missed is never answered: ask again soon.
        let answer = tokio::time::timeout(Duration::from_secs(1), world.boot_id()).await;
        Ok(answer.is_ok_and(|id| id.is_ok_and(|id| id != before)).then_some(()))
    });
    booted.await.with_context(|| world.vm.console_tail(15))?;
    ensure!(world.vm.run("uname -r").await?.trim() == release, "another kernel than {release} runs");
    Ok(())
}

#[tokio::test]
async fn a_fast_reboot_in_the_middle_of_a_load_and_into_another_kernel_is_a_boot_like_any_other() -> Result<()> {
    let world = World::start(Options { programs: vec![compiled("kexec")?], ..Options::default() }).await?;
    let image = world.push("all", &[world.mods.plain()?, slow(&world.mods.release)?]).await?;
    world.start_worker().await?;
    let plain = at_boot(world.entry("plain", "kmm_plain", &image, 1));
    let generation = world.want(vec![plain.clone()], vec![]).await?;
    let first = world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    let generation = world.want(vec![plain, slow_entry(&world, &image, 1, 8_000, 0)], vec![]).await?;
    passes(&world, "kmm_slow", "Loading").await?;

    // The record of the boot before is that of another kernel, also if that kernel was never switched off.
    fast_reboot(&world, &world.mods.release).await?;
    assert_eq!(world.loaded().await?, [""; 0]);
    let pass = world.vm.exec(&unit_line(&world).await?).await?;
    ensure!(pass.code == 0, "{}", pass.text());
    assert_eq!(world.loaded().await?, ["kmm_plain", "kmm_slow"]);
    let birth = world.birth("kmm_plain").await?;
    world.start_worker().await?;
    let boot = world.boot_id().await?;
    world.status("a status of the new boot", |status| status.boot_id.as_ref() == Some(&boot)).await?;
    let both = [("plain", Loaded, "Loaded"), ("slow", Loaded, "Loaded")];
    let second = world.settled(generation, &both).await?;
    ensure!(first.boot_id != second.boot_id, "{second:?}");
    for name in ["plain", "slow"] {
        assert_eq!(of(&second, name)?.boot_id.as_ref(), Some(&boot));
    }
    assert_eq!(world.birth("kmm_plain").await?, birth, "what the pass loaded was touched");
    assert_eq!(said(&world, "kmm_slow: starting").await?, 1);

    // The machine did not change its mind about anything but its kernel.
    let other = bed()?.older_kernel().release.clone();
    fast_reboot(&world, &other).await?;
    world.start_worker().await?;
    let wrong = [("plain", Failed, "WrongKernel"), ("slow", Failed, "WrongKernel")];
    world.status("the other kernel", |status| status.kernel_version.as_ref() == Some(&other)).await?;
    let third = world.settled(generation, &wrong).await?;
    ensure!(third.boot_id == Some(world.boot_id().await?) && third.boot_id != second.boot_id, "{third:?}");
    assert_eq!(world.loaded().await?, [""; 0]);
    Ok(())
}
