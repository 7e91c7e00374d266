use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::observe::Observed;
use super::plan::{Action, GRACE, LONGEST, Plan, SETTLE, plan};
use super::waits::Waited;
use crate::api::names::ClusterReason;
use crate::api::ocm::ManifestWork;
use crate::hub::standing::{Held, Phase, Removal};
use crate::hub::testing::{
    MODULE, UID, cluster, cluster_of, digest, hash_in, images, kernel, module, module_of, owner, reported, spec,
    stored, target, work,
};
use crate::hub::view::{Cluster, FleetModule, Images, Kernels, Work};

pub(super) fn observed(
    module: FleetModule,
    cluster: Cluster,
    images: Option<Images>,
    work: Option<Arc<Work>>,
) -> Observed {
    Observed {
        target: target("c1"),
        module: Some(Arc::new(module)),
        cluster: Some(Arc::new(cluster)),
        images: images.map(Arc::new),
        work,
        removal: Removal::Free,
        waited: None,
    }
}

pub(super) fn applied(plan: &Plan) -> &ManifestWork {
    match &plan.action {
        Action::Apply { work, .. } => work,
        other => panic!("no work to be applied: {other:?}"),
    }
}

/// Kernel and image of each mapping in the plan's work.
fn sent(plan: &Plan) -> Vec<(String, String)> {
    let module = &applied(plan).spec.workload.manifests[1];
    let mappings = module["spec"]["moduleLoader"]["container"]["kernelMappings"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    mappings.iter().map(|mapping| (text(&mapping["literal"]), text(&mapping["containerImage"]))).collect()
}

fn pair(kernel: &str, digit: char) -> (String, String) {
    (kernel.to_owned(), format!("registry.test/gpu@{}", digest(digit)))
}

pub(super) fn two_images() -> Images {
    images(&[
        ("6.1.0-a", "registry.test/gpu:6.1.0-a", Ok(&digest('a'))),
        ("6.1.0-b", "registry.test/gpu:6.1.0-b", Ok(&digest('b'))),
    ])
}

pub(super) fn standing(plan: &Plan) -> (Phase, ClusterReason, String) {
    let standing = plan.standing.as_ref().unwrap();
    (standing.phase, standing.reason, standing.message.to_string())
}

#[test]
fn the_work_holds_a_namespace_and_a_trimmed_module_with_one_literal_mapping_per_kernel() {
    let kernels = cluster(&["6.1.0-b+", "6.1.0-a", "6.1.0-b"]);
    let plan = plan(&observed(module(&spec()), kernels, Some(two_images()), None)).unwrap();
    let rendered = serde_json::to_value(applied(&plan)).unwrap();
    let hash = hash_in(&rendered);
    assert_eq!(hash.as_str().unwrap().len(), 32);
    let mapping = |kernel: &str, digit| {
        json!({"literal": kernel, "containerImage": pair(kernel, digit).1,
            "registryTLS": {"insecure": true}, "inTreeModulesToRemove": ["nouveau"]})
    };
    let rule = |name: &str, path: &str| json!({"name": name, "path": path});
    let counters: Vec<Value> = ["devicePlugin", "dra", "moduleLoader"]
        .iter()
        .flat_map(|part| {
            ["availableNumber", "desiredNumber", "nodesMatchingSelectorNumber"]
                .map(|counter| rule(&format!("{part}.{counter}"), &format!(".status.{part}.{counter}")))
        })
        .chain([
            rule("renderedHash", ".status.renderedHash"),
            rule("observedGeneration", ".status.observedGeneration"),
            rule("ready.status", ".status.conditions[?(@.type==\"Ready\")].status"),
            rule("ready.reason", ".status.conditions[?(@.type==\"Ready\")].reason"),
            rule("ready.message", ".status.conditions[?(@.type==\"Ready\")].message"),
            rule("covered.status", ".status.conditions[?(@.type==\"Covered\")].status"),
            rule("covered.reason", ".status.conditions[?(@.type==\"Covered\")].reason"),
            rule("covered.message", ".status.conditions[?(@.type==\"Covered\")].message"),
        ])
        .collect();
    let sources = rendered["metadata"]["annotations"]["kmm.node.kubernetes.io/sent-images"].clone();
    let kernels_with_source: BTreeMap<String, String> = serde_json::from_str(sources.as_str().unwrap()).unwrap();
    assert_eq!(kernels_with_source.keys().collect::<Vec<_>>(), ["6.1.0-a", "6.1.0-b"]);
    let expected = json!({
        "apiVersion": "work.open-cluster-management.io/v1",
        "kind": "ManifestWork",
        "metadata": {
            "name": "gpu", "namespace": "c1",
            "labels": {"kmm.node.kubernetes.io/managedclustermodule.name": "gpu"},
            "annotations": {"kmm.node.kubernetes.io/sent-images": sources},
            "ownerReferences": [owner("ManagedClusterModule", MODULE, UID)],
        },
        "spec": {
            "deleteOption": {"propagationPolicy": "SelectivelyOrphan", "selectivelyOrphans": {
                "orphaningRules": [{"resource": "namespaces", "name": "drivers"}]}},
            "manifestConfigs": [
                {"feedbackScrapeType": "Poll", "resourceIdentifier": {"resource": "namespaces", "name": "drivers"},
                    "updateStrategy": {"type": "CreateOnly"}},
                {"feedbackScrapeType": "Poll",
                    "resourceIdentifier": {"group": "kmm.sigs.x-k8s.io", "resource": "modules", "name": "gpu", "namespace": "drivers"},
                    "updateStrategy": {"type": "ServerSideApply", "serverSideApply": {"force": true, "fieldManager": "work-agent-kmm"}},
                    "feedbackRules": [{"type": "JSONPaths", "jsonPaths": counters}]},
            ],
            "workload": {"manifests": [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "drivers"}},
                {"apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "Module",
                    "metadata": {"name": "gpu", "namespace": "drivers",
                        "annotations": {"kmm.node.kubernetes.io/rendered-hash": hash}},
                    "spec": {
                        "selector": {"feature": "gpu"},
                        "imageRepoSecret": {"name": "pull"},
                        "moduleLoader": {"container": {
                            "modprobe": {"moduleName": "gpu", "dirName": "/opt"},
                            "kernelMappings": [mapping("6.1.0-a", 'a'), mapping("6.1.0-b", 'b')],
                        }},
                    }},
            ]},
        },
    });
    assert_eq!(rendered, expected);
    assert!(
        plan.standing.is_some_and(|standing| standing.reason == ClusterReason::WaitingForApply && !standing.applied)
    );
}

