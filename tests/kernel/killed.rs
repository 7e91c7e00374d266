//! The worker is killed before every call by which it changes something, one after the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kmm::api::ModuleState::Loaded;
use kmm::api::{LoadPolicy, NodeModuleSpec, UnloadIntent};

use crate::support::kmods::Kmod;
use crate::world::{Options, PATIENCE, World, compiled};

/// More calls than a load can make; beyond it the enumeration itself is broken.
const MOST: u32 = 400;

/// An image with the two modules alone: the worker finds their order without the files of depmod, and an image of few
/// files has few places to be killed at.
async fn push(world: &World) -> Result<String> {
    let file = |module: Kmod| (module.file_name, module.bytes);
    world.push_files("all", &[file(world.mods.base()?), file(world.mods.top()?)]).await
}

/// What stands on the disk and in the kernel after the worker was killed, or why it cannot be right.
///
/// Whatever of the bed's is in the kernel must be in the record, and no file may be half written.
const LOOK: &str = r#"
look() {
  for m in $(cut -d' ' -f1 /proc/modules | grep ^kmm_); do
    grep -q "\"name\":\"$m\"" /var/lib/kmm/record.json || { echo "WRONG: $m is loaded and not in the record"; return 1; }
  done
  for f in record plan; do
    [ ! -e /var/lib/kmm/$f.json ] || tail -c 1 /var/lib/kmm/$f.json | grep -q '}' || { echo "WRONG: half a $f.json"; return 1; }
  done
  ls /var/lib/kmm | grep unreadable && { echo "WRONG: a file was put aside"; return 1; }
  return 0
}
"#;

#[tokio::test]
async fn killed_before_every_change_of_a_pass_the_next_pass_ends_right() -> Result<()> {
    let world = World::start(Options { programs: vec![compiled("killer")?], ..Options::default() }).await?;
    let image = push(&world).await?;
    world.start_worker().await?;
    let mut entry = world.entry("top", "kmm_top", &image, 1);
    entry.policy = Some(LoadPolicy { load_at_boot: true, ..LoadPolicy::default() });
    let generation = world.want(vec![entry], vec![]).await?;
    world.settled(generation, &[("top", Loaded, "Loaded")]).await?;
    world.end_worker("TERM").await?;
    let script = format!(
        r#"{LOOK}
log=/var/log/once.log
rmmod kmm_top kmm_base
rm -f /var/lib/kmm/record.json && cp -a /var/lib/kmm /template
n=1
while [ $n -le {MOST} ]; do
  rm -rf /var/lib/kmm && cp -a /template /var/lib/kmm
  out=$(/killer $n /kmm worker --once 2>>$log)
  case "$out" in
  "ended with 0"*) echo "$out"; break ;;
  killed*) echo "$out" ;;
  *) echo "WRONG: $out"; break ;;
  esac
  look || break
  /kmm worker --once 2>>$log || {{ echo "WRONG: the next pass failed"; break; }}
  look || break
  grep -q "^kmm_top .* Live " /proc/modules && grep -q "^kmm_base .* Live " /proc/modules || {{ echo "WRONG: not loaded"; break; }}
  rmmod kmm_top kmm_base
  n=$((n + 1))
done
tail -n 3 $log
"#
    );
    let out = world.vm.exec_for(Duration::from_mins(9), &script).await?.text();
    ensure!(!out.contains("WRONG") && out.contains("ended with 0 after"), "{out}");
    let boundaries = out.lines().filter(|line| line.starts_with("killed before")).count();
    ensure!(boundaries >= 10 && out.contains(": finit_module") && out.contains(": rename"), "{out}");
    println!("{boundaries} boundaries of a pass:\n{out}");
    Ok(())
}

/// Starts the worker so that it is killed before its call `n`.
async fn start_doomed(world: &World, n: u32) -> Result<()> {
    let command = format!(
        "KUBECONFIG=/etc/kubeconfig KMM_LOG_FORMAT=json KMM_HEALTH_ADDRESS=127.0.0.1:18181 \
         setsid /killer {n} /kmm worker --node-name {} >/run/killer.out 2>>/var/log/worker.log </dev/null & \
         echo $! >/run/killer.pid",
        world.node
    );
    world.vm.run(&format!("rm -f /run/killer.out; {command}")).await?;
    Ok(())
}

