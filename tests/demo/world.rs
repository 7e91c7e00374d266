//! The clusters, nodes and registry of the demo.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, bail};
use kmm::api::names;
use kmm::api::ocm::{ManagedCluster, ManifestWork};
use kmm::api::{ManagedClusterModule, NodeModulesConfig};
use kube::api::{Api, DeleteParams, ListParams};

use crate::ocm::{HubSide, Ocm, OcmOptions, SpokeSide};
use crate::screen::{Screen, table};
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::manager::{self, Edition};
use crate::support::node::{Node, NodeOptions};
use crate::support::registry::{Registry, RegistryOptions};
use crate::support::{bed, eventually, images, kmods};

/// What is applied on the Hub; the registry's address is put in.
const MANAGED_CLUSTER_MODULE: &str = "\
apiVersion: hub.kmm.sigs.x-k8s.io/v1beta1
kind: ManagedClusterModule
metadata:
  name: kmm-plain
spec:
  spokeNamespace: kmm-modules
  selector: {env: demo}
  moduleSpec:
    selector: {kubernetes.io/os: linux}
    moduleLoader:
      container:
        registryTLS: {insecure: true}
        modprobe: {moduleName: kmm_plain}
        kernelMappings:
        - regexp: '^.+$'
          containerImage: REGISTRY/kmods/kmm-plain:${KERNEL_FULL_VERSION}
";

const NAME: &str = "kmm-plain";
const MODULE: &str = "kmm_plain";

pub(crate) struct Spoke {
    name: &'static str,
    cluster: ControlPlane,
    node: Node,
    ocm: Option<Ocm>,
}

pub(crate) struct World {
    registry: Registry,
    image: String,
    hub: ControlPlane,
    _hub_node: Node,
    spokes: Vec<Spoke>,
}

impl World {
    pub(crate) async fn start(screen: &Screen) -> Result<Self> {
        let bed = bed()?;
        let kernels = [bed.kernel().release.clone(), bed.older_kernel().release.clone()];
        let registry = Registry::start(RegistryOptions::default()).await?;
        let image = format!("{}/kmm:demo", registry.address());
        manager::push_product(&image)?;
        for kernel in &kernels {
            let module = kmods::for_kernel(kernel)?.plain()?;
            let layer = images::kmod_layer(kernel, &[(module.file_name, module.bytes)], "/opt")?;
            registry.push("kmods/kmm-plain", kernel, &images::Image::new().layer(layer).build()?).await?;
        }
        screen.note(&format!("registry {} with the product's image and one kmod image per kernel", registry.address()));

        let control_plane = || ControlPlane::start(ControlPlaneOptions { audit: false, ..ControlPlaneOptions::full() });
        let (hub, a, b) = tokio::try_join!(control_plane(), control_plane(), control_plane())?;
        screen.note("three control planes answer; their nodes boot");
        let node = |cluster, name: &str, kernel: &str| {
            let registries = vec![(registry.address(), None)];
            let options =
                NodeOptions { name: name.into(), kernel: Some(kernel.into()), registries, ..NodeOptions::default() };
            Node::start(cluster, options)
        };
        let (hub_node, node_a, node_b) = tokio::try_join!(
            node(&hub, "hub-node", &kernels[0]),
            node(&a, "spoke-a-node", &kernels[0]),
            node(&b, "spoke-b-node", &kernels[1]),
        )?;
        screen.note(&format!("nodes Ready: hub-node, spoke-a-node ({}), spoke-b-node ({})", kernels[0], kernels[1]));
        let spoke = |name, cluster, node| Spoke { name, cluster, node, ocm: None };
        let spokes = vec![spoke("spoke-a", a, node_a), spoke("spoke-b", b, node_b)];
        Ok(Self { registry, image, hub, _hub_node: hub_node, spokes })
    }

    pub(crate) async fn install(&mut self, screen: &Screen) -> Result<()> {
        let (hub_side, installing) = (&self.hub, &self.image);
        self.hub.install_crds(&crate::ocm::crds()).await?;
        manager::install_image(hub_side, Edition::Hub, installing).await?;
        for spoke in &mut self.spokes {
            let joined = (HubSide::of(hub_side, spoke.name).await?, SpokeSide::of(&spoke.cluster).await?);
            manager::install_image(&spoke.cluster, Edition::Spoke, installing).await?;
            let labels = [("env".to_owned(), "demo".to_owned())].into();
            let options = OcmOptions { labels, status_sync_interval: Duration::from_secs(2), ..OcmOptions::default() };
            spoke.ocm = Some(Ocm::start(&joined.0, &joined.1, spoke.name, options).await?);
        }
        let managers = [("hub", &self.hub, Edition::Hub)]
            .into_iter()
            .chain(self.spokes.iter().map(|spoke| (spoke.name, &spoke.cluster, Edition::Spoke)));
        for (name, cluster, edition) in managers {
            manager::wait_available(cluster, edition).await?;
            screen.note(&format!("{name}: {} is available", edition.manager()));
        }
        Ok(())
    }