#[test]
fn a_work_that_the_server_stored_is_not_written_again_whatever_the_server_adds() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), None)).unwrap();
    let mut older_server = stored(applied(&first));
    for config in older_server["spec"]["manifestConfigs"].as_array_mut().unwrap() {
        config.as_object_mut().unwrap().remove("feedbackScrapeType");
    }
    for server in [stored(applied(&first)), older_server] {
        let again =
            plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), Some(work(server)))).unwrap();
        assert_eq!(again.action, Action::Nothing);
    }
}

#[test]
fn what_somebody_changed_in_a_work_is_put_back() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), None)).unwrap();
    let changes: [fn(&mut Value); 5] = [
        |work| work["spec"]["workload"]["manifests"][1]["spec"]["selector"] = json!({}),
        |work| work["spec"]["manifestConfigs"] = json!([]),
        |work| work["spec"]["deleteOption"]["propagationPolicy"] = json!("Orphan"),
        |work| work["metadata"]["annotations"] = json!({}),
        |work| work["metadata"]["ownerReferences"] = json!([]),
    ];
    for change in changes {
        let mut server = stored(applied(&first));
        change(&mut server);
        let plan =
            plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), Some(work(server)))).unwrap();
        assert_eq!(applied(&plan), applied(&first));
        assert!(matches!(&plan.action, Action::Apply { uid: Some(uid), .. } if &**uid == "uid-of-work"));
    }
}

