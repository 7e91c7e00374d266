//! A node whose kubelet has credentials of its own for a registry, in its file and from a plugin.

use anyhow::{Context, Result, ensure};
use kmm::api::{ModuleState, NodeModulesConfig};
use kube::Api;
use serde_json::json;

use crate::support::images::{Image, Layer, kmod_layer};
use crate::support::registry::Registry;
use crate::support::{eventually, kmods};
use crate::world::{NODE, World};

pub(crate) const USER: &str = "puller";
pub(crate) const PASSWORD: &str = "hunter2";
const PLUGINS: &str = "/opt/credential-providers";
const CONFIG: &str = "/etc/kubernetes/credential-provider.yaml";

/// What makes of the bed's kubelet one with credentials for `…/file` and, from a plugin, for `…/plugin`.
pub(crate) fn files(registry: &Registry) -> Vec<(String, u32, Vec<u8>)> {
    let (address, login) = (registry.address(), json!({"username": USER, "password": PASSWORD}));
    let docker_config = json!({"auths": {format!("{address}/file"): login}});
    let providers = json!({
        "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
        "providers": [{
            "name": "bed-provider", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "defaultCacheDuration": "10m",
            "matchImages": [&address], "args": ["for-images"], "env": [{"name": "OWN", "value": "of the provider"}],
        }],
    });
    let answer = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse",
        "cacheKeyType": "Image", "auth": {format!("{address}/plugin"): login},
    });
    let plugin = format!(
        "#!/bin/sh\nimage=$(sed -n 's/.*\"image\":\"\\([^\"]*\\)\".*/\\1/p')\n\
         echo \"$image $1 $OWN $OF_KUBELET $KMM_PROC.\" >>/run/asked\ncat <<END\n{answer}\nEND\n"
    );
    // The bed starts `kubelet` with its own flags; these come last.
    let kubelet = format!(
        "#!/bin/sh\nln -sf /usr/bin/kube /run/kubelet\nOF_KUBELET=kubelet exec /run/kubelet \"$@\" \
         --image-credential-provider-config={CONFIG} --image-credential-provider-bin-dir={PLUGINS}\n"
    );
    vec![
        ("/usr/bin/kubelet".into(), 0o755, kubelet.into_bytes()),
        ("/var/lib/kubelet/config.json".into(), 0o600, docker_config.to_string().into_bytes()),
        (CONFIG.into(), 0o644, providers.to_string().into_bytes()),
        (format!("{PLUGINS}/bed-provider"), 0o755, plugin.into_bytes()),
    ]
}

/// Modules without a pull secret are loaded with what the kubelet has, whose plugin is an executable that only the node can
/// run; without either the message says what was tried.
pub(crate) async fn the_nodes_own_open_the_registry(world: &World) -> Result<()> {
    let release = world.node.kernel();
    let mods = kmods::for_kernel(&release)?;
    for (name, module) in [("file", mods.param()?), ("plugin", mods.base()?), ("nobody", mods.soft()?)] {
        let kernel_module = module.name.clone();
        let layer = kmod_layer(&release, &[(module.file_name, module.bytes)], "/opt")?;
        // Images that are equal would be fetched once.
        let image =
            Image::new().layer(layer).layer(Layer::new().file(format!("opt/lib/modules/{release}/{name}"), name));
        let digest = world.closed.push(name, "latest", &image.build()?).await?;
        let image = format!("{}/{name}@{digest}", world.closed.address());
        let container = json!({
            "registryTLS": {"insecure": true}, "modprobe": {"moduleName": kernel_module},
            "kernelMappings": [{"regexp": "^.+$", "containerImage": image}],
        });
        world.apply(&format!("by-{name}"), &json!({"container": container})).await?;
    }
    let api: Api<NodeModulesConfig> = Api::all(world.cluster.admin().await?);
    let settled = eventually(crate::world::LIMIT, "the three pulls to end", || async {
        let modules = api.get(NODE).await?.status.unwrap_or_default().modules;
        let told = |name: &str| modules.iter().find(|module| module.name == format!("by-{name}")).cloned();
        let [file, plugin, nobody] = ["file", "plugin", "nobody"].map(told);
        let (file, plugin, nobody) =
            (file.context("no entry")?, plugin.context("no entry")?, nobody.context("no entry")?);
        let loaded = [&file, &plugin].iter().all(|module| module.state == Some(ModuleState::Loaded));
        ensure!(loaded && nobody.state == Some(ModuleState::Failed), "{file:?}\n{plugin:?}\n{nobody:?}");
        Ok(Some(nobody))
    })
    .await;
    let nobody = match settled {
        Ok(nobody) => nobody,
        Err(error) => anyhow::bail!("{error:#}\n{}", world.logs().await),
    };
    ensure!(nobody.reason.as_deref() == Some("ImageUnauthorized"), "{nobody:?}");
    ensure!(nobody.message.as_deref().unwrap_or_default().contains("asked without credentials"), "{nobody:?}");
    let asked = world.node.run("sort -u /run/asked").await?;
    let expected = format!("{}/plugin for-images of the provider kubelet .", world.closed.address());
    ensure!(asked.lines().any(|line| line == expected), "{asked}");
    for name in ["file", "plugin", "nobody"] {
        world.delete_module_and_wait(&format!("by-{name}")).await?;
    }
    Ok(())
}
