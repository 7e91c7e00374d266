use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::news::{News, news};
use super::observe::{Missing, Observed};
use super::plan::plan;
use crate::api::ManagedClusterModuleStatus;
use crate::api::names::{ClusterReason, EventReason};
use crate::hub::standing::{Coverage, Held, Phase, Standing, Tally};
use crate::hub::testing::{MODULE, kernel, module, spec};
use crate::hub::view::{Fault, FleetModule, Nodes};

const NOW: &str = "2026-02-01T00:00:00Z";
const LATER: &str = "2026-03-01T00:00:00Z";

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn at(phase: Phase, reason: ClusterReason, message: &str) -> Standing {
    let applied = matches!(phase, Phase::Ready | Phase::Unknown);
    Standing {
        coverage: if phase == Phase::Ready { Coverage::Covered } else { Coverage::Unknown },
        applied,
        nodes: Nodes { matching: 3, desired: 2, available: 1 },
        ..Standing::new(phase, reason, message)
    }
}

fn observed(module: FleetModule, clusters: &[Standing], missing: Vec<Missing>) -> Observed {
    let (tally, name, revision) = (Tally::default(), Arc::from(MODULE), module.revision());
    tally.begin(&name, revision.clone(), Vec::new);
    for (index, standing) in clusters.iter().enumerate() {
        let mut standing = standing.clone();
        standing.held_back = missing.iter().map(|missing| missing.kernel.clone()).collect();
        tally.put(&name, &revision, &format!("c{index}").into(), Some(standing));
    }
    let totals = tally.totals(MODULE, &revision).unwrap();
    Observed { module: Arc::new(module), totals, held: None, missing, refused: None }
}

fn missing(reason: &str) -> Vec<Missing> {
    vec![Missing {
        kernel: kernel("6.1.0-a"),
        image: "registry.test/gpu:6.1.0-a".to_owned(),
        reason: reason.into(),
        message: "".into(),
        clusters: 1,
    }]
}

/// Type, status, reason and message of each condition.
fn conditions(status: &ManagedClusterModuleStatus) -> Vec<(&str, &str, &str, &str)> {
    let all = status.conditions.iter();
    all.map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str(), c.message.as_str())).collect()
}

fn condition<'a>(status: &'a ManagedClusterModuleStatus, type_: &str) -> (&'a str, &'a str, &'a str, &'a str) {
    conditions(status).into_iter().find(|condition| condition.0 == type_).unwrap()
}

fn from_nothing(observed: &Observed) -> ManagedClusterModuleStatus {
    plan(&ManagedClusterModuleStatus::default(), observed, time(NOW)).unwrap()
}

#[test]
fn every_selected_cluster_is_counted_once_and_the_first_failing_is_named() {
    let clusters = [
        at(Phase::Ready, ClusterReason::Ready, ""),
        at(Phase::Waiting, ClusterReason::NodesNotReady, "NodesNotReady: n1"),
        at(Phase::Degraded, ClusterReason::NotApplied, "forbidden"),
        at(Phase::Unknown, ClusterReason::WaitingForStatus, "the cluster has not reported yet"),
    ];
    let new = from_nothing(&observed(module(&spec()), &clusters, vec![]));
    let mut value = serde_json::to_value(&new).unwrap();
    value.as_object_mut().unwrap().remove("conditions");
    let cluster = |name: &str, reason: &str, message: &str| json!({"name": name, "reason": reason, "message": message, "since": NOW});
    let expected = json!({
        "numberAwaitingRemoval": 0, "numberDesired": 4, "numberApplied": 2, "numberDegraded": 1, "numberReady": 1, "numberWaiting": 1, "numberUnknown": 1,
        "nodes": {"matching": 12, "desired": 8, "available": 4},
        "observedGeneration": 1,
        "clusters": [
            cluster("c1", "NodesNotReady", "NodesNotReady: n1"),
            cluster("c2", "NotApplied", "forbidden"),
            cluster("c3", "WaitingForStatus", "the cluster has not reported yet"),
        ],
    });
    assert_eq!(value, expected);
    assert_eq!(
        conditions(&new),
        [
            (
                "Applied",
                "False",
                "NotApplied",
                "applied on 2 of 4 clusters; 1 failed, the first is c2 (NotApplied: forbidden)"
            ),
            ("Covered", "Unknown", "CoverageUnknown", "3 of 4 clusters have not told it of their nodes"),
            ("ImagesResolved", "True", "ImagesResolved", "every image that is needed is known"),
            ("Ready", "False", "ClustersNotReady", "1 of 4 clusters are ready; c1 (NodesNotReady: NodesNotReady: n1)"),
            ("RemovalConfirmed", "True", "Settled", "nothing waits for a confirmation"),
        ]
    );
}

