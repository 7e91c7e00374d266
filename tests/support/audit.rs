//! What was asked of an API server and by whom: its audit log, and its own counters.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::control_plane::ControlPlane;

/// A request as the API server's audit log has it, after it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, …
    pub verb: String,
    pub group: String,
    /// With the subresource after a slash: `nodes/status`.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    /// The field manager or client that the request names itself.
    pub user_agent: String,
    /// The HTTP status of the answer.
    pub code: u16,
    /// When the request arrived, RFC 3339 with microseconds; sorts as text.
    pub received: String,
    /// When the answer was complete, in the same form.
    pub answered: String,
    /// The request's address with its query.
    pub uri: String,
}

impl Request {
    /// Whether the request may have changed something: it was no reading verb, no trial and no question about the asking
    /// user, and it was not refused.
    pub fn is_write(&self) -> bool {
        let reads = matches!(self.verb.as_str(), "get" | "list" | "watch") || self.resource == "selfsubjectreviews";
        !reads && !self.uri.contains("dryRun=") && self.code < 400
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage: String,
    verb: String,
    user: User,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: Option<ObjectRef>,
    #[serde(default)]
    response_status: Option<Status>,
    #[serde(rename = "requestURI", default)]
    request_uri: String,
    request_received_timestamp: String,
    stage_timestamp: String,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    api_group: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

/// The policy that makes the log complete: every request once when it is answered (watches: when they start), without
/// bodies; only what is written into NodeModulesConfigs is kept, because the orders to unload stand there.
pub const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Request, resources: [{group: kmm.sigs.x-k8s.io, resources: [nodemodulesconfigs]}]}
- {level: Metadata}
";

/// All requests in an audit log, in the order of their answers. A watch appears once, when it starts.
pub fn read(path: &Path) -> Result<Vec<Request>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading the audit log {}", path.display()))?;
    // The last line may be half written.
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut requests = Vec::new();
    for line in complete.lines() {
        let event: Event = serde_json::from_str(line).with_context(|| format!("audit log line {line}"))?;
        let stage = if event.verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
        if event.stage != stage {
            continue;
        }
        let object = event.object_ref.unwrap_or_default();
        let resource = match object.subresource.as_str() {
            "" => object.resource,
            subresource => format!("{}/{subresource}", object.resource),
        };
        requests.push(Request {
            user: event.user.username,
            verb: event.verb,
            group: object.api_group,
            resource,
            namespace: object.namespace,
            name: object.name,
            user_agent: event.user_agent,
            code: event.response_status.map_or(0, |s| s.code),
            received: event.request_received_timestamp,
            answered: event.stage_timestamp,
            uri: event.request_uri,
        });
    }
    Ok(requests)
}

/// What users whose names begin with `user` wrote, except into the resources `apart`, in the order of the requests.
pub fn writes(planes: &[&ControlPlane], user: &str, apart: &[&str]) -> Result<Vec<String>> {
    let mut written = Vec::new();
    for plane in planes {
        written.extend(plane.requests()?);
    }
    written.retain(|r| r.user.starts_with(user) && r.is_write() && !apart.contains(&&*r.resource));
    written.sort_by(|a, b| a.received.cmp(&b.received));
    Ok(written.iter().map(|r| format!("{} {}/{}/{} {}", r.verb, r.resource, r.namespace, r.name, r.code)).collect())
}

/// Asks for `writes` until `pause` has passed without a new one, at most twenty times; gives them all.
pub async fn settled(pause: Duration, writes: impl Fn() -> Result<Vec<String>>) -> Result<Vec<String>> {
    let mut last = writes()?;
    for _ in 0..20 {
        tokio::time::sleep(pause).await;
        let now = writes()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    bail!("writes never end, the last are {:?}", &last[last.len().saturating_sub(10)..])
}

/// Requests of users whose names begin with `user` that were refused for want of a right. A log without such a user is
/// an error: it would show nothing.
pub fn forbidden(planes: &[&ControlPlane], user: &str) -> Result<Vec<Request>> {
    let mut requests = Vec::new();
    for plane in planes {
        requests.extend(plane.requests()?);
    }
    requests.retain(|r| r.user.starts_with(user));
    anyhow::ensure!(!requests.is_empty(), "the audit logs do not know {user}");
    requests.retain(|r| r.code == 403);
    Ok(requests)
}

/// Requests per user, verb and resource.
pub fn counts<'a>(requests: impl IntoIterator<Item = &'a Request>) -> BTreeMap<(String, String, String), u64> {
    let mut counts = BTreeMap::new();
    for r in requests {
        *counts.entry((r.user.clone(), r.verb.clone(), r.resource.clone())).or_default() += 1;
    }
    counts
}

/// `apiserver_request_total` in a Prometheus text, summed per verb (upper case) and resource.
pub fn request_totals(metrics: &str) -> BTreeMap<(String, String), u64> {
    let mut totals = BTreeMap::new();
    for line in metrics.lines() {
        let Some((labels, value)) = line.strip_prefix("apiserver_request_total{").and_then(|l| l.rsplit_once("} "))
        else {
            continue;
        };
        let label = |name: &str| {
            let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
            Some(labels[start..].split('"').next()?.to_owned())
        };
        let (Some(verb), Some(mut resource)) = (label("verb"), label("resource")) else { continue };
        if let Some(subresource) = label("subresource").filter(|s| !s.is_empty()) {
            resource = format!("{resource}/{subresource}");
        }
        let Ok(value) = value.trim().parse::<f64>() else { continue };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let value = value as u64;
        *totals.entry((verb, resource)).or_default() += value;
    }
    totals
}
