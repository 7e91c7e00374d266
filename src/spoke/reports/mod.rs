//! Kubernetes events about modules on nodes, on the Module and on the Node.

mod apply;
mod plan;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::runtime::events::Events;
use crate::runtime::store::Change;

use super::view::ConfigView;
use plan::{Transition, transitions};

/// Most transitions that wait to be told; more at once are dropped, since events are for people.
const BACKLOG: usize = 1000;

/// A transition and the node on which it happened.
#[derive(Debug)]
struct Told {
    node: String,
    transition: Transition,
}

/// Takes transitions in without waiting.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    sender: mpsc::Sender<Told>,
    leading: Arc<AtomicBool>,
}

impl Teller {
    /// Tells what happened between two states of a NodeModulesConfig, if this replica leads.
    pub(super) fn tell(&self, change: &Change<ConfigView>) {
        if !self.leading.load(Ordering::SeqCst) {
            return;
        }
        let node = &change.key.name;
        for transition in transitions(node, change.old.as_deref(), change.new.as_deref()) {
            // A full channel means thousands of transitions within seconds, whose events nobody could read.
            let _ = self.sender.try_send(Told { node: node.clone(), transition });
        }
    }
}

/// Publishes what the teller takes in.
#[derive(Debug)]
pub(super) struct Publisher {
    told: mpsc::Receiver<Told>,
    leading: Arc<AtomicBool>,
}

/// A teller and its publisher.
pub(super) fn reports() -> (Teller, Publisher) {
    let (sender, told) = mpsc::channel(BACKLOG);
    let leading = Arc::<AtomicBool>::default();
    (Teller { sender, leading: Arc::clone(&leading) }, Publisher { told, leading })
}

impl Publisher {
    /// Publishes as the leader, until shutdown.
    pub(super) async fn run(mut self, events: Events, shutdown: CancellationToken) {
        loop {
            let next = tokio::select! {
                next = self.told.recv() => next,
                () = shutdown.cancelled() => None,
            };
            let Some(Told { node, transition }) = next else { return };
            apply::publish(&events, node, &transition).await;
        }
    }

    /// From now on there is something to tell: this replica leads.
    pub(super) fn begin(&self) {
        self.leading.store(true, Ordering::SeqCst);
    }
}
