//! A Hub: from the ManagedClusterModule to a right ManifestWork in every cluster's namespace.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use kmm::api::ocm::ManifestWork;
use kube::Resource;
use kube::api::{Api, ApiResource, ListParams, Patch};
use serde_json::json;

use crate::bare::{Write, configuration, time};
use crate::ocm;
use crate::report::{MEMORY_NOISE, Report};
use crate::support::audit::Request;
use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::eventually_every;
use crate::support::images::{Image, Layer};
use crate::support::manager::{Edition, Manager, NAMESPACE, install};
use crate::support::registry::{Registry, RegistryOptions};
use crate::{MIB, PAUSE, REST, goals};

const KERNELS: [&str; 5] = [
    "5.14.0-284.52.1.el9_2.x86_64",
    "5.14.0-427.13.1.el9_4.x86_64",
    "6.1.0-55-cloud-amd64",
    "6.1.0-56-cloud-amd64",
    "6.12.0+",
];

/// What one turn measured.
#[derive(Debug)]
pub(crate) struct Turn {
    product_seconds: f64,
    bare_seconds: f64,
    writes_per_object: f64,
    writes_after_restart: usize,
    peak_bytes: u64,
}

pub(crate) fn judge(report: &mut Report, name: &str, clusters: usize, turns: &[Turn]) {
    let figures = |of: fn(&Turn) -> f64| turns.iter().map(of).collect::<Vec<_>>();
    let (product, bare) = (figures(|turn| turn.product_seconds), figures(|turn| turn.bare_seconds));
    report.compare(name, "the bare client", &product, &bare, goals::RATIO);
    report.judge(name, "writes per cluster", "", figures(|turn| turn.writes_per_object), goals::WRITES, 0.0);
    let after = figures(|turn| turn.writes_after_restart as f64);
    report.judge(name, "writes after a restart", "", after, goals::WRITES_AFTER_RESTART, 0.0);
    let peaks = figures(|turn| turn.peak_bytes as f64 / MIB);
    report.judge(name, "peak memory", "MiB", peaks, goals::hub_mib(clusters), MEMORY_NOISE);
}