#[test]
fn a_kernel_without_image_holds_back_only_itself_and_is_named() {
    let known = || {
        images(&[
            ("6.1.0-a", "registry.test/gpu:6.1.0-a", Ok(&digest('a'))),
            ("6.1.0-b", "registry.test/gpu:6.1.0-b", Err("NotFound")),
        ])
    };
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a", "6.1.0-b"]), Some(known()), None)).unwrap();
    assert_eq!(sent(&first), [pair("6.1.0-a", 'a')]);
    let message = "no image yet for kernel 6.1.0-b (registry.test/gpu:6.1.0-b: NotFound)".to_owned();
    assert_eq!(standing(&first), (Phase::Waiting, ClusterReason::ImagesNotReady, message));
    assert!(!first.wants_images);
    let server = stored(applied(&first));
    let hash = hash_in(&server);
    let server = reported(
        server,
        &[("renderedHash", hash), ("ready.status", json!("True")), ("moduleLoader.availableNumber", json!(2))],
    );
    let again =
        plan(&observed(module(&spec()), cluster(&["6.1.0-a", "6.1.0-b"]), Some(known()), Some(work(server)))).unwrap();
    assert_eq!(again.action, Action::Nothing);
    let after = again.standing.unwrap();
    assert_eq!(
        (after.phase, after.reason, after.applied, after.nodes.available),
        (Phase::Waiting, ClusterReason::ImagesNotReady, true, 2)
    );
}

#[test]
fn a_silent_registry_holds_the_work_back_for_a_moment_and_then_only_its_own_kernel() {
    let (a, b) = (("6.1.0-a", "registry.test/gpu:6.1.0-a"), ("6.1.0-b", "registry.test/gpu:6.1.0-b"));
    let waited = |unanswered, in_all, still| Some(Waited { generation: 1, unanswered, in_all, still });
    let planned = |known: Images, waited, work| {
        let observed = observed(module(&spec()), cluster(&[a.0, b.0]), Some(known), work);
        plan(&Observed { waited, ..observed }).unwrap()
    };
    // Not asked yet, and asked without an answer, or with one that is put off: all the same.
    let digest_of_a = digest('a');
    let found = (a.0, a.1, Ok(&*digest_of_a));
    let silent = || [images(&[found]), images(&[found, (b.0, b.1, Err("Pending"))])];
    let (half, long) = (GRACE / 2, LONGEST / 2);
    for (before, rest) in [
        (None, GRACE),
        (waited(1, half, half), half),
        // The other answer has come just now, late or not.
        (waited(2, half, half), GRACE),
        (waited(2, long, long), GRACE),
        (waited(2, 4 * GRACE + half, long), half),
    ] {
        for known in silent() {
            let held = planned(known, before, None);
            assert_eq!((&held.action, held.again), (&Action::Nothing, Some(rest)), "{before:?}");
            assert_eq!(held.waits.unwrap().unanswered, 1);
            assert_eq!(standing(&held).1, ClusterReason::ImagesNotReady);
        }
    }
    let mut late = Vec::new();
    for before in [waited(1, GRACE, GRACE), waited(2, LONGEST, half)] {
        for known in silent() {
            let plan = planned(known, before, None);
            assert_eq!((sent(&plan), plan.again), (vec![pair(a.0, 'a')], None));
            let (phase, reason, message) = standing(&plan);
            assert_eq!((phase, reason), (Phase::Waiting, ClusterReason::ImagesNotReady));
            assert!(message.starts_with("no image yet for kernel 6.1.0-b (registry.test/gpu:6.1.0-b"), "{message}");
            late.push(stored(applied(&plan)));
        }
    }
    assert!(late.windows(2).all(|works| works[0] == works[1]));
    // With the answer the work is whole, at once; nothing is waited for any more.
    let whole = planned(two_images(), waited(1, long, long), Some(work(late[0].clone())));
    assert_eq!((sent(&whole), whole.waits), (vec![pair(a.0, 'a'), pair(b.0, 'b')], None));

    // A change of an existing work waits no longer either, and what was sent of the silent registry stays in it.
    let before = Some(work(stored(applied(&whole))));
    let mut changed = spec();
    changed["moduleSpec"]["moduleLoader"]["container"]["modprobe"]["parameters"] = json!(["debug=1"]);
    for known in silent() {
        let observed = observed(module(&changed), cluster(&[a.0, b.0]), Some(known), before.clone());
        let plan = plan(&observed).unwrap();
        assert_eq!((sent(&plan), plan.waits), (vec![pair(a.0, 'a'), pair(b.0, 'b')], None));
    }
    // Where nothing is known at all there is nothing to send, however long that is so.
    let nothing = planned(images(&[]), waited(2, LONGEST, LONGEST), None);
    assert_eq!((nothing.action, nothing.waits.is_some(), nothing.again), (Action::Nothing, true, None));
}

