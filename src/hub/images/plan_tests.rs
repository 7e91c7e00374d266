use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::observe::Observed;
use super::plan::{Plan, moved, plan};
use crate::core::pin::KEPT;
use crate::hub::intern::Sent;
use crate::hub::testing::{MODULE, UID, digest, kernel, module, module_of, owner, spec};
use crate::hub::view::{FleetModule, Images};
use crate::runtime::store::{ObjectKey, Projection};

fn observed(module: FleetModule, kernels: &[&str], images: Option<Value>) -> Observed {
    Observed {
        key: ObjectKey::new("kmm", MODULE),
        module: Some(Arc::new(module)),
        kernels: kernels.iter().copied().map(kernel).collect(),
        sent: BTreeSet::new(),
        images: images.map(|value| Arc::new(Images::project(serde_json::from_value(value).unwrap()))),
    }
}

fn written(plan: &Plan) -> Value {
    match plan {
        Plan::Apply(images) => serde_json::to_value(images).unwrap(),
        other => panic!("nothing is written: {other:?}"),
    }
}

fn stored(plan: &Plan) -> Value {
    let mut value = written(plan);
    value["metadata"]["uid"] = json!("uid-of-images");
    value["spec"]["fieldOfANewerRelease"] = json!("default");
    let known = |image: &Value| {
        json!({"image": image["image"], "kernelVersion": image["kernelVersion"], "status": "Exists",
        "reason": "Resolved", "digest": digest('a')})
    };
    let known: Vec<Value> = value["spec"]["images"].as_array().unwrap().iter().map(known).collect();
    value["status"] = json!({ "imagesStates": known });
    value
}

fn asked(value: &Value) -> Vec<(&str, &str)> {
    let images = value["spec"]["images"].as_array().unwrap();
    images.iter().map(|image| (image["kernelVersion"].as_str().unwrap(), image["image"].as_str().unwrap())).collect()
}

#[test]
fn every_kernel_is_asked_for_once_with_everything_that_a_look_up_or_a_build_needs() {
    let plan = plan(&observed(module(&spec()), &["6.1.0-b", "6.1.0-a", "unmapped"], None)).unwrap();
    let image = |kernel: &str| {
        json!({"image": format!("registry.test/gpu:{kernel}"), "kernelVersion": kernel, "dirName": "/opt",
            "registryTLS": {"insecure": true}, "build": {"dockerfileConfigMap": {"name": "dockerfile"}}})
    };
    let expected = json!({
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "ModuleImagesConfig",
        "metadata": {"name": MODULE, "namespace": "kmm", "ownerReferences": [owner("ManagedClusterModule", MODULE, UID)]},
        "spec": {"imagePullPolicy": "IfNotPresent", "imageRepoSecret": {"name": "pull"}, "pushBuiltImage": true,
            "images": [image("6.1.0-a"), image("6.1.0-b")]},
    });
    assert_eq!(written(&plan), expected);
}

#[test]
fn what_was_asked_is_not_written_again_and_stays_while_it_means_the_same() {
    let first = plan(&observed(module(&spec()), &["6.1.0-a", "6.1.0-b"], None)).unwrap();
    for kernels in [vec!["6.1.0-a", "6.1.0-b"], vec!["6.1.0-b"], vec![]] {
        assert_eq!(plan(&observed(module(&spec()), &kernels, Some(stored(&first)))).unwrap(), Plan::Nothing);
    }
    let more = plan(&observed(module(&spec()), &["6.1.0-c"], Some(stored(&first)))).unwrap();
    let kernels: Vec<&str> = ["6.1.0-a", "6.1.0-b", "6.1.0-c"].into();
    let value = written(&more);
    assert_eq!(asked(&value).iter().map(|(kernel, _)| *kernel).collect::<Vec<_>>(), kernels);
    let mut other = spec();
    other["moduleSpec"]["moduleLoader"]["container"]["containerImage"] = json!("registry.test/gpu:v2-${KERNEL_XYZ}");
    let value = written(&plan(&observed(module(&other), &["6.1.0-b"], Some(stored(&first)))).unwrap());
    assert_eq!(asked(&value), [("6.1.0-b", "registry.test/gpu:v2-6.1.0")]);
}

