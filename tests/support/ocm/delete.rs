//! The end of a work: its record goes first, with the record what was applied, and last the finalizers.

use anyhow::{Context, Result};
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use super::kinds::{
    APPLIED_FINALIZER, WORK_FINALIZER, applied_manifest_works, condition_status, finalizer_patch, has_finalizer,
    is_conflict, is_deleting, is_not_found, list, set_condition, text, to_json,
};
use super::work::WorkAgent;

/// How far the end of a work has come.
#[derive(Debug)]
pub enum Progress {
    /// Nothing is left to do.
    Done,
    /// The work was written; go on at once.
    Wrote(Value),
    /// Something still exists on the spoke.
    Pending,
}

/// One step towards the end of a work that is being deleted.
///
/// # Errors
/// What hub or spoke said; the step may be repeated.
pub async fn finish_work(agent: &WorkAgent, work: &Value) -> Result<Progress> {
    if !has_finalizer(work, WORK_FINALIZER) {
        return Ok(Progress::Done);
    }
    let mut conditions = list(work, "/status/conditions").to_vec();
    if condition_status(&conditions, "Deleting") != "True" {
        let generation = work["metadata"]["generation"].as_i64();
        set_condition(&mut conditions, "Deleting", "True", "WorkDeleting", "the work is being deleted", generation);
        let mut status = work["status"].clone();
        status["conditions"] = json!(conditions);
        if let Some(written) = agent.write_status(work, status).await? {
            return Ok(Progress::Wrote(written));
        }
    }
    let api = applied_manifest_works(&agent.spoke);
    let name = agent.applied_name(work);
    let Some(record) = api.get_opt(&name).await? else {
        return match agent.set_finalizer(work, false).await {
            Err(error) if is_not_found(&error) => Ok(Progress::Done),
            written => Ok(Progress::Wrote(written?)),
        };
    };
    let record = to_json(&record);
    if !is_deleting(&record) {
        api.delete(&name, &DeleteParams::background()).await?;
        return Ok(Progress::Pending);
    }
    let mut pending = false;
    for entry in list(&record, "/status/appliedResources") {
        pending |= delete_applied(&agent.spoke, &record, entry).await?;
    }
    if !pending && has_finalizer(&record, APPLIED_FINALIZER) {
        let patch = finalizer_patch(&record, APPLIED_FINALIZER, false);
        api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(Progress::Pending)
}

/// Deletes one object of a record, if the record owns it; true while the object is still there.
///
/// Of an object that another record owns too only the reference is taken away, and one that the record
/// does not own is left alone.
///
/// # Errors
/// What the spoke said.
pub async fn delete_applied(spoke: &Client, record: &Value, entry: &Value) -> Result<bool> {
    let api = entry_api(spoke, entry);
    let (name, uid) = (text(entry, "/name"), text(entry, "/uid"));
    let Some(object) = api.get_opt(name).await.with_context(|| format!("applied object {name} cannot be read"))? else {
        return Ok(false);
    };
    if object.metadata.uid.as_deref() != Some(uid) {
        return Ok(false);
    }
    let owners = object.metadata.owner_references.unwrap_or_default();
    let mine = text(record, "/metadata/uid");
    if !owners.iter().any(|owner| owner.uid == mine) {
        return Ok(false);
    }
    if owners.iter().any(|owner| owner.kind == "AppliedManifestWork" && owner.uid != mine) {
        let rest: Vec<_> = owners.iter().filter(|owner| owner.uid != mine).collect();
        let patch = json!({"metadata": {
            "ownerReferences": rest,
            "resourceVersion": object.metadata.resource_version,
        }});
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        return Ok(false);
    }
    if object.metadata.deletion_timestamp.is_none() {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(name, &params).await {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => return Ok(false),
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("applied object {name} cannot be deleted")),
        }
    }
    Ok(true)
}

/// The kind of an entry of `appliedResources`; only its plural is known, which is all that a path needs.
fn entry_api(spoke: &Client, entry: &Value) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk(text(entry, "/group"), text(entry, "/version"), "");
    let resource = ApiResource::from_gvk_with_plural(&gvk, text(entry, "/resource"));
    match text(entry, "/namespace") {
        "" => Api::all_with(spoke.clone(), &resource),
        namespace => Api::namespaced_with(spoke.clone(), namespace, &resource),
    }
}
