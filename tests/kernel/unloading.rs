//! What leaves the kernel, and what does not.

use anyhow::{Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded, Orphaned, UnloadFailed};
use kmm::api::NodeModulesConfigStatus;

use crate::support::bed::bed;
use crate::support::kmods::{Kmod, compile};
use crate::world::{Options, PATIENCE, World, build_id, of};

#[tokio::test]
async fn only_an_order_replaces_or_unloads_and_a_module_in_use_is_waited_for() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let one = world.push("one", &[mods.plain()?, mods.base()?, mods.top()?]).await?;
    let two = world.push("two", &[mods.plain_v2()?]).await?;
    world.start_worker().await?;
    let top = world.entry("top", "kmm_top", &one, 1);
    let generation = world.want(vec![world.entry("plain", "kmm_plain", &one, 1), top.clone()], vec![]).await?;
    let first = world.settled(generation, &[("plain", Loaded, "Loaded"), ("top", Loaded, "Loaded")]).await?;

    // A changed image alone replaces nothing, and readiness ends.
    let generation = world.want(vec![world.entry("plain", "kmm_plain", &two, 2), top.clone()], vec![]).await?;
    let status = world.settled(generation, &[("plain", Failed, "LoadedOtherFile"), ("top", Loaded, "Loaded")]).await?;
    assert_eq!(of(&status, "plain")?.build_id, Some(build_id(&mods.plain()?)?));
    assert_eq!(of(&status, "plain")?.config.as_ref().map(|config| config.container_image.as_str()), Some(one.as_str()));

    // With the order it does.
    let orders = vec![world.intent("plain", 1)];
    let generation = world.want(vec![world.entry("plain", "kmm_plain", &two, 2), top.clone()], orders.clone()).await?;
    let status = world.settled(generation, &[("plain", Loaded, "Loaded"), ("top", Loaded, "Loaded")]).await?;
    assert_eq!(of(&status, "plain")?.build_id, Some(build_id(&mods.plain_v2()?)?));
    let load_time = |status: &NodeModulesConfigStatus, name| anyhow::Ok(of(status, name)?.load_time.clone());
    ensure!(load_time(&status, "plain")? > load_time(&first, "plain")?, "no other load: {status:?}");
    assert_eq!(world.vm.run("cat /sys/module/kmm_plain/version").await?.trim(), "2.0");

    // No longer wanted and no order: it stays and is told.
    let generation = world.want(vec![top.clone()], orders).await?;
    world.settled(generation, &[("plain", Orphaned, "NotWanted"), ("top", Loaded, "Loaded")]).await?;
    let generation = world.want(vec![top], vec![world.intent("plain", 2)]).await?;
    world.settled(generation, &[("top", Loaded, "Loaded")]).await?;
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_top"]);

    // Neither loading again nor unloading needs the registry.
    world.registry.pause()?;
    world.vm.put("/mods/kmm_base.ko", 0o644, &mods.base()?.bytes).await?;
    world.vm.run("rmmod kmm_top; rmmod kmm_base; insmod /mods/kmm_base.ko").await?;
    // What vanished is loaded again from the node's own disk.
    world.vm.wait_for(PATIENCE, "cat /proc/modules", |out| out.text().contains("kmm_top ")).await?;
    let before = load_time(&first, "top")?;
    world.status("another load of top", |now| load_time(now, "top").is_ok_and(|time| time > before)).await?;
    let generation = world.want(vec![], vec![world.intent("top", 1)]).await?;
    world.settled(generation, &[]).await?;
    ensure!(!world.loaded().await?.contains(&"kmm_top".to_owned()), "an order unloads without a registry");
    Ok(())
}

#[tokio::test]
async fn a_module_in_use_is_told_with_its_holders_and_goes_when_it_is_free() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let base = world.push("base", &[mods.base()?]).await?;
    world.start_worker().await?;
    let generation = world.want(vec![world.entry("base", "kmm_base", &base, 1)], vec![]).await?;
    world.settled(generation, &[("base", Loaded, "Loaded")]).await?;
    world.vm.put("/mods/kmm_top.ko", 0o644, &mods.top()?.bytes).await?;
    world.vm.run("insmod /mods/kmm_top.ko").await?;
    let generation = world.want(vec![], vec![world.intent("base", 1)]).await?;
    let status = world.settled(generation, &[("base", UnloadFailed, "InUse")]).await?;
    let message = of(&status, "base")?.message.clone().unwrap_or_default();
    ensure!(message.contains("kmm_top") && message.contains("reference count 1"), "{message}");
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_top"]);
    world.vm.run("rmmod kmm_top").await?;
    world.settled(generation, &[]).await?;
    assert_eq!(world.loaded().await?, [""; 0]);
    Ok(())
}

