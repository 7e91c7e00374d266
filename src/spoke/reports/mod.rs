//! Kubernetes events about modules on nodes, on the Module and on the Node.

mod apply;
mod plan;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::runtime::events::Events;
use crate::runtime::store::Change;

use super::view::{ConfigView, NodeView};
use plan::{Transition, transitions};

/// Most transitions that wait to be told; more at once are dropped, since events are for people.
const BACKLOG: usize = 1000;

/// Something that happened on a node.
#[derive(Debug)]
enum Told {
    /// To a module.
    Transition { node: String, transition: Transition },
    /// A person released it.
    Released { node: String },
}

/// Takes transitions in without waiting.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    sender: mpsc::Sender<Told>,
    leading: Arc<AtomicBool>,
}

impl Teller {
    /// Tells that a person released a node, if this replica leads.
    pub(super) fn tell_release(&self, change: &Change<NodeView>) {
        let is = |node: &Option<Arc<NodeView>>| node.as_ref().map(|node| node.released);
        if self.leading.load(Ordering::SeqCst) && (is(&change.old), is(&change.new)) == (Some(false), Some(true)) {
            let _ = self.sender.try_send(Told::Released { node: change.key.name.clone() });
        }
    }

    /// Tells what happened between two states of a NodeModulesConfig, if this replica leads.
    pub(super) fn tell(&self, change: &Change<ConfigView>) {
        if !self.leading.load(Ordering::SeqCst) {
            return;
        }
        let node = &change.key.name;
        for transition in transitions(node, change.old.as_deref(), change.new.as_deref()) {
            // A full channel means thousands of transitions within seconds, whose events nobody could read.
            let _ = self.sender.try_send(Told::Transition { node: node.clone(), transition });
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
            match next {
                None => return,
                Some(Told::Transition { node, transition }) => apply::publish(&events, node, &transition).await,
                Some(Told::Released { node }) => apply::publish_release(&events, node).await,
            }
        }
    }

    /// From now on there is something to tell: this replica leads.
    pub(super) fn begin(&self) {
        self.leading.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::store::ObjectKey;
    use crate::spoke::testing::a_node;

    #[test]
    fn a_node_that_a_person_releases_is_told_once_and_by_the_leader_only() {
        let node = |released| Some(Arc::new(NodeView { released, ..a_node() }));
        let (teller, mut publisher) = reports();
        let change = |old, new| Change { key: ObjectKey::cluster("n"), old, new };
        let released = change(node(false), node(true));
        teller.tell_release(&released);
        assert!(publisher.told.try_recv().is_err(), "another replica leads");
        publisher.begin();
        for silent in [change(None, node(true)), change(node(true), node(true)), change(node(true), node(false))] {
            teller.tell_release(&silent);
        }
        teller.tell_release(&released);
        assert!(matches!(publisher.told.try_recv(), Ok(Told::Released { node }) if node == "n"));
        assert!(publisher.told.try_recv().is_err());
    }
}