#[test]
fn a_digest_once_sent_stays_while_the_image_is_the_same_and_goes_with_another() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a", "6.1.0-b"]), Some(two_images()), None)).unwrap();
    let server = || Some(work(stored(applied(&first))));
    let forgotten = || {
        Some(images(&[
            ("6.1.0-a", "registry.test/gpu:6.1.0-a", Err("NotFound")),
            ("6.1.0-b", "registry.test/gpu:6.1.0-b", Err("Timeout")),
        ]))
    };
    for known in [forgotten(), None] {
        let plan = plan(&observed(module(&spec()), cluster(&["6.1.0-a", "6.1.0-b"]), known, server())).unwrap();
        assert_eq!(plan.action, Action::Nothing);
    }
    let mut parameters = spec();
    parameters["moduleSpec"]["moduleLoader"]["container"]["modprobe"]["parameters"] = json!(["debug=1"]);
    let changed =
        plan(&observed(module(&parameters), cluster(&["6.1.0-a", "6.1.0-b"]), forgotten(), server())).unwrap();
    assert_eq!(sent(&changed), [pair("6.1.0-a", 'a'), pair("6.1.0-b", 'b')]);
    let mut version = spec();
    version["moduleSpec"]["moduleLoader"]["container"]["containerImage"] =
        json!("registry.test/gpu:v2-${KERNEL_FULL_VERSION}");
    let known = images(&[("6.1.0-a", "registry.test/gpu:v2-6.1.0-a", Ok(&digest('c')))]);
    let asking = plan(&observed(module(&version), cluster(&["6.1.0-a", "6.1.0-b"]), Some(known), server())).unwrap();
    assert_eq!(asking.action, Action::Nothing, "one write follows once both look-ups have come to something");
    assert!(asking.wants_images, "the image for 6.1.0-b was not asked for");
    let known = images(&[
        ("6.1.0-a", "registry.test/gpu:v2-6.1.0-a", Ok(&digest('c'))),
        ("6.1.0-b", "registry.test/gpu:v2-6.1.0-b", Err("NotFound")),
    ]);
    let upgraded = plan(&observed(module(&version), cluster(&["6.1.0-a", "6.1.0-b"]), Some(known), server())).unwrap();
    assert_eq!(sent(&upgraded), [pair("6.1.0-a", 'c')]);
}

#[test]
fn a_work_with_tags_of_the_older_edition_loses_no_kernel_while_digests_are_looked_up() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a", "6.1.0-b"]), Some(two_images()), None)).unwrap();
    let mut old = stored(applied(&first));
    old["metadata"]["annotations"] = json!({});
    let mappings = &mut old["spec"]["workload"]["manifests"][1]["spec"]["moduleLoader"]["container"]["kernelMappings"];
    *mappings = json!([
        {"literal": "6.1.0-a", "containerImage": "registry.test/gpu:6.1.0-a"},
        {"literal": "6.1.0-b", "containerImage": "registry.test/gpu:6.1.0-b"},
    ]);
    let known = images(&[("6.1.0-a", "registry.test/gpu:6.1.0-a", Ok(&digest('a')))]);
    let plan =
        plan(&observed(module(&spec()), cluster(&["6.1.0-a", "6.1.0-b"]), Some(known), Some(work(old)))).unwrap();
    assert_eq!(sent(&plan), [pair("6.1.0-a", 'a'), ("6.1.0-b".to_owned(), "registry.test/gpu:6.1.0-b".to_owned())]);
}

