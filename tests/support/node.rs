//! A Kubernetes node: a machine with its own kernel, containerd and kubelet, joined to a control plane.

use std::ops::Deref;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::api::{Api, ListParams};

use super::control_plane::ControlPlane;
use super::images;
use super::machine::{BOOT, Machine, MachineOptions, number};
use super::registry::Registry;
use super::{HOST, eventually};

/// What the node is to have.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// The node's name; `node-<n>` if empty.
    pub name: String,
    /// A release of the bed's kernels; the usual one if `None`.
    pub kernel: Option<String>,
    /// Registries that containerd may pull from, besides [`Registry::shared`]: address and, for HTTPS, the authority's
    /// PEM.
    pub registries: Vec<(String, Option<String>)>,
    /// Labels that the kubelet registers the node with; the API server refuses reserved ones.
    pub labels: Vec<(String, String)>,
    /// 2 where a test runs pods that ask for more than one CPU together.
    pub cpus: Option<u32>,
    /// Files written at every boot: path, mode, content.
    pub files: Vec<(String, u32, Vec<u8>)>,
}

/// A node that was Ready. Everything that [`Machine`] can do; its own `reboot`, `reboot_into`, `power_cut` and `resume` also
/// wait until the API server has heard from the kubelet of the new boot.
#[derive(Debug)]
pub struct Node {
    machine: Machine,
    nodes: NodeClient,
}

#[derive(Debug)]
struct NodeClient {
    name: String,
    config: kube::Config,
}

impl Node {
    /// Starts the machine and waits until its node is Ready. The control plane needs a controller manager.
    pub async fn start(control_plane: &ControlPlane, options: NodeOptions) -> Result<Self> {
        let registry = Registry::shared().await?;
        registry.push("bed/pause", "1", &images::pause()?.build()?).await?;
        let (number, address) = number()?;
        let name = if options.name.is_empty() { format!("node-{number}") } else { options.name.clone() };
        let mut files = options.files.clone();
        files.extend(configuration(control_plane, registry, &options, &name, number, &address)?);
        let machine = MachineOptions {
            name: name.clone(),
            kernel: options.kernel,
            memory_mib: 1536,
            cpus: options.cpus.unwrap_or(1),
            mode: "node",
            append: String::new(),
            files,
        };
        let config = control_plane.config(&control_plane.kubeconfig_admin()).await?;
        let machine = Machine::start(machine, number).await?;
        let this = Self { machine, nodes: NodeClient { name, config } };
        this.wait_ready().await?;
        Ok(this)
    }

    /// The node's object as it is now.
    pub async fn object(&self) -> Result<NodeObject> {
        let api: Api<NodeObject> = Api::all(kube::Client::try_from(self.nodes.config.clone())?);
        Ok(api.get(&self.nodes.name).await?)
    }

    /// Waits until the node's object is Ready and speaks of the boot that the machine is in.
    pub async fn wait_ready(&self) -> Result<()> {
        let boot = self.boot_id().await?;
        let client = kube::Client::try_from(self.nodes.config.clone())?;
        let api: Api<NodeObject> = Api::all(client);
        let ready = eventually(BOOT, &format!("node {} to be Ready", self.nodes.name), || async {
            let Some(status) = api.get_opt(&self.nodes.name).await?.and_then(|n| n.status) else {
                bail!("there is no such node");
            };
            let reported = status.node_info.as_ref().map_or("", |i| i.boot_id.as_str());
            let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
            match ready {
                Some(c) if c.status == "True" && reported == boot => Ok(Some(())),
                Some(c) => bail!("Ready is {} ({}), boot {reported}", c.status, c.message.as_deref().unwrap_or("")),
                None => bail!("it has no condition Ready"),
            }
        })
        .await;
        match ready {
            Ok(()) => Ok(()),
            Err(error) => {
                let kubelet = self.exec("tail -n 15 /run/kubelet.log; tail -n 5 /run/containerd.log").await;
                let kubelet = kubelet.map_or_else(|e| format!("{e:#}"), |o| o.text());
                Err(error.context(format!("console:\n{}\nkubelet and containerd:\n{kubelet}", self.console_tail(15))))
            }
        }
    }

    /// The pods on this node.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let api: Api<Pod> = Api::all(kube::Client::try_from(self.nodes.config.clone())?);
        let on_node = ListParams::default().fields(&format!("spec.nodeName={}", self.nodes.name));
        Ok(api.list(&on_node).await?.items)
    }

    /// Reboots and waits until the node is Ready in the new boot.
    pub async fn reboot(&self) -> Result<()> {
        self.machine.reboot().await?;
        self.wait_ready().await
    }

    /// Reboots with another kernel of the bed and waits until the node is Ready with it.
    pub async fn reboot_into(&self, release: &str) -> Result<()> {
        self.machine.reboot_into(release).await?;
        self.wait_ready().await
    }

    /// Takes the power away, gives it back, and waits until the node is Ready in the new boot.
    pub async fn power_cut(&self) -> Result<()> {
        self.machine.power_cut().await?;
        self.wait_ready().await
    }

    /// Gives the power back after `stop`, and waits until the node is Ready.
    pub async fn resume(&self) -> Result<()> {
        self.machine.resume().await?;
        self.wait_ready().await
    }

    /// The machine without the waiting for the API server: for tests in which that is away.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }
}

