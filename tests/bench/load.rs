//! From the plan seen to the module live, with the image in the store, against a static program that does nothing but
//! `finit_module` on the same file in the same machine.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use kmm::api::ModuleState::Loaded;

use crate::support::bed;
use crate::support::kmods::{Kmod, compile};
use crate::world::{Options, World};

/// Loads of each kind, in turns.
const TURNS: i64 = 5;

/// Four MiB of data with twenty thousand relocations: the size of a large driver.
const BIG: &str = "#include <linux/module.h>\n\
    static const char table[4 << 20] = { [0 ... (4 << 20) - 1] = 7 };\n\
    static const void *pointers[20000] = { [0 ... 19999] = table };\n\
    static int __init big_init(void) { return READ_ONCE(pointers[7]) == NULL; }\n\
    static void __exit big_exit(void) { }\n\
    module_init(big_init);\nmodule_exit(big_exit);\nMODULE_LICENSE(\"GPL\");\n";
/// Keeps the image in the store while the other comes and goes.
const KEEP: &str = "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n";

/// Seconds of the worker and of the bare program, each turn.
pub(crate) async fn run() -> Result<(Vec<f64>, Vec<f64>)> {
    let files = [
        ("kmm_big.c", BIG.to_owned()),
        ("kmm_keep.c", KEEP.to_owned()),
        ("Makefile", "obj-m := kmm_big.o kmm_keep.o\n".to_owned()),
    ];
    let folder = compile(bed()?.kernel(), "load", &[("1", &files)])?.join("1");
    let modules = [Kmod::read(&folder.join("kmm_big.ko"))?, Kmod::read(&folder.join("kmm_keep.ko"))?];
    let loader = bed()?.new_dir("loader")?.join("loader");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/loader.c");
    let compiled = Command::new("gcc").args(["-O2", "-static", "-o"]).arg(&loader).arg(source).status()?;
    ensure!(compiled.success(), "gcc left with {compiled}");

    let world = World::start(Options::default()).await?;
    world.vm.put("/loader", 0o755, &std::fs::read(&loader)?).await?;
    let image = world.push("big", &modules).await?;
    world.start_worker().await?;
    let keep = || world.entry("keep", "kmm_keep", &image, 1);
    let (mut worker, mut bare) = (Vec::new(), Vec::new());
    let generation = world.want(vec![keep()], vec![]).await?;
    world.settled(generation, &[("keep", Loaded, "Loaded")]).await?;
    for time in 1..=TURNS {
        let generation = world.want(vec![keep(), world.entry("big", "kmm_big", &image, time)], vec![]).await?;
        world.settled(generation, &[("keep", Loaded, "Loaded"), ("big", Loaded, "Loaded")]).await?;
        worker.push(took(&world.vm.run("cat /var/log/worker.log").await?)?);
        let generation = world.want(vec![keep()], vec![world.intent("big", time)]).await?;
        world.settled(generation, &[("keep", Loaded, "Loaded")]).await?;
        let file = "$(find /var/lib/kmm/trees -name kmm_big.ko)";
        let micros: f64 = world.vm.run(&format!("/loader {file} && rmmod kmm_big")).await?.trim().parse()?;
        bare.push(micros / 1e6);
    }
    Ok((worker, bare))
}

/// Seconds between the last specification that was taken in and the load that ended after it, by the worker's own log.
fn took(log: &str) -> Result<f64> {
    let at = |message: &str| -> Result<jiff::Timestamp> {
        let line = log.lines().rfind(|line| line.contains(&format!("\"{message}\""))).context("no such line")?;
        let line: serde_json::Value = serde_json::from_str(line)?;
        Ok(line["timestamp"].as_str().context("no timestamp")?.parse()?)
    };
    let took = at("loaded")?.duration_since(at("wanted")?).as_secs_f64();
    ensure!(took > 0.0, "loaded before it was wanted");
    Ok(took)
}
