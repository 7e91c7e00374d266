//! That a status speaks of a generation only once every node was planned with it.

use axum::Router;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::ObjectMeta;
use kube_runtime::watcher::Event;

use super::*;
use crate::api::names::RENDERED_HASH_ANNOTATION;
use crate::api::{Module, ModuleStatus};
use crate::runtime::events::Events;
use crate::runtime::guarded::Guarded;
use crate::runtime::metrics::Metrics;
use crate::runtime::store::ObjectKey;
use crate::spoke::claims::Kernels;
use crate::spoke::module;
use crate::spoke::reports::reports;
use crate::spoke::stores::{Writers, stores};
use crate::spoke::watches::Wakes;

/// A manager whose passes are made by hand, with every node planned once.
struct Bench {
    nodes: Controller,
    modules: module::Controller,
    wakes: Wakes,
    writers: Writers,
}

impl Bench {
    fn of(nodes: impl Iterator<Item = (String, bool)>) -> Self {
        let (stores, mut writers) = stores(false);
        for (name, late) in nodes {
            let labels = late.then(|| [("late".to_owned(), "yes".to_owned())].into());
            let metadata = ObjectMeta { name: Some(name), labels, ..ObjectMeta::default() };
            writers.nodes.update(Event::Apply(Guarded(Ok(Node { metadata, ..Node::default() }))));
        }
        let (queues, tally) = (Queues::new(&Metrics::default()), Tally::default());
        let client = || Client::new(Router::new(), "default");
        let events = Events::new(client(), "kmm", None);
        let bench = Self {
            nodes: Controller::new(client(), stores.clone(), queues.clone(), tally.clone(), Arc::default()),
            modules: module::Controller::new(client(), stores.clone(), queues.clone(), tally.clone(), events),
            wakes: Wakes { stores, queues, tally, kernels: Kernels::default(), teller: reports().0 },
            writers,
        };
        bench.names().iter().for_each(|name| drop(bench.nodes.decide(name)));
        bench
    }

    fn names(&self) -> Vec<String> {
        self.wakes.stores.nodes.snapshot().into_iter().map(|(key, _)| key.name).collect()
    }

    /// The API server has a Module of this generation; `seen`: whoever is woken by that was told.
    fn module(&mut self, name: &str, late: bool, generation: i64, seen: bool) {
        let mut module = a_module("drivers", name, name);
        module.meta.generation = Some(generation);
        module.meta.annotations = Some([(RENDERED_HASH_ANNOTATION.to_owned(), format!("h{generation}"))].into());
        if late {
            module.spec.selector = [("late".to_owned(), "yes".to_owned())].into();
        }
        let status = self.wakes.stores.modules.get(&ObjectKey::new("drivers", name)).map(|view| view.status.clone());
        let module = Module { metadata: module.meta, spec: module.spec, status };
        for change in self.writers.modules.update(Event::Apply(Guarded(Ok(module)))) {
            if seen {
                self.wakes.module_changed(&change);
            }
        }
    }

    fn status(&self, name: &str) -> Option<ModuleStatus> {
        let decided = self.modules.decide_status(&ObjectKey::new("drivers", name), Timestamp::UNIX_EPOCH);
        decided.map(|(_, status)| status)
    }
}

/// Reason and message of the condition Ready, the generation that it speaks of, and that of the numbers with their hash.
fn told(status: &ModuleStatus) -> (String, Option<i64>, Option<i64>, Option<&str>) {
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").expect("Ready");
    let words = format!("{} {} {}", ready.status, ready.reason, ready.message);
    (words, ready.observed_generation, status.observed_generation, status.rendered_hash.as_deref())
}

#[tokio::test]
async fn three_late_nodes_behind_five_thousand_are_waited_for_before_anything_is_said_of_them() {
    let mut bench = Bench::of((0..5000).map(|n| (format!("n{n:04}"), n >= 4997)));
    bench.module("everywhere", false, 1, true);
    bench.module("late", true, 1, true);
    let waiting = |left: usize| {
        let words = format!("False NodesNotReady {left} nodes are still to be looked at since the Module changed");
        (words, Some(1), None, None)
    };
    let names = bench.names();
    for (planned, left) in [(0..4997, 3), (4997..4998, 2), (4998..4999, 1)] {
        names[planned].iter().for_each(|name| drop(bench.nodes.decide(name)));
        assert_eq!(told(&bench.status("late").expect("a status")), waiting(left));
    }
    bench.nodes.decide(&names[4999]);
    let status = bench.status("late").expect("a status");
    let (words, of, counted, hash) = told(&status);
    assert!(!words.contains("still to be looked at"), "{words}");
    assert_eq!((of, counted, hash), (Some(1), Some(1), Some("h1")));
    assert_eq!(status.module_loader.and_then(|numbers| numbers.nodes_matching_selector_number), Some(3));
}

#[tokio::test]
async fn what_was_counted_for_one_generation_is_not_said_of_the_next() {
    let mut bench = Bench::of(["a", "b"].into_iter().map(|name| (name.to_owned(), true)));
    bench.module("gpu", true, 1, true);
    bench.names().iter().for_each(|name| drop(bench.nodes.decide(name)));
    let first = bench.status("gpu").expect("a status");
    assert_eq!((first.observed_generation, first.rendered_hash.as_deref()), (Some(1), Some("h1")));

    // The store has the next one, and who takes it in has not come to it yet.
    bench.module("gpu", true, 2, false);
    assert_eq!(bench.status("gpu"), None);
    bench.module("gpu", true, 3, true);
    let (words, of, _, _) = told(&bench.status("gpu").expect("a status"));
    assert!(words.contains("2 nodes are still to be looked at") && of == Some(3), "{words} of {of:?}");
    // A node that goes away is waited for no longer.
    bench.nodes.decide("a");
    bench.writers.nodes.update(Event::Delete(Guarded(Ok(Node {
        metadata: ObjectMeta { name: Some("b".to_owned()), ..ObjectMeta::default() },
        ..Node::default()
    }))));
    bench.nodes.decide("b");
    let status = bench.status("gpu").expect("a status");
    assert_eq!((status.observed_generation, status.rendered_hash.as_deref()), (Some(3), Some("h3")));
}