#[test]
fn the_same_again_is_no_write_and_zeros_are_written() {
    for clusters in [vec![], vec![at(Phase::Ready, ClusterReason::Ready, "")]] {
        let seen = observed(module(&spec()), &clusters, vec![]);
        let new = from_nothing(&seen);
        assert_eq!(plan(&new, &seen, time(LATER)), None);
        assert_eq!(new.number_degraded, Some(0));
        // What the server hands back is read back the same.
        let read: ManagedClusterModuleStatus = serde_json::from_value(serde_json::to_value(&new).unwrap()).unwrap();
        assert_eq!(plan(&read, &seen, time(LATER)), None);
    }
}

#[test]
fn ready_means_every_selected_cluster_and_no_cluster_is_not_ready() {
    let ready = at(Phase::Ready, ClusterReason::Ready, "");
    let all = from_nothing(&observed(module(&spec()), &[ready.clone(), ready], vec![]));
    assert_eq!(condition(&all, "Ready"), ("Ready", "True", "Ready", "all 2 clusters are ready"));
    assert_eq!(condition(&all, "Applied"), ("Applied", "True", "Applied", "applied on all 2 clusters"));
    let none = from_nothing(&observed(module(&spec()), &[], vec![]));
    assert_eq!(condition(&none, "Ready"), ("Ready", "False", "NoMatchingClusters", "no cluster matches the selector"));
}

#[test]
fn a_mixed_fleet_becomes_ready_and_says_which_clusters_only_count() {
    let ready = || at(Phase::Ready, ClusterReason::Ready, "");
    let counts = || at(Phase::Ready, ClusterReason::CountersOnly, "2 of 2 nodes");
    let mixed = from_nothing(&observed(module(&spec()), &[ready(), counts(), counts()], vec![]));
    let message =
        "all 3 clusters are ready, 2 of them by numbers alone, which do not tell of which version; the first is c1";
    assert_eq!(condition(&mixed, "Ready"), ("Ready", "True", "CountersOnly", message));
    assert_eq!((mixed.number_ready, mixed.clusters.len()), (Some(3), 0));
    let whole = from_nothing(&observed(module(&spec()), &[ready(), ready(), ready()], vec![]));
    assert_eq!(news(&mixed, &whole), [], "the last cluster was upgraded");
    let waiting = at(Phase::Waiting, ClusterReason::CountersOnly, "1 of 2 nodes");
    let waits = from_nothing(&observed(module(&spec()), &[ready(), counts(), waiting], vec![]));
    assert_eq!(condition(&waits, "Ready").3, "2 of 3 clusters are ready; c2 (CountersOnly: 1 of 2 nodes)");
}

#[test]
fn a_cluster_is_named_with_the_time_since_when_it_has_been_for_that_reason() {
    let named = |old: &ManagedClusterModuleStatus, reason, message: &str, at_time| {
        let seen = observed(module(&spec()), &[at(Phase::Waiting, reason, message)], vec![]);
        let new = plan(old, &seen, time(at_time)).unwrap();
        (new.clusters[0].since.clone().unwrap().0, new)
    };
    let (since, first) = named(&ManagedClusterModuleStatus::default(), ClusterReason::NodesNotReady, "1 of 2", NOW);
    assert_eq!(since, time(NOW));
    assert_eq!(named(&first, ClusterReason::NodesNotReady, "0 of 2", LATER).0, time(NOW));
    assert_eq!(named(&first, ClusterReason::ImagesNotReady, "1 of 2", LATER).0, time(LATER));
}

