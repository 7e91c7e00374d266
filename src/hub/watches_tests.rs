use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube_runtime::watcher::Event;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::fleet::{Fleet, Writers};
use super::standing::{Held, Phase, Removal, RemovalGuard, Standing, Totals};
use super::target::Target;
use super::testing::{MODULE, UID, claims, cluster_object, digest, images_object, kernel, module_object, owner, spec};
use super::view::{FleetModule, Kernels, Revision};
use super::watches::{begin_to_lead, cluster_changed, images_changed, module_changed, work_changed};
use crate::api::names::ClusterReason;
use crate::core::claims::encode;
use crate::runtime::client::ApiError;
use crate::runtime::guarded::Guarded;
use crate::runtime::metrics::Metrics;
use crate::runtime::queue::{Key, Outcome, Queue};
use crate::runtime::store::{Change, ObjectKey};

/// Stores that are filled as watches fill them, with events that are handled when the test says so.
struct World {
    fleet: Fleet,
    writers: Writers,
}

impl World {
    fn new() -> Self {
        let (fleet, writers) =
            Fleet::new("kmm".to_owned(), RemovalGuard { share: 50, minimum: 2 }, &Metrics::default());
        Self { fleet, writers }
    }

    /// The ManagedClusterModule comes into the store.
    fn put_module(&mut self, generation: i64, spec: &Value) -> Vec<Change<FleetModule>> {
        self.put_module_of(&json!({"name": MODULE, "uid": UID, "generation": generation}), spec)
    }

    fn put_module_of(&mut self, metadata: &Value, spec: &Value) -> Vec<Change<FleetModule>> {
        let object = module_object(metadata, spec);
        self.writers.modules.update(Event::Apply(Guarded(Ok(object))))
    }

    fn module(&mut self, generation: i64, spec: &Value) {
        for change in self.put_module(generation, spec) {
            module_changed(&self.fleet, &change);
        }
    }

    fn cluster(&mut self, name: &str, gpu: &str, kernels: &[&str]) {
        let object = cluster_object(name, &json!({"gpu": gpu}), &claims(kernels));
        for change in self.writers.clusters.update(Event::Apply(Guarded(Ok(object)))) {
            cluster_changed(&self.fleet, &change);
        }
    }

    fn cluster_gone(&mut self, name: &str) {
        let object = cluster_object(name, &json!({}), &json!([]));
        for change in self.writers.clusters.update(Event::Delete(Guarded(Ok(object)))) {
            cluster_changed(&self.fleet, &change);
        }
    }

    fn images(&mut self, facts: &[(&str, &str, Result<&str, &str>)]) {
        for change in self.writers.images.update(Event::Apply(Guarded(Ok(images_object(facts))))) {
            images_changed(&self.fleet, &change);
        }
    }

    fn work(&mut self, cluster: &str) {
        let work = json!({
            "apiVersion": "work.open-cluster-management.io/v1", "kind": "ManifestWork",
            "metadata": {"name": MODULE, "namespace": cluster, "uid": "uid-of-work",
                "ownerReferences": [owner("ManagedClusterModule", MODULE, UID)]},
            "spec": {},
        });
        let object = serde_json::from_value(work).unwrap();
        for change in self.writers.works.update(Event::Apply(Guarded(Ok(object)))) {
            work_changed(&self.fleet, &change);
        }
    }

    /// A pass over the cluster found that it is ready.
    fn ready(&self, cluster: &str, generation: i64) {
        let target = Target { module: MODULE.into(), cluster: cluster.into() };
        let revision = Revision { uid: UID.into(), generation };
        self.fleet.stands(&target, &revision, Some(Standing::new(Phase::Ready, ClusterReason::Ready, "")));
    }

    fn removal(&self) -> Removal {
        let module = self.fleet.modules.get(&ObjectKey::cluster(MODULE)).unwrap();
        self.fleet.removals.of(MODULE, &module.revision())
    }

    fn totals(&self) -> Option<Totals> {
        let module = self.fleet.modules.get(&ObjectKey::cluster(MODULE)).unwrap();
        self.fleet.tally.totals(MODULE, &module.revision())
    }

    /// Who is woken since the last call: clusters, whether the images, whether the status.
    async fn woken(&self) -> (Vec<String>, bool, bool) {
        let works = drain(&self.fleet.work_queue).await;
        let module = BTreeSet::from([Arc::from(MODULE)]);
        let (images, status) = (drain(&self.fleet.images_queue).await, drain(&self.fleet.status_queue).await);
        assert!([&images, &status].into_iter().all(|woken| woken.is_subset(&module)));
        (works.into_iter().map(|target| target.cluster.to_string()).collect(), !images.is_empty(), !status.is_empty())
    }
}

