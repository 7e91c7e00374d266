//! Kubernetes events: told once, never in the way.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use tracing::warn;

use super::client::chain;

/// Publishes events of one controller; clones share the aggregation of repeated events.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Something went as asked.
    Normal,
    /// Somebody should look.
    Warning,
}

const TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of `note` in events.k8s.io, bytes.
const NOTE_LIMIT: usize = 1024;
/// Limit of `action` in events.k8s.io, bytes.
const ACTION_LIMIT: usize = 128;

impl Events {
    /// `component` is shown as the event's source; `instance` tells replicas apart.
    pub fn new(client: Client, component: &str, instance: Option<String>) -> Self {
        let reporter = Reporter { controller: component.to_owned(), instance };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Publishes one event about `about`. A failure is logged and otherwise ignored: an event is never
    /// worth a failed pass.
    pub async fn publish(&self, about: &ObjectReference, severity: Severity, reason: &str, action: &str, note: &str) {
        let type_ = match severity {
            Severity::Normal => EventType::Normal,
            Severity::Warning => EventType::Warning,
        };
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(truncated(note, NOTE_LIMIT).to_owned()),
            action: truncated(action, ACTION_LIMIT).to_owned(),
            secondary: None,
        };
        match tokio::time::timeout(TIMEOUT, self.recorder.publish(&event, about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(reason, error = %chain(&error), "event not published"),
            Err(_) => warn!(reason, "event not published in time"),
        }
    }
}

/// The longest start of `text` that has at most `limit` bytes and ends at a character.
pub fn truncated(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::to_bytes;
    use axum::extract::Request;
    use serde_json::Value;

    use super::*;

    #[tokio::test]
    async fn what_is_too_long_for_an_event_is_cut_and_the_event_published() {
        let sent = Arc::new(Mutex::new(Value::Null));
        let seen = Arc::clone(&sent);
        let server = Router::new().fallback(move |request: Request| {
            let seen = Arc::clone(&seen);
            async move {
                let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
                *seen.lock().unwrap() = serde_json::from_slice(&body).unwrap();
                String::from_utf8(body.to_vec()).unwrap()
            }
        });
        let events = Events::new(Client::new(server, "default"), "kmm", None);
        let about = ObjectReference { name: Some("n".into()), ..ObjectReference::default() };
        let (action, note) = (format!("Node {}", "n".repeat(253)), "x".repeat(2000));
        events.publish(&about, Severity::Normal, "ModuleLoaded", &action, &note).await;
        let sent = sent.lock().unwrap();
        let length = |field: &str| sent[field].as_str().unwrap_or_default().len();
        assert_eq!((length("action"), length("note")), (128, 1024));
    }

    #[test]
    fn a_long_note_is_cut_at_a_character() {
        assert_eq!(truncated("abc", 3), "abc");
        assert_eq!(truncated("aéé", 2), "a");
        assert_eq!(truncated("aéé", 3), "aé");
    }
}
