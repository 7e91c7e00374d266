//! The judge of works: a good one passes, and each fault is found by exactly its sentence.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::ocm::{Expectation, check_manifest_work};

fn digest(n: u8) -> String {
    format!("registry.example.com:5000/team/mod@sha256:{}", format!("{n:02x}").repeat(32))
}

fn good() -> (Value, Expectation) {
    let module = json!({
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "Module", "metadata": {"name": "mod", "namespace": "drivers"},
        "spec": {"selector": {}, "moduleLoader": {"container": {"modprobe": {"moduleName": "m"}, "kernelMappings": [
            {"literal": "6.1.0-1", "containerImage": digest(1)},
            {"literal": "6.1.0-2", "containerImage": digest(2)},
        ]}}},
    });
    let work = json!({
        "apiVersion": "work.open-cluster-management.io/v1", "kind": "ManifestWork",
        "metadata": {
            "name": "mod", "namespace": "cluster1",
            "labels": {"kmm.node.kubernetes.io/managedclustermodule.name": "mod"},
            "ownerReferences": [{"apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1", "kind": "ManagedClusterModule", "name": "mod", "uid": "u1", "controller": true}],
        },
        "spec": {
            "workload": {"manifests": [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "drivers"}},
                module,
            ]},
            "deleteOption": {"propagationPolicy": "SelectivelyOrphan", "selectivelyOrphans": {"orphaningRules": [
                {"group": "", "resource": "namespaces", "name": "drivers"}]}},
            "manifestConfigs": [
                {"resourceIdentifier": {"group": "", "resource": "namespaces", "name": "drivers"}, "updateStrategy": {"type": "CreateOnly"}},
                {"resourceIdentifier": {"group": "kmm.sigs.x-k8s.io", "resource": "modules", "name": "mod", "namespace": "drivers"},
                 "updateStrategy": {"type": "ServerSideApply", "serverSideApply": {"force": true, "fieldManager": "work-agent-kmm"}},
                 "feedbackRules": [{"type": "JSONPaths", "jsonPaths": [{"name": "n", "path": ".status.moduleLoader.availableNumber"}]}]},
            ],
        },
    });
    let images = BTreeMap::from([("6.1.0-1".to_owned(), digest(1)), ("6.1.0-2".to_owned(), String::new())]);
    let expected = Expectation {
        module: "mod".to_owned(),
        owner_uid: "u1".to_owned(),
        cluster: "cluster1".to_owned(),
        spoke_namespace: "drivers".to_owned(),
        images,
        detached: false,
    };
    (work, expected)
}

#[test]
fn a_good_work_has_no_fault() {
    let (work, expected) = good();
    assert_eq!(check_manifest_work(&work, &expected), Vec::<String>::new());
}

