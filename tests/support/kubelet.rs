//! The Node of a machine without kubelet: what a kubelet would say of it.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A Node that is kept alive until this is dropped.
pub struct Kubelet {
    client: Client,
    name: String,
    heartbeat: Option<JoinHandle<()>>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.fall_silent();
    }
}

impl Kubelet {
    /// Makes the Node, Ready, and keeps it alive.
    pub async fn join(client: Client, name: &str, labels: &Value, kernel: &str, boot_id: &str) -> Result<Self> {
        let mut this = Self { client, name: name.to_owned(), heartbeat: None };
        let node = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}}))?;
        this.nodes().create(&PostParams::default(), &node).await?;
        this.tell_boot(kernel, boot_id).await?;
        this.beat();
        Ok(this)
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Writes what a kubelet says after the machine has started.
    pub async fn tell_boot(&self, kernel: &str, boot_id: &str) -> Result<()> {
        let info = json!({
            "kernelVersion": kernel, "bootID": boot_id, "architecture": "amd64", "machineID": "m", "systemUUID": "s",
            "osImage": "o", "containerRuntimeVersion": "containerd://2.1.0", "kubeletVersion": "v1.35.0",
            "kubeProxyVersion": "v1.35.0", "operatingSystem": "linux",
        });
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready",
            "lastHeartbeatTime": Timestamp::now(), "lastTransitionTime": Timestamp::now()});
        let body = json!({"status": {"nodeInfo": info, "conditions": [ready]}});
        self.nodes().patch_status(&self.name, &PatchParams::default(), &Patch::Strategic(body)).await?;
        Ok(())
    }

    /// Keeps the Node alive, again if nobody did for a while.
    pub fn beat(&mut self) {
        self.fall_silent();
        self.heartbeat = Some(tokio::spawn(heartbeat(self.client.clone(), self.name.clone())));
    }

    /// Nobody keeps the Node alive any more.
    pub fn fall_silent(&mut self) {
        if let Some(task) = self.heartbeat.take() {
            task.abort();
        }
    }
}

async fn heartbeat(client: Client, name: String) {
    let nodes: Api<Node> = Api::all(client.clone());
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
    let lease = Lease { metadata, ..Lease::default() };
    loop {
        // While there is no API server there is nobody to tell.
        let _ = leases.create(&PostParams::default(), &lease).await;
        let renewed = json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": 40,
            "renewTime": format!("{:.6}", Timestamp::now())}});
        let _ = leases.patch(&name, &PatchParams::default(), &Patch::Merge(renewed)).await;
        let beat = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": Timestamp::now()}]}});
        let _ = nodes.patch_status(&name, &PatchParams::default(), &Patch::Strategic(beat)).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
}
