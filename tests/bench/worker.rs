//! A worker at rest with ten modules: its memory.

use std::time::Duration;

use anyhow::{Context, Result};
use kmm::api::ModuleState::Loaded;

use crate::support::bed;
use crate::support::kmods::{Kmod, compile};
use crate::world::{Options, World};

const MODULES: usize = 10;

/// Resident memory and the anonymous part of it, bytes.
pub(crate) async fn run() -> Result<(u64, u64)> {
    let names: Vec<String> = (0..MODULES).map(|index| format!("kmm_bench{index}")).collect();
    let source = "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\nMODULE_VERSION(\"@NAME@\");\n";
    let mut files: Vec<(String, String)> =
        names.iter().map(|name| (format!("{name}.c"), source.replace("@NAME@", name))).collect();
    let objects: Vec<_> = names.iter().map(|name| format!("{name}.o")).collect();
    files.push(("Makefile".into(), format!("obj-m := {}\n", objects.join(" "))));
    let set: Vec<(&str, String)> = files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    let folder = compile(bed()?.kernel(), "bench", &[("1", &set)])?;
    let world = World::start(Options::default()).await?;
    let mut wanted = Vec::new();
    for name in &names {
        let module = Kmod::read(&folder.join("1").join(format!("{name}.ko")))?;
        let image = world.push(&name.replace('_', "-"), &[module]).await?;
        wanted.push(world.entry(name, name, &image, 1));
    }
    world.start_worker().await?;
    let generation = world.want(wanted, vec![]).await?;
    let loaded: Vec<_> = names.iter().map(|name| (name.as_str(), Loaded, "Loaded")).collect();
    world.settled(generation, &loaded).await?;
    // Two looks at the kernel later it rests.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let status = world.vm.run("grep -E '^(VmRSS|RssAnon):' /proc/$(cat /run/worker.log.pid)/status").await?;
    let figure = |field: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
        let kib: u64 = line.split_whitespace().next().context("no figure")?.parse()?;
        Ok(kib * 1024)
    };
    Ok((figure("VmRSS:")?, figure("RssAnon:")?))
}