#[test]
fn what_is_not_known_takes_nothing_away() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a", "6.1.0-b"]), Some(two_images()), None)).unwrap();
    let server = || Some(work(stored(applied(&first))));
    let labels = json!({"gpu": "yes"});
    let claim = |name: &str, value: &str| json!([{"name": name, "value": value}]);
    let mut broken = spec();
    broken["moduleSpec"]["moduleLoader"]["container"]["kernelMappings"][0]["regexp"] = json!("[");
    let mut nothing = spec();
    nothing.as_object_mut().unwrap().remove("moduleSpec");
    let mut not_accepted = cluster(&["6.1.0-a"]);
    not_accepted.accepted = false;
    let full = || cluster(&["6.1.0-a", "6.1.0-b"]);
    let unreadable = || {
        use crate::runtime::store::Projection;
        let meta = serde_json::from_value(json!({"name": MODULE, "uid": UID, "generation": 2})).unwrap();
        FleetModule::unreadable(&meta, "spec.selector: not a map", Some(&module(&spec()))).unwrap()
    };
    let table = [
        ("no claims", module(&spec()), cluster(&[]), ClusterReason::NoClaims),
        (
            "invalid claim",
            module(&spec()),
            cluster_of(&labels, &claim("kernel-versions.kmm.node.kubernetes.io", "6.1 .0")),
            ClusterReason::ClaimsInvalid,
        ),
        ("unmapped kernels", module(&spec()), cluster(&["x86"]), ClusterReason::WaitingForApply),
        ("a mapping that is no expression", module(&broken), full(), ClusterReason::InvalidSpec),
        ("no moduleSpec", module(&nothing), full(), ClusterReason::InvalidSpec),
        ("unreadable", unreadable(), full(), ClusterReason::Unreadable),
        ("not accepted", module(&spec()), not_accepted, ClusterReason::NotAccepted),
    ];
    for (case, module, cluster, reason) in table {
        let plan = plan(&observed(module, cluster, Some(two_images()), server())).unwrap();
        assert_eq!(plan.action, Action::Nothing, "{case}");
        assert_eq!(standing(&plan).1, reason, "{case}");
    }
    let gone = Observed { module: None, ..observed(module(&spec()), full(), None, server()) };
    let deleting = json!({"name": MODULE, "uid": UID, "generation": 2, "deletionTimestamp": "2026-01-01T00:00:00Z"});
    let going = observed(module_of(&deleting, &spec()), full(), Some(two_images()), None);
    for observed in [gone, going] {
        assert_eq!(plan(&observed).unwrap(), Plan::nothing(None));
    }
}

