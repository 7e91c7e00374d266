//! The images controller under the RBAC that ships, with a real registry and one that misbehaves.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kmm::api::{ImageState, ImageStatus, ModuleImagesConfig};
use kmm::images::{Images, ImagesSettings};
use kmm::runtime::metrics::Metrics;
use kmm::runtime::readiness::Readiness;
use kmm::runtime::tasks::Tasks;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::OnceCell;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::eventually;
use crate::support::faulty::{Fault, FaultyRegistry};
use crate::support::images::{Artifact, Image, Layer};
use crate::support::manager::{Edition, NAMESPACE, install};
use crate::support::registry::{Registry, RegistryOptions};

static CLUSTER: OnceCell<ControlPlane> = OnceCell::const_new();

async fn cluster() -> Result<&'static ControlPlane> {
    let start = || async {
        let cluster =
            ControlPlane::start(ControlPlaneOptions { audit: true, ..ControlPlaneOptions::default() }).await?;
        install(&cluster, Edition::Standalone).await?;
        anyhow::Ok(cluster)
    };
    CLUSTER.get_or_try_init(start).await
}

/// A namespace, and the controller that answers in it; it ends when dropped.
struct World {
    namespace: String,
    admin: Client,
    running: Option<Running>,
}

struct Running {
    _stop: DropGuard,
    metrics: Metrics,
}

impl World {
    async fn new() -> Result<Self> {
        let cluster = cluster().await?;
        let namespace = cluster.namespace("images").await?;
        let mut world = Self { namespace, admin: cluster.admin().await?, running: None };
        world.start().await?;
        Ok(world)
    }

    /// Starts the controller as the manager's ServiceAccount; one that runs is ended first.
    async fn start(&mut self) -> Result<()> {
        self.running = None;
        let cluster = cluster().await?;
        let kubeconfig = cluster.service_account_kubeconfig(NAMESPACE, Edition::Standalone.manager()).await?;
        let client = cluster.client(&kubeconfig).await?;
        let stop = CancellationToken::new();
        let (metrics, readiness) = (Metrics::default(), Readiness::default());
        let mut tasks = Tasks::new(stop.clone(), Duration::from_secs(8));
        let settings = ImagesSettings {
            namespace: Some(self.namespace.clone()),
            is_hub: false,
            instance: None,
            proxies: kmm::oci::route::proxies::Proxies::default(),
        };
        let images = Images::start(settings, client, &metrics, &readiness, &mut tasks);
        tasks.spawn_endless("images", images.lead(stop.clone()));
        tokio::spawn(tasks.run());
        self.running = Some(Running { _stop: stop.drop_guard(), metrics });
        Ok(())
    }

    fn api(&self) -> Api<ModuleImagesConfig> {
        Api::namespaced(self.admin.clone(), &self.namespace)
    }