    pub(crate) async fn show_claims(&self, screen: &Screen) -> Result<()> {
        let clusters: Api<ManagedCluster> = Api::all(self.hub.admin().await?);
        for spoke in &self.spokes {
            let what = format!("the kernel claim of {} on the Hub", spoke.name);
            let value = eventually(Duration::from_secs(90), &what, || async {
                let cluster = clusters.get(spoke.name).await?;
                let claims = cluster.status.map(|status| status.cluster_claims).unwrap_or_default();
                Ok(claims.into_iter().find(|claim| claim.name == names::KERNEL_CLAIM).map(|claim| claim.value))
            })
            .await?;
            screen.note(&format!("{}: {} = {}", spoke.name, names::KERNEL_CLAIM, value.replace('\n', ", ")));
        }
        Ok(())
    }

    pub(crate) fn managed_cluster_module(&self) -> String {
        MANAGED_CLUSTER_MODULE.replace("REGISTRY", &self.registry.address())
    }

    pub(crate) async fn apply_managed_cluster_module(&self) -> Result<()> {
        self.hub.apply_yaml(&self.managed_cluster_module()).await.map(drop)
    }

    pub(crate) async fn delete_managed_cluster_module(&self) -> Result<()> {
        let api: Api<ManagedClusterModule> = Api::all(self.hub.admin().await?);
        api.delete(NAME, &DeleteParams::foreground()).await?;
        Ok(())
    }

    pub(crate) async fn wait_ready(&self, screen: &Screen) -> Result<()> {
        let api: Api<ManagedClusterModule> = Api::all(self.hub.admin().await?);
        eventually(Duration::from_secs(300), "condition Ready", || async {
            let status = api.get(NAME).await?.status.unwrap_or_default();
            let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
            let Some(ready) = ready else { bail!("there is no status yet") };
            screen.progress(&format!("Ready={} {}: {}", ready.status, ready.reason, ready.message));
            if ready.status == "True" { Ok(Some(())) } else { bail!("{}: {}", ready.reason, ready.message) }
        })
        .await
    }

    /// Clusters, nodes, kernels, digests and states, from the objects.
    pub(crate) async fn table(&self) -> Result<String> {
        let header = ["CLUSTER", "NODE", "KERNEL", "DIGEST SENT", "STATE", "DIGEST LOADED"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        for spoke in &self.spokes {
            let works: Api<ManifestWork> = Api::namespaced(self.hub.admin().await?, spoke.name);
            let sent = serde_json::to_value(works.get(NAME).await?)?;
            let nodes: Api<NodeModulesConfig> = Api::all(spoke.cluster.admin().await?);
            for node in nodes.list(&ListParams::default()).await? {
                let status = node.status.unwrap_or_default();
                for module in &status.modules {
                    rows.push(vec![
                        spoke.name.to_owned(),
                        node.metadata.name.clone().unwrap_or_default(),
                        status.kernel_version.clone().unwrap_or_default(),
                        short(&find_digest(&sent.to_string())),
                        format!("{:?}", module.state.clone().unwrap_or_default()),
                        short(module.digest.as_deref().unwrap_or("-")),
                    ]);
                }
            }
        }
        Ok(table(&rows))
    }

    pub(crate) async fn proc_modules(&self) -> Result<String> {
        let mut text = String::new();
        for spoke in &self.spokes {
            let command = format!("grep -w ^{MODULE} /proc/modules");
            let out = spoke.node.wait_for(Duration::from_secs(30), &command, |out| out.code < 2).await?;
            let line = if out.code == 0 { out.text() } else { format!("(no {MODULE})\n") };
            write!(text, "{:14}{line}", format!("{}:", spoke.node.name()))?;
        }
        Ok(text)
    }

    pub(crate) async fn wait_unloaded(&self, limit: Duration) -> Result<()> {
        for spoke in &self.spokes {
            spoke.node.wait_for(limit, &format!("grep -w ^{MODULE} /proc/modules"), |out| out.code == 1).await?;
        }
        let works: Api<ManifestWork> = Api::all(self.hub.admin().await?);
        eventually(limit, "the ManifestWorks to be gone", || async {
            Ok(works.list_metadata(&ListParams::default()).await?.items.is_empty().then_some(()))
        })
        .await
    }

    pub(crate) fn how_to_look(&self) -> String {
        let clusters = [("Hub", &self.hub)].into_iter().chain(self.spokes.iter().map(|s| (s.name, &s.cluster)));
        let inside = format!(
            "nsenter -t $(pgrep -f -n 'deps/demo-') -n -m -p {}",
            bed().map_or_else(|_| "kubectl".into(), |bed| bed.program("kubectl").display().to_string(),)
        );
        let mut text = String::from("From another terminal of this machine, as root:\n");
        for (name, cluster) in clusters {
            let _ = writeln!(text, "  {name}: {inside} --kubeconfig {}", cluster.kubeconfig_admin().display());
        }
        text + "Look at: get mcm,manifestworks -A on the Hub; get modules,nmc -A on a Spoke."
    }

    /// Resident memory of all that runs for the demo.
    pub(crate) fn memory(&self) -> Result<String> {
        let (mut machines, mut rest) = (0, 0);
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let Ok(bytes) = crate::support::manager::memory(pid, "VmRSS:") else { continue };
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            *(if name.starts_with("qemu") { &mut machines } else { &mut rest }) += bytes;
        }
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        Ok(format!("memory: three nodes {:.1} GiB, control planes and all else {:.1} GiB", gib(machines), gib(rest)))
    }
}

fn find_digest(text: &str) -> String {
    text.split("@sha256:").nth(1).map_or_else(|| "-".into(), |rest| format!("sha256:{}", &rest[..64.min(rest.len())]))
}

fn short(digest: &str) -> String {
    digest.chars().take(19).collect()
}