#[test]
fn covered_is_every_selected_node_of_every_cluster_whether_ready_or_not() {
    let cluster = |phase, coverage| Standing { coverage, ..at(phase, ClusterReason::NodesNotReady, "n1") };
    let not = |reason, message: &str| Coverage::NotCovered { reason, message: message.into() };
    let covered = || cluster(Phase::Waiting, Coverage::Covered);
    let partly = cluster(Phase::Ready, not(ClusterReason::SomeKernelsUnmapped, "no usable mapping for kernel x"));
    let unknown = || cluster(Phase::Unknown, Coverage::Unknown);
    let table = [
        (vec![], "False", "NoMatchingClusters", "no cluster matches the selector"),
        (vec![covered(), covered()], "True", "Covered", "every selected node of all 2 clusters gets the module"),
        (vec![covered(), unknown()], "Unknown", "CoverageUnknown", "1 of 2 clusters have not told it of their nodes"),
        (
            vec![covered(), unknown(), partly],
            "False",
            "ClustersNotCovered",
            "1 of 3 clusters have selected nodes that do not get the module; c2 (SomeKernelsUnmapped: no usable mapping \
             for kernel x)",
        ),
    ];
    for (clusters, status, reason, message) in table {
        let new = from_nothing(&observed(module(&spec()), &clusters, vec![]));
        assert_eq!(condition(&new, "Covered"), ("Covered", status, reason, message));
    }
}

#[test]
fn a_missing_image_is_named_with_what_the_registry_said() {
    let waiting = [at(Phase::Waiting, ClusterReason::ImagesNotReady, "")];
    let table = [
        ("", "ImagesNotReady", "not looked up yet"),
        ("NotFound", "NotFound", "NotFound"),
        ("Unauthorized", "Unauthorized", "Unauthorized"),
    ];
    for (said, reason, why) in table {
        let new = from_nothing(&observed(module(&spec()), &waiting, missing(said)));
        let message = format!("kernel 6.1.0-a on 1 cluster waits for registry.test/gpu:6.1.0-a ({why})");
        assert_eq!(condition(&new, "ImagesResolved"), ("ImagesResolved", "False", reason, &*message));
    }
}

#[test]
fn a_wish_that_cannot_be_carried_out_is_said_and_one_never_read_keeps_its_numbers() {
    let mut broken = spec();
    broken["moduleSpec"]["moduleLoader"]["container"]["kernelMappings"][0]["regexp"] = json!("[");
    let clusters = [at(Phase::Waiting, ClusterReason::InvalidSpec, "")];
    let new = from_nothing(&observed(module(&broken), &clusters, vec![]));
    let ready = condition(&new, "Ready");
    assert_eq!((ready.1, ready.2), ("False", "InvalidSpec"));
    assert!(
        ready.3.starts_with("spec.moduleSpec.moduleLoader.container: kernelMappings[0].regexp \"[\""),
        "{}",
        ready.3
    );
    let mut unread = module(&spec());
    unread.spec = None;
    unread.fault = Some(Fault { reason: ClusterReason::Unreadable, message: "spec: missing".to_owned() });
    let before = ManagedClusterModuleStatus { number_desired: Some(7), ..ManagedClusterModuleStatus::default() };
    let new = plan(&before, &observed(unread, &[], vec![]), time(NOW)).unwrap();
    assert_eq!(new.number_desired, Some(7));
    assert_eq!(conditions(&new), [("Ready", "False", "Unreadable", "spec: missing")]);
}

