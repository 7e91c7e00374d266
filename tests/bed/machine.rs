//! Machines boot every kernel of the bed, load real modules, and keep their disk over reboots.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::kernel_vm::{KernelVm, KernelVmOptions};
use crate::support::{bed, kmods};

#[tokio::test]
async fn every_kernel_boots_and_loads_a_module_that_was_compiled_for_it() -> Result<()> {
    let mut vm: Option<KernelVm> = None;
    for kernel in &bed()?.kernels {
        let vm = match vm.as_mut() {
            None => vm.insert(
                KernelVm::start(KernelVmOptions { kernel: Some(kernel.release.clone()), ..KernelVmOptions::default() })
                    .await?,
            ),
            Some(vm) => {
                vm.reboot_into(&kernel.release).await?;
                vm
            }
        };
        assert_eq!(vm.run("uname -r").await?.trim(), kernel.release);
        let plain = kmods::for_kernel(&kernel.release)?.plain()?;
        vm.put("/mods/kmm_plain.ko", 0o644, &plain.bytes).await?;
        vm.run("insmod /mods/kmm_plain.ko").await?;
        let modules = vm.run("cat /proc/modules").await?;
        ensure!(
            modules.lines().any(|l| l.starts_with("kmm_plain ") && l.contains(" Live ")),
            "no kmm_plain in {modules}"
        );
        assert_eq!(vm.run("cat /sys/module/kmm_plain/version").await?.trim(), "1.0");
    }
    Ok(())
}

#[tokio::test]
async fn a_machine_keeps_its_disk_and_changes_its_boot_id_over_reboots_and_power_cuts() -> Result<()> {
    let file = ("etc/given".to_owned(), 0o600, b"given".to_vec());
    let vm = KernelVm::start(KernelVmOptions { files: vec![file], ..KernelVmOptions::default() }).await?;
    let first = vm.boot_id().await?;
    assert_eq!(vm.get("/etc/given").await?, b"given");
    vm.put("/var/lib/kept", 0o644, &[0, 255, b'\n', 13]).await?;
    vm.reboot().await?;
    let second = vm.boot_id().await?;
    assert_eq!(vm.get("/var/lib/kept").await?, [0, 255, b'\n', 13]);
    vm.run("echo more >/var/lib/kept && sync").await?;
    vm.power_cut().await?;
    let third = vm.boot_id().await?;
    assert_eq!(vm.get("/var/lib/kept").await?, b"more\n");
    vm.stop().await?;
    vm.resume().await?;
    let fourth = vm.boot_id().await?;
    let mut all = vec![first, second, third, fourth];
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 4);
    ensure!(vm.console_tail(200).contains("bed "), "the console is empty");
    Ok(())
}

#[tokio::test]
async fn commands_give_back_code_and_bytes_and_end_in_time() -> Result<()> {
    let vm = KernelVm::start(KernelVmOptions::default()).await?;
    let out = vm.exec("echo out; echo err >&2; exit 3").await?;
    assert_eq!((out.code, out.text().as_str()), (3, "out\nerr\n"));
    let out = vm.exec_for(Duration::from_secs(1), "echo begun; sleep 1000").await?;
    assert_eq!((out.code, out.text().as_str()), (137, "begun\n"));
    assert_eq!(vm.run("echo still").await?, "still\n");
    // The host's side of the bed network is reached.
    vm.run("ping -c 1 -W 20 172.30.0.1").await?;
    Ok(())
}

#[tokio::test]
async fn a_program_of_this_machine_runs_in_the_guest_with_its_libraries() -> Result<()> {
    let options = KernelVmOptions { programs: vec!["/usr/bin/openssl".into()], ..KernelVmOptions::default() };
    let vm = KernelVm::start(options).await?;
    let version = vm.run("/openssl version").await?;
    ensure!(version.starts_with("OpenSSL"), "it says {version}");
    Ok(())
}
