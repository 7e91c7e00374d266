//! A node without kubelet: a machine with the worker, and the test in the planner's place.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::LocalObjectReference;
use kmm::api::{
    ModprobeSpec, ModuleConfig, ModuleState, NodeModuleSpec, NodeModuleStatus, NodeModulesConfig,
    NodeModulesConfigSpec, NodeModulesConfigStatus, TLSOptions, UnloadIntent, UnloadReason,
};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::support::control_plane::ControlPlane;
use crate::support::images::{Image, digest, kmod_image, kmod_layer};
use crate::support::kernel_vm::{KernelVm, KernelVmOptions};
use crate::support::kmods::{self, Kmod, Kmods};
use crate::support::manager::{executable, stripped};
use crate::support::process::output;
use crate::support::registry::{Registry, RegistryOptions};
use crate::support::{bed, eventually};

/// Longest time that anything on an emulated machine may take.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// What a [`World`] is made of.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Release of the kernel; the bed's usual one if empty.
    pub(crate) kernel: Option<String>,
    /// Words for the kernel's command line.
    pub(crate) append: String,
    /// Further programs of the machine, each at `/<name>`.
    pub(crate) programs: Vec<PathBuf>,
    /// A control plane of its own, for tests that stop it.
    pub(crate) own_control_plane: bool,
}

pub(crate) struct World {
    pub(crate) plane: &'static ControlPlane,
    pub(crate) registry: Registry,
    pub(crate) vm: KernelVm,
    pub(crate) mods: Kmods,
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(crate) namespace: String,
}

/// A program whose source `<name>.c` is beside this file, without libraries.
pub(crate) fn compiled(name: &str) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/kernel/{name}.c"));
    let program = bed()?.new_dir(name)?.join(name);
    output(Command::new("gcc").args(["-static", "-O2", "-Wall", "-Werror", "-o"]).arg(&program).arg(source))?;
    Ok(program)
}