#[test]
fn an_incomplete_list_of_kernels_adds_and_never_removes() {
    let kernels: Vec<String> = (0..60).map(|n| format!("6.1.0-{n:02}-some-long-flavour-amd64")).collect();
    let all: std::collections::BTreeSet<_> =
        kernels.iter().map(|kernel| crate::core::kernel::KernelVersion::parse(kernel).unwrap()).collect();
    let claims = crate::core::claims::encode(&all).unwrap();
    assert!(claims.len() > 1);
    let value = |skip: Option<usize>| {
        let kept = claims.iter().enumerate().filter(|(index, _)| Some(*index) != skip);
        Value::Array(kept.map(|(_, claim)| json!({"name": claim.name, "value": claim.value})).collect())
    };
    let facts: Vec<(String, String, String)> =
        kernels.iter().map(|kernel| (kernel.clone(), format!("registry.test/gpu:{kernel}"), digest('a'))).collect();
    let facts: Vec<(&str, &str, Result<&str, &str>)> =
        facts.iter().map(|(kernel, image, digest)| (&**kernel, &**image, Ok(&**digest))).collect();
    let labels = json!({"gpu": "yes"});
    let whole =
        plan(&observed(module(&spec()), cluster_of(&labels, &value(None)), Some(images(&facts)), None)).unwrap();
    assert_eq!(sent(&whole).len(), 60);
    for missing in 0..claims.len() {
        let server = Some(work(stored(applied(&whole))));
        let part = cluster_of(&labels, &value(Some(missing)));
        let again = plan(&observed(module(&spec()), part, Some(images(&facts)), server)).unwrap();
        assert_eq!(again.action, Action::Nothing, "without claim {missing}");
        assert!(
            [ClusterReason::ClaimsInvalid, ClusterReason::NoClaims].contains(&standing(&again).1),
            "{:?}",
            standing(&again)
        );
    }
}

#[test]
fn a_kernel_that_only_the_work_still_names_is_remembered_until_its_next_image_is_there() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a", "6.1.0-b"]), Some(two_images()), None)).unwrap();
    let mut next = spec();
    next["moduleSpec"]["moduleLoader"]["container"]["containerImage"] =
        json!("registry.test/gpu:v2-${KERNEL_FULL_VERSION}");
    // A list of two parts of which the second does not come through.
    let half = || {
        let mut cluster = cluster(&["6.1.0-a"]);
        let known = cluster.kernels.known().into();
        cluster.kernels = Kernels::Incomplete { known, missing: "its claims lack part 2".into() };
        cluster
    };
    let images = |of_b| {
        images(&[
            ("6.1.0-a", "registry.test/gpu:v2-6.1.0-a", Ok(&digest('c'))),
            ("6.1.0-b", "registry.test/gpu:v2-6.1.0-b", of_b),
        ])
    };
    let found = digest('d');
    let mut server = stored(applied(&first));
    for of_b in [Err("Timeout"), Err("NotFound")] {
        let seen = observed(module(&next), half(), Some(images(of_b)), Some(work(server.clone())));
        let plan = plan(&seen).unwrap();
        if plan.action != Action::Nothing {
            assert_eq!(sent(&plan), [pair("6.1.0-a", 'c')], "{of_b:?}");
            server = stored(applied(&plan));
        }
        assert_eq!(*plan.standing.unwrap().held_back, [kernel("6.1.0-b")]);
    }
    let seen = observed(module(&next), half(), Some(images(Ok(&*found))), Some(work(server)));
    assert_eq!(sent(&plan(&seen).unwrap()), [pair("6.1.0-a", 'c'), pair("6.1.0-b", 'd')]);
}

#[test]
fn a_tag_that_moved_is_followed_when_the_trigger_says_so_and_was_answered() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), None)).unwrap();
    let server = || Some(work(stored(applied(&first))));
    let now = |trigger: Option<i64>, said| {
        let mut images = images(&[("6.1.0-a", "registry.test/gpu:6.1.0-a", said)]);
        images.trigger = trigger;
        images
    };
    let moved = digest('c');
    let planned = |module, images| plan(&observed(module, cluster(&["6.1.0-a"]), Some(images), server())).unwrap();
    assert_eq!(planned(module(&spec()), now(None, Ok(&moved))).action, Action::Nothing, "looked up anew, not asked to");
    let mut triggered = spec();
    triggered["moduleSpec"]["imageRebuildTriggerGeneration"] = json!(1);
    for (what, images) in [("not answered", now(None, Ok(&moved))), ("failed", now(Some(1), Err("Timeout")))] {
        assert_eq!(sent(&planned(module(&triggered), images)), [pair("6.1.0-a", 'a')], "{what}");
    }
    assert_eq!(sent(&planned(module(&triggered), now(Some(1), Ok(&moved)))), [pair("6.1.0-a", 'c')]);
}

