//! Every failure has its own reason, harms nothing else, and ends when its cause does.

use anyhow::{Result, ensure};
use base64::Engine as _;
use kmm::api::ModuleState::{Failed, Loaded};
use kmm::api::{LocalObjectReference, NodeModuleSpec};
use serde_json::json;

use crate::support::faulty::{Fault, FaultyRegistry};
use crate::support::registry::{Registry, RegistryOptions};
use crate::world::{Options, World, nothing, of};

#[tokio::test]
async fn what_the_kernel_or_the_image_refuses_has_a_reason_and_does_not_hold_up_others() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let good = world.push("good", &[mods.plain()?, mods.param()?]).await?;
    let failing = world.push("failing", &[mods.fail()?]).await?;
    let lonely = world.push_files("lonely", &[("kmm_top.ko".into(), mods.top()?.bytes)]).await?;
    let text = world.push_files("text", &[("kmm_text.ko".into(), b"this is no module".to_vec())]).await;
    world.vm.put("/mods/kmm-dash.ko", 0o644, &mods.dash()?.bytes).await?;
    world.start_worker().await?;
    let mut bad_value = world.entry("value", "kmm_param", &good, 1);
    bad_value.config.modprobe.parameters = vec!["number=many".into()];
    let mut unsupported = world.entry("args", "kmm_plain", &good, 1);
    unsupported.config.modprobe.modprobe_config = Some("install kmm_plain /bin/true".into());
    let mut entries = vec![
        world.entry("plain", "kmm_plain", &good, 1),
        world.entry("absent", "kmm_absent", &good, 1),
        world.entry("fail", "kmm_fail", &failing, 1),
        world.entry("tag", "kmm_plain", "registry.example/kmm:1", 1),
        bad_value,
        unsupported,
    ];
    let mut expected = vec![
        ("plain", Loaded, "Loaded"),
        ("absent", Failed, "ModuleNotFound"),
        ("fail", Failed, "KernelRefused"),
        ("tag", Failed, "ImageInvalidReference"),
        ("value", Failed, "ParameterRefused"),
        ("args", Failed, "UnsupportedArgs"),
    ];
    // depmod refuses to look at text; where it does not, the worker does.
    if let Ok(text) = &text {
        entries.push(world.entry("text", "kmm_text", text, 1));
        expected.push(("text", Failed, "InvalidModule"));
    }
    let generation = world.want(entries.clone(), vec![]).await?;
    let status = world.settled(generation, &expected).await?;
    let message = of(&status, "fail")?.message.clone().unwrap_or_default();
    ensure!(message.contains("ENODEV"), "{message}");
    let message = of(&status, "value")?.message.clone().unwrap_or_default();
    ensure!(message.contains("invalid for parameter"), "the kernel's own words are told: {message}");
    assert_eq!(world.loaded().await?, ["kmm_plain"]);

    // A dependency that is nowhere: depends= names it.
    let generation = world.want(vec![world.entry("top", "kmm_top", &lonely, 1)], vec![]).await?;
    let lone = world.status("the lonely module", |status| {
        status.observed_generation == Some(generation)
            && status.modules.iter().any(|m| m.name == "top" && m.state == Some(Failed))
    });
    let reason = of(&lone.await?, "top")?.reason.clone().unwrap_or_default();
    ensure!(reason == "DependencyMissing" || reason == "SymbolMissing", "{reason}");
    Ok(())
}

#[tokio::test]
async fn another_file_under_the_name_is_told_and_not_touched_and_an_equal_one_is_adopted() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let mods = &world.mods;
    let image = world.push("plain", &[mods.plain()?, mods.param()?]).await?;
    world.vm.put("/mods/kmm_plain.ko", 0o644, &mods.plain_v2()?.bytes).await?;
    world.vm.put("/mods/kmm_param.ko", 0o644, &mods.param()?.bytes).await?;
    world.vm.run("insmod /mods/kmm_plain.ko && insmod /mods/kmm_param.ko number=7").await?;
    let birth = world.birth("kmm_param").await?;
    world.start_worker().await?;
    let mut param = world.entry("param", "kmm_param", &image, 1);
    param.config.modprobe.parameters = vec!["number=7".into()];
    let generation = world.want(vec![world.entry("plain", "kmm_plain", &image, 1), param.clone()], vec![]).await?;
    world.settled(generation, &[("plain", Failed, "LoadedOtherFile"), ("param", Loaded, "Adopted")]).await?;
    assert_eq!(world.vm.run("cat /sys/module/kmm_plain/version").await?.trim(), "2.0");
    assert_eq!(world.birth("kmm_param").await?, birth);
    param.config.modprobe.parameters = vec!["number=8".into()];
    param.generation = Some(2);
    let mut plain = world.entry("plain", "kmm_plain", &image, 2);
    plain.config.in_tree_modules_to_remove = vec!["kmm-plain".into()];
    let generation = world.want(vec![plain, param], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded"), ("param", Failed, "LoadedOtherParameters")]).await?;
    assert_eq!(world.vm.run("cat /sys/module/kmm_plain/version").await?.trim(), "1.0");
    assert_eq!(world.parameter("kmm_param", "number").await?, "7");
    Ok(())
}