#[test]
fn an_object_of_somebody_else_or_a_wish_that_cannot_be_carried_out_is_left_alone() {
    let first = plan(&observed(module(&spec()), &["6.1.0-a"], None)).unwrap();
    for owners in [json!([owner("Module", MODULE, "x")]), json!([owner("ManagedClusterModule", MODULE, "old")])] {
        let mut foreign = stored(&first);
        foreign["metadata"]["ownerReferences"] = owners;
        assert_eq!(plan(&observed(module(&spec()), &["6.1.0-z"], Some(foreign))).unwrap(), Plan::OwnedByOther);
    }
    let deleting = json!({"name": MODULE, "uid": UID, "generation": 2, "deletionTimestamp": "2026-01-01T00:00:00Z"});
    let mut broken = spec();
    broken["moduleSpec"]["moduleLoader"]["container"]["kernelMappings"][0]["regexp"] = json!("[");
    for module in [module_of(&deleting, &spec()), module(&broken)] {
        assert_eq!(plan(&observed(module, &["6.1.0-z"], Some(stored(&first)))).unwrap(), Plan::Nothing);
    }
    assert_eq!(plan(&observed(module(&spec()), &["unmapped"], None)).unwrap(), Plan::Nothing);
}

#[test]
fn without_a_loader_nothing_is_asked_any_more() {
    let first = plan(&observed(module(&spec()), &["6.1.0-a"], None)).unwrap();
    let mut plain = spec();
    plain["moduleSpec"] = json!({"selector": {}});
    let gone = plan(&observed(module(&plain), &["6.1.0-a"], Some(stored(&first)))).unwrap();
    assert_eq!(gone, Plan::Delete { uid: "uid-of-images".to_owned() });
    assert_eq!(plan(&observed(module(&plain), &["6.1.0-a"], None)).unwrap(), Plan::Nothing);
}

#[test]
fn what_nobody_owns_is_adopted_with_everything_that_it_knows() {
    let first = plan(&observed(module(&spec()), &["6.1.0-a"], None)).unwrap();
    let mut left = stored(&first);
    left["metadata"]["ownerReferences"] = json!([]);
    let adopted = written(&plan(&observed(module(&spec()), &["6.1.0-a"], Some(left))).unwrap());
    assert_eq!(adopted["metadata"]["ownerReferences"], json!([owner("ManagedClusterModule", MODULE, UID)]));
    assert_eq!(adopted["spec"], written(&first)["spec"]);
}

#[test]
fn of_kernels_that_no_cluster_has_only_found_images_are_kept_and_not_without_limit() {
    let many: Vec<String> = (0..KEPT + 50).map(|n| format!("6.1.0-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let all = stored(&plan(&observed(module(&spec()), &many, None)).unwrap());
    let kept = written(&plan(&observed(module(&spec()), &["6.1.0-0"], Some(all.clone()))).unwrap());
    assert_eq!(asked(&kept).len(), KEPT + 1);
    let mut missing = all;
    missing["status"] = json!({});
    let kept = written(&plan(&observed(module(&spec()), &["6.1.0-0"], Some(missing))).unwrap());
    assert_eq!(asked(&kept).len(), 1);
}

#[test]
fn a_tag_that_names_another_image_than_clusters_have_is_told() {
    let images = stored(&plan(&observed(module(&spec()), &["6.1.0-a"], None)).unwrap());
    let mut observed = observed(module(&spec()), &["6.1.0-a"], Some(images));
    let image = "registry.test/gpu:6.1.0-a";
    let sent = |digit: char, source: String| Sent {
        kernel: kernel("6.1.0-a"),
        image: format!("registry.test/gpu@{}", digest(digit)).into(),
        source: source.into(),
    };
    let source = crate::core::pin::source_id(image, None);
    observed.sent = [sent('a', source.clone()), sent('b', "another image".to_owned())].into();
    observed.sent.insert(Sent { image: image.into(), ..sent('a', source.clone()) });
    assert_eq!(moved(&observed), None);
    observed.sent.insert(sent('b', source));
    let (now, in_use) = (digest('a'), digest('b'));
    let note = moved(&observed).unwrap();
    assert!(note.ends_with(&format!(": {image} is {now} now, clusters have registry.test/gpu@{in_use}")), "{note}");
}
