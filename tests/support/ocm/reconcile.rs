//! One round of applying a work: its record on the spoke, its manifests, the conditions, and what is
//! no longer wanted.

use anyhow::{Context, Result};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::apply::{Failure, Manifest, Mapping, kind_rank};
use super::config::ResourceMeta;
use super::delete;
use super::kinds::{
    APPLIED_FINALIZER, applied_manifest_works, has_finalizer, is_deleting, list, set_condition, text, to_json,
};
use super::work::WorkAgent;

/// When the next round is due without an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// After the resync period.
    Resync,
    /// After the growing delay.
    Retry,
}

/// What a round did.
#[derive(Debug)]
pub struct Round {
    /// The work as the hub has it after our status write.
    pub written: Option<Value>,
    pub again: Again,
}

/// One manifest and how it went.
struct Outcome {
    meta: ResourceMeta,
    mapping: Option<Mapping>,
    /// The object, or nothing for `ReadOnly`; or why it failed.
    result: Result<Option<DynamicObject>, Failure>,
}

/// Applies all manifests; one that fails does not stop the others.
///
/// # Errors
/// Hub or spoke did not take the agent's own records.
pub async fn apply_work(agent: &WorkAgent, work: &Value) -> Result<Round> {
    let record = ensure_record(agent, work).await?;
    let outcomes = apply_manifests(agent, work, &record).await;
    let written = agent.write_status(work, applied_status(work, &outcomes)).await.context("status not written")?;
    if outcomes.iter().any(|outcome| outcome.result.is_err()) {
        // A round with a failure leaves the record of applied objects as it was.
        let retry = outcomes.iter().any(|outcome| matches!(outcome.result, Err(Failure::Retry(_))));
        return Ok(Round { written, again: if retry { Again::Retry } else { Again::Resync } });
    }
    let pending = keep_record(agent, &record, &outcomes).await?;
    Ok(Round { written, again: if pending { Again::Retry } else { Again::Resync } })
}

/// The `AppliedManifestWork`, made if it is not there.
async fn ensure_record(agent: &WorkAgent, work: &Value) -> Result<Value> {
    let api = applied_manifest_works(&agent.spoke);
    let name = agent.applied_name(work);
    if let Some(found) = api.get_opt(&name).await.with_context(|| format!("record {name} cannot be read"))? {
        let found = to_json(&found);
        anyhow::ensure!(!is_deleting(&found), "record {name} is being deleted");
        if has_finalizer(&found, APPLIED_FINALIZER) {
            return Ok(found);
        }
        let patch = super::kinds::finalizer_patch(&found, APPLIED_FINALIZER, true);
        return Ok(to_json(&api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?));
    }
    let record = json!({
        "apiVersion": "work.open-cluster-management.io/v1",
        "kind": "AppliedManifestWork",
        "metadata": {"name": name, "labels": work["metadata"]["labels"], "finalizers": [APPLIED_FINALIZER]},
        "spec": {
            "hubHash": agent.hub_hash,
            "agentID": agent.agent_id,
            "manifestWorkName": work["metadata"]["name"],
        },
    });
    let record: DynamicObject = serde_json::from_value(record)?;
    let created = api.create(&PostParams::default(), &record).await;
    Ok(to_json(&created.with_context(|| format!("record {name} cannot be created"))?))
}