#[test]
fn each_fault_is_found() {
    const CONTAINER: &str = "/spec/workload/manifests/1/spec/moduleLoader/container";
    const MAPPING: &str = "/spec/workload/manifests/1/spec/moduleLoader/container/kernelMappings/0";
    const MODULE: &str = "/spec/workload/manifests/1";
    const CONFIG: &str = "/spec/manifestConfigs/1";
    let pinned = "is not repo@sha256:<64 hexadecimal digits>";
    let cases: Vec<(&str, &str, Value, Vec<String>)> = vec![
        ("/metadata", "name", json!("other"), vec!["name is \"other\", not \"mod\"".into()]),
        ("/metadata", "namespace", json!("c2"), vec!["namespace is \"c2\", not \"cluster1\"".into()]),
        ("/metadata", "labels", json!({}), vec!["label kmm.node.kubernetes.io/managedclustermodule.name is \"\", not \"mod\"".into()]),
        ("/metadata", "ownerReferences", json!([]), vec!["0 owner references are the controller, not 1".into()]),
        ("/metadata/ownerReferences/0", "uid", json!("u2"), vec!["uid of the owner is \"u2\", not \"u1\"".into()]),
        (MODULE, "status", json!({}), vec!["manifest 1 has a status".into()]),
        ("/spec/workload/manifests/1/metadata", "uid", json!("x"), vec!["manifest 1 has metadata.uid".into()]),
        (CONTAINER, "build", json!({}), vec!["the container still has build".into()]),
        (CONTAINER, "sign", json!({}), vec!["the container still has sign".into()]),
        (CONTAINER, "containerImage", json!("repo:${KERNEL_FULL_VERSION}"), vec![format!("image \"repo:${{KERNEL_FULL_VERSION}}\" of the container {pinned}")]),
        (MAPPING, "regexp", json!("^.+$"), vec!["mapping \"6.1.0-1\" has regexp".into()]),
        (MAPPING, "build", json!({}), vec!["mapping \"6.1.0-1\" has build".into()]),
        (MAPPING, "containerImage", json!(digest(3)), vec![format!("image {:?} of mapping \"6.1.0-1\" is not {:?}", digest(3), digest(1))]),
        (MAPPING, "literal", json!("6.1.0-0"), vec!["mapping \"6.1.0-0\" is for a kernel that was not expected".into(), "there is no mapping for kernel \"6.1.0-1\"".into()]),
        (CONTAINER, "kernelMappings", json!([{"literal": "6.1.0-2", "containerImage": digest(2)}, {"literal": "6.1.0-1", "containerImage": digest(1)}]),
            vec!["the mappings are not in strictly ascending order: [\"6.1.0-2\", \"6.1.0-1\"]".into()]),
        (CONTAINER, "kernelMappings", json!([{"literal": "6.1.0-1", "containerImage": digest(1)}, {"literal": "6.1.0-1", "containerImage": digest(1)}, {"literal": "6.1.0-2", "containerImage": digest(2)}]),
            vec!["the mappings are not in strictly ascending order: [\"6.1.0-1\", \"6.1.0-1\", \"6.1.0-2\"]".into()]),
        (CONFIG, "updateStrategy", json!({"type": "Update"}), vec![
            "strategy of the Module is \"Update\", not \"ServerSideApply\"".into(),
            "field manager of the Module is \"\", not \"work-agent-kmm\"".into(),
            "the Module is applied without force".into()]),
        ("/spec/manifestConfigs/0", "updateStrategy", json!({"type": "Sometimes"}), vec![
            "strategy \"Sometimes\" of namespaces/drivers is unknown".into(),
            "strategy of the Namespace is \"Sometimes\", not \"CreateOnly\"".into()]),
        (CONFIG, "feedbackRules", json!([{"type": "WellKnownStatus"}]), vec!["modules/mod has no well-known status".into()]),
        (CONFIG, "feedbackRules", json!([{"type": "JSONPaths"}]), vec!["a feedback rule of modules/mod has no path".into()]),
        (CONFIG, "feedbackRules", json!([{"type": "JSONPaths", "jsonPaths": [{"name": "a", "path": ".a"}, {"name": "a", "path": "$.a"}]}]), vec![
            "feedback name \"a\" of modules/mod is empty or there twice".into(),
            "feedback path \"$.a\" of modules/mod does not start with a single dot".into()]),
        (CONFIG, "feedbackRules", json!([{"type": "JSONPaths", "jsonPaths": [{"name": "a", "path": ".a["}]}]), vec![
            "feedback \"a\" of modules/mod: json path \".a[\" is not understood: no closing bracket in \"[\"".into()]),
        ("/spec/manifestConfigs/1/resourceIdentifier", "name", json!("else"), vec![
            "the entry for modules/else speaks of no manifest".into(),
            "strategy of the Module is \"\", not \"ServerSideApply\"".into(),
            "field manager of the Module is \"\", not \"work-agent-kmm\"".into(),
            "the Module is applied without force".into()]),
        ("/spec", "deleteOption", Value::Null, vec!["deleting the work deletes namespace drivers of the spoke".into()]),
        ("/spec", "deleteOption", json!({"propagationPolicy": "Orphan"}), vec!["deleting the work leaves the Module".into()]),
        ("/spec/workload", "manifests", json!([]), vec![
            "there is no manifest".into(), "0 manifests are Modules, not 1".into(),
            "the entry for namespaces/drivers speaks of no manifest".into(), "the entry for modules/mod speaks of no manifest".into(),
            "orphaning rule {\"group\":\"\",\"name\":\"drivers\",\"resource\":\"namespaces\"} speaks of no manifest".into()]),
    ];
    for (parent, field, value, want) in cases {
        let (mut work, expected) = good();
        work.pointer_mut(parent).unwrap()[field] = value.clone();
        assert_eq!(check_manifest_work(&work, &expected), want, "{parent}/{field} = {value}");
    }
}

#[test]
fn only_a_repository_with_a_digest_is_pinned() {
    let hex = "0a".repeat(32);
    let cases = [
        (format!("repo@sha256:{hex}"), true),
        (format!("host:5000/a/b@sha256:{hex}"), true),
        (format!("host:5000/a/b:tag@sha256:{hex}"), false),
        (format!("repo@sha256:{}", hex.to_uppercase()), false),
        (format!("repo@sha256:{}", &hex[1..]), false),
        (format!("@sha256:{hex}"), false),
        ("repo:tag".to_owned(), false),
        (String::new(), false),
    ];
    for (image, pinned) in cases {
        let (mut work, mut expected) = good();
        expected.images.insert("6.1.0-1".to_owned(), String::new());
        work["spec"]["workload"]["manifests"][1]["spec"]["moduleLoader"]["container"]["kernelMappings"][0]["containerImage"] =
            json!(image);
        assert_eq!(check_manifest_work(&work, &expected).is_empty(), pinned, "{image}");
    }
}

#[test]
fn a_work_beyond_500_kibibytes_or_with_an_object_twice_is_refused() {
    let (mut work, expected) = good();
    let manifests = work["spec"]["workload"]["manifests"].as_array_mut().unwrap();
    manifests.push(manifests[0].clone());
    manifests.push(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big", "generateName": "x"}, "data": {"k": "x".repeat(512_000)}}));
    let faults = check_manifest_work(&work, &expected);
    assert!(
        faults[0].starts_with("the manifests have 512") && faults[0].ends_with("bytes, more than 512000"),
        "{faults:?}"
    );
    assert_eq!(faults[1..], ["manifest 2 is a second Namespace /drivers", "manifest 3 has metadata.generateName"]);
}

#[test]
fn a_detached_fleet_keeps_its_modules() {
    let (mut work, mut expected) = good();
    expected.detached = true;
    assert_eq!(check_manifest_work(&work, &expected), ["deleting the work deletes the Module although detached"]);
    work["spec"]["deleteOption"] = json!({"propagationPolicy": "Orphan"});
    assert_eq!(check_manifest_work(&work, &expected), Vec::<String>::new());
}
