//! The life of a node: whatever ends in the middle is ended right afterwards.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded};
use kmm::api::{LoadPolicy, NodeModuleSpec};

use crate::support::faulty::{Fault, FaultyRegistry};
use crate::support::images::{Image, kmod_layer};
use crate::support::kmods::{self, Kmod};
use crate::support::manager::stripped;
use crate::support::{bed, eventually};
use crate::world::{Options, PATIENCE, World, build_id, of};

/// Sleeps while it starts and while it ends, and says so.
const SLOW: &str = r#"#include <linux/module.h>
#include <linux/delay.h>
static unsigned int init_ms;
module_param(init_ms, uint, 0444);
static unsigned int exit_ms;
module_param(exit_ms, uint, 0444);
static int __init slow_init(void) { pr_info("kmm_slow: starting\n"); msleep(init_ms); return 0; }
static void __exit slow_exit(void) { msleep(exit_ms); pr_info("kmm_slow: bye\n"); }
module_init(slow_init);
module_exit(slow_exit);
MODULE_LICENSE("GPL");
"#;

pub(crate) fn slow(release: &str) -> Result<Kmod> {
    let sources = [("kmm_slow.c", SLOW.to_owned()), ("Makefile", "obj-m := kmm_slow.o\n".to_owned())];
    let folder = kmods::compile(bed()?.kernel_named(release)?, "slow", &[("1", &sources)])?;
    Kmod::read(&folder.join("1/kmm_slow.ko"))
}

/// The entry of `kmm_slow` with these times, which asks to be loaded at boot.
pub(crate) fn slow_entry(world: &World, image: &str, generation: i64, init_ms: u32, exit_ms: u32) -> NodeModuleSpec {
    let mut entry = at_boot(world.entry("slow", "kmm_slow", image, generation));
    entry.config.modprobe.parameters = vec![format!("init_ms={init_ms}"), format!("exit_ms={exit_ms}")];
    entry
}

pub(crate) fn at_boot(mut entry: NodeModuleSpec) -> NodeModuleSpec {
    entry.policy = Some(LoadPolicy { load_at_boot: true, ..LoadPolicy::default() });
    entry
}

/// The line that the systemd unit runs, with the executable linked to where the unit looks for it.
pub(crate) async fn unit_line(world: &World) -> Result<String> {
    let unit = include_str!("../../config/systemd/kmm-worker-once.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).context("no ExecStart")?;
    world.vm.run("mkdir -p /usr/local/bin && ln -sf /kmm /usr/local/bin/kmm").await?;
    // A unit has an environment of its own: no kubeconfig, no node name.
    Ok(format!("env -i {line}"))
}

/// Waits until the kernel has the module in this state.
pub(crate) async fn passes(world: &World, module: &str, state: &str) -> Result<()> {
    let line = format!(" {state} ");
    let (name, what) = (format!("{module} "), format!("{module} to be {state}"));
    let seen = eventually(PATIENCE, &what, || async {
        let modules = world.vm.run("cat /proc/modules").await?;
        Ok(modules.lines().any(|found| found.starts_with(&name) && found.contains(&line)).then_some(()))
    });
    let seen = seen.await;
    if seen.is_err() { seen.context(world.worker_log().await) } else { seen }
}

/// How often the kernel's log of this boot holds the text.
pub(crate) async fn said(world: &World, text: &str) -> Result<usize> {
    Ok(world.vm.run("dmesg").await?.matches(text).count())
}

#[tokio::test]
async fn what_ends_in_the_middle_of_a_load_or_an_unload_ends_right() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let image = world.push("slow", &[slow(&world.mods.release)?]).await?;

    // A power cut in the middle of a load: nothing says that it was loaded, and the next boot loads it.
    world.start_worker().await?;
    let generation = world.want(vec![slow_entry(&world, &image, 1, 8_000, 6_000)], vec![]).await?;
    passes(&world, "kmm_slow", "Loading").await?;
    let boot = world.boot_id().await?;
    world.vm.power_cut().await?;
    let before = world.api().get(&world.node).await?.status.unwrap_or_default();
    ensure!(before.modules.iter().all(|module| module.state != Some(Loaded)), "{before:?}");
    assert_eq!(world.loaded().await?, [""; 0]);
    world.start_worker().await?;
    let status = world.settled(generation, &[("slow", Loaded, "Loaded")]).await?;
    let now = world.boot_id().await?;
    ensure!(now != boot && status.boot_id == Some(now.clone()), "{status:?}");
    assert_eq!(of(&status, "slow")?.boot_id, Some(now));
    assert_eq!(said(&world, "kmm_slow: starting").await?, 1);

    // Wanted again while it is being unloaded: it ends loaded, taken out once and loaded once.
    world.want(vec![], vec![world.intent("slow", 1)]).await?;
    passes(&world, "kmm_slow", "Unloading").await?;
    let again = slow_entry(&world, &image, 2, 8_000, 100);
    let generation = world.want(vec![again.clone()], vec![world.intent("slow", 1)]).await?;
    let status = world.settled(generation, &[("slow", Loaded, "Loaded")]).await?;
    assert_eq!(of(&status, "slow")?.observed_generation, Some(2));
    assert_eq!(world.loaded().await?, ["kmm_slow"]);
    assert_eq!((said(&world, "kmm_slow: starting").await?, said(&world, "kmm_slow: bye").await?), (2, 1));

    // Killed in the middle of a load: the kernel ends it, and until then the next worker waits for the dying one.
    let generation = world.want(vec![], vec![world.intent("slow", 2)]).await?;
    world.settled(generation, &[]).await?;
    let generation = world.want(vec![again], vec![world.intent("slow", 1)]).await?;
    passes(&world, "kmm_slow", "Loading").await?;
    world.vm.run("kill -KILL $(cat /run/worker.log.pid)").await?;
    world.start_worker().await?;
    world.settled(generation, &[("slow", Loaded, "Loaded")]).await?;
    assert_eq!(said(&world, "kmm_slow: starting").await?, 3, "two actors");
    assert_eq!(world.loaded().await?, ["kmm_slow"]);
    Ok(())
}

