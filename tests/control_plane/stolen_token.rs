//! What the token of a worker can do in the hands of somebody else, under the RBAC and the admission policy that ship.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use k8s_openapi::api::rbac::v1::Role;
use kmm::api::NodeModulesConfig;
use kmm::api::names::{PULL_SECRETS_ROLE, WORKER_SERVICE_ACCOUNT};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::spoke_bed::{Bed, DIGEST, LIMIT};
use crate::support::eventually;
use crate::support::manager::{Edition, NAMESPACE, bound_kubeconfig};

const KERNEL: &str = "6.1.0-1-cloud-amd64";
const POLICY: &str = "the worker may only write the status of the NodeModulesConfig of its own node, not of";

/// A pod of the account on the node, and a kubeconfig with the token that the kubelet would give it.
async fn pod_token(bed: &Bed, namespace: &str, account: &str, pod: &str, node: Option<&str>) -> Result<PathBuf> {
    let body = json!({
        "metadata": {"name": pod, "namespace": namespace},
        "spec": {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "c", "image": "registry.invalid/c"}],
                 "tolerations": [{"operator": "Exists"}]},
    });
    let api: Api<Pod> = Api::namespaced(bed.admin.clone(), namespace);
    let made = api.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
    bound_kubeconfig(&bed.cluster, namespace, account, "Pod", &made.metadata).await
}

/// Writes the status of a node's object as a worker does, with this version of the worker in it.
async fn write_status(client: &Client, node: &str, more: Value) -> kube::Result<NodeModulesConfig> {
    let mut body = json!({
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "NodeModulesConfig", "metadata": {"name": node},
        "status": {"workerVersion": "stolen"},
    });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    let api: Api<NodeModulesConfig> = Api::all(client.clone());
    api.patch_status(node, &PatchParams::apply("thief").force(), &Patch::Apply(body)).await
}

