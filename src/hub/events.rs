//! Events about a ManagedClusterModule.

use k8s_openapi::api::core::v1::ObjectReference;

use super::view::FleetModule;
use crate::api::names::EventReason;
use crate::runtime::events::{Events, Severity};

/// Publishes one.
pub(super) async fn publish(
    events: &Events,
    module: &FleetModule,
    severity: Severity,
    reason: EventReason,
    note: &str,
) {
    let about = ObjectReference {
        api_version: Some("hub.kmm.sigs.x-k8s.io/v1beta1".to_owned()),
        kind: Some("ManagedClusterModule".to_owned()),
        name: Some(module.name.to_string()),
        uid: Some(module.uid.to_string()),
        ..ObjectReference::default()
    };
    events.publish(&about, severity, reason.as_str(), "Reconcile", note).await;
}
