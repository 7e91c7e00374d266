//! The registration agent: joined, available, the lease, and the claims of the spoke in the cluster's status.

use std::time::Duration;

use anyhow::Result;
use futures::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{self, watcher};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::debug;

use super::OcmOptions;
use super::hub::{ACCEPTED, AVAILABLE, JOINED, LEASE, micro_now};
use super::kinds::{
    cluster_claims, condition_status, is_conflict, is_deleting, list, managed_clusters, set_condition, text, to_json,
};

const SPOKE_ONLY: &str = "open-cluster-management.io/spoke-only";
/// Claims that never count against the limit.
const RESERVED: [&str; 4] = [
    "id.k8s.io",
    "kubeversion.open-cluster-management.io",
    "platform.open-cluster-management.io",
    "product.open-cluster-management.io",
];

/// The agent of one cluster.
#[derive(Clone)]
pub struct Registration {
    /// The hub, with the rights of the cluster's agent.
    pub hub: Client,
    /// The spoke, with the rights of `klusterlet-registration-sa`.
    pub spoke: Client,
    pub cluster: String,
    pub options: OcmOptions,
}

impl Registration {
    /// Syncs on every event of a claim, a node or the cluster, and once per health-check period, until dropped.
    pub async fn run(self) {
        let me = watcher::Config::default().fields(&format!("metadata.name={}", self.cluster));
        let claims = ticks(watcher(cluster_claims(&self.spoke), watcher::Config::default()).default_backoff());
        let nodes = ticks(watcher(Api::<Node>::all(self.spoke.clone()), watcher::Config::default()).default_backoff());
        let clusters = ticks(watcher(managed_clusters(&self.hub), me).default_backoff());
        let events = futures::stream::select(claims, futures::stream::select(nodes, clusters));
        pin_mut!(events);
        let mut next = Instant::now();
        let mut renew = Instant::now();
        loop {
            if Instant::now() >= renew {
                renew = Instant::now() + self.options.lease_duration;
                if let Err(error) = self.renew().await {
                    debug!(cluster = self.cluster, error = format!("{error:#}"), "lease not renewed");
                }
            }
            if Instant::now() >= next {
                next = Instant::now() + self.options.health_check_period;
                if let Err(error) = self.sync().await {
                    debug!(cluster = self.cluster, error = format!("{error:#}"), "cluster status not written");
                    next = Instant::now() + Duration::from_millis(200);
                }
            }
            tokio::select! {
                event = events.next() => {
                    if event.is_none() {
                        return;
                    }
                    next = Instant::now();
                }
                () = tokio::time::sleep_until(next.min(renew)) => {}
            }
        }
    }

    async fn renew(&self) -> Result<()> {
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> = Api::namespaced(self.hub.clone(), &self.cluster);
        let patch = json!({"spec": {"renewTime": micro_now()}});
        leases.patch(LEASE, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        let api = managed_clusters(&self.hub);
        let Some(object) = api.get_opt(&self.cluster).await?.map(|object| to_json(&object)) else { return Ok(()) };
        let mut conditions = list(&object, "/status/conditions").to_vec();
        if is_deleting(&object) || condition_status(&conditions, ACCEPTED) != "True" {
            return Ok(());
        }
        if condition_status(&conditions, "ManagedClusterConditionClockSynced") == "False" {
            return Ok(());
        }
        set_condition(&mut conditions, JOINED, "True", "ManagedClusterJoined", "Managed cluster joined", None);
        let mut status = object["status"].clone();
        match self.spoke.request_text(http::Request::get("/livez").body(Vec::new())?).await {
            Ok(_) => {
                let message = "Managed cluster is available";
                set_condition(&mut conditions, AVAILABLE, "True", "ManagedClusterAvailable", message, None);
                let claims = cluster_claims(&self.spoke).list(&ListParams::default()).await?;
                let claims: Vec<Value> = claims.items.iter().map(to_json).collect();
                status["clusterClaims"] = json!(selected_claims(&claims, &self.options));
                status["version"]["kubernetes"] = json!(self.spoke.apiserver_version().await?.git_version);
            }
            Err(error) => {
                let message = format!("The kube-apiserver is not ok: {error}");
                let reason = "ManagedClusterKubeAPIServerUnavailable";
                set_condition(&mut conditions, AVAILABLE, "False", reason, &message, None);
            }
        }
        status["conditions"] = json!(conditions);
        if status == object["status"] {
            return Ok(());
        }
        let version = &object["metadata"]["resourceVersion"];
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        match api.patch_status(&self.cluster, &PatchParams::default(), &Patch::Merge(patch)).await {
            // The event of the other write brings us back here.
            Err(error) if is_conflict(&error) => Ok(()),
            written => Ok(written.map(|_| ())?),
        }
    }
}

fn ticks<T, E>(events: impl Stream<Item = Result<T, E>>) -> impl Stream<Item = ()> {
    events.filter_map(|event| async move { event.ok().map(|_| ()) })
}

/// What goes into the status: reserved claims by name, then custom ones by name, of those only the first ones.
pub fn selected_claims(claims: &[Value], options: &OcmOptions) -> Vec<Value> {
    let is_reserved = |name: &str| {
        RESERVED.contains(&name) || options.reserved_claim_suffixes.iter().any(|suffix| name.ends_with(suffix.as_str()))
    };
    let mut copied: Vec<(&str, &str)> = claims
        .iter()
        .filter(|claim| claim["metadata"]["labels"].get(SPOKE_ONLY).is_none())
        .map(|claim| (text(claim, "/metadata/name"), text(claim, "/spec/value")))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    copied.sort_unstable();
    let (reserved, mut custom): (Vec<_>, Vec<_>) = copied.into_iter().partition(|(name, _)| is_reserved(name));
    custom.truncate(options.max_custom_claims);
    reserved.into_iter().chain(custom).map(|(name, value)| json!({"name": name, "value": value})).collect()
}