    /// Creates an object that asks for these images, each with its kernel, over plain HTTP.
    async fn ask(&self, name: &str, images: &[(&str, &str)], secret: Option<&str>) -> Result<()> {
        let images: Vec<_> = images
            .iter()
            .map(|(kernel, image)| json!({"image": image, "kernelVersion": kernel, "registryTLS": {"insecure": true}}))
            .collect();
        let object = serde_json::from_value(json!({
            "apiVersion": "kmm.sigs.x-k8s.io/v1beta1",
            "kind": "ModuleImagesConfig",
            "metadata": {"name": name},
            "spec": {"images": images, "imageRepoSecret": secret.map(|name| json!({"name": name}))},
        }))?;
        self.api().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    async fn states(&self, name: &str) -> Result<BTreeMap<String, ImageState>> {
        let states = self.api().get(name).await?.status.unwrap_or_default().images_states;
        Ok(states.into_iter().map(|state| (state.kernel_version.clone().unwrap_or_default(), state)).collect())
    }

    /// Waits until every kernel's image has this status and reason.
    async fn becomes(&self, name: &str, seconds: u64, wanted: &[(&str, ImageStatus, &str)]) -> Result<()> {
        eventually(Duration::from_secs(seconds), &format!("the images of {name}"), || async {
            let states = self.states(name).await?;
            let said: Vec<(&str, ImageStatus, &str)> = states
                .iter()
                .map(|(kernel, state)| (kernel.as_str(), state.status, state.reason.as_deref().unwrap_or_default()))
                .collect();
            ensure!(said == wanted, "it says {said:?}");
            Ok(Some(()))
        })
        .await
    }

    async fn resolved(&self, name: &str) -> Result<(String, String)> {
        let object = self.api().get(name).await?;
        let conditions = object.status.unwrap_or_default().conditions;
        let found = conditions.into_iter().find(|c| c.type_ == "ImagesResolved").context("no condition")?;
        ensure!(found.observed_generation == object.metadata.generation, "it speaks of another generation");
        Ok((found.status, found.reason))
    }

    async fn trigger(&self, name: &str, value: i64) -> Result<()> {
        let patch = json!({"spec": {"imageRebuildTriggerGeneration": value}});
        self.api().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    async fn secret(&self, name: &str, config: &str) -> Result<()> {
        self.secret_of("kubernetes.io/dockerconfigjson", ".dockerconfigjson", name, config).await
    }

    async fn secret_of(&self, type_: &str, key: &str, name: &str, value: &str) -> Result<()> {
        let api: Api<Secret> = Api::namespaced(self.admin.clone(), &self.namespace);
        let _ = api.delete(name, &DeleteParams::default()).await;
        let data = BTreeMap::from([(key.to_owned(), ByteString(value.as_bytes().to_vec()))]);
        let secret = Secret {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            type_: Some(type_.to_owned()),
            data: Some(data),
            ..Secret::default()
        };
        api.create(&PostParams::default(), &secret).await?;
        Ok(())
    }

    /// Writes of the controller in this namespace so far; events are none.
    fn writes(&self) -> Result<usize> {
        let user = format!("system:serviceaccount:{NAMESPACE}:{}", Edition::Standalone.manager());
        let cluster = CLUSTER.get().context("no cluster")?;
        let mine = |r: &crate::support::audit::Request| {
            r.user == user && r.namespace == self.namespace && r.is_write() && r.resource.starts_with("moduleimages")
        };
        Ok(cluster.requests()?.iter().filter(|request| mine(request)).count())
    }
}

fn some_image(content: &str) -> Result<Artifact> {
    Image::new().layer(Layer::new().file("opt/a", content.as_bytes())).build()
}

/// Requests for manifests that the front has seen since the last call.
fn look_ups(front: &FaultyRegistry) -> usize {
    front.take_seen().iter().filter(|seen| seen.path.contains("/manifests/")).count()
}

#[tokio::test]
async fn every_image_gets_its_digest_or_its_reason_and_a_silent_registry_delays_nobody() -> Result<()> {
    let registry = Registry::start(RegistryOptions::default()).await?;
    let digest = registry.push("app", "1", &some_image("one")?).await?;
    let good = FaultyRegistry::start(&registry).await?;
    let hanging = FaultyRegistry::start(&registry).await?;
    hanging.set(Fault::Hang);
    let mut fronts = Vec::new();
    for status in [401, 403, 429, 500] {
        let front = FaultyRegistry::start(&registry).await?;
        front.set(Fault::Status(status));
        fronts.push(front);
    }
    let headless = FaultyRegistry::start(&registry).await?;
    headless.set(Fault::NoDigest);

    let world = World::new().await?;
    let silent: Vec<String> = (0..20).map(|n| format!("{}/app:{n}", hanging.address())).collect();
    let silent: Vec<(String, &str)> =
        (0..20).map(|n| format!("5.{n}.0")).zip(silent.iter().map(String::as_str)).collect();
    let silent: Vec<(&str, &str)> = silent.iter().map(|(kernel, image)| (kernel.as_str(), *image)).collect();
    world.ask("silent", &silent, None).await?;
    eventually(Duration::from_secs(10), "a request that hangs", || async {
        Ok((look_ups(&hanging) > 0).then_some(()))
    })
    .await?;

    let at = |front: &FaultyRegistry, tag: &str| format!("{}/app:{tag}", front.address());
    let pinned = format!("registry.invalid/app@{digest}");
    let images = [
        ("6.1.0", at(&good, "1")),
        ("6.2.0", at(&good, "1")),
        ("6.3.0", at(&good, "none")),
        ("6.4.0", at(&fronts[0], "1")),
        ("6.5.0", at(&fronts[1], "1")),
        ("6.6.0", at(&fronts[2], "1")),
        ("6.7.0", at(&fronts[3], "1")),
        ("6.8.0", at(&headless, "1")),
        ("6.9.0", pinned.clone()),
        ("6.9.1", "127.0.0.1:1/app:1".to_owned()),
    ];
    let images: Vec<(&str, &str)> = images.iter().map(|(kernel, image)| (*kernel, image.as_str())).collect();
    world.ask("mixed", &images, None).await?;
    let (exists, unknown) = (ImageStatus::Exists, ImageStatus::Unknown);
    let expected = [
        ("6.1.0", exists, "Resolved"),
        ("6.2.0", exists, "Resolved"),
        ("6.3.0", ImageStatus::DoesNotExist, "NotFound"),
        ("6.4.0", unknown, "Unauthorized"),
        ("6.5.0", unknown, "Forbidden"),
        ("6.6.0", unknown, "RateLimited"),
        ("6.7.0", unknown, "RegistryError"),
        ("6.8.0", exists, "Resolved"),
        ("6.9.0", exists, "Resolved"),
        ("6.9.1", unknown, "Unreachable"),
    ];
    world.becomes("mixed", 30, &expected).await?;
    assert_eq!(hanging.given_up(), 0, "it waited for the silent registry");
    let states = world.states("mixed").await?;
    for kernel in ["6.1.0", "6.2.0", "6.8.0", "6.9.0"] {
        assert_eq!(states[kernel].digest.as_deref(), Some(digest.as_str()), "{kernel}");
    }
    assert_eq!(world.resolved("mixed").await?, ("False".to_owned(), "NotFound".to_owned()));
    let seen = good.take_seen();
    assert_eq!(seen.iter().filter(|s| s.path.ends_with("/manifests/1")).count(), 1, "one request for two kernels");

    eventually(Duration::from_mins(1), "the silence to be told", || async {
        let states = world.states("silent").await?;
        Ok(states.values().any(|state| state.reason.as_deref() == Some("Timeout")).then_some(()))
    })
    .await?;
    ensure!(hanging.given_up() > 0, "the end of a question that hangs was not seen");

    // What failed is found as soon as it is there.
    let late = registry.push("app", "none", &some_image("late")?).await?;
    for front in &fronts {
        front.set(Fault::None);
    }
    eventually(Duration::from_mins(1), "the images that failed at first", || async {
        let states = world.states("mixed").await?;
        let digest_of = |kernel: &str| states[kernel].digest.clone();
        ensure!(digest_of("6.3.0").as_deref() == Some(late.as_str()), "6.3.0 has {:?}", digest_of("6.3.0"));
        for kernel in ["6.4.0", "6.5.0", "6.6.0", "6.7.0"] {
            ensure!(digest_of(kernel).as_deref() == Some(digest.as_str()), "{kernel} has {:?}", digest_of(kernel));
        }
        Ok(Some(()))
    })
    .await?;
    let metrics = world.running.as_ref().context("it runs")?.metrics.encode()?;
    ensure!(metrics.contains("kmm_image_lookups_total{reason=\"Timeout\"}"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn a_digest_once_known_stays_and_is_asked_for_again_only_by_the_trigger() -> Result<()> {
    let registry = Registry::start(RegistryOptions::default()).await?;
    let first = registry.push("app", "1", &some_image("one")?).await?;
    let front = FaultyRegistry::start(&registry).await?;
    let image = format!("{}/app:1", front.address());
    let mut world = World::new().await?;
    world.ask("acx", &[("6.1.0", &image)], None).await?;
    world.becomes("acx", 20, &[("6.1.0", ImageStatus::Exists, "Resolved")]).await?;
    assert_eq!(world.resolved("acx").await?, ("True".to_owned(), "Resolved".to_owned()));

    // The tag moves, the controller starts anew: nothing is asked and nothing is written.
    let second = registry.push("app", "1", &some_image("two")?).await?;
    ensure!(first != second, "the tag did not move");
    tokio::time::sleep(Duration::from_secs(1)).await;
    look_ups(&front);
    let writes = world.writes()?;
    assert_eq!(writes, 1, "one answer, one write");
    world.start().await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((look_ups(&front), world.writes()?), (0, writes));

    world.trigger("acx", 1).await?;
    let digest = || async { anyhow::Ok(world.states("acx").await?["6.1.0"].digest.clone()) };
    eventually(Duration::from_secs(20), "the moved tag to be taken over", || async {
        Ok((digest().await? == Some(second.clone())).then_some(()))
    })
    .await?;
    let status = world.api().get("acx").await?.status.context("no status")?;
    assert_eq!(status.image_rebuild_trigger_generation, Some(1));

    // Gone from the registry, and asked for again: told, and the digest stays.
    registry.delete_manifest("app", &second).await?;
    world.trigger("acx", 2).await?;
    world.becomes("acx", 20, &[("6.1.0", ImageStatus::DoesNotExist, "NotFound")]).await?;
    assert_eq!(digest().await?, Some(second.clone()));
    front.set(Fault::Status(500));
    world.trigger("acx", 3).await?;
    world.becomes("acx", 20, &[("6.1.0", ImageStatus::Unknown, "RegistryError")]).await?;
    assert_eq!(digest().await?, Some(second));
    Ok(())
}

#[tokio::test]
async fn pull_secrets_are_read_by_name_and_told_where_they_fail() -> Result<()> {
    let auth = Some(("robot".to_owned(), "right".to_owned()));
    let registry = Registry::start(RegistryOptions { auth, ..RegistryOptions::default() }).await?;
    let digest = registry.push("app", "1", &some_image("one")?).await?;
    let image = format!("{}/app:1", registry.address());
    let world = World::new().await?;
    world.secret_of("Opaque", "password", "opaque", "p").await?;
    world.secret_of("Opaque", ".dockerconfigjson", "broken", "no json").await?;
    world.secret("empty", "{}").await?;
    let wrong = json!({"auths": {registry.address(): {"username": "robot", "password": "wrong"}}});
    world.secret("wrong", &wrong.to_string()).await?;
    world.secret("other", r#"{"auths":{"elsewhere.io":{"username":"a","password":"b"}}}"#).await?;
    for (name, secret, reason) in [
        ("anonymous", None, "Unauthorized"),
        ("missing", Some("missing"), "PullSecretMissing"),
        ("opaque", Some("opaque"), "PullSecretInvalid"),
        ("broken", Some("broken"), "PullSecretInvalid"),
        ("empty", Some("empty"), "Unauthorized"),
        ("wrong", Some("wrong"), "Unauthorized"),
        ("other", Some("other"), "Unauthorized"),
    ] {
        world.ask(name, &[("6.1.0", &image)], secret).await?;
        world.becomes(name, 20, &[("6.1.0", ImageStatus::Unknown, reason)]).await?;
    }
    // The right one, made after it was missed.
    world.secret("missing", &registry.docker_config()).await?;
    world.becomes("missing", 40, &[("6.1.0", ImageStatus::Exists, "Resolved")]).await?;
    assert_eq!(world.states("missing").await?["6.1.0"].digest.as_deref(), Some(digest.as_str()));
    let message = world.states("anonymous").await?["6.1.0"].message.clone().unwrap_or_default();
    ensure!(message.contains(&image) && !message.contains("right"), "{message}");
    Ok(())
}

#[tokio::test]
async fn images_of_a_hub_in_the_same_cluster_are_left_to_the_hub() -> Result<()> {
    let registry = Registry::start(RegistryOptions::default()).await?;
    registry.push("app", "1", &some_image("one")?).await?;
    let image = format!("{}/app:1", registry.address());
    let world = World::new().await?;
    world.ask("of-the-hub", &[("6.1.0", &image)], None).await?;
    let owner = json!({"apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1", "kind": "ManagedClusterModule", "name": "of-the-hub",
        "uid": "1", "controller": true, "blockOwnerDeletion": true});
    let owned = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}, "status": null}));
    world.api().patch("of-the-hub", &PatchParams::default(), &owned).await?;
    world.trigger("of-the-hub", 1).await?;
    world.ask("own", &[("6.1.0", &image)], None).await?;
    world.becomes("own", 20, &[("6.1.0", ImageStatus::Exists, "Resolved")]).await?;
    let status = world.api().get("of-the-hub").await?.status.unwrap_or_default();
    assert_ne!(status.image_rebuild_trigger_generation, Some(1), "somebody else answered it");
    Ok(())
}