/// Modules that tell when they leave. Nothing ties them together but a soft dependency of the first.
fn telling() -> Result<Vec<Kmod>> {
    const NAMES: [&str; 4] = ["kmm_leaves_m", "kmm_leaves_a", "kmm_leaves_z", "kmm_leaves_p"];
    let source = |name: &str| {
        let soft = if name == "kmm_leaves_m" { "MODULE_SOFTDEP(\"post: kmm_leaves_p\");" } else { "" };
        format!(
            "#include <linux/module.h>\nstatic int __init start(void) {{ return 0; }}\n\
             static void __exit end(void) {{ pr_info(\"leaves: {name}\\n\"); }}\n\
             module_init(start);\nmodule_exit(end);\nMODULE_LICENSE(\"GPL\");\n{soft}\n"
        )
    };
    let files: Vec<(String, String)> = NAMES.iter().map(|name| (format!("{name}.c"), source(name))).collect();
    let objects: Vec<String> = NAMES.iter().map(|name| format!("{name}.o")).collect();
    let makefile = ("Makefile".to_owned(), format!("obj-m := {}\n", objects.join(" ")));
    let set: Vec<(&str, String)> =
        files.iter().chain([&makefile]).map(|(file, text)| (file.as_str(), text.clone())).collect();
    let folder = compile(bed()?.kernel(), "leaving", &[("1", &set)])?.join("1");
    NAMES.iter().map(|name| Kmod::read(&folder.join(format!("{name}.ko")))).collect()
}

#[tokio::test]
async fn modules_leave_in_the_order_in_which_modprobe_takes_them_out() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let (mods, release) = (telling()?, &world.mods.release);
    let image = world.push("order", &mods).await?;
    let plain = world.push("plain", &[world.mods.plain()?]).await?;
    for module in &mods {
        world.vm.put(&format!("/o/lib/modules/{release}/{}", module.file_name), 0o644, &module.bytes).await?;
    }
    world
        .vm
        .run(&format!(
            "cd /o/lib/modules/{release}; touch modules.order modules.builtin; /usr/sbin/depmod -b /o {release}; \
             mkdir -p /etc/modprobe.d; echo 'softdep kmm_leaves_m pre: kmm_leaves_a post: kmm_leaves_p' >/run/kmm.conf; \
             echo 'softdep kmm_leaves_a pre: kmm_leaves_z' >>/run/kmm.conf"
        ))
        .await?;
    let left = async || world.vm.run("dmesg | sed -n 's/.*leaves: //p'; dmesg -c >/dev/null").await;

    // A loading order, with a soft dependency that comes after the module itself. Of two lines for one module modprobe takes
    // the first: the name of the file sorts before `modules.softdep`.
    world
        .vm
        .run(
            "cp /run/kmm.conf /etc/modprobe.d/; dmesg -c >/dev/null; /usr/sbin/modprobe -d /o kmm_leaves_m; \
             /usr/sbin/modprobe -d /o -r kmm_leaves_m kmm_leaves_a kmm_leaves_z; rm /etc/modprobe.d/kmm.conf",
        )
        .await?;
    let theirs = left().await?;
    ensure!(theirs.lines().count() == 4, "modprobe took out {theirs}");
    world.start_worker().await?;
    let mut entry = world.entry("order", "kmm_leaves_m", &image, 1);
    let order = ["kmm_leaves_m", "kmm_leaves_a", "kmm_leaves_z"];
    entry.config.modprobe.modules_loading_order = Some(order.map(ToOwned::to_owned).into());
    let generation = world.want(vec![entry], vec![]).await?;
    world.settled(generation, &[("order", Loaded, "Loaded")]).await?;
    assert_eq!(world.loaded().await?.len(), 4);
    let generation = world.want(vec![], vec![world.intent("order", 1)]).await?;
    world.settled(generation, &[]).await?;
    assert_eq!(left().await?, theirs);

    // A list of the kernel's own.
    let insert = format!("cd /o/lib/modules/{release}; for m in m a z p; do insmod kmm_leaves_$m.ko; done");
    let list = ["kmm_leaves_p", "kmm_leaves_z", "kmm_leaves_m", "kmm_leaves_a"];
    world.vm.run(&format!("{insert}; /usr/sbin/modprobe -d /o -r {}", list.join(" "))).await?;
    let theirs = left().await?;
    ensure!(theirs.lines().count() == 4, "modprobe took out {theirs}");
    world.vm.run(&insert).await?;
    let mut entry = world.entry("plain", "kmm_plain", &plain, 1);
    entry.config.in_tree_modules_to_remove = list.map(ToOwned::to_owned).into();
    let generation = world.want(vec![entry], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    assert_eq!(left().await?, theirs);
    Ok(())
}
