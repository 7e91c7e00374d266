//! Eviction: the end of what was applied for works that are not on the hub any more, though nobody ended them there.

use std::time::Duration;

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tracing::debug;

use super::delete::delete_applied;
use super::kinds::{
    APPLIED_FINALIZER, applied_manifest_works, finalizer_patch, has_finalizer, is_deleting, list, manifest_works, text,
    to_json,
};
use super::work::WorkAgent;

/// Pause between two looks at all records.
const PAUSE: Duration = Duration::from_millis(250);

/// Looks at the records of this agent until dropped.
pub async fn run(agent: &WorkAgent) {
    loop {
        if let Err(error) = look(agent).await {
            debug!(cluster = %agent.cluster, error = format!("{error:#}"), "records not looked at");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(agent: &WorkAgent) -> Result<()> {
    let api = applied_manifest_works(&agent.spoke);
    for record in api.list(&ListParams::default()).await?.items {
        let record = to_json(&record);
        if text(&record, "/spec/agentID") != agent.agent_id {
            continue;
        }
        let name = text(&record, "/metadata/name");
        let works = manifest_works(&agent.hub, &agent.cluster);
        let same_hub = text(&record, "/spec/hubHash") == agent.hub_hash;
        let work = works.get_opt(text(&record, "/spec/manifestWorkName")).await?;
        let since = text(&record, "/status/evictionStartTime");
        if same_hub && work.is_some() {
            if !since.is_empty() {
                evicts_since(agent, name, &Value::Null).await?;
            }
        } else if is_deleting(&record) {
            let mut pending = false;
            for entry in list(&record, "/status/appliedResources") {
                pending |= delete_applied(&agent.spoke, &record, entry).await?;
            }
            if !pending && has_finalizer(&record, APPLIED_FINALIZER) {
                let patch = finalizer_patch(&record, APPLIED_FINALIZER, false);
                api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            }
        } else if since.is_empty() {
            evicts_since(agent, name, &json!(Timestamp::now())).await?;
        } else if Timestamp::now()
            >= since.parse::<Timestamp>()? + SignedDuration::try_from(agent.options.eviction_grace)?
        {
            api.delete(name, &DeleteParams::background()).await?;
        }
    }
    Ok(())
}

async fn evicts_since(agent: &WorkAgent, name: &str, time: &Value) -> Result<()> {
    let patch = Patch::Merge(json!({"status": {"evictionStartTime": time}}));
    applied_manifest_works(&agent.spoke).patch_status(name, &PatchParams::default(), &patch).await?;
    Ok(())
}
