//! When totals begin to say something.

use axum::Router;
use k8s_openapi::api::core::v1::Node;
use kube::api::ObjectMeta;
use kube_runtime::watcher::Event;

use super::*;
use crate::runtime::guarded::Guarded;
use crate::runtime::metrics::Metrics;
use crate::spoke::stores::stores;

#[tokio::test]
async fn when_the_last_node_was_planned_every_module_is_looked_at_again_whoever_asks_first() {
    let (stores, mut writers) = stores(false);
    for name in ["n1", "n2"] {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        writers.nodes.update(Event::Apply(Guarded(Ok(Node { metadata, ..Node::default() }))));
    }
    let mut module = gpu();
    module.spec.selector = [("gpu".to_owned(), "yes".to_owned())].into();
    let module = crate::api::Module { metadata: module.meta, spec: module.spec, status: None };
    writers.modules.update(Event::Apply(Guarded(Ok(module))));
    let (queues, tally) = (Queues::new(&Metrics::default()), Tally::default());
    let client = Client::new(Router::new(), "default");
    let controller = Controller::new(client, stores, queues.clone(), tally.clone(), Arc::default());
    for (name, woken) in [("n1", 0), ("n2", 1)] {
        // A pass over a Module before the last node leaves again without having decided: the wake comes after it.
        assert!(!tally.is_warm(), "{name}");
        controller.decide(name);
        assert_eq!((queues.modules.len(), queues.statuses.len()), (woken, woken), "{name}");
    }
    assert!(tally.is_warm());
}
