//! What modprobe does for a Module: its arguments, whole command lines, and lines of modprobe.d, and what proves it.

use anyhow::{Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded};
use kmm::api::{ModprobeArgs, NodeModuleSpec};

use crate::life::slow;
use crate::support::kmods::{Compression, compress};
use crate::world::{Options, PATIENCE, World, build_id, of};

#[allow(clippy::unnecessary_wraps)] // the field's type
fn args(load: &str, unload: &str) -> Option<ModprobeArgs> {
    let words = |text: &str| text.split(' ').filter(|word| !word.is_empty()).map(ToOwned::to_owned).collect();
    Some(ModprobeArgs { load: words(load), unload: words(unload) })
}

/// How often the worker ran modprobe with these words among its arguments.
async fn runs(world: &World, words: &str) -> Result<usize> {
    let log = world.vm.run("cat /var/log/worker.log").await?;
    Ok(log.lines().filter(|line| line.contains("running modprobe") && line.contains(words)).count())
}

/// Names in the order in which the kernel got them.
async fn order(world: &World) -> Result<Vec<String>> {
    let modules = world.vm.run("cut -d' ' -f1 /proc/modules").await?;
    Ok(modules.lines().filter(|name| name.starts_with("kmm_")).rev().map(ToOwned::to_owned).collect())
}

#[tokio::test]
async fn arguments_lines_and_order_reach_modprobe_together_and_are_proved_and_undone() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    // Packed as this modprobe cannot read it, and another as it can.
    let image = world
        .push_files(
            "packed",
            &[
                ("kmm_param.ko.gz".into(), compress(&mods.param()?.bytes, Compression::Gz)?),
                ("kmm-dash.ko.xz".into(), compress(&mods.dash()?.bytes, Compression::Xz)?),
                ("kmm_base.ko".into(), mods.base()?.bytes),
                ("kmm_top.ko".into(), mods.top()?.bytes),
                ("kmm_plain.ko".into(), mods.plain()?.bytes),
            ],
        )
        .await;
    let image = image?;
    world.start_worker().await?;

    let mut param = world.entry("param", "kmm_param", &image, 1);
    let modprobe = &mut param.config.modprobe;
    modprobe.args = args("--first-time", "--first-time");
    modprobe.parameters = vec!["number=7".into(), "text=two words".into()];
    modprobe.modprobe_config =
        Some("# our own\noptions kmm-param flag=1 number=5\nsoftdep kmm_param post: kmm_plain\n".into());
    modprobe.modules_loading_order = Some(vec!["kmm_param".into(), "kmm-dash".into(), "kmm_top".into()]);
    let generation = world.want(vec![param.clone()], vec![]).await?;
    let status = world.settled(generation, &[("param", Loaded, "Loaded")]).await?;
    assert_eq!(order(&world).await?, ["kmm_base", "kmm_top", "kmm_dash", "kmm_param", "kmm_plain"]);
    for (name, value) in [("number", "7"), ("text", "two words"), ("flag", "Y")] {
        assert_eq!(world.parameter("kmm_param", name).await?, value, "{name}");
    }
    let entry = of(&status, "param")?;
    assert_eq!(entry.build_id, Some(build_id(&mods.param()?)?));
    ensure!(entry.message.is_none() && entry.duration.is_some(), "{entry:?}");
    assert_eq!(runs(&world, "--first-time").await?, 1);

    // Other lines are another load: it waits for an order, and then all of it is done again.
    param.generation = Some(2);
    param.config.modprobe.modprobe_config = Some("options kmm_param flag=0".into());
    let generation = world.want(vec![param.clone()], vec![]).await?;
    world.settled(generation, &[("param", Failed, "LoadedOtherParameters")]).await?;
    assert_eq!(world.parameter("kmm_param", "flag").await?, "Y");
    let generation = world.want(vec![param], vec![world.intent("param", 1)]).await?;
    world.settled(generation, &[("param", Loaded, "Loaded")]).await?;
    assert_eq!(world.parameter("kmm_param", "flag").await?, "N");
    assert_eq!(runs(&world, "\\\"-r\\\"").await?, 1);

    // Neither registry nor image is needed to unload.
    world.registry.pause()?;
    let generation = world.want(vec![], vec![world.intent("param", 2)]).await?;
    world.settled(generation, &[]).await?;
    assert_eq!(world.loaded().await?, [""; 0]);
    assert_eq!(runs(&world, "\\\"-r\\\"").await?, 2);
    world.vm.wait_for(PATIENCE, "ls /var/lib/kmm/modprobe", |out| out.text().trim().is_empty()).await?;
    Ok(())
}