#[tokio::test]
async fn every_answer_of_a_registry_has_its_own_reason() -> Result<()> {
    let world = World::start(Options::default()).await?;
    let front = FaultyRegistry::start(&world.registry).await?;
    let image = world.push("plain", &[world.mods.plain()?]).await?;
    let (_, name) = image.split_once('/').unwrap_or_default();
    world.start_worker().await?;
    let (mut generation, mut number) = (0, 0);
    for (fault, expected) in [
        (Fault::Status(401), "ImageUnauthorized"),
        (Fault::Status(403), "ImageForbidden"),
        (Fault::Status(404), "ImageNotFound"),
        (Fault::Status(429), "ImageRateLimited"),
        (Fault::Status(500), "ImageRegistryError"),
        (Fault::Corrupt, "DigestMismatch"),
    ] {
        number += 1;
        front.set(fault.clone());
        // Each round asks from the start: a new generation with another way of fetching is not held back.
        let mut entry = world.entry("plain", "kmm_plain", &format!("{}/{name}", front.address()), number);
        entry.config.image_pull_policy = if number % 2 == 0 { "Always".into() } else { "IfNotPresent".into() };
        generation = world.want(vec![entry], vec![]).await?;
        let status = world.settled(generation, &[("plain", Failed, expected)]).await;
        ensure!(status.is_ok(), "{fault:?}: {:#}", status.unwrap_err());
    }
    let gone = format!("{}/plain@{}", world.registry.address(), nothing());
    let closed = format!("{}/plain@{}", "172.30.0.1:1", nothing());
    let generation_of_both = world
        .want(vec![world.entry("gone", "kmm_plain", &gone, 1), world.entry("closed", "kmm_plain", &closed, 1)], vec![])
        .await?;
    ensure!(generation_of_both > generation, "generations grow");
    world
        .settled(generation_of_both, &[("gone", Failed, "ImageNotFound"), ("closed", Failed, "ImageUnreachable")])
        .await?;
    front.set(Fault::None);
    let entry = world.entry("plain", "kmm_plain", &format!("{}/{name}", front.address()), number + 1);
    let generation = world.want(vec![entry], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    Ok(())
}

#[tokio::test]
async fn a_pull_secret_of_the_module_or_of_its_service_account_opens_the_registry_and_faults_are_told_apart()
-> Result<()> {
    let mut world = World::start(Options::default()).await?;
    let locked = RegistryOptions { auth: Some(("robot".into(), "right".into())), ..RegistryOptions::default() };
    world.registry = Registry::start(locked).await?;
    let image = world.push("plain", &[world.mods.plain()?]).await?;
    let secret = |name: &str, config: &str| {
        let data = base64::prelude::BASE64_STANDARD.encode(config);
        json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
            "metadata": {"name": name, "namespace": world.namespace}, "data": {".dockerconfigjson": data}})
        .to_string()
    };
    let right = world.registry.docker_config();
    let auth = base64::prelude::BASE64_STANDARD.encode("robot:wrong");
    let wrong = json!({"auths": {world.registry.address(): {"auth": auth}}}).to_string();
    world.plane.apply_yaml(&secret("right", &right)).await?;
    world.plane.apply_yaml(&secret("wrong", &wrong)).await?;
    world.start_worker().await?;
    let entry = || world.entry("plain", "kmm_plain", &image, 1);
    for (secret, expected) in
        [(None, "ImageUnauthorized"), (Some("absent"), "PullSecretMissing"), (Some("wrong"), "ImageUnauthorized")]
    {
        let wanted = secret.map_or_else(entry, |name| World::with_secret(entry(), name));
        let generation = world.want(vec![wanted], vec![]).await?;
        world.settled(generation, &[("plain", Failed, expected)]).await?;
    }
    // Those of the service account serve too, whatever else it names; what was passed over is told where it may matter.
    let of_account = |names: &[&str]| NodeModuleSpec {
        image_pull_secrets: names.iter().map(|name| LocalObjectReference { name: (*name).into() }).collect(),
        ..entry()
    };
    let generation = world.want(vec![of_account(&["absent", "wrong"])], vec![]).await?;
    let status = world.settled(generation, &[("plain", Failed, "ImageUnauthorized")]).await?;
    let message = of(&status, "plain")?.message.clone().unwrap_or_default();
    ensure!(message.contains("passed over: pull secret") && message.contains("absent does not exist"), "{message}");
    let generation = world.want(vec![of_account(&["absent", "right", "wrong"])], vec![]).await?;
    world.settled(generation, &[("plain", Loaded, "Loaded")]).await?;
    // Once loaded, nothing of it is needed any more.
    world.plane.kubectl(&["delete", "secret", "-n", &world.namespace, "right", "wrong"]).await?;
    world.registry.pause()?;
    let generation = world.want(vec![], vec![world.intent("plain", 1)]).await?;
    world.settled(generation, &[]).await?;
    assert_eq!(world.loaded().await?, [""; 0]);
    Ok(())
}