async fn apply_manifests(agent: &WorkAgent, work: &Value, record: &Value) -> Vec<Outcome> {
    let owner = json!({
        "apiVersion": "work.open-cluster-management.io/v1",
        "kind": "AppliedManifestWork",
        "name": record["metadata"]["name"],
        "uid": record["metadata"]["uid"],
    });
    let manifests = list(work, "/spec/workload/manifests");
    let mut outcomes = Vec::new();
    // All kinds are looked up before anything is written: a CRD of this work helps only the next round.
    for (ordinal, manifest) in manifests.iter().enumerate() {
        let (api_version, kind) = (text(manifest, "/apiVersion"), text(manifest, "/kind"));
        let (mapping, result) = match agent.mapper.find(&agent.spoke, api_version, kind).await {
            Ok(mapping) => (Some(mapping), Ok(None)),
            Err(message) => (None, Err(Failure::Retry(message))),
        };
        let plural = mapping.as_ref().map_or("", |mapping| mapping.resource.plural.as_str());
        outcomes.push(Outcome { meta: ResourceMeta::of(ordinal, manifest, plural), mapping, result });
    }
    let mut order: Vec<usize> = (0..outcomes.len()).collect();
    order.sort_by_key(|at| kind_rank(&outcomes[*at].meta.kind));
    for at in order {
        let Some(mapping) = outcomes[at].mapping.clone() else { continue };
        let meta = &outcomes[at].meta;
        if let Some(reason) = meta.unsupported(work) {
            outcomes[at].result = Err(Failure::Conflict(reason.to_owned()));
            continue;
        }
        let manifest = Manifest {
            object: &manifests[at],
            mapping: &mapping,
            strategy: meta.config(work, "updateStrategy"),
            owner: &owner,
            owned: meta.is_owned(work),
        };
        let result = manifest.apply(&agent.spoke).await;
        outcomes[at].result = result;
    }
    outcomes
}

/// The status with the conditions `Applied`; what other passes wrote about the same object stays.
fn applied_status(work: &Value, outcomes: &[Outcome]) -> Value {
    let generation = work["metadata"]["generation"].as_i64();
    let old = list(work, "/status/resourceStatus/manifests");
    let mut manifests = Vec::new();
    for outcome in outcomes {
        let before = old.iter().find(|old| ResourceMeta::read(&old["resourceMeta"]).same_object(&outcome.meta));
        let mut entry = before.cloned().unwrap_or_else(|| json!({"conditions": []}));
        entry["resourceMeta"] = outcome.meta.to_json();
        let mut conditions = list(&entry, "/conditions").to_vec();
        match &outcome.result {
            Ok(_) => {
                set_condition(
                    &mut conditions,
                    "Applied",
                    "True",
                    "AppliedManifestComplete",
                    "Apply manifest complete",
                    None,
                );
            }
            Err(Failure::Retry(message) | Failure::Conflict(message)) => {
                let message = format!("Failed to apply manifest: {message}");
                set_condition(&mut conditions, "Applied", "False", "AppliedManifestFailed", &message, None);
            }
        }
        entry["conditions"] = json!(conditions);
        manifests.push(entry);
    }
    let mut status = if work["status"].is_null() { json!({}) } else { work["status"].clone() };
    let mut conditions = list(work, "/status/conditions").to_vec();
    if outcomes.is_empty() {
        return status;
    }
    let failed = outcomes.iter().filter(|outcome| outcome.result.is_err()).count();
    let (value, reason, message) = if failed == 0 {
        ("True", "AppliedManifestWorkComplete", "Apply manifest work complete")
    } else {
        ("False", "AppliedManifestWorkFailed", "Failed to apply manifest work")
    };
    set_condition(&mut conditions, "Applied", value, reason, message, generation);
    status["conditions"] = json!(conditions);
    status["resourceStatus"]["manifests"] = json!(manifests);
    status
}

/// Writes what is applied now into the record and deletes what the work no longer holds; true while a
/// deletion is not finished.
async fn keep_record(agent: &WorkAgent, record: &Value, outcomes: &[Outcome]) -> Result<bool> {
    let mut resources = Vec::new();
    for outcome in outcomes {
        if let Ok(Some(object)) = &outcome.result {
            let meta = &outcome.meta;
            resources.push(json!({
                "group": meta.group, "version": meta.version, "resource": meta.resource,
                "namespace": meta.namespace, "name": meta.name, "uid": object.metadata.uid,
            }));
        }
    }
    let place = |entry: &Value| {
        ["group", "resource", "namespace", "name"].map(|field| entry[field].as_str().unwrap_or_default().to_owned())
    };
    let now: Vec<_> = resources.iter().map(place).collect();
    let mut pending = false;
    for old in list(record, "/status/appliedResources") {
        if !now.contains(&place(old)) && delete::delete_applied(&agent.spoke, record, old).await? {
            pending = true;
            resources.push(old.clone());
        }
    }
    if list(record, "/status/appliedResources") != resources {
        let patch = json!({"status": {"appliedResources": resources}});
        let name = text(record, "/metadata/name");
        let api = applied_manifest_works(&agent.spoke);
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.context("record not written")?;
    }
    Ok(pending)
}