/// What `/readyz` says on the worker's port, headers and all.
async fn readyz(world: &World) -> Result<String> {
    // Its end of the line stays open until the answer is there.
    let ask = "(printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n'; sleep 1) | timeout 5 nc 127.0.0.1 18181";
    Ok(world.vm.exec(ask).await?.text())
}

#[tokio::test]
async fn of_two_workers_one_works_and_the_other_says_that_it_waits() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let image = world.push("both", &[world.mods.plain()?, slow(&world.mods.release)?]).await?;
    let plain = world.entry("plain", "kmm_plain", &image, 1);
    world.start_worker().await?;
    let generation = world.want(vec![plain.clone()], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;

    // The same port for both, as on a node of a cluster: the one that waits does not want it.
    world.start_worker_with("127.0.0.1:18181", "second.log").await?;
    let log = world
        .vm
        .wait_for(PATIENCE, "cat /var/log/second.log", |out| out.text().contains("another worker runs on this node"))
        .await?;
    ensure!(log.text().contains("`kmm worker`, version"), "{}", log.text());
    ensure!(readyz(&world).await?.contains(" 200 "), "the first does not answer any more");
    world.end_worker("TERM").await?;
    let gone = "the other worker has gone";
    world.vm.wait_for(PATIENCE, "cat /var/log/second.log", |out| out.text().contains(gone)).await?;
    assert_eq!(world.loaded().await?, ["kmm_plain"], "a worker that ends unloads nothing");
    world.vm.run("rmmod kmm_plain").await?;
    world.vm.wait_for(PATIENCE, "cat /proc/modules", |out| out.text().contains("kmm_plain ")).await?;
    eventually(PATIENCE, "the second worker to answer probes", || async {
        Ok(readyz(&world).await?.contains(" 200 ").then_some(()))
    })
    .await?;

    // The single pass before the kubelet is such a worker too.
    let generation = world.want(vec![plain, slow_entry(&world, &image, 1, 10_000, 0)], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded"), ("slow", Loaded, "Loaded")]).await?;
    world.vm.run("kill -TERM $(cat /run/second.log.pid)").await?;
    let ended = "kill -0 $(cat /run/second.log.pid) 2>/dev/null; echo $?";
    world.vm.wait_for(PATIENCE, ended, |out| out.text().trim() == "1").await?;
    world.vm.run("rmmod kmm_slow").await?;
    let line = unit_line(&world).await?;
    world.vm.run(&format!("({line} >/var/log/once.log 2>&1; echo $? >/run/once.code) >/dev/null 2>&1 &")).await?;
    passes(&world, "kmm_slow", "Loading").await?;
    world.start_worker_with("127.0.0.1:18181", "third.log").await?;
    let waits = "another worker runs on this node (`kmm worker --once`";
    let said_so = eventually(PATIENCE, "the worker that waits to answer probes", || async {
        let answer = readyz(&world).await?;
        Ok((answer.contains("503") && answer.contains(waits)).then_some(()))
    });
    said_so.await?;
    world.vm.wait_for(PATIENCE, "cat /var/log/third.log", |out| out.text().contains(gone)).await?;
    assert_eq!(
        world.vm.run("cat /run/once.code").await?.trim(),
        "0",
        "{}",
        world.vm.run("cat /var/log/once.log").await?
    );
    let birth = world.birth("kmm_slow").await?;
    eventually(PATIENCE, "the worker to be ready", || async {
        Ok(readyz(&world).await?.contains(" 200 ").then_some(()))
    })
    .await?;
    world.settled(generation, &[("plain", Loaded, "Loaded"), ("slow", Loaded, "Loaded")]).await?;
    assert_eq!(world.birth("kmm_slow").await?, birth, "what the pass loaded was loaded again");
    Ok(())
}

#[tokio::test]
async fn cut_off_from_everything_a_node_boots_from_its_own_store_and_tells_when_it_can() -> Result<()> {
    let world = World::start(Options { own_control_plane: true, ..Options::default() }).await?;
    let mods = &world.mods;
    let image = world.push("all", &[mods.plain()?, mods.base()?, mods.top()?]).await?;
    world.start_worker().await?;
    let wanted = vec![at_boot(world.entry("plain", "kmm_plain", &image, 1)), world.entry("top", "kmm_top", &image, 1)];
    let both = [("plain", Loaded, "Loaded"), ("top", Loaded, "Loaded")];
    let generation = world.want(wanted, vec![]).await?;
    world.settled(generation, &both).await?;

    // From here on there is no API server and no registry, and the node boots before anybody could have noticed.
    world.registry.pause()?;
    world.plane.stop_apiserver()?;
    let away = std::time::Instant::now();
    world.vm.reboot().await?;
    let line = unit_line(&world).await?;
    let pass = world.vm.exec(&line).await?;
    ensure!(pass.code == 0, "{}", pass.text());
    assert_eq!(world.loaded().await?, ["kmm_plain"], "only what asks is loaded before the API server answers");
    let birth = world.birth("kmm_plain").await?;
    let again = world.vm.exec(&line).await?;
    ensure!(again.code == 0 && world.birth("kmm_plain").await? == birth, "a second pass: {}", again.text());

    // The worker waits for an answer, then goes by what it was told last.
    world.vm.run("rm -f /var/log/worker.log").await?;
    world.start_worker().await?;
    passes(&world, "kmm_top", "Live").await?;
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_plain", "kmm_top"]);

    // However long that lasts: pauses between two questions do not grow beyond a minute, and nothing else happens.
    tokio::time::sleep(Duration::from_secs(100).saturating_sub(away.elapsed())).await;
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_plain", "kmm_top"]);
    world.plane.start_apiserver().await?;
    let boot = world.boot_id().await?;
    let status = world.status("a status of the new boot", |status| status.boot_id.as_ref() == Some(&boot)).await?;
    ensure!(status.modules.iter().all(|module| module.state == Some(Loaded)), "{status:?}");
    assert_eq!(world.birth("kmm_plain").await?, birth, "what was loaded at boot was touched");

    // A pass that cannot do what is asked says what and why, and unloads nothing.
    world.end_worker("TERM").await?;
    world.vm.run("rm -rf /var/lib/kmm/trees/* && rmmod kmm_plain").await?;
    let pass = world.vm.exec(&line).await?;
    let text = pass.text();
    ensure!(pass.code == 1 && text.contains("plain") && text.contains("not unpacked on this node"), "{text}");
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_top"]);
    Ok(())
}

#[tokio::test]
async fn a_node_that_boots_another_kernel_says_so_and_loads_the_file_of_that_kernel() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let other = kmods::for_kernel(&bed()?.older_kernel().release)?;
    let layer = |mods: &kmods::Kmods| -> Result<_> {
        let plain = mods.plain()?;
        kmod_layer(&mods.release, &[(plain.file_name, plain.bytes)], "/opt")
    };
    let image = world.push_image("two", &Image::new().layer(layer(&world.mods)?).layer(layer(&other)?)).await?;
    world.start_worker().await?;
    let entry = world.entry("plain", "kmm_plain", &image, 1);
    let generation = world.want(vec![entry.clone()], vec![]).await?;
    let status = world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(of(&status, "plain")?.build_id, Some(build_id(&world.mods.plain()?)?));

    world.vm.reboot_into(&other.release).await?;
    world.start_worker().await?;
    let status = world.settled(generation, &[("plain", Failed, "WrongKernel")]).await?;
    assert_eq!(status.kernel_version.as_deref(), Some(other.release.as_str()));
    assert_eq!(world.loaded().await?, [""; 0]);

    let mut entry = NodeModuleSpec { generation: Some(2), ..entry };
    entry.config.kernel_version.clone_from(&other.release);
    // What was loaded in the other boot is gone with it: the order finds nothing to unload.
    let generation = world.want(vec![entry], vec![world.intent("plain", 1)]).await?;
    let status = world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(of(&status, "plain")?.build_id, Some(build_id(&other.plain()?)?));
    assert_eq!(of(&status, "plain")?.boot_id, Some(world.boot_id().await?));

    // Back in the first kernel its file is still in the node's store; the registry is away.
    world.registry.pause()?;
    world.vm.reboot_into(&world.mods.release).await?;
    world.start_worker().await?;
    let generation = world.want(vec![world.entry("plain", "kmm_plain", &image, 3)], vec![]).await?;
    let status = world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(of(&status, "plain")?.build_id, Some(build_id(&world.mods.plain()?)?));
    Ok(())
}