pub(crate) async fn run(size: usize) -> Result<Turn> {
    let hub = ControlPlane::start(ControlPlaneOptions { audit: true, ..ControlPlaneOptions::default() }).await?;
    let registry = Registry::start(RegistryOptions::default()).await?;
    for kernel in KERNELS {
        let layer = Layer::new().file(format!("opt/lib/modules/{kernel}/x.ko"), kernel.as_bytes());
        registry.push("kmods/x", kernel.trim_end_matches('+'), &Image::new().layer(layer).build()?).await?;
    }
    hub.install_crds(&ocm::crds()).await?;
    install(&hub, Edition::Hub).await?;
    let admin = hub.admin().await?;
    let clusters = (0..size).map(|index| {
        let admin = admin.clone();
        async move {
            let first = KERNELS[index % KERNELS.len()];
            let second = KERNELS[(index / KERNELS.len()) % KERNELS.len()];
            let mut kernels = vec![first, second];
            kernels.sort_unstable();
            kernels.dedup();
            let claims =
                [(kmm::api::names::KERNEL_CLAIM, kernels.join("\n")), ("id.k8s.io", format!("cluster-{index:05}"))];
            let claims: Vec<_> = claims.iter().map(|(name, value)| (*name, value.as_str())).collect();
            ocm::fake::fake_cluster(&admin, &format!("cluster-{index:05}"), &[("env", "bench")], &claims).await
        }
    });
    stream::iter(clusters).buffer_unordered(16).try_collect::<()>().await?;

    let mut manager = Manager::start(&hub, Edition::Hub).await?;
    tokio::time::sleep(REST).await;
    hub.apply_yaml(&managed_cluster_module(&registry.address())).await?;
    let works: Api<ManifestWork> = Api::all(admin.clone());
    let all = wait_for_works(&works, size).await?;
    // What follows the works (status) belongs to the writes, not to the time.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let user = format!("system:serviceaccount:{NAMESPACE}:{}", Edition::Hub.manager());
    let requests = hub.requests()?;
    let (written, product_seconds) = written(&requests, &user, "manifestworks", "managedclustermodules")?;

    let before = writes(&hub, &user)?;
    let working_bytes = manager.peak_memory()?;
    manager.restart().await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let writes_after_restart = writes(&hub, &user)? - before;
    let peak_bytes = working_bytes.max(manager.peak_memory()?);
    drop(manager);

    let kind = ApiResource::erase::<ManifestWork>(&());
    let bare = all
        .iter()
        .map(|work| {
            let name = format!("bare-{}", work.meta().name.as_deref().unwrap_or_default());
            Ok(Write {
                kind: kind.clone(),
                namespace: work.meta().namespace.clone().unwrap_or_default(),
                patch: Patch::Apply(configuration(serde_json::to_value(work)?, &name)),
                name,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let bare_seconds = time(&admin, bare).await?;
    let writes_per_object = written as f64 / size as f64;
    Ok(Turn { product_seconds, bare_seconds, writes_per_object, writes_after_restart, peak_bytes })
}

async fn wait_for_works(works: &Api<ManifestWork>, size: usize) -> Result<Vec<ManifestWork>> {
    let limit = Duration::from_mins(5);
    eventually_every(PAUSE, limit, &format!("{size} ManifestWorks"), || async {
        let count = works.list_metadata(&ListParams::default().limit(1)).await?;
        let rest = count.metadata.remaining_item_count.unwrap_or(0);
        let found = count.items.len() + usize::try_from(rest)?;
        Ok((found >= size).then_some(()))
    })
    .await?;
    let all = works.list(&ListParams::default()).await?.items;
    for work in &all {
        let manifests = &work.spec.workload.manifests;
        let module = manifests.iter().find(|manifest| manifest["kind"] == "Module");
        let mappings = module.map(|m| m["spec"]["moduleLoader"]["container"]["kernelMappings"].to_string());
        ensure!(
            mappings.is_some_and(|text| text.contains("@sha256:")),
            "{:?} is not right as soon as it is there",
            work.meta().namespace
        );
    }
    Ok(all)
}

/// How many writes of a resource by `user` there were, and the seconds from the first write of `cause`, by whomever, to
/// the answer of the last: by the API server's audit log, so that nobody asks for objects while they are being written.
pub(crate) fn written(requests: &[Request], user: &str, resource: &str, cause: &str) -> Result<(usize, f64)> {
    let first = requests.iter().find(|r| r.is_write() && r.resource == cause);
    let began: Timestamp = first.with_context(|| format!("no write of {cause}"))?.received.parse()?;
    let writes = requests.iter().filter(|r| r.user == user && r.is_write() && r.resource == resource);
    let last = writes.clone().map(|r| &r.answered).max().with_context(|| format!("no write of {resource}"))?;
    Ok((writes.count(), last.parse::<Timestamp>()?.duration_since(began).as_secs_f64()))
}

/// Writes of `user` so far, its lease apart.
pub(crate) fn writes(cluster: &ControlPlane, user: &str) -> Result<usize> {
    Ok(cluster.requests()?.iter().filter(|r| r.user == user && r.is_write() && r.resource != "leases").count())
}

fn managed_cluster_module(registry: &str) -> String {
    json!({
        "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1", "kind": "ManagedClusterModule", "metadata": {"name": "bench"},
        "spec": {"spokeNamespace": "kmm-bench", "selector": {"env": "bench"}, "moduleSpec": {
            "selector": {},
            "moduleLoader": {"container": {
                "registryTLS": {"insecure": true},
                "modprobe": {"moduleName": "x"},
                "kernelMappings": [{"regexp": "^.+$", "containerImage": format!("{registry}/kmods/x:${{KERNEL_FULL_VERSION}}")}],
            }},
        }},
    })
    .to_string()
}