/// What a doomed worker was about to do when it was killed; `None` if it came to its end before.
async fn doom(world: &World, generation: i64) -> Result<Option<String>> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let out = world.vm.run("cat /run/killer.out 2>/dev/null; true").await?;
        if let Some(killed) = out.trim().strip_prefix("killed before ") {
            return Ok(Some(killed.to_owned()));
        }
        ensure!(out.trim().is_empty(), "the worker ended by itself: {out}\n{}", world.worker_log().await);
        let status = world.api().get(&world.node).await?.status.unwrap_or_default();
        if status.observed_generation == Some(generation)
            && status.modules.iter().all(|module| module.state == Some(Loaded))
        {
            // At rest; its end takes the worker along.
            world.vm.run("kill -KILL $(cat /run/killer.pid)").await?;
            world.vm.wait_for(PATIENCE, "pidof kmm; echo $?", |out| out.text().trim() == "1").await?;
            return Ok(None);
        }
    }
    bail!("neither killed nor at rest:\n{}", world.worker_log().await)
}

/// One wish, carried out by a worker that is killed before call `n` and by one that is not; without `n` by one that is not
/// and that runs on. Before which call it was killed, if it was.
async fn fulfil(
    world: &World,
    n: Option<u32>,
    modules: Vec<NodeModuleSpec>,
    unload: Vec<UnloadIntent>,
    expected: &[&str],
) -> Result<Option<String>> {
    let told: Vec<_> = modules.iter().map(|module| (module.name.clone(), Loaded, "Loaded")).collect();
    let told: Vec<_> = told.iter().map(|(name, state, reason)| (name.as_str(), *state, *reason)).collect();
    let Some(n) = n else {
        let generation = world.want(modules, unload).await?;
        world.settled(generation, &told).await?;
        assert_eq!(world.loaded().await?, expected);
        return Ok(None);
    };
    let may_change: Vec<String> = world.loaded().await?;
    let generation = world.want(modules, unload).await?;
    start_doomed(world, n).await?;
    let killed = doom(world, generation).await?;
    if killed.is_some() {
        let look = world.vm.exec(&format!("{LOOK}\nlook")).await?;
        ensure!(look.code == 0, "{}", look.text());
        let loaded = world.loaded().await?;
        let unwanted = loaded.iter().any(|name| !may_change.contains(name) && !expected.contains(&name.as_str()));
        ensure!(!unwanted, "{loaded:?} are loaded");
        let status = world.api().get(&world.node).await?.status.unwrap_or_default();
        if status.observed_generation == Some(generation) {
            let told = status.modules.iter().any(|module| module.state == Some(Loaded));
            ensure!(!told || loaded == expected, "told as loaded, and the kernel has {loaded:?}");
        }
    }
    world.start_worker().await?;
    world.settled(generation, &told).await?;
    assert_eq!(world.loaded().await?, expected);
    let look = world.vm.exec(&format!("{LOOK}\nlook")).await?;
    ensure!(look.code == 0, "{}", look.text());
    Ok(killed)
}

#[tokio::test]
async fn killed_before_every_change_of_a_load_or_an_unload_the_next_worker_ends_right() -> Result<()> {
    let world = World::start(Options { programs: vec![compiled("killer")?], ..Options::default() }).await?;
    let image = push(&world).await?;
    let entry = |generation| vec![world.entry("top", "kmm_top", &image, generation)];
    let (mut loads, mut unloads) = (Vec::new(), Vec::new());
    let (mut load_ends, mut unload_ends) = (false, false);
    for n in 1..MOST {
        if load_ends && unload_ends {
            break;
        }
        let generation = i64::from(n);
        // Each load begins with the image in the registry: fetching and unpacking are part of it.
        if load_ends {
            world.start_worker().await?;
        }
        let both = ["kmm_base", "kmm_top"];
        let killed = fulfil(&world, (!load_ends).then_some(n), entry(generation), vec![], &both)
            .await
            .with_context(|| format!("killed before change {n} of a load"))?;
        println!("load: {killed:?}");
        load_ends |= killed.is_none();
        loads.extend(killed);
        if !unload_ends {
            world.end_worker("KILL").await?;
            assert_eq!(world.loaded().await?, both, "a worker that was killed took something along");
        }
        let order = vec![world.intent("top", generation)];
        let killed = fulfil(&world, (!unload_ends).then_some(n), vec![], order, &[])
            .await
            .with_context(|| format!("killed before change {n} of an unload"))?;
        println!("unload: {killed:?}");
        unload_ends |= killed.is_none();
        unloads.extend(killed);
        world.end_worker("KILL").await?;
        world.vm.run("rm -rf /var/lib/kmm").await?;
    }
    println!("{} boundaries of a load: {loads:?}\n{} boundaries of an unload: {unloads:?}", loads.len(), unloads.len());
    ensure!(load_ends && unload_ends, "no end after {MOST} calls");
    let has = |calls: &[String], call: &str| calls.iter().any(|told| told.ends_with(call));
    ensure!(has(&loads, ": finit_module") && has(&loads, ": mkdir") && has(&unloads, ": delete_module"));
    Ok(())
}
