//! Pull secrets of service accounts: they reach images, nodes and rights, and only where a Module uses the account.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::Role;
use kmm::api::names::PULL_SECRETS_ROLE;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::spoke_bed::{Bed, DIGEST, LIMIT};
use crate::support::eventually;
use crate::support::images::{Image, Layer};
use crate::support::manager::Edition;
use crate::support::registry::{Registry, RegistryOptions};

const KERNEL: &str = "6.1.0-1-cloud-amd64";
const ALONE: Edition = Edition::Standalone;

/// Names of the pull secrets in the entry of a Module on a node.
async fn entry_secrets(bed: &Bed, node: &str, module: &str) -> Result<Vec<String>> {
    let config = bed.config(node).await?.context("no NodeModulesConfig")?;
    let entry = config.spec.modules.into_iter().find(|entry| entry.name == module).context("no entry")?;
    Ok(entry.image_pull_secrets.into_iter().map(|secret| secret.name).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pull_secrets_of_the_service_account_serve_the_image_and_a_change_reaches_its_users_only() -> Result<()> {
    let mut bed = Bed::start(ALONE).await?;
    let auth = Some(("robot".to_owned(), "right".to_owned()));
    let registry = Registry::start(RegistryOptions { auth, ..RegistryOptions::default() }).await?;
    let layer = Layer::new().file(format!("opt/lib/modules/{KERNEL}/gpu.ko"), b"gpu".to_vec());
    registry.push("kmods/gpu", "1", &Image::new().layer(layer).build()?).await?;
    bed.node("n1", KERNEL, json!({"gpu": "yes"})).await?;
    bed.node("n2", KERNEL, json!({"gpu": "no", "other": "yes"})).await?;

    // Without the account's secret the registry stays closed.
    let own = json!({"imageRepoSecret": {"name": "own"}, "moduleLoader": {"serviceAccountName": "loader",
        "container": {"registryTLS": {"insecure": true}}}});
    bed.module("drivers", "gpu", &format!("{}/kmods/gpu:1", registry.address()), own).await?;
    let pinned = format!("registry.invalid/kmods/other@{DIGEST}");
    bed.module("drivers", "other", &pinned, json!({"selector": {"gpu": null, "other": "yes"}})).await?;
    bed.ready("drivers", "other", "True", "AllNodesReady").await?;
    let secrets: Api<Secret> = Api::namespaced(bed.admin.clone(), "drivers");
    let secret = |name: &str, config: String| Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        type_: Some("kubernetes.io/dockerconfigjson".to_owned()),
        data: Some(BTreeMap::from([(".dockerconfigjson".to_owned(), ByteString(config.into_bytes()))])),
        ..Secret::default()
    };
    secrets.create(&PostParams::default(), &secret("own", "{}".into())).await?;
    secrets.create(&PostParams::default(), &secret("robot", registry.docker_config())).await?;
    bed.ready("drivers", "gpu", "False", "ImagesNotReady").await?;
    eventually(LIMIT, "the registry's refusal to be told", || async {
        let conditions = bed.get_module("drivers", "gpu").await?.and_then(|m| m.status).unwrap_or_default().conditions;
        let images = conditions.into_iter().find(|one| one.type_ == "ImagesResolved").context("no condition")?;
        Ok((images.status == "False" && images.reason == "Unauthorized").then_some(()))
    })
    .await?;

    // The account comes, with one secret that is there and one that is not.
    let accounts: Api<ServiceAccount> = Api::namespaced(bed.admin.clone(), "drivers");
    let account = json!({"metadata": {"name": "loader"},
        "imagePullSecrets": [{"name": "robot"}, {"name": "absent"}, {"name": "own"}]});
    accounts.create(&PostParams::default(), &serde_json::from_value(account)?).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    assert_eq!(entry_secrets(&bed, "n1", "gpu").await?, ["absent", "robot"]);
    assert_eq!(entry_secrets(&bed, "n2", "other").await?, [] as [String; 0]);
    let role = || async { Api::<Role>::namespaced(bed.admin.clone(), "drivers").get(PULL_SECRETS_ROLE).await };
    let named = |role: Role| role.rules.unwrap_or_default()[0].resource_names.clone().unwrap_or_default();
    assert_eq!(named(role().await?), ["absent", "own", "robot"]);

    // An account that no Module names concerns nobody; a change of one that is named touches no kernel and no other node.
    let before = bed.settled(ALONE).await?;
    let stranger = json!({"metadata": {"name": "stranger"}, "imagePullSecrets": [{"name": "robot"}]});
    accounts.create(&PostParams::default(), &serde_json::from_value(stranger)?).await?;
    assert_eq!(bed.settled(ALONE).await?[before.len()..], [] as [String; 0]);
    let other = n2_generation(&bed).await?;
    let fewer = json!({"imagePullSecrets": [{"name": "robot"}]});
    accounts.patch("loader", &PatchParams::default(), &Patch::Merge(fewer)).await?;
    eventually(LIMIT, "the account's change to reach entry and Role", || async {
        let found = (entry_secrets(&bed, "n1", "gpu").await?, named(role().await?));
        ensure!(found.0 == ["robot"] && found.1 == ["own", "robot"], "{found:?}");
        Ok(Some(()))
    })
    .await?;
    assert_eq!(n2_generation(&bed).await?, other);
    assert_eq!(bed.journal("n1"), ["load drivers/gpu"]);
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}

async fn n2_generation(bed: &Bed) -> Result<Option<i64>> {
    Ok(bed.config("n2").await?.context("no NodeModulesConfig")?.metadata.generation)
}