#[test]
fn only_a_work_of_ours_is_touched() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), None)).unwrap();
    let with_owner = |owners: Value| {
        let mut server = stored(applied(&first));
        server["metadata"]["ownerReferences"] = owners;
        server["spec"]["manifestConfigs"] = json!([]);
        Some(work(server))
    };
    let selected = |work| plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), work)).unwrap();
    let deselected = |work| {
        let other = cluster_of(&json!({"gpu": "no"}), &json!([]));
        let waited = Some(Waited { generation: 1, unanswered: 0, in_all: SETTLE, still: SETTLE });
        plan(&Observed { waited, ..observed(module(&spec()), other, Some(two_images()), work) }).unwrap()
    };
    let touched = |plan: &Plan| plan.action != Action::Nothing;
    let table = [
        ("ours", json!([owner("ManagedClusterModule", MODULE, UID)]), true, true, None),
        ("left behind", json!([]), true, false, None),
        (
            "of an earlier one",
            json!([owner("ManagedClusterModule", MODULE, "old")]),
            false,
            false,
            Some(ClusterReason::Deleting),
        ),
        (
            "of another one",
            json!([owner("ManagedClusterModule", "other", "x")]),
            false,
            false,
            Some(ClusterReason::OwnedByOther),
        ),
        (
            "of a replica set",
            json!([owner("ManifestWorkReplicaSet", "gpu", "x")]),
            false,
            false,
            Some(ClusterReason::OwnedByOther),
        ),
    ];
    for (case, owners, written, deleted, reason) in table {
        let plan = selected(with_owner(owners.clone()));
        assert_eq!(touched(&plan), written, "{case}");
        if let Some(reason) = reason {
            assert_eq!(standing(&plan).1, reason, "{case}");
        }
        assert_eq!(touched(&deselected(with_owner(owners))), deleted, "{case}, not selected");
    }
    let foreign_label = {
        let mut server = stored(applied(&first));
        server["metadata"]["ownerReferences"] = json!([]);
        server["metadata"]["labels"] = json!({"kmm.node.kubernetes.io/managedclustermodule.name": "other"});
        work(server)
    };
    assert_eq!(standing(&selected(Some(foreign_label))).1, ClusterReason::OwnedByOther);
}

#[test]
fn only_a_cluster_that_is_there_and_not_selected_loses_its_work_and_once() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), None)).unwrap();
    let server = || work(stored(applied(&first)));
    let not_selected = || cluster_of(&json!({"gpu": "no"}), &json!([]));
    let waited = |still| Waited { generation: 1, unanswered: 0, in_all: still, still };
    let left = |before| {
        plan(&Observed { waited: before, ..observed(module(&spec()), not_selected(), None, Some(server())) }).unwrap()
    };
    let half = SETTLE / 2;
    for (before, so_far, rest) in [(None, Duration::ZERO, SETTLE), (Some(waited(half)), half, half)] {
        let waits = Some(waited(so_far));
        assert_eq!(left(before), Plan { waits, again: Some(rest), ..Plan::nothing(None) });
    }
    let action = Action::Delete { uid: "uid-of-work".into() };
    let over = Some(waited(SETTLE));
    assert_eq!(left(over), Plan { action, waits: over, ..Plan::nothing(None) });

    // OCM removes the works of a cluster that leaves; one that vanished may come back.
    for mut going in [cluster(&["6.1.0-a"]), not_selected()] {
        going.deleting = true;
        assert_eq!(plan(&observed(module(&spec()), going, None, Some(server()))).unwrap(), Plan::nothing(None));
    }
    let gone = |work| Observed { cluster: None, ..observed(module(&spec()), cluster(&[]), None, work) };
    let missing = plan(&gone(Some(server()))).unwrap();
    assert_eq!(missing.action, Action::Nothing);
    assert_eq!((standing(&missing).0, standing(&missing).1), (Phase::Unknown, ClusterReason::ClusterMissing));
    assert_eq!(plan(&gone(None)).unwrap(), Plan::nothing(None));

    let mut deleting = stored(applied(&first));
    deleting["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for seen in [
        gone(Some(work(deleting.clone()))),
        observed(module(&spec()), not_selected(), None, Some(work(deleting.clone()))),
    ] {
        assert_eq!(plan(&seen).unwrap(), Plan::nothing(None));
    }
    let back =
        plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), Some(work(deleting)))).unwrap();
    assert_eq!((back.action.clone(), standing(&back).1), (Action::Nothing, ClusterReason::Deleting));
}