#[test]
fn transitions_are_told_once() {
    let ready = [at(Phase::Ready, ClusterReason::Ready, "")];
    let failed = [at(Phase::Degraded, ClusterReason::NotApplied, "forbidden")];
    let waiting = [at(Phase::Waiting, ClusterReason::ImagesNotReady, "")];
    let worlds: [(&[Standing], Vec<Missing>, &[EventReason]); 8] = [
        (&waiting, missing(""), &[]),
        (&waiting, missing("Timeout"), &[EventReason::ImageLookupFailed]),
        (&waiting, missing("RegistryError"), &[]),
        (&waiting, missing("NotFound"), &[EventReason::ImageNotFound]),
        (&ready, vec![], &[EventReason::Ready, EventReason::ImagesResolved]),
        (&ready, vec![], &[]),
        (&failed, vec![], &[EventReason::NotReady, EventReason::ClusterNotApplied]),
        (&ready, vec![], &[EventReason::Ready]),
    ];
    let mut old = ManagedClusterModuleStatus::default();
    for (step, (clusters, missing, expected)) in worlds.into_iter().enumerate() {
        let new = plan(&old, &observed(module(&spec()), clusters, missing), time(NOW)).unwrap_or_else(|| old.clone());
        let told: Vec<EventReason> = news(&old, &new).into_iter().map(|News { reason, .. }| reason).collect();
        assert_eq!(told, expected, "step {step}");
        assert_eq!(news(&new, &new), [], "step {step}");
        old = new;
    }
}

#[test]
fn conditions_of_others_are_neither_counted_nor_taken_over() {
    let seen = observed(module(&spec()), &[at(Phase::Ready, ClusterReason::Ready, "")], vec![]);
    let mut old = serde_json::to_value(from_nothing(&seen)).unwrap();
    let foreign: Value =
        json!({"type": "Audited", "status": "True", "reason": "Yes", "message": "", "lastTransitionTime": NOW});
    old["conditions"].as_array_mut().unwrap().push(foreign);
    let old: ManagedClusterModuleStatus = serde_json::from_value(old).unwrap();
    assert_eq!(plan(&old, &seen, time(LATER)), None);
}

#[test]
fn images_that_cannot_be_asked_for_are_no_silence() {
    let clusters = [at(Phase::Waiting, ClusterReason::ImagesNotReady, "")];
    let refused = Some("etcdserver: request is too large".to_owned());
    let new = from_nothing(&Observed { refused, ..observed(module(&spec()), &clusters, missing("")) });
    let images = condition(&new, "ImagesResolved");
    let message =
        "images cannot be asked for: the ModuleImagesConfig cannot be written: etcdserver: request is too large";
    assert_eq!(images, ("ImagesResolved", "False", "ImagesNotReady", message));
}

#[test]
fn a_removal_that_waits_says_how_many_clusters_which_and_what_to_do() {
    let first = ["c00", "c01", "c02"].map(Arc::from).to_vec();
    let held = Some(Held { having: 20, leaving: 12, first });
    let ready = at(Phase::Ready, ClusterReason::Ready, "");
    let before = observed(module(&spec()), &[ready], vec![]);
    let old = from_nothing(&before);
    let new = plan(&old, &Observed { held, ..before.clone() }, time(LATER)).unwrap();
    assert_eq!((new.number_awaiting_removal, new.number_desired), (Some(12), Some(1)));
    let message = "12 of 20 clusters that have the module are not selected any more: c00, c01, c02 and 9 more; they keep \
        it, and no other cluster gets it, until you confirm that they lose it: kubectl annotate managedclustermodule gpu \
        --overwrite kmm.node.kubernetes.io/confirm-removal=1; or put spec.selector or the labels of the clusters right";
    for type_ in ["Ready", "RemovalConfirmed"] {
        assert_eq!(condition(&new, type_), (type_, "False", "AwaitingConfirmation", message));
    }
    let told: Vec<EventReason> = news(&old, &new).into_iter().map(|News { reason, .. }| reason).collect();
    assert_eq!(told, [EventReason::NotReady, EventReason::RemovalAwaitsConfirmation]);
    let after = plan(&new, &before, time(LATER)).unwrap();
    assert_eq!(conditions(&after), conditions(&old));
    assert_eq!(after.number_awaiting_removal, Some(0));
}
