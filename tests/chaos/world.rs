//! One control plane with the real manager, two nodes, a registry that fails on request.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kmm::api::{Module, NodeModulesConfig};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::held::Wish;
use crate::images::{Brings, Images};
use crate::node::{self, ChaosNode};
use crate::support::bed;
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::faulty::FaultyRegistry;
use crate::support::kmods::Kmod;
use crate::support::manager::{Edition, Manager, executable, install, stripped};
use crate::support::process::output;
use crate::support::registry::{Registry, RegistryOptions};

pub(crate) const NAMESPACE: &str = "default";

pub(crate) struct World {
    pub(crate) cluster: ControlPlane,
    pub(crate) client: Client,
    pub(crate) manager: Manager,
    pub(crate) nodes: Vec<ChaosNode>,
    pub(crate) front: FaultyRegistry,
    pub(crate) images: Images,
    _registry: Registry,
}

/// The build id that `readelf`, not our own reader, finds in a file.
pub(crate) fn build_id(module: &Kmod) -> Result<String> {
    let text = output(Command::new("readelf").arg("-n").arg(&module.path))?;
    let id = text.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).context("no build id")?;
    Ok(id.trim().to_owned())
}

impl World {
    pub(crate) async fn start() -> Result<Self> {
        let registry = Registry::start(RegistryOptions::default()).await?;
        let front = FaultyRegistry::start(&registry).await?;
        let images = Images::push(&registry, &bed()?.kernel().release).await?;
        let options = ControlPlaneOptions { controller_manager: true, audit: true, ..ControlPlaneOptions::default() };
        let cluster = ControlPlane::start(options).await?;
        install(&cluster, Edition::Standalone).await?;
        let client = cluster.admin().await?;
        let manager = Manager::start(&cluster, Edition::Standalone).await?;
        let program = stripped(&executable())?;
        let mut nodes = Vec::new();
        for number in 0..2 {
            nodes.push(ChaosNode::start(&cluster, client.clone(), program.clone(), &images.strangers, number).await?);
        }
        Ok(Self { cluster, client, manager, nodes, front, images, _registry: registry })
    }

    pub(crate) fn modules(&self) -> Api<Module> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub(crate) fn configs(&self) -> Api<NodeModulesConfig> {
        Api::all(self.client.clone())
    }

    /// Writes a Module that asks for this.
    pub(crate) async fn apply(&self, brings: Brings, wish: &Wish) -> Result<()> {
        let image = self.images.name(&self.front.address(), brings.module, wish.version, wish.by_tag);
        let selector = match wish.nodes.iter().collect::<Vec<_>>()[..] {
            [] => json!({node::ONE: "none"}),
            [one] => json!({node::ONE: one.to_string()}),
            _ => json!({node::ALL: "yes"}),
        };
        let module = json!({
            "apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "Module",
            "metadata": {"name": brings.module, "namespace": NAMESPACE},
            "spec": {"selector": selector, "moduleLoader": {
                "policy": wish.policy,
                "container": {
                    "registryTLS": {"insecure": true},
                    "modprobe": {"moduleName": brings.main, "parameters": [format!("level={}", wish.level)]},
                    "kernelMappings": [{"regexp": "^.+$", "containerImage": image}],
                },
            }},
        });
        self.modules().patch(brings.module, &PatchParams::apply("chaos").force(), &Patch::Apply(module)).await?;
        Ok(())
    }

    /// Whether the Module is there and not on its way out.
    pub(crate) async fn is_free(&self, module: &str) -> Result<bool> {
        Ok(self.modules().get_opt(module).await?.is_none_or(|module| module.metadata.deletion_timestamp.is_none()))
    }

    pub(crate) async fn delete(&self, module: &str) -> Result<()> {
        self.modules().delete(module, &DeleteParams::background()).await?;
        Ok(())
    }

    /// Takes the NodeModulesConfig of a node away; whether there was one.
    pub(crate) async fn take_config(&self, node: usize) -> Result<bool> {
        match self.configs().delete(&self.nodes[node].name, &DeleteParams::default()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn audit_log(&self) -> PathBuf {
        Path::new(self.cluster.dir()).join("audit.log")
    }

    /// The manager runs and is ready, whether it survived or not.
    pub(crate) async fn revive_manager(&mut self) -> Result<()> {
        if self.manager.wait_ready().await.is_err() {
            self.manager.restart().await?;
        }
        self.cluster.check()?;
        ensure!(self.nodes.len() == 2, "nodes got lost");
        Ok(())
    }
}