#[test]
fn while_a_removal_waits_for_a_confirmation_no_cluster_loses_the_module_or_gets_it_newly() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), None)).unwrap();
    let server = || Some(work(stored(applied(&first))));
    let not_selected = || cluster_of(&json!({"gpu": "no"}), &json!([]));
    let waited = Some(Waited { generation: 1, unanswered: 0, in_all: SETTLE, still: SETTLE });
    let held = Removal::Held(Held { having: 20, leaving: 11, first: vec!["c1".into()] });
    for (removal, reason) in
        [(held, ClusterReason::AwaitingConfirmation), (Removal::Unknown, ClusterReason::WaitingForApply)]
    {
        let planned = |module, cluster, work| {
            let seen = observed(module, cluster, Some(two_images()), work);
            plan(&Observed { removal: removal.clone(), waited, ..seen }).unwrap()
        };
        assert_eq!(planned(module(&spec()), not_selected(), server()), Plan::nothing(None));
        let new = planned(module(&spec()), cluster(&["6.1.0-a"]), None);
        assert_eq!((&new.action, standing(&new).1), (&Action::Nothing, reason));
        // Who is selected and has it gets what changed.
        let mut changed = spec();
        changed["moduleSpec"]["moduleLoader"]["container"]["modprobe"]["parameters"] = json!(["debug=1"]);
        assert_eq!(sent(&planned(module(&changed), cluster(&["6.1.0-a"]), server())), [pair("6.1.0-a", 'a')]);
    }
}

#[test]
fn without_a_loader_no_kernel_and_no_image_is_needed() {
    let mut spec = spec();
    spec["moduleSpec"] = json!({"selector": {}, "devicePlugin": {"container": {"image": "registry.test/plugin:1"}}});
    let first = plan(&observed(module(&spec), cluster(&[]), None, None)).unwrap();
    let sent = &applied(&first).spec.workload.manifests[1]["spec"];
    assert_eq!(*sent, json!({"selector": {}, "devicePlugin": {"container": {"image": "registry.test/plugin:1"}}}));
    let server = stored(applied(&first));
    let hash = hash_in(&server);
    let values = [("renderedHash", hash), ("ready.status", json!("True")), ("devicePlugin.desiredNumber", json!(4))];
    let again = plan(&observed(module(&spec), cluster(&[]), None, Some(work(reported(server, &values))))).unwrap();
    assert_eq!((again.action.clone(), standing(&again).0), (Action::Nothing, Phase::Ready));
    assert_eq!(again.standing.unwrap().nodes.desired, 4);
}

#[test]
fn a_name_too_long_for_a_label_gets_a_short_one_and_keeps_its_work() {
    let name = "a".repeat(100);
    let long = module_of(&json!({"name": name, "uid": UID, "generation": 1}), &spec());
    let seen = observed(long.clone(), cluster(&["6.1.0-a"]), Some(two_images()), None);
    let first = plan(&seen).unwrap();
    let labels = applied(&first).metadata.labels.clone().unwrap();
    assert!(labels.values().all(|value| value.len() <= 63));
    assert_eq!(applied(&first).metadata.name.as_deref(), Some(&*name));
    let seen = observed(long, cluster(&["6.1.0-a"]), Some(two_images()), Some(work(stored(applied(&first)))));
    assert_eq!(plan(&seen).unwrap().action, Action::Nothing);
}
