//! Publishes one transition, on the Module and on the Node.

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::Resource;

use crate::api::Module;
use crate::api::names::{EventReason, RELEASE_NODE_ANNOTATION};
use crate::runtime::events::{Events, Severity};

use super::plan::Transition;

/// That a person released a node.
pub(super) async fn publish_release(events: &Events, node: String) {
    let note = format!(
        "annotation {RELEASE_NODE_ANNOTATION} is set: the deletion of Modules does not wait for this node any more"
    );
    events.publish(&of_node(node), Severity::Normal, EventReason::NodeReleased.as_str(), "Release", &note).await;
}

fn of_node(node: String) -> ObjectReference {
    ObjectReference {
        api_version: Some(Node::api_version(&()).into_owned()),
        kind: Some(Node::kind(&()).into_owned()),
        uid: Some(node.clone()),
        name: Some(node),
        ..ObjectReference::default()
    }
}

/// Both events of a transition.
pub(super) async fn publish(events: &Events, node: String, transition: &Transition) {
    let (severity, reason) = (transition.severity(), transition.reason.as_str());
    let module = ObjectReference {
        api_version: Some(Module::api_version(&()).into_owned()),
        kind: Some(Module::kind(&()).into_owned()),
        namespace: Some(transition.namespace.clone()),
        name: Some(transition.name.clone()),
        uid: Some(transition.uid.clone()).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    };
    // The action tells nodes and Modules apart, so that the events of a fleet are not folded into one.
    events.publish(&module, severity, reason, &format!("Node {node}"), &transition.note).await;
    let about = of_node(node);
    let module = format!("{}/{}", transition.namespace, transition.name);
    let note = format!("{module}: {}", transition.note);
    events.publish(&about, severity, reason, &format!("Module {module}"), &note).await;
}