#[tokio::test]
async fn a_whole_command_line_is_carried_out_as_it_is_written_and_success_alone_is_no_proof() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let image = world.push("all", &[mods.plain()?, mods.base()?, mods.top()?, mods.dash()?, mods.fail()?]).await?;
    world.vm.put("/mods/kmm_base.ko", 0o644, &mods.base()?.bytes).await?;
    world.vm.put("/mods/kmm_plain.ko", 0o644, &mods.plain_v2()?.bytes).await?;
    world.vm.run("insmod /mods/kmm_base.ko; insmod /mods/kmm_plain.ko").await?;
    world.start_worker().await?;
    let raw = |name: &str, load: &str, unload: &str| -> NodeModuleSpec {
        let mut entry = world.entry(name, "unused", &image, 1);
        entry.config.modprobe.module_name = None;
        entry.config.modprobe.raw_args = args(load, unload);
        entry
    };
    let several = raw("several", "-a -d /tmp/opt kmm-dash kmm_top", "-r -d /opt kmm_top kmm-dash");
    let other = raw("other", "-d /opt kmm_plain", "-r kmm_plain");
    let refusing = raw("refusing", "kmm_fail", "-r kmm_fail");
    let absent = raw("absent", "-v kmm_absent", "-r kmm_absent");
    let mut shell = world.entry("shell", "kmm_dash", &image, 1);
    shell.config.modprobe.modprobe_config = Some("install kmm_dash /bin/true".into());
    let modules = vec![several, other, refusing, absent, shell];
    let generation = world.want(modules, vec![]).await?;
    let status = world
        .settled(
            generation,
            &[
                ("several", Loaded, "Loaded"),
                // modprobe would leave with 0: another file has the name.
                ("other", Failed, "LoadedOtherFile"),
                ("refusing", Failed, "KernelRefused"),
                ("absent", Failed, "ModuleNotFound"),
                ("shell", Failed, "UnsupportedArgs"),
            ],
        )
        .await?;
    assert_eq!(order(&world).await?, ["kmm_base", "kmm_plain", "kmm_dash", "kmm_top"]);
    assert_eq!(runs(&world, "kmm_plain").await?, 0);
    let message = |name: &str| Ok::<_, anyhow::Error>(of(&status, name)?.message.clone().unwrap_or_default());
    ensure!(message("refusing")?.contains("ENODEV"), "{}", message("refusing")?);
    ensure!(message("shell")?.contains("line 1: `install`"), "{}", message("shell")?);
    ensure!(message("absent")?.contains("kmm_absent"), "{}", message("absent")?);

    // kmm_base was there before and modprobe would take it along: it is left, whatever the command line would do.
    let generation = world.want(vec![], vec![world.intent("several", 1), world.intent("refusing", 1)]).await?;
    world.settled(generation, &[]).await?;
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_plain"]);
    Ok(())
}

#[tokio::test]
async fn a_worker_that_ends_while_modprobe_runs_leaves_nothing_unknown() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let image = world.push("slow", &[world.mods.base()?, slow(&world.mods.release)?]).await?;
    for signal in ["KILL", "TERM"] {
        world.start_worker().await?;
        let mut entry = world.entry("slow", "kmm_slow", &image, 1);
        entry.config.modprobe.args = args("-v", "-v");
        entry.config.modprobe.parameters = vec!["init_ms=4000".into()];
        let generation = world.want(vec![entry], vec![]).await?;
        let slow_is = |modules: &str, state: &str| {
            modules.lines().any(|line| line.starts_with("kmm_slow ") && line.contains(state))
        };
        world.vm.wait_for(PATIENCE, "cat /proc/modules", |out| slow_is(&out.text(), " Loading ")).await?;
        let record = world.vm.run("cat /var/lib/kmm/record.json").await?;
        ensure!(record.contains("\"name\":\"kmm_slow\"") && record.contains("\"inserted\":true"), "{record}");
        // A signal to the worker is none to modprobe: the module ends up live in either case.
        world.end_worker(signal).await?;
        world.vm.wait_for(PATIENCE, "cat /proc/modules", |out| slow_is(&out.text(), " Live ")).await?;
        world.start_worker().await?;
        world.settled(generation, &[("slow", Loaded, "Loaded")]).await?;
        let generation = world.want(vec![], vec![world.intent("slow", 1)]).await?;
        world.settled(generation, &[]).await?;
        assert_eq!(world.loaded().await?, [""; 0], "after {signal}");
        world.end_worker("TERM").await?;
    }
    Ok(())
}