/// The words of a refusal; an error if it was none.
fn refusal<T>(result: kube::Result<T>) -> Result<String> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(status.message.clone()),
        Err(error) => Err(error).context("not refused, but failed"),
        Ok(_) => anyhow::bail!("it was allowed"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_worker_token_writes_the_status_of_its_own_node_and_reads_the_named_secrets_and_nothing_else()
-> Result<()> {
    let mut bed = Bed::start(Edition::Standalone).await?;
    for node in ["n1", "n2"] {
        bed.node(node, KERNEL, json!({"gpu": "yes"})).await?;
    }
    let image = format!("registry.invalid/kmods/gpu@{DIGEST}");
    bed.module("drivers", "gpu", &image, json!({"imageRepoSecret": {"name": "pull"}})).await?;
    bed.ready("drivers", "gpu", "True", "AllNodesReady").await?;
    for name in ["pull", "password"] {
        let secret = json!({"metadata": {"name": name}, "stringData": {"key": "value"}});
        let api: Api<Secret> = Api::namespaced(bed.admin.clone(), "drivers");
        api.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
    }
    // From here on nobody but the thief writes.
    bed.nodes.clear();
    let stolen = pod_token(&bed, NAMESPACE, WORKER_SERVICE_ACCOUNT, "stolen-from", Some("n1")).await?;
    let thief = bed.cluster.client(&stolen).await?;
    let configs: Api<NodeModulesConfig> = Api::all(thief.clone());

    // Its own node: the status, and the status alone, whatever else stands in the request.
    let before = configs.get("n1").await?;
    let spec = json!({"spec": {"modules": [], "unload": [{"generation": 9, "moduleUID": "u", "name": "gpu",
        "namespace": "drivers", "reason": "Deleted"}]}});
    let after = write_status(&thief, "n1", spec).await?;
    assert_eq!(after.status.context("no status")?.worker_version.as_deref(), Some("stolen"));
    assert_eq!((after.spec, after.metadata.labels), (before.spec.clone(), before.metadata.labels));

    // Another node, with the policy's own words.
    let said = refusal(write_status(&thief, "n2", json!({})).await)?;
    ensure!(said.contains(&format!("{POLICY} n2")), "{said}");

    // The specification, the object itself.
    let order = json!({"spec": {"modules": []}});
    refusal(configs.patch("n1", &PatchParams::default(), &Patch::Merge(order)).await)?;
    refusal(configs.create(&PostParams::default(), &NodeModulesConfig::new("n3", before.spec)).await)?;
    refusal(configs.delete("n1", &DeleteParams::default()).await)?;

    // Secrets: exactly the named one.
    let secrets: Api<Secret> = Api::namespaced(thief.clone(), "drivers");
    eventually(LIMIT, "the right to read the named secret", || async {
        let role = Api::<Role>::namespaced(bed.admin.clone(), "drivers").get_opt(PULL_SECRETS_ROLE).await?;
        ensure!(role.is_some(), "no Role yet");
        Ok(secrets.get("pull").await.ok())
    })
    .await?;
    refusal(secrets.get("password").await)?;
    refusal(secrets.list(&ListParams::default()).await)?;
    refusal(secrets.list(&ListParams::default().fields("metadata.name=password")).await)?;
    refusal(Api::<Secret>::namespaced(thief.clone(), NAMESPACE).list(&ListParams::default()).await)?;
    refusal(Api::<Secret>::all(thief.clone()).list(&ListParams::default()).await)?;
    let patch = json!({"stringData": {"key": "other"}});
    refusal(secrets.patch("pull", &PatchParams::default(), &Patch::Merge(patch)).await)?;

    // Nodes, pods, Modules, tokens.
    let nodes: Api<Node> = Api::all(thief.clone());
    refusal(nodes.get("n1").await)?;
    refusal(nodes.list(&ListParams::default()).await)?;
    refusal(Api::<Pod>::namespaced(thief.clone(), NAMESPACE).list(&ListParams::default()).await)?;
    refusal(Api::<kmm::api::Module>::namespaced(thief.clone(), "drivers").get("gpu").await)?;
    refusal(Api::<Role>::namespaced(thief.clone(), "drivers").get(PULL_SECRETS_ROLE).await)?;

    // A token of the same account that no node is in.
    let unbound = bed.cluster.service_account_kubeconfig(NAMESPACE, WORKER_SERVICE_ACCOUNT).await?;
    let floating = pod_token(&bed, NAMESPACE, WORKER_SERVICE_ACCOUNT, "floating", None).await?;
    for kubeconfig in [unbound, floating] {
        let client = bed.cluster.client(&kubeconfig).await?;
        let said = refusal(write_status(&client, "n1", json!({})).await)?;
        ensure!(said.contains(&format!("{POLICY} n1")), "{said}");
    }

    // An account of the same name elsewhere: no right by itself, and with the worker's own right no other node either.
    bed.cluster
        .apply_yaml(&format!(
            "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {WORKER_SERVICE_ACCOUNT}, namespace: drivers}}}}"
        ))
        .await?;
    let namesake = pod_token(&bed, "drivers", WORKER_SERVICE_ACCOUNT, "namesake", Some("n1")).await?;
    let namesake = bed.cluster.client(&namesake).await?;
    let said = refusal(write_status(&namesake, "n1", json!({})).await)?;
    ensure!(said.contains("cannot patch resource"), "{said}");
    refusal(Api::<Secret>::namespaced(namesake.clone(), "drivers").get("pull").await)?;
    let bind = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "careless"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": WORKER_SERVICE_ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": WORKER_SERVICE_ACCOUNT, "namespace": "drivers"}],
    });
    bed.cluster.apply_yaml(&bind.to_string()).await?;
    eventually(LIMIT, "the namesake to be refused by the policy alone", || async {
        let said = refusal(write_status(&namesake, "n2", json!({})).await)?;
        ensure!(said.contains(&format!("{POLICY} n2")), "{said}");
        Ok(Some(()))
    })
    .await?;
    Ok(())
}
