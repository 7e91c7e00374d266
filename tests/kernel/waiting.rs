//! What hangs, what is in use and what vanishes: told truly, waited for cheaply, mended within seconds.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kmm::api::ModuleState::{Loaded, Loading, UnloadFailed};

use crate::special::special;
use crate::support::eventually;
use crate::world::{Options, PATIENCE, World, of};

#[tokio::test]
async fn a_module_that_hangs_holds_up_nobody_and_one_in_use_is_told_with_its_users() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let hang = world.push("hang", &[special("kmm_hang")?]).await?;
    let users = ["kmm_misc", "kmm_fs", "kmm_net"].map(special).into_iter().collect::<Result<Vec<_>>>()?;
    let used = world.push("used", &[&users[..], &[mods.plain()?, mods.param()?]].concat()).await?;
    world.start_worker().await?;
    let hanging = || world.entry("hang", "kmm_hang", &hang, 1);
    let entry = |name: &str| world.entry(name, &format!("kmm_{name}"), &used, 1);
    let loaded = |name| (name, Loaded, "Loaded");

    // A few looks at the kernel, and as much more as this machine is slow now: what a load took beside nothing else.
    let begun = Instant::now();
    let generation = world.want(vec![entry("plain")], vec![]).await?;
    world.settled(generation, &[loaded("plain")]).await?;
    let soon = Duration::from_secs(10) + begun.elapsed() * 3;

    // Others are loaded and unloaded while one is stuck in its init function, and the status says which one it is.
    let generation = world.want(vec![hanging(), entry("plain")], vec![]).await?;
    world.settled(generation, &[("hang", Loading, "Loading"), loaded("plain")]).await?;
    let stuck = Instant::now();
    let others = vec![hanging(), entry("plain"), entry("misc"), entry("fs"), entry("net")];
    let generation = world.want(others.clone(), vec![]).await?;
    let all = [("hang", Loading, "Loading"), loaded("plain"), loaded("misc"), loaded("fs"), loaded("net")];
    world.settled(generation, &all).await?;
    ensure!(stuck.elapsed() < soon, "the others waited {:?}, not {soon:?}", stuck.elapsed());
    let status = world
        .status("what the module waits for", |status| {
            of(status, "hang").is_ok_and(|hang| hang.message.as_ref().is_some_and(|text| text.contains("kmm_hang")))
        })
        .await?;
    let message = of(&status, "hang")?.message.clone().unwrap_or_default();
    ensure!(message.contains("has not returned for more than 30 s"), "{message}");
    world.vm.run("echo 1 >/sys/module/kmm_hang/parameters/release").await?;
    let all = [loaded("hang"), loaded("plain"), loaded("misc"), loaded("fs"), loaded("net")];
    world.settled(generation, &all).await?;

    // In use: by a process that has the device open, by a mount, by network interfaces that are up.
    let holder = "echo $$ >/run/holder; exec sleep 100000 3</dev/kmm-misc";
    world.vm.run(&format!("setsid sh -c '{holder}' >/dev/null 2>&1 </dev/null & mkdir -p /data")).await?;
    world.vm.run("busybox mount -t emptydata none /data").await?;
    world.vm.run("ip link set bednet0 up; ip link set kmm_net0 up").await?;
    let intents = ["misc", "fs", "net"].map(|name| world.intent(name, 1)).to_vec();
    let generation = world.want(vec![hanging(), entry("plain")], intents).await?;
    let in_use = |name| (name, UnloadFailed, "InUse");
    let waiting = [loaded("hang"), loaded("plain"), in_use("misc"), in_use("fs"), in_use("net")];
    world.settled(generation, &waiting).await?;
    let status = world
        .status("the users", |status| {
            let told = |name: &str, word: &str| {
                of(status, name).is_ok_and(|e| e.message.as_ref().is_some_and(|m| m.contains(word)))
            };
            told("misc", "open: ") && told("fs", "mounted: ") && told("net", "interfaces: ")
        })
        .await?;
    let message = |name| of(&status, name).map(|entry| entry.message.clone().unwrap_or_default());
    let (misc, fs, net) = (message("misc")?, message("fs")?, message("net")?);
    println!("{misc}\n{fs}\n{net}");
    ensure!(misc.contains("reference count 1, open: ") && misc.contains("has /dev/kmm-misc"), "{misc}");
    ensure!(fs.contains("reference count 1, mounted: /data (emptydata)"), "{fs}");
    ensure!(net.contains("reference count 2, network interfaces: bednet0, kmm_net0"), "{net}");
    // A quarter of a minute of waiting asks the kernel for nothing and writes nothing.
    let before = world.writes()?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(world.writes()?, before);
    let tries = world.vm.run("grep -c '\"unloading\"' /var/log/worker.log || true").await?;
    assert_eq!(tries.trim(), "0", "the kernel was asked although its count says no");
    world.vm.run("umount /data; kill $(cat /run/holder); ip link set bednet0 down; ip link set kmm_net0 down").await?;
    let freed = Instant::now();
    let gone = || async { Ok((world.loaded().await? == ["kmm_hang", "kmm_plain"]).then_some(())) };
    eventually(soon, "all to go as soon as they are free", gone).await?;
    println!("free modules went after {:.1} s", freed.elapsed().as_secs_f64());
    world.settled(generation, &[loaded("hang"), loaded("plain")]).await?;

    // Drift is mended within seconds, and the API server is not asked for anything.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = || -> Result<Vec<String>> {
        let requests = world.plane.requests()?.into_iter();
        let ours = requests.filter(|request| request.uri.contains(&world.node) && request.verb != "watch");
        Ok(ours.map(|request| format!("{} {}", request.verb, request.resource)).collect())
    };
    let before = asked()?.len();
    let birth = world.birth("kmm_plain").await?;
    world.vm.run("rmmod kmm_plain").await?;
    let vanished = Instant::now();
    let back = || async { Ok((world.loaded().await? == ["kmm_hang", "kmm_plain"]).then_some(())) };
    eventually(soon, "the module that vanished", back).await?;
    println!("a module that vanished was back after {:.1} s", vanished.elapsed().as_secs_f64());
    ensure!(world.birth("kmm_plain").await? != birth, "it never went");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let requests = asked()?.split_off(before);
    ensure!(requests.len() <= 2, "{requests:?}");
    ensure!(requests.iter().all(|request| request == "patch nodemodulesconfigs/status"), "{requests:?}");
    Ok(())
}

#[tokio::test]
async fn a_worker_whose_port_somebody_has_says_so_and_works() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let image = world.push("plain", &[world.mods.plain()?]).await?;
    world.vm.run("mkdir -p /run/empty && busybox httpd -p 127.0.0.1:18181 -h /run/empty").await?;
    world.start_worker().await?;
    let generation = world.want(vec![world.entry("plain", "kmm_plain", &image, 1)], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    let told = "works all the same. Free the port";
    world.vm.wait_for(PATIENCE, "cat /var/log/worker.log", |out| out.text().contains(told)).await?;
    // It did not begin anew for that.
    let generation = world.want(vec![], vec![world.intent("plain", 1)]).await?;
    world.settled(generation, &[]).await?;
    ensure!(world.vm.run("cat /var/log/worker.log").await?.matches("worker starts").count() == 1);
    Ok(())
}
