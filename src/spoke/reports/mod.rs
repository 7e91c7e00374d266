//! Kubernetes events about modules on nodes, on the Module and on the Node.

mod plan;

pub(super) use plan::{Transition, transitions};

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::Resource;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::api::Module;
use crate::runtime::events::Events;

/// Most transitions that wait to be told; more at once are dropped, since events are for people.
const BACKLOG: usize = 1000;

/// A transition and the node on which it happened.
#[derive(Debug)]
pub(super) struct Told {
    node: String,
    transition: Transition,
}

/// Takes transitions in without waiting.
#[derive(Clone, Debug)]
pub(super) struct Teller(mpsc::Sender<Told>);

impl Teller {
    /// A teller and what it was told.
    pub(super) fn new() -> (Self, mpsc::Receiver<Told>) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        (Self(sender), receiver)
    }

    /// Hands the transitions on.
    pub(super) fn tell(&self, node: &str, transitions: Vec<Transition>) {
        for transition in transitions {
            // A full channel means thousands of transitions within seconds, whose events nobody could read.
            let _ = self.0.try_send(Told { node: node.to_owned(), transition });
        }
    }
}

/// Publishes what is told, until shutdown.
pub(super) async fn publish(events: Events, mut told: mpsc::Receiver<Told>, shutdown: CancellationToken) {
    loop {
        let next = tokio::select! {
            next = told.recv() => next,
            () = shutdown.cancelled() => None,
        };
        let Some(Told { node, transition }) = next else { return };
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
        let about = ObjectReference {
            api_version: Some(Node::api_version(&()).into_owned()),
            kind: Some(Node::kind(&()).into_owned()),
            uid: Some(node.clone()),
            name: Some(node),
            ..ObjectReference::default()
        };
        let module = format!("{}/{}", transition.namespace, transition.name);
        let note = format!("{module}: {}", transition.note);
        events.publish(&about, severity, reason, &format!("Module {module}"), &note).await;
    }
}
