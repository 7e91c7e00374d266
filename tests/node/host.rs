//! What a Module changes on a node besides its kernel module, by a worker that sees the node through the mounts of its pod.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kmm::api::NodeModulesConfig;
use kube::Api;
use serde_json::json;

use crate::support::asking::asking;
use crate::support::images::{Image, Layer, kmod_layer};
use crate::support::{eventually, kmods};
use crate::world::{MODULE, NODE, World};

const NAME: &str = "kmm-host";
const SEARCH_PATH: &str = "cat /sys/module/firmware_class/parameters/path";

/// A Module beside the first one has its firmware found by the node's kernel and its file by the node's tools, and leaves
/// nothing of both; the first one is not touched by what that needs.
pub(crate) async fn firmware_and_files_come_and_go(world: &World) -> Result<()> {
    let release = world.node.kernel();
    let module = asking(&release, "kmm_fw_pod")?;
    let modules = kmod_layer(&release, &[(module.file_name, module.bytes)], "/opt")?;
    let firmware = Layer::new().file("firmware/vendor/card.bin", "from the image");
    let image = Image::new().layer(modules).layer(firmware).build()?;
    world.registry.push("kmods/host", "v1", &image).await?;
    let birth = birth(world).await?;
    let container = json!({
        "registryTLS": {"insecure": true},
        "modprobe": {"moduleName": "kmm_fw_pod", "parameters": ["file=vendor/card.bin"], "firmwarePath": "/firmware"},
        "kernelMappings": [{"regexp": "^.+$", "containerImage": format!("{}/kmods/host:v1", world.registry.address())}],
    });
    world.apply(NAME, &json!({"policy": {"publishOnHost": true}, "container": container})).await?;
    world.wait_loaded(NAME).await?;

    let said = world.node.run("dmesg | grep kmm_fw_pod:").await?;
    ensure!(said.contains("vendor/card.bin: got from the image"), "the driver got: {said}");
    let file = format!("/lib/modules/{release}/updates/kmm/default.{NAME}/kmm_fw_pod.ko");
    let modinfo = "/usr/sbin/modinfo -n kmm_fw_pod 2>&1";
    // The worker with the writable mount comes after the one that has loaded the module.
    let limit = Duration::from_mins(2);
    world.node.wait_for(limit, modinfo, |out| out.text().trim() == file).await.context("the file for the host")?;
    world
        .node
        .run(&format!("grep -q 'updates/kmm/default.{NAME}/kmm_fw_pod.ko:' /lib/modules/{release}/modules.dep"))
        .await?;

    world.delete_module_and_wait(NAME).await?;
    let gone = format!("{modinfo}; ls /lib/modules/{release}/updates/kmm 2>&1; {SEARCH_PATH}");
    world
        .node
        .wait_for(limit, &gone, |out| {
            let text = out.text();
            !text.contains(&file) && !text.contains(NAME) && !text.contains("/var/lib/kmm")
        })
        .await
        .context("the firmware and the file to go")?;
    ensure!(self::birth(world).await? == birth, "the other Module's kernel module was touched");
    world.wait_loaded(MODULE).await?;
    Ok(())
}

/// Under lockdown a file without a signature is refused while the one that it would replace is still loaded. A kernel stays
/// locked down until it boots again.
pub(crate) async fn a_locked_down_kernel_keeps_what_it_has(world: &World) -> Result<()> {
    let release = world.node.kernel();
    let module = kmods::for_kernel(&release)?.plain_v2()?;
    let layer = kmod_layer(&release, &[(module.file_name, module.bytes)], "/opt")?;
    world.registry.push("kmods/plain", "unsigned", &Image::new().layer(layer).build()?).await?;
    let lockdown = "/sys/kernel/security/lockdown";
    world
        .node
        .run(&format!(
            "[ -e {lockdown} ] || mount -t securityfs securityfs /sys/kernel/security; echo integrity >{lockdown}"
        ))
        .await?;
    let birth = birth(world).await?;
    let container = json!({
        "registryTLS": {"insecure": true}, "modprobe": {"moduleName": "kmm_plain"},
        "kernelMappings": [{"regexp": "^.+$", "containerImage": format!("{}/kmods/plain:unsigned", world.registry.address())}],
    });
    world.apply(MODULE, &json!({"container": container})).await?;
    let api: Api<NodeModulesConfig> = Api::all(world.cluster.admin().await?);
    eventually(Duration::from_mins(2), "the refusal under lockdown", || async {
        let status = api.get(NODE).await?.status.unwrap_or_default();
        let entry = status.modules.into_iter().find(|entry| entry.name == MODULE).context("no entry")?;
        let message = entry.message.clone().unwrap_or_default();
        let refused =
            entry.reason.as_deref() == Some("SignatureMissing") && message.contains("lockdown is `integrity`");
        if refused { Ok(Some(())) } else { bail!("{entry:?}") }
    })
    .await?;
    ensure!(self::birth(world).await? == birth, "the loaded file was given up for one that cannot be loaded");
    Ok(())
}

/// When the kernel made the folder of the first Module's kernel module.
pub(crate) async fn birth(world: &World) -> Result<String> {
    world.node.run("stat -c %y.%i /sys/module/kmm_plain/initstate").await
}