/// Every key that is due within a minute.
async fn drain<K: Key + Ord>(queue: &Queue<K>) -> BTreeSet<K> {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let pass = move |key| {
        let _ = sender.send(key);
        async { Ok::<_, ApiError>(Outcome::Done) }
    };
    let run = tokio::spawn(queue.clone().run(1, stop.clone(), pass));
    tokio::time::sleep(Duration::from_mins(1)).await;
    stop.cancel();
    run.await.unwrap();
    let mut keys = BTreeSet::new();
    while let Ok(key) = receiver.try_recv() {
        keys.insert(key);
    }
    keys
}

/// Clusters a and b are selected, c is not; all is quiet.
async fn fleet_of_three() -> World {
    let mut world = World::new();
    world.module(1, &spec());
    for (name, gpu, kernels) in [("a", "yes", ["6.1.0-a"]), ("b", "yes", ["6.1.0-b"]), ("c", "no", ["6.1.0-a"])] {
        world.cluster(name, gpu, &kernels);
    }
    begin_to_lead(&world.fleet);
    let _ = world.woken().await;
    world
}

fn clusters(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn who_begins_to_lead_looks_at_every_selected_cluster_and_every_work_and_tells_nothing_before() {
    let mut world = World::new();
    world.put_module(1, &spec());
    world.cluster("a", "yes", &[]);
    world.cluster("b", "no", &[]);
    world.cluster("c", "no", &[]);
    world.work("b");
    world.work("gone");
    let _ = world.woken().await;
    begin_to_lead(&world.fleet);
    assert_eq!(world.woken().await, (clusters(&["a", "b", "gone"]), true, true));
    assert_eq!(world.totals(), None);
    world.ready("a", 1);
    assert_eq!(world.totals().map(|totals| (totals.generation, totals.ready)), Some((1, 1)));
}

#[tokio::test(start_paused = true)]
async fn no_status_is_made_of_a_generation_for_which_nobody_was_counted() {
    let mut world = fleet_of_three().await;
    assert_eq!(world.woken().await, (clusters(&[]), false, false));
    world.ready("a", 1);
    world.ready("b", 1);
    assert_eq!(world.totals().unwrap().ready, 2);
    assert_eq!(world.woken().await, (clusters(&[]), false, true));

    // The store holds the next generation and a status is due before its event was handled.
    let mut next = spec();
    next["moduleSpec"]["moduleLoader"]["container"]["modprobe"]["parameters"] = json!(["debug=1"]);
    let changes = world.put_module(2, &next);
    assert_eq!(world.totals(), None);
    module_changed(&world.fleet, &changes[0]);
    // A pass that began before ends now.
    world.ready("a", 1);
    let totals = world.totals().unwrap();
    assert_eq!((totals.generation, totals.desired, totals.waiting, totals.ready), (2, 2, 2, 0));
    assert_eq!(world.woken().await, (clusters(&["a", "b"]), true, true));
    world.ready("a", 2);
    world.ready("b", 2);
    assert_eq!(world.totals().unwrap().ready, 2);
}

#[tokio::test(start_paused = true)]
async fn a_module_that_changed_wakes_the_clusters_that_it_selects_and_those_that_it_left() {
    let mut world = fleet_of_three().await;
    let mut other = spec();
    other["selector"] = json!({"gpu": "no"});
    world.module(2, &other);
    assert_eq!(world.woken().await, (clusters(&["a", "b", "c"]), true, true));
    assert_eq!(world.totals().map(|totals| totals.desired), Some(1));
    // What the Hub itself wrote into the status is no other wish.
    let mut object = module_object(&json!({"name": MODULE, "uid": UID, "generation": 2}), &other);
    object.status = serde_json::from_value(json!({"numberDesired": 1})).unwrap();
    for change in world.writers.modules.update(Event::Apply(Guarded(Ok(object.clone())))) {
        module_changed(&world.fleet, &change);
    }
    assert_eq!(world.woken().await, (clusters(&[]), false, true));
    for change in world.writers.modules.update(Event::Delete(Guarded(Ok(object)))) {
        module_changed(&world.fleet, &change);
    }
    // A last look at what is left of it.
    assert_eq!(world.woken().await, (clusters(&["c"]), true, false));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_wakes_whatever_selects_it_or_did() {
    let mut world = fleet_of_three().await;
    for (name, gpu, expected) in
        [("a", "yes", &["a"][..]), ("a", "no", &["a"]), ("a", "no", &[]), ("c", "other", &[]), ("d", "yes", &["d"])]
    {
        world.cluster(name, gpu, &["6.1.0-z"]);
        assert_eq!(world.woken().await, (clusters(expected), false, false), "{name} {gpu}");
    }
    world.cluster_gone("b");
    assert_eq!(world.woken().await, (clusters(&["b"]), false, false));
    world.work("b");
    assert_eq!(world.woken().await, (clusters(&["b"]), false, false));
}

#[tokio::test(start_paused = true)]
async fn an_image_wakes_the_clusters_that_have_its_kernel_or_cannot_tell() {
    let mut world = fleet_of_three().await;
    let fact = |kernel: &'static str, said| (kernel, "registry.test/gpu:1", said);
    world.images(&[fact("6.1.0-a", Err("Pending")), fact("6.1.0-z", Err("Pending"))]);
    assert_eq!(world.woken().await, (clusters(&["a"]), true, true));
    let found = digest('a');
    world.images(&[fact("6.1.0-a", Err("Pending")), fact("6.1.0-z", Ok(&found))]);
    assert_eq!(world.woken().await, (clusters(&[]), true, true));
    // One claim of several does not come through.
    let many: BTreeSet<_> = (0..60).map(|n| kernel(&format!("6.1.0-{n:02}-some-long-flavour-amd64"))).collect();
    let parts = encode(&many).unwrap();
    let claims: Vec<Value> = parts.iter().skip(1).map(|c| json!({"name": c.name, "value": c.value})).collect();
    let object = cluster_object("b", &json!({"gpu": "yes"}), &json!(claims));
    for change in world.writers.clusters.update(Event::Apply(Guarded(Ok(object)))) {
        assert!(change.new.as_ref().is_some_and(|b| matches!(b.kernels, Kernels::Incomplete { .. })));
        cluster_changed(&world.fleet, &change);
    }
    let _ = world.woken().await;
    world.images(&[fact("6.1.0-a", Err("Pending"))]);
    assert_eq!(world.woken().await, (clusters(&["b"]), true, true));
}

#[tokio::test(start_paused = true)]
async fn a_removal_from_most_clusters_is_held_before_any_pass_until_it_is_confirmed_or_taken_back() {
    let held = |having, leaving, first: &[&str]| {
        Removal::Held(Held { having, leaving, first: first.iter().map(|name| Arc::from(*name)).collect() })
    };
    let mut other = spec();
    other["selector"] = json!({"gpu": "typo"});
    let fleet_with_works = || async {
        let mut world = fleet_of_three().await;
        for name in ["a", "b", "gone"] {
            world.work(name);
        }
        let _ = world.woken().await;
        assert_eq!(world.removal(), Removal::Free);
        world
    };

    let mut world = fleet_with_works().await;
    let changes = world.put_module(2, &other);
    // A pass that comes before the event may take nothing away.
    assert_eq!(world.removal(), Removal::Unknown);
    module_changed(&world.fleet, &changes[0]);
    assert_eq!(world.removal(), held(3, 2, &["a", "b"]));
    assert_eq!(world.woken().await, (clusters(&["a", "b"]), true, true));
    // A cluster that is selected newly is looked at again when it is decided.
    world.cluster("d", "typo", &[]);
    let _ = world.woken().await;
    for (confirmed, removal, woken) in [("1", held(3, 2, &["a", "b"]), false), ("2", Removal::Free, true)] {
        let annotations = json!({"kmm.node.kubernetes.io/confirm-removal": confirmed});
        let metadata = json!({"name": MODULE, "uid": UID, "generation": 2, "annotations": annotations});
        for change in world.put_module_of(&metadata, &other) {
            module_changed(&world.fleet, &change);
        }
        assert_eq!(world.removal(), removal, "{confirmed}");
        let names = if woken { clusters(&["a", "b", "d"]) } else { clusters(&[]) };
        assert_eq!(world.woken().await, (names, false, woken), "{confirmed}");
    }
    assert_eq!(world.totals().map(|totals| totals.generation), Some(2));

    // By labels, one after the other; a manager that starts anew sees the same.
    let mut world = fleet_with_works().await;
    world.cluster("a", "no", &["6.1.0-a"]);
    assert_eq!(world.removal(), Removal::Free);
    world.cluster("b", "no", &["6.1.0-b"]);
    assert_eq!(world.woken().await, (clusters(&["a", "b"]), false, true));
    assert_eq!(world.removal(), held(3, 2, &["a", "b"]));
    world.fleet.removals.forget(MODULE);
    begin_to_lead(&world.fleet);
    assert_eq!(world.removal(), held(3, 2, &["a", "b"]));
    let _ = world.woken().await;
    world.cluster("b", "yes", &["6.1.0-b"]);
    assert_eq!(world.removal(), Removal::Free);
    assert_eq!(world.woken().await, (clusters(&["a", "b"]), false, true));
    // Clusters that are not there, or are going, are no removal.
    world.cluster_gone("a");
    world.cluster_gone("b");
    assert_eq!(world.removal(), Removal::Free);
}