/// An executable with another version in it: the one that Cargo built with the tests, as an optimised one does not hold
/// its version in one piece.
fn other_version() -> Result<PathBuf> {
    let program = stripped(Path::new(env!("CARGO_BIN_EXE_kmm")))?;
    let (old, new) = (env!("CARGO_PKG_VERSION").as_bytes(), b"9.9.9");
    ensure!(old.len() == new.len(), "a version of another length");
    let mut bytes = std::fs::read(&program)?;
    let places: Vec<usize> = memchr_all(&bytes, old);
    ensure!(!places.is_empty(), "the executable does not hold its version");
    for at in places {
        bytes[at..at + new.len()].copy_from_slice(new);
    }
    let other = program.with_file_name("kmm-next");
    std::fs::write(&other, bytes)?;
    Ok(other)
}

fn memchr_all(bytes: &[u8], part: &[u8]) -> Vec<usize> {
    bytes.windows(part.len()).enumerate().filter(|(_, window)| *window == part).map(|(at, _)| at).collect()
}

#[tokio::test]
async fn a_clock_that_jumps_and_another_worker_version_change_nothing() -> Result<()> {
    let world = World::start(Options { programs: vec![other_version()?], ..Options::default() }).await?;
    let image = world.push("plain", &[world.mods.plain()?]).await?;
    let front = FaultyRegistry::start(&world.registry).await?;
    let image = image.replace(&world.registry.address(), &front.address());
    front.set(Fault::Status(503));
    world.start_worker().await?;
    let entry = world.entry("plain", "kmm_plain", &image, 1);
    let generation = world.want(vec![entry.clone()], vec![]).await?;
    world.status("the failure", |status| status.modules.iter().any(|module| module.state == Some(Failed))).await?;

    // A year forwards in the middle of a pause: what is due is due by the worker's own clock.
    const YEAR: i64 = 365 * 24 * 3600;
    let jump = |seconds: i64| format!("date -s @$(( $(date +%s) + {seconds} ))");
    world.vm.run(&jump(YEAR)).await?;
    front.set(Fault::None);
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    // Two years backwards: certificates are not valid yet there, the kernel is looked after all the same.
    world.vm.run(&jump(-2 * YEAR)).await?;
    world.vm.run("rmmod kmm_plain").await?;
    passes(&world, "kmm_plain", "Live").await?;
    world.vm.run(&jump(YEAR)).await?;
    let entry = NodeModuleSpec { generation: Some(2), ..entry };
    let generation = world.want(vec![entry], vec![]).await?;
    let status = world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(status.worker_version.as_deref(), Some(env!("CARGO_PKG_VERSION")));

    // Another version of the worker takes over what this one loaded, and back.
    let birth = world.birth("kmm_plain").await?;
    for (program, version) in [("/kmm-next", "9.9.9"), ("/kmm", env!("CARGO_PKG_VERSION"))] {
        world.end_worker("TERM").await?;
        world.start_program(program, "127.0.0.1:18181", "worker.log").await?;
        let status =
            world.status("the other version", |status| status.worker_version.as_deref() == Some(version)).await?;
        assert_eq!(of(&status, "plain")?.reason.as_deref(), Some("Loaded"));
        assert_eq!(world.birth("kmm_plain").await?, birth, "version {version} touched what was loaded");
    }
    // The DaemonSet is deleted: the worker ends and does not come back.
    world.end_worker("TERM").await?;
    assert_eq!(world.birth("kmm_plain").await?, birth);
    Ok(())
}
