//! Images come with the credentials that the node's kubelet would log in with.

use anyhow::{Context, Result, ensure};
use kmm::api::ModuleState::{Failed, Loaded};
use serde_json::json;

use crate::support::images::{Layer, kmod_image};
use crate::support::registry::{Registry, RegistryOptions};
use crate::world::{Options, World, of};

const USER: &str = "puller";
const PASSWORD: &str = "hunter2";

/// In the place of a kubelet: what it is told, and files that only it sees.
async fn start_kubelet(world: &World, registry: &str) -> Result<()> {
    let docker_config = json!({"auths": {format!("{registry}/file"): {"username": USER, "password": PASSWORD}}});
    let providers = json!({
        "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
        "providers": [{
            "name": "bed-provider", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "args": ["one", "two"],
            "matchImages": [format!("{registry}/plugin"), format!("{registry}/failing")], "defaultCacheDuration": "1h",
            "env": [{"name": "MODE", "value": "own"}],
        }],
    });
    let answer = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse",
        "cacheKeyType": "Image", "auth": {format!("{registry}/plugin"): {"username": USER, "password": PASSWORD}},
    });
    let plugin = format!(
        "#!/bin/sh\n\
         image=$(sed -n 's/.*\"image\":\"\\([^\"]*\\)\".*/\\1/p')\n\
         echo \"$image $* $MODE $REGION $KUBECONFIG.\" >>/run/asked\n\
         case $image in */failing) echo the secret is open >&2; exit 3 ;; esac\n\
         cat <<END\n{answer}\nEND\n"
    );
    let vm = &world.vm;
    vm.put("/run/kubelet", 0o755, b"#!/bin/sh\necho $$ >/run/kubelet.pid\nwhile :; do sleep 1; done\n").await?;
    vm.put("/run/hidden/config.json", 0o600, docker_config.to_string().as_bytes()).await?;
    vm.put("/run/hidden/providers.yaml", 0o644, providers.to_string().as_bytes()).await?;
    vm.put("/run/hidden/bed-provider", 0o755, plugin.as_bytes()).await?;
    let inside = "mount -t tmpfs tmpfs /var/lib/kubelet && cp -p /run/hidden/* /var/lib/kubelet && rm -r /run/hidden && \
                  exec /run/kubelet --image-credential-provider-config /var/lib/kubelet/providers.yaml \
                  --image-credential-provider-bin-dir=/var/lib/kubelet";
    vm.run(&format!(
        "mkdir -p /var/lib/kubelet && REGION=north MODE=kubelet setsid unshare -m sh -c '{inside}' >/dev/null 2>&1 </dev/null & \
         until [ -e /run/kubelet.pid ]; do sleep 0.1; done"
    ))
    .await?;
    Ok(())
}

#[tokio::test]
async fn what_the_nodes_kubelet_would_log_in_with_is_used_as_the_kubelet_sees_it_unless_that_is_forbidden() -> Result<()>
{
    let world = World::start(Options::default()).await?;
    let auth = Some((USER.to_owned(), PASSWORD.to_owned()));
    let registry = Registry::start(RegistryOptions { auth, ..RegistryOptions::default() }).await?;
    let (address, release, mods) = (registry.address(), &world.mods.release, &world.mods);
    let push = async |repository: &str, module| -> Result<String> {
        // Images that are equal would be fetched once.
        let own = Layer::new().file(format!("opt/lib/modules/{release}/{repository}"), repository);
        let image = kmod_image(release, &[module], "/opt")?.layer(own).build()?;
        let digest = registry.push(repository, "latest", &image).await?;
        Ok(format!("{address}/{repository}@{digest}"))
    };
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "stale", "namespace": world.namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": json!({"auths": {&address: {"username": USER, "password": "old"}}}).to_string()},
    });
    world.plane.apply_yaml(&secret.to_string()).await?;
    start_kubelet(&world, &address).await?;
    world.start_worker().await?;

    let entries = vec![
        world.entry("file", "kmm_plain", &push("file", mods.plain()?).await?, 1),
        world.entry("plugin", "kmm_param", &push("plugin", mods.param()?).await?, 1),
        World::with_secret(world.entry("stale", "kmm_base", &push("file/base", mods.base()?).await?, 1), "stale"),
        world.entry("failing", "kmm_soft", &push("failing", mods.soft()?).await?, 1),
        world.entry("nobody", "kmm_soft", &push("nobody", mods.soft()?).await?, 1),
    ];
    let generation = world.want(entries, vec![]).await?;
    let expected = [
        ("file", Loaded, "Loaded"),
        ("plugin", Loaded, "Loaded"),
        ("stale", Loaded, "Loaded"),
        ("failing", Failed, "ImageUnauthorized"),
        ("nobody", Failed, "ImageUnauthorized"),
    ];
    let status = world.settled(generation, &expected).await?;
    assert_eq!(world.loaded().await?, ["kmm_base", "kmm_param", "kmm_plain"]);
    let message = |name| anyhow::Ok(of(&status, name)?.message.clone().unwrap_or_default());
    let (failing, nobody) = (message("failing")?, message("nobody")?);
    ensure!(failing.contains("the node's credential provider bed-provider: it left with exit status: 3"), "{failing}");
    ensure!(!failing.contains("secret") && nobody.contains("asked without credentials"), "{failing} {nobody}");
    ensure!(world.worker_log().await.contains("the secret is open"), "what the plugin wrote is nowhere");
    let asked = world.vm.run("sort -u /run/asked").await?;
    // The kubelet's environment with the provider's own, nothing of the worker's.
    let expected = ["failing", "plugin"].map(|name| format!("{address}/{name} one two own north ."));
    assert_eq!(asked.lines().collect::<Vec<_>>(), expected);
    let answered = world.vm.run(&format!("grep -c '{address}/plugin ' /run/asked")).await?;
    assert_eq!(answered.trim(), "1");

    // Turned off, the same node has none.
    world.end_worker("TERM").await?;
    world.start_with("KMM_NODE_CREDENTIALS=false").await?;
    let late = push("file/late", mods.soft()?).await?;
    let entry = |generation| vec![world.entry("late", "kmm_soft", &late, generation)];
    let generation = world.want(entry(1), vec![]).await?;
    let off = world.status("a pull that is refused", |status| {
        let late = status.modules.iter().find(|module| module.name == "late");
        status.observed_generation == Some(generation) && late.is_some_and(|late| late.state == Some(Failed))
    });
    let told = of(&off.await?, "late")?.message.clone().context("no message")?;
    ensure!(told.contains("asked without credentials"), "{told}");

    // Without a kubelet that can be found, its usual file counts, as the node's first process sees it.
    world.end_worker("TERM").await?;
    world.vm.run("kill -9 $(cat /run/kubelet.pid)").await?;
    world.vm.put("/var/lib/kubelet/config.json", 0o600, registry.docker_config().as_bytes()).await?;
    world.start_worker().await?;
    world.want(entry(2), vec![]).await?;
    world.vm.wait_for(crate::world::PATIENCE, "cat /proc/modules", |out| out.text().contains("kmm_soft ")).await?;
    Ok(())
}