impl Deref for Node {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

type Files = Vec<(String, u32, Vec<u8>)>;

fn configuration(
    control_plane: &ControlPlane,
    registry: &Registry,
    options: &NodeOptions,
    name: &str,
    number: u8,
    address: &str,
) -> Result<Files> {
    let user = format!("system:node:{name}");
    let names = [format!("IP:{address}"), format!("DNS:{name}")];
    let identity = control_plane.authority().issue(&format!("kubelet-{name}"), &user, &["system:nodes"], &names)?;
    let pki = "/etc/kubernetes/pki";
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bed", "cluster": {
            "server": control_plane.url(), "certificate-authority": format!("{pki}/ca.crt"),
        }}],
        "users": [{"name": "me", "user": {
            "client-certificate": format!("{pki}/kubelet.crt"), "client-key": format!("{pki}/kubelet.key"),
        }}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "me"}}],
        "current-context": "bed",
    });
    let labels: Vec<String> = options.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut files: Files = vec![
        (format!("{pki}/ca.crt"), 0o644, control_plane.authority().pem()?.into_bytes()),
        (format!("{pki}/kubelet.crt"), 0o644, std::fs::read(&identity.certificate)?),
        (format!("{pki}/kubelet.key"), 0o600, std::fs::read(&identity.key)?),
        ("/etc/kubernetes/kubelet.conf".into(), 0o600, serde_json::to_vec_pretty(&kubeconfig)?),
        ("/etc/kubernetes/kubelet.yaml".into(), 0o644, serde_json::to_vec_pretty(&kubelet(pki))?),
        // A flag: the configuration file has no field for it.
        ("/etc/bed/labels".into(), 0o644, labels.join(",").into_bytes()),
        ("/etc/containerd/config.toml".into(), 0o644, containerd(registry).into_bytes()),
        ("/etc/cni/net.d/10-bridge.conflist".into(), 0o644, serde_json::to_vec_pretty(&pod_network(number))?),
        ("/etc/bed/network.sh".into(), 0o644, network(control_plane.port()).into_bytes()),
    ];
    let mut registries = options.registries.clone();
    registries.push((registry.address(), None));
    for (registry, authority) in registries {
        let folder = format!("/etc/containerd/certs.d/{registry}");
        let (scheme, ca) = match &authority {
            Some(pem) => {
                files.push((format!("{folder}/ca.crt"), 0o644, pem.clone().into_bytes()));
                ("https", format!("  ca = \"{folder}/ca.crt\"\n"))
            }
            None => ("http", String::new()),
        };
        let url = format!("{scheme}://{registry}");
        let hosts = format!("server = \"{url}\"\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n{ca}");
        files.push((format!("{folder}/hosts.toml"), 0o644, hosts.into_bytes()));
    }
    Ok(files)
}

fn kubelet(pki: &str) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": format!("{pki}/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": format!("{pki}/kubelet.crt"),
        "tlsPrivateKeyFile": format!("{pki}/kubelet.key"),
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "resolvConf": "/etc/resolv.conf",
        "failSwapOn": false,
        // A state that the test waits for is reported soon, and pods are not thrown out for a small disk.
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 10,
        "syncFrequency": "10s",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "volumeStatsAggPeriod": "0s",
        "serializeImagePulls": false,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "maxPods": 50,
        "logging": {"verbosity": 1},
    })
}

fn containerd(registry: &Registry) -> String {
    let address = registry.address();
    format!(
        r#"version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{address}/bed/pause:1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
"#
    )
}

fn pod_network(number: u8) -> serde_json::Value {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": format!("10.244.{number}.0/24")}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

// There is no kube-proxy: pods reach the API service, and leave with the node's address.
fn network(port: u16) -> String {
    let nat = format!("-d 10.96.0.1 -p tcp --dport 443 -j DNAT --to {HOST}:{port}");
    format!(
        "modprobe -a nf_tables nft_compat nft_chain_nat xt_nat xt_MASQUERADE br_netfilter\n\
         echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables\n\
         iptables -w -t nat -A PREROUTING {nat}\n\
         iptables -w -t nat -A OUTPUT {nat}\n\
         iptables -w -t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE\n"
    )
}