impl World {
    pub(crate) async fn start(options: Options) -> Result<Self> {
        let release = options.kernel.unwrap_or(bed()?.kernel().release.clone());
        let plane = if options.own_control_plane {
            let options = crate::support::control_plane::ControlPlaneOptions { audit: true, ..Default::default() };
            Box::leak(Box::new(ControlPlane::start(options).await?))
        } else {
            ControlPlane::shared().await?
        };
        plane.install_crds(&Path::new(env!("CARGO_MANIFEST_DIR")).join("crds")).await?;
        let client = plane.admin().await?;
        let kubeconfig = std::fs::read(plane.kubeconfig_admin())?;
        let vm = KernelVm::start(KernelVmOptions {
            kernel: Some(release.clone()),
            files: vec![("etc/kubeconfig".into(), 0o600, kubeconfig)],
            programs: [stripped(&executable())?].into_iter().chain(options.programs).collect(),
            append: options.append,
        })
        .await?;
        let namespace = format!("drivers-{}", vm.name());
        plane
            .apply_yaml(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}).to_string())
            .await?;
        Ok(Self {
            plane,
            registry: Registry::start(RegistryOptions::default()).await?,
            node: vm.name().to_owned(),
            vm,
            mods: kmods::for_kernel(&release)?,
            client,
            namespace,
        })
    }

    // ---- the worker -------------------------------------------------------------------------------------

    /// Starts the worker in the machine.
    pub(crate) async fn start_worker(&self) -> Result<()> {
        self.start_worker_with("127.0.0.1:18181", "worker.log").await
    }

    /// Starts the worker with a further variable, `NAME=value`.
    pub(crate) async fn start_with(&self, variable: &str) -> Result<()> {
        self.start_program(&format!("env {variable} /kmm"), "127.0.0.1:18181", "worker.log").await
    }

    pub(crate) async fn start_worker_with(&self, health: &str, log: &str) -> Result<()> {
        self.start_program("/kmm", health, log).await
    }

    pub(crate) async fn start_program(&self, program: &str, health: &str, log: &str) -> Result<()> {
        let command = format!(
            "KUBECONFIG=/etc/kubeconfig KMM_LOG_FORMAT=json KMM_HEALTH_ADDRESS={health} \
             setsid {program} worker --node-name {} >>/var/log/{log} 2>&1 </dev/null & echo $! >/run/{log}.pid",
            self.node
        );
        self.vm.run(&format!("mkdir -p /var/log /run; {command}")).await?;
        Ok(())
    }

    /// Ends the worker with a signal and waits until it is gone.
    pub(crate) async fn end_worker(&self, signal: &str) -> Result<()> {
        self.vm.run(&format!("kill -{signal} $(cat /run/worker.log.pid)")).await?;
        self.vm
            .wait_for(PATIENCE, "kill -0 $(cat /run/worker.log.pid) 2>/dev/null; echo $?", |out| {
                out.text().trim() == "1"
            })
            .await?;
        Ok(())
    }

    pub(crate) async fn worker_log(&self) -> String {
        match self.vm.exec("tail -n 40 /var/log/worker.log").await {
            Ok(out) => out.text(),
            Err(error) => format!("{error:#}"),
        }
    }

    // ---- the kernel -------------------------------------------------------------------------------------

    /// Names of the bed's modules that the kernel runs, sorted.
    pub(crate) async fn loaded(&self) -> Result<Vec<String>> {
        let modules = self.vm.run("cat /proc/modules").await?;
        let mut names: Vec<String> = modules
            .lines()
            .filter(|line| line.contains(" Live "))
            .filter_map(|line| line.split(' ').next())
            .filter(|name| name.starts_with("kmm_"))
            .map(ToOwned::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }

    pub(crate) async fn parameter(&self, module: &str, name: &str) -> Result<String> {
        Ok(self.vm.run(&format!("cat /sys/module/{module}/parameters/{name}")).await?.trim().to_owned())
    }

    /// What tells whether a module was touched: when the kernel made its folder.
    pub(crate) async fn birth(&self, module: &str) -> Result<String> {
        Ok(self.vm.run(&format!("stat -c %y.%i /sys/module/{module}/initstate")).await?.trim().to_owned())
    }

    // ---- images -----------------------------------------------------------------------------------------

    /// An image with these modules and depmod's files, by digest.
    pub(crate) async fn push(&self, repository: &str, modules: &[Kmod]) -> Result<String> {
        self.push_image(repository, &kmod_image(&self.mods.release, modules, "/opt")?).await
    }

    /// As [`push`](Self::push), from files by name.
    pub(crate) async fn push_files(&self, repository: &str, files: &[(String, Vec<u8>)]) -> Result<String> {
        self.push_image(repository, &Image::new().layer(kmod_layer(&self.mods.release, files, "/opt")?)).await
    }

    pub(crate) async fn push_image(&self, repository: &str, image: &Image) -> Result<String> {
        let digest = self.registry.push(repository, "latest", &image.build()?).await?;
        Ok(format!("{}/{repository}@{digest}", self.registry.address()))
    }

    // ---- the planner's part -----------------------------------------------------------------------------

    pub(crate) fn entry(&self, name: &str, kernel_module: &str, image: &str, generation: i64) -> NodeModuleSpec {
        let release = &self.mods.release;
        NodeModuleSpec {
            config: ModuleConfig {
                container_image: image.into(),
                kernel_version: release.strip_suffix('+').unwrap_or(release).into(),
                modprobe: ModprobeSpec { module_name: Some(kernel_module.into()), ..ModprobeSpec::default() },
                registry_tls: Some(TLSOptions { insecure: true, insecure_skip_tls_verify: false }),
                ..ModuleConfig::default()
            },
            generation: Some(generation),
            module_uid: Some(format!("uid-{name}")),
            name: name.into(),
            namespace: self.namespace.clone(),
            service_account_name: "default".into(),
            ..NodeModuleSpec::default()
        }
    }

    pub(crate) fn with_secret(mut entry: NodeModuleSpec, secret: &str) -> NodeModuleSpec {
        entry.image_repo_secret = Some(LocalObjectReference { name: secret.into() });
        entry
    }

    pub(crate) fn intent(&self, name: &str, generation: i64) -> UnloadIntent {
        UnloadIntent {
            generation,
            module_uid: format!("uid-{name}"),
            name: name.into(),
            namespace: self.namespace.clone(),
            reason: UnloadReason::Changed,
        }
    }

    pub(crate) fn api(&self) -> Api<NodeModulesConfig> {
        Api::all(self.client.clone())
    }

    /// Writes the specification and gives its generation.
    pub(crate) async fn want(&self, modules: Vec<NodeModuleSpec>, unload: Vec<UnloadIntent>) -> Result<i64> {
        self.want_on(None, modules, unload).await
    }

    /// As [`want`](Self::want), for a node with this container runtime.
    pub(crate) async fn want_on(
        &self,
        runtime: Option<&str>,
        modules: Vec<NodeModuleSpec>,
        unload: Vec<UnloadIntent>,
    ) -> Result<i64> {
        let spec = NodeModulesConfigSpec { container_runtime: runtime.map(str::to_owned), modules, unload };
        let object = NodeModulesConfig::new(&self.node, spec);
        let params = PatchParams::apply("kmm-spoke-node-planner").force();
        let written = self.api().patch(&self.node, &params, &Patch::Apply(&object)).await?;
        written.metadata.generation.context("no generation")
    }

    pub(crate) async fn forget(&self) -> Result<()> {
        self.api().delete(&self.node, &DeleteParams::default()).await?;
        Ok(())
    }

    /// The status, as soon as it is `good`.
    pub(crate) async fn status(
        &self,
        what: &str,
        good: impl Fn(&NodeModulesConfigStatus) -> bool,
    ) -> Result<NodeModulesConfigStatus> {
        let last = std::sync::Mutex::new(NodeModulesConfigStatus::default());
        let found = eventually(PATIENCE, what, || async {
            let status = self.api().get_opt(&self.node).await?.and_then(|object| object.status).unwrap_or_default();
            let done = good(&status);
            last.lock().map_err(|_| anyhow::anyhow!("a panic elsewhere"))?.clone_from(&status);
            Ok(done.then_some(status))
        })
        .await;
        match found {
            Ok(status) => Ok(status),
            Err(error) => {
                let last =
                    serde_json::to_string_pretty(&*last.lock().map_err(|_| anyhow::anyhow!("a panic elsewhere"))?)?;
                Err(error.context(format!("the status is\n{last}\nand the worker wrote:\n{}", self.worker_log().await)))
            }
        }
    }

    /// The status of that generation in which each entry is in the given state for the given reason, and no other is there.
    pub(crate) async fn settled(
        &self,
        generation: i64,
        expected: &[(&str, ModuleState, &str)],
    ) -> Result<NodeModulesConfigStatus> {
        let mut wanted: Vec<String> =
            expected.iter().map(|(name, state, reason)| format!("{name} {state:?} {reason}")).collect();
        wanted.sort();
        let what = format!("generation {generation} with {wanted:?}");
        self.status(&what, |status| status.observed_generation == Some(generation) && told(status) == wanted).await
    }

    pub(crate) async fn boot_id(&self) -> Result<String> {
        self.vm.boot_id().await
    }

    /// Requests of the worker that wrote something, so far.
    pub(crate) fn writes(&self) -> Result<usize> {
        let all = self.plane.requests()?;
        Ok(all
            .iter()
            .filter(|request| {
                request.is_write() && request.resource == "nodemodulesconfigs/status" && request.name == self.node
            })
            .count())
    }
}

/// `name state reason` of every entry, sorted.
pub(crate) fn told(status: &NodeModulesConfigStatus) -> Vec<String> {
    let mut told: Vec<String> = status
        .modules
        .iter()
        .map(|module| {
            let state = module.state.map(|state| format!("{state:?}")).unwrap_or_default();
            format!("{} {state} {}", module.name, module.reason.clone().unwrap_or_default())
        })
        .collect();
    told.sort();
    told
}

/// The entry of a Module.
pub(crate) fn of<'a>(status: &'a NodeModulesConfigStatus, name: &str) -> Result<&'a NodeModuleStatus> {
    status.modules.iter().find(|module| module.name == name).with_context(|| format!("no entry of {name}"))
}

/// The build id that `readelf`, not our own reader, finds in a file.
pub(crate) fn build_id(module: &Kmod) -> Result<String> {
    let out = Command::new("readelf").arg("-n").arg(&module.path).output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let id = text.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).context("no build id")?;
    Ok(id.trim().to_owned())
}

/// A digest that names nothing.
pub(crate) fn nothing() -> String {
    digest(b"nothing has this content")
}
