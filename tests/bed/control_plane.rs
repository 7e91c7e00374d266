//! A control plane answers, knows identities, counts requests, goes away and comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::Api;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};

use crate::support::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::support::{audit, eventually};

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }
}

fn config_map(name: &str) -> ConfigMap {
    ConfigMap { metadata: named(name), ..ConfigMap::default() }
}

#[tokio::test]
async fn a_service_account_may_do_what_its_role_says_and_nothing_else() -> Result<()> {
    let cluster = ControlPlane::shared().await?;
    let ns = cluster.namespace("rbac").await?;
    let admin = cluster.admin().await?;
    let (create, account) = (PostParams::default(), "reader");
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), &ns);
    accounts.create(&create, &ServiceAccount { metadata: named(account), ..ServiceAccount::default() }).await?;
    let rule = PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec!["configmaps".into()]),
        verbs: vec!["get".into(), "list".into()],
        ..PolicyRule::default()
    };
    let roles: Api<Role> = Api::namespaced(admin.clone(), &ns);
    roles.create(&create, &Role { metadata: named("r"), rules: Some(vec![rule]) }).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(admin.clone(), &ns);
    let role_ref = RoleRef { api_group: "rbac.authorization.k8s.io".into(), kind: "Role".into(), name: "r".into() };
    let subject = Subject {
        kind: "ServiceAccount".into(),
        name: account.into(),
        namespace: Some(ns.clone()),
        ..Subject::default()
    };
    bindings.create(&create, &RoleBinding { metadata: named("r"), role_ref, subjects: Some(vec![subject]) }).await?;

    let client = cluster.client(&cluster.service_account_kubeconfig(&ns, account).await?).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, &ns);
    // The authorizer learns of the binding through a watch of its own.
    eventually(Duration::from_secs(10), "the role binding", || async {
        Ok(Some(maps.list(&ListParams::default()).await?))
    })
    .await?;
    let refused = maps.create(&create, &config_map("x")).await;
    ensure!(matches!(&refused, Err(kube::Error::Api(s)) if s.is_forbidden()), "creating was answered {refused:?}");

    let user = format!("system:serviceaccount:{ns}:{account}");
    let requests = cluster.requests()?;
    let refused =
        requests.iter().find(|r| r.user == user && r.verb == "create").context("the audit log lacks the request")?;
    assert_eq!((refused.code, refused.is_write(), refused.resource.as_str()), (403, false, "configmaps"));
    Ok(())
}

#[tokio::test]
async fn requests_are_counted_per_user_and_verb() -> Result<()> {
    let cluster = ControlPlane::shared().await?;
    let ns = cluster.namespace("audit").await?;
    let client = cluster.client(&cluster.client_cert("somebody/else", &["system:masters", "second"])?).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, &ns);
    maps.create(&PostParams::default(), &config_map("a")).await?;
    maps.create(&PostParams::default(), &config_map("b")).await?;
    maps.get("a").await?;
    let requests = cluster.requests()?;
    let mine: BTreeMap<_, _> =
        audit::counts(&requests).into_iter().filter(|((user, _, _), _)| user == "somebody/else").collect();
    let key = |verb: &str| ("somebody/else".to_owned(), verb.to_owned(), "configmaps".to_owned());
    assert_eq!(mine, BTreeMap::from([(key("create"), 2), (key("get"), 1)]));
    let totals = cluster.request_counts().await?;
    ensure!(totals.get(&("POST".into(), "configmaps".into())).is_some_and(|n| *n >= 2), "no creations in {totals:?}");
    Ok(())
}

#[tokio::test]
async fn a_namespace_that_is_deleted_goes() -> Result<()> {
    let cluster = ControlPlane::shared().await?;
    let ns = cluster.namespace("gone").await?;
    let api: Api<Namespace> = Api::all(cluster.admin().await?);
    api.delete(&ns, &DeleteParams::default()).await?;
    eventually(Duration::from_mins(1), "the namespace to go", || async {
        Ok(api.get_opt(&ns).await?.is_none().then_some(()))
    })
    .await
}

#[tokio::test]
async fn an_api_server_that_went_away_comes_back_with_its_data() -> Result<()> {
    let cluster = ControlPlane::start(ControlPlaneOptions::default()).await?;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin().await?, "default");
    maps.create(&PostParams::default(), &config_map("kept")).await?;
    cluster.stop_apiserver()?;
    let gone = maps.get("kept").await;
    ensure!(!matches!(gone, Ok(_) | Err(kube::Error::Api(_))), "somebody answered: {gone:?}");
    cluster.start_apiserver().await?;
    maps.get("kept").await?;
    Ok(())
}

#[tokio::test]
async fn a_control_plane_that_cannot_start_shows_the_log_of_what_failed() -> Result<()> {
    let options =
        ControlPlaneOptions { apiserver_flags: vec!["--no-such-flag".into()], ..ControlPlaneOptions::default() };
    let error = match ControlPlane::start(options).await {
        Ok(_) => anyhow::bail!("it started"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(error.contains("kube-apiserver left") && error.contains("no-such-flag"), "the error is: {error}");
    Ok(())
}

#[tokio::test]
async fn custom_resources_of_a_folder_are_installed() -> Result<()> {
    let cluster = ControlPlane::shared().await?;
    let folder = tempfile::tempdir()?;
    let crd = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: probes.bed.test}
spec:
  group: bed.test
  names: {kind: Probe, plural: probes}
  scope: Namespaced
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]
";
    std::fs::write(folder.path().join("probe.yaml"), crd)?;
    cluster.install_crds(folder.path()).await?;
    let ns = cluster.namespace("crd").await?;
    let probe = format!("apiVersion: bed.test/v1\nkind: Probe\nmetadata: {{name: p, namespace: {ns}}}\n");
    cluster.apply_yaml(&probe).await?;
    assert_eq!(cluster.kubectl(&["get", "probes", "-n", &ns, "-o", "name"]).await?, "probe.bed.test/p\n");
    Ok(())
}
