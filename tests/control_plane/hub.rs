//! The Hub: ManifestWorks that are right, that stay, and a status that says what is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kmm::core::claims;
use kmm::core::kernel::KernelVersion;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PropagationPolicy};
use serde_json::{Value, json};

use crate::hub_bed::{Bed, LIMIT, condition, sent};
use crate::ocm::fake::{WorkReport, fake_claims, fake_cluster, fake_work_status};
use crate::ocm::kinds::{managed_clusters, put};
use crate::ocm::{Expectation, check_manifest_work};
use crate::support::eventually;
use crate::support::faulty::{Fault, FaultyRegistry};
use crate::support::images::{Image, Layer};

const KERNELS: [&str; 5] = [
    "5.14.0-284.52.1.el9_2.x86_64",
    "5.14.0-427.13.1.el9_4.x86_64",
    "6.1.0-55-cloud-amd64",
    "6.12.117+deb12-cloud-amd64",
    "6.12.0+",
];
/// More kernels than one claim of 1,024 characters can hold.
const MANY: usize = 60;
const BIG: &str = "cluster-big";

/// What an agent reports whose cluster has the module on both of its nodes.
fn ready(work: &Value) -> WorkReport {
    let hash =
        work["spec"]["workload"]["manifests"][1]["metadata"]["annotations"]["kmm.node.kubernetes.io/rendered-hash"]
            .clone();
    let values = [
        ("renderedHash", hash),
        ("ready.status", json!("True")),
        ("ready.reason", json!("AllNodesReady")),
        ("covered.status", json!("True")),
        ("moduleLoader.nodesMatchingSelectorNumber", json!(2)),
        ("moduleLoader.desiredNumber", json!(2)),
        ("moduleLoader.availableNumber", json!(2)),
    ];
    WorkReport::default().with_feedback("Module", &values)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_of_different_clusters_is_right_in_one_pass_and_then_rests() -> Result<()> {
    let mut bed = Bed::start().await?;
    let many: Vec<String> = (0..MANY).map(|n| format!("6.6.{n}-100.some.flavour.x86_64")).collect();
    let pushed: Vec<&str> = KERNELS.into_iter().chain(many.iter().map(String::as_str)).collect();
    let images = bed.push("kmods/x", &pushed).await?;
    // Each cluster has another pair of kernels; the claim of one holds a kernel twice, with and without `+`.
    let mut fleet: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for n in 0..50 {
        let (name, kernels) = (format!("cluster-{n:02}"), [KERNELS[n % 5], KERNELS[(n / 5) % 5]]);
        let claim = if n == 4 { vec!["6.12.0+", "6.12.0"] } else { kernels.to_vec() };
        bed.cluster(&name, &[("mcm", "gpu")], &claim).await?;
        fleet.insert(name, claim.into_iter().map(|kernel| kernel.strip_suffix('+').unwrap_or(kernel)).collect());
    }
    let all: BTreeSet<KernelVersion> =
        many.iter().map(|kernel| KernelVersion::parse(kernel)).collect::<Result<_, _>>()?;
    let parts = claims::encode(&all)?;
    ensure!(parts.len() > 1, "one claim holds them all");
    let parts: Vec<(&str, &str)> = parts.iter().map(|claim| (&*claim.name, &*claim.value)).collect();
    fake_cluster(&bed.admin, BIG, &[("mcm", "gpu")], &parts).await?;
    fleet.insert(BIG.to_owned(), many.iter().map(String::as_str).collect());
    bed.cluster("bystander", &[("mcm", "other")], &KERNELS).await?;

    let started = Instant::now();
    let image = format!("{}/kmods/x:${{KERNEL_FULL_VERSION}}", bed.registry.address());
    let uid = bed.module("gpu", &image, &[]).await?;
    let complete = |works: &[Value]| {
        let found: BTreeMap<&str, BTreeSet<String>> = works
            .iter()
            .map(|work| (work["metadata"]["namespace"].as_str().unwrap_or_default(), sent(work).into_keys().collect()))
            .collect();
        fleet.iter().all(|(name, kernels)| {
            found.get(&**name).is_some_and(|sent| sent.iter().map(String::as_str).eq(kernels.iter().copied()))
        })
    };
    eventually(LIMIT, "every work", || async { Ok(complete(&bed.works().await?).then_some(())) }).await?;
    println!("51 works with 65 images complete after {:?}", started.elapsed());
    let works = bed.works().await?;
    assert_eq!(works.len(), fleet.len(), "a cluster that is not selected has a work");
    for work in &works {
        let cluster = work["metadata"]["namespace"].as_str().unwrap_or_default();
        let expected = Expectation {
            module: "gpu".into(),
            owner_uid: uid.clone(),
            cluster: cluster.to_owned(),
            spoke_namespace: "drivers".into(),
            images: fleet[cluster].iter().map(|kernel| ((*kernel).to_owned(), images[*kernel].clone())).collect(),
            detached: false,
        };
        assert_eq!(check_manifest_work(work, &expected), [] as [String; 0], "{cluster}");
    }

    let waiting = bed.status("gpu", "nothing applied yet", |s| s.number_waiting == Some(51)).await?;
    assert_eq!((waiting.number_desired, waiting.number_applied, waiting.number_ready), (Some(51), Some(0), Some(0)));
    assert_eq!(condition(&waiting, "Ready"), ("False", "ClustersNotReady"));
    assert_eq!(waiting.clusters.len(), 10);
    for work in &works {
        fake_work_status(&bed.admin, work["metadata"]["namespace"].as_str().unwrap_or_default(), "gpu", &ready(work))
            .await?;
    }
    let all_ready = bed.status("gpu", "ready", |s| s.number_ready == Some(51)).await?;
    assert_eq!(condition(&all_ready, "Ready"), ("True", "Ready"));
    assert_eq!(condition(&all_ready, "Covered"), ("True", "Covered"));
    assert_eq!(condition(&all_ready, "Applied"), ("True", "Applied"));
    assert_eq!(condition(&all_ready, "ImagesResolved"), ("True", "ImagesResolved"));
    let nodes = all_ready.nodes.unwrap_or_default();
    assert_eq!((nodes.matching, nodes.desired, nodes.available), (Some(102), Some(102), Some(102)));
    assert!(all_ready.clusters.is_empty());
    let told = || async {
        let events: Api<Event> = Api::all(bed.admin.clone());
        let about = |event: &Event| event.regarding.as_ref().is_some_and(|about| about.name.as_deref() == Some("gpu"));
        let all = events.list(&ListParams::default()).await?.items;
        Ok(all.iter().any(|event| about(event) && event.reason.as_deref() == Some("Ready")).then_some(()))
    };
    eventually(LIMIT, "an event that it is ready", told).await?;

    // A world in which nothing changes costs no write, nor do changes that concern nobody, nor does a restart.
    let before = bed.settled(3).await?;
    let first = before.iter().filter(|write| write.contains("manifestworks")).count();
    println!("{first} writes of 51 works, {} writes in all", before.len());
    assert_eq!(first, 51, "more than one write for some work");
    bed.label_cluster("cluster-07", json!({"unrelated": "label"})).await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    bed.stop_hub().await?;
    bed.start_hub().await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(bed.writes()?[before.len()..], [] as [String; 0]);

    bed.label_cluster("cluster-07", json!({"mcm": null})).await?;
    let gone = || async { Ok(bed.work("cluster-07", "gpu").await?.is_none().then_some(())) };
    eventually(LIMIT, "the work of a cluster that is not selected any more to go", gone).await?;
    bed.status("gpu", "one cluster less", |s| s.number_desired == Some(50) && s.number_ready == Some(50)).await?;
    let written: Vec<String> = bed.writes()?.split_off(before.len());
    let works_written: Vec<&String> = written.iter().filter(|write| write.contains("manifestworks")).collect();
    assert_eq!(works_written, ["delete manifestworks/cluster-07/gpu 200"]);

    bed.modules().delete("gpu", &DeleteParams::background()).await?;
    let empty = || async { Ok(bed.works().await?.is_empty().then_some(())) };
    eventually(LIMIT, "all works to go with the ManagedClusterModule", empty).await?;
    let no_images = || async { Ok(bed.images().list(&ListParams::default()).await?.items.is_empty().then_some(())) };
    eventually(LIMIT, "its images to go", no_images).await?;
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_holds_back_itself_alone_and_what_was_sent_stays() -> Result<()> {
    let bed = Bed::start().await?;
    let (here, missing) = (KERNELS[0], KERNELS[2]);
    let mut images = bed.push("kmods/y", &[here]).await?;
    bed.cluster("c1", &[("mcm", "y")], &[here, missing]).await?;
    bed.cluster("c2", &[("mcm", "y")], &[]).await?;
    put(&bed.admin, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c3"}})).await?;
    // Accepted, and its namespace is not made yet.
    let unprepared = json!({
        "apiVersion": "cluster.open-cluster-management.io/v1", "kind": "ManagedCluster",
        "metadata": {"name": "c4", "labels": {"mcm": "y"}}, "spec": {"hubAcceptsClient": true},
    });
    put(&bed.admin, &unprepared).await?;
    fake_claims(&bed.admin, "c4", &[(kmm::api::names::KERNEL_CLAIM, here)]).await?;
    let foreign = json!({
        "apiVersion": "work.open-cluster-management.io/v1", "kind": "ManifestWork",
        "metadata": {"name": "y", "namespace": "c3"},
        "spec": {"workload": {"manifests": [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "theirs"}}]}},
    });
    put(&bed.admin, &foreign).await?;
    bed.cluster("c3", &[("mcm", "y")], &[here]).await?;
    let image = format!("{}/kmods/y:${{KERNEL_FULL_VERSION}}", bed.registry.address());
    bed.module("y", &image, &[]).await?;

    let work_has = |wanted: BTreeMap<String, String>| {
        let bed = &bed;
        async move {
            eventually(LIMIT, &format!("the work with {wanted:?}"), || async {
                let work = bed.work("c1", "y").await?;
                ensure!(work.as_ref().map(sent).as_ref() == Some(&wanted), "{:?}", work.as_ref().map(sent));
                Ok(Some(()))
            })
            .await
        }
    };
    work_has(images.clone()).await?;
    let status =
        bed.status("y", "the missing image to be said", |s| condition(s, "ImagesResolved").1 == "NotFound").await?;
    let reasons = |status: &kmm::api::ManagedClusterModuleStatus| -> BTreeMap<String, String> {
        status.clusters.iter().map(|cluster| (cluster.name.clone(), cluster.reason.clone())).collect()
    };
    let expected = [("c1", "ImagesNotReady"), ("c2", "NoClaims"), ("c3", "OwnedByOther"), ("c4", "WorkRefused")];
    assert_eq!(reasons(&status), expected.map(|(name, reason)| (name.to_owned(), reason.to_owned())).into());
    assert!(status.clusters[0].message.as_deref().is_some_and(|m| m.contains(missing) && m.contains("NotFound")));
    assert_eq!((status.number_desired, status.number_degraded, status.number_unknown), (Some(4), Some(2), Some(1)));
    assert!(status.clusters[3].message.as_deref().is_some_and(|m| m.contains("namespaces \"c4\" not found")));
    let theirs = bed.work("c3", "y").await?.unwrap_or_default();
    assert_eq!(theirs["spec"]["workload"], foreign["spec"]["workload"]);
    assert!(theirs["metadata"]["ownerReferences"].is_null());

    // Namespace and image come: nobody has to touch anything.
    put(&bed.admin, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c4"}})).await?;
    eventually(LIMIT, "the work of the cluster that has a namespace now", || bed.work("c4", "y")).await?;
    images.extend(bed.push("kmods/y", &[missing]).await?);
    work_has(images.clone()).await?;
    bed.status("y", "all images", |s| condition(s, "ImagesResolved").0 == "True").await?;

    // It goes from the registry, the Module changes, and even what the images controller knows is lost.
    bed.registry.delete_manifest("kmods/y", missing).await?;
    bed.images().delete("y", &DeleteParams::default()).await?;
    bed.module("y", &image, &["debug=1"]).await?;
    let changed = || async {
        let work = bed.work("c1", "y").await?.unwrap_or_default();
        let modprobe = &work["spec"]["workload"]["manifests"][1]["spec"]["moduleLoader"]["container"]["modprobe"];
        Ok((modprobe["parameters"] == json!(["debug=1"])).then_some(()))
    };
    eventually(LIMIT, "the changed Module", changed).await?;
    let asked_again = || async {
        let images = bed.images().get_opt("y").await?;
        Ok(images.and_then(|images| images.status).filter(|status| status.images_states.len() == 2).map(|_| ()))
    };
    eventually(LIMIT, "the images to be looked up again", asked_again).await?;
    bed.settled(3).await?;
    work_has(images.clone()).await?;

    // Its claims vanish for a while: the work stays as it is.
    let before = bed.work("c1", "y").await?.unwrap_or_default();
    fake_claims(&bed.admin, "c1", &[]).await?;
    bed.status("y", "no claims", |s| reasons(s).get("c1").is_some_and(|reason| reason == "NoClaims")).await?;
    assert_eq!(
        bed.work("c1", "y").await?.unwrap_or_default()["metadata"]["generation"],
        before["metadata"]["generation"]
    );

    // Somebody edits the work, its label too: it is put back.
    let edit = json!({"spec": {"manifestConfigs": []}, "metadata": {"labels": null}});
    fake_claims(&bed.admin, "c1", &[(kmm::api::names::KERNEL_CLAIM, &[here, missing].join("\n"))]).await?;
    crate::ocm::kinds::manifest_works(&bed.admin, "c1")
        .patch("y", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(edit))
        .await?;
    let whole = || async {
        let work = bed.work("c1", "y").await?.unwrap_or_default();
        let whole = |work: &Value| (work["spec"]["manifestConfigs"].clone(), work["metadata"]["labels"].clone());
        Ok((whole(&work) == whole(&before)).then_some(()))
    };
    eventually(LIMIT, "the work as it was", whole).await?;

    // The whole cluster goes: its work is OCM's to remove, here nobody does.
    managed_clusters(&bed.admin).delete("c1", &DeleteParams::default()).await?;
    let missing =
        |s: &kmm::api::ManagedClusterModuleStatus| reasons(s).get("c1").is_some_and(|r| r == "ClusterMissing");
    bed.status("y", "the cluster that is missing", missing).await?;
    bed.settled(2).await?;
    let left = bed.work("c1", "y").await?.context("the work of a cluster that is gone went too")?;
    assert!(left["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_registry_does_has_its_reason_on_the_object_and_delays_nobody() -> Result<()> {
    let bed = Bed::start().await?;
    let front = FaultyRegistry::start(&bed.registry).await?;
    let images = bed.push("good/x", &[KERNELS[0]]).await?;
    let table = [
        ("denied", Fault::Status(401), "Unauthorized"),
        ("forbidden", Fault::Status(403), "Forbidden"),
        ("missing", Fault::Status(404), "NotFound"),
        ("broken", Fault::Status(500), "RegistryError"),
        ("hanging", Fault::Hang, "Timeout"),
    ];
    for (name, fault, _) in &table {
        front.also_for(&format!("{name}/x"), fault.clone());
        bed.cluster(&format!("c-{name}"), &[("mcm", name)], &[KERNELS[0]]).await?;
        bed.module(name, &format!("{}/{name}/x:${{KERNEL_FULL_VERSION}}", front.address()), &[]).await?;
    }
    bed.cluster("c-good", &[("mcm", "good")], &[KERNELS[0]]).await?;
    let started = Instant::now();
    bed.module("good", &format!("{}/good/x:${{KERNEL_FULL_VERSION}}", front.address()), &[]).await?;
    let work = eventually(LIMIT, "the work whose image is there", || bed.work("c-good", "good")).await?;
    println!("work beside failing registries after {:?}", started.elapsed());
    let image = images[KERNELS[0]].replace(&bed.registry.address(), &front.address());
    assert_eq!(sent(&work), BTreeMap::from([(KERNELS[0].to_owned(), image)]));
    for (name, _, reason) in &table {
        let status =
            bed.status(name, reason, |status| condition(status, "ImagesResolved") == ("False", *reason)).await?;
        assert_eq!(condition(&status, "Ready"), ("False", "ClustersNotReady"), "{name}");
        assert_eq!(status.clusters[0].reason, "ImagesNotReady");
        assert!(
            status.clusters[0].message.as_deref().is_some_and(|message| message.contains(reason)),
            "{:?}",
            status.clusters
        );
        assert!(bed.work(&format!("c-{name}"), name).await?.is_none(), "{name} has a work without an image");
    }
    let names: Vec<String> = bed.works().await?.iter().map(|work| work["metadata"]["name"].to_string()).collect();
    assert_eq!(names, ["\"good\""]);
    let modules: Vec<String> =
        bed.modules().list(&ListParams::default()).await?.iter().map(ResourceExt::name_any).collect();
    assert_eq!(modules.len(), table.len() + 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_hangs_holds_up_its_own_kernel_and_no_other() -> Result<()> {
    let bed = Bed::start().await?;
    let front = FaultyRegistry::start(&bed.registry).await?;
    let (good, hangs) = (KERNELS[0], KERNELS[2]);
    let images = bed.push("kmods/z", &[good, hangs]).await?;
    front.set(Fault::Hang);
    bed.cluster("c1", &[("mcm", "z")], &[good, hangs]).await?;
    let object = |parameters: &[&str]| {
        let image = |registry: String| format!("{registry}/kmods/z:${{KERNEL_FULL_VERSION}}");
        json!({
            "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1", "kind": "ManagedClusterModule", "metadata": {"name": "z"},
            "spec": {"spokeNamespace": "drivers", "selector": {"mcm": "z"}, "moduleSpec": {
                "selector": {},
                "moduleLoader": {"container": {
                    "registryTLS": {"insecure": true},
                    "modprobe": {"moduleName": "x", "parameters": parameters},
                    "kernelMappings": [
                        {"literal": hangs, "containerImage": image(front.address())},
                        {"regexp": "^.+$", "containerImage": image(bed.registry.address())},
                    ],
                }},
            }},
        })
        .to_string()
    };
    bed.cluster.apply_yaml(&object(&[])).await?;
    let known = BTreeMap::from([(good.to_owned(), images[good].clone())]);
    let work = eventually(LIMIT, "the work with the kernel whose image is there", || bed.work("c1", "z")).await?;
    assert_eq!(front.given_up(), 0, "the work waited for the registry that hangs");
    assert_eq!(sent(&work), known);
    let status = bed.status("z", "the kernel that is missing", |s| !s.clusters.is_empty()).await?;
    let message = status.clusters[0].message.clone().unwrap_or_default();
    ensure!(status.clusters[0].reason == "ImagesNotReady" && message.contains(hangs), "{:?}", status.clusters);

    // Neither does a change of what is wanted wait for it. A question may end by itself meanwhile: then another change.
    let mut did_not_wait = false;
    for time in 0..5 {
        eventually(LIMIT, "a question that hangs", || async { Ok((front.hanging() > 0).then_some(())) }).await?;
        let given_up = front.given_up();
        let parameter = format!("debug={time}");
        bed.cluster.apply_yaml(&object(&[&parameter])).await?;
        let changed = || async {
            let work = bed.work("c1", "z").await?.unwrap_or_default();
            let modprobe = &work["spec"]["workload"]["manifests"][1]["spec"]["moduleLoader"]["container"]["modprobe"];
            Ok((modprobe["parameters"] == json!([parameter])).then_some(work))
        };
        let work = eventually(LIMIT, "the changed work", changed).await?;
        assert_eq!(sent(&work), known);
        did_not_wait = front.given_up() == given_up;
        if did_not_wait {
            break;
        }
    }
    ensure!(did_not_wait, "every change waited for the end of a question that hangs");

    front.set(Fault::None);
    let image = images[hangs].replace(&bed.registry.address(), &front.address());
    let whole = BTreeMap::from([(good.to_owned(), images[good].clone()), (hangs.to_owned(), image)]);
    eventually(Duration::from_mins(2), "the work with both kernels", || async {
        let work = bed.work("c1", "z").await?.unwrap_or_default();
        ensure!(sent(&work) == whole, "{:?}", sent(&work));
        Ok(Some(()))
    })
    .await?;
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_is_given_up_keeps_what_it_has_and_the_next_module_of_the_name_takes_it_over() -> Result<()> {
    let bed = Bed::start().await?;
    let images = bed.push("kmods/w", &[KERNELS[0]]).await?;
    bed.cluster("c1", &[("mcm", "w")], &[KERNELS[0]]).await?;
    let image = format!("{}/kmods/w:${{KERNEL_FULL_VERSION}}", bed.registry.address());
    let first = bed.module("w", &image, &[]).await?;
    let before = eventually(LIMIT, "the work", || bed.work("c1", "w")).await?;
    let orphan = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    bed.modules().delete("w", &orphan).await?;
    let gone = || async { Ok(bed.modules().get_opt("w").await?.is_none().then_some(())) };
    eventually(LIMIT, "the ManagedClusterModule to go alone", gone).await?;
    bed.settled(2).await?;
    let left = bed.work("c1", "w").await?.context("the work went along")?;
    assert_eq!((&left["spec"], &left["metadata"]["ownerReferences"]), (&before["spec"], &Value::Null));
    assert_eq!(bed.images().get("w").await?.metadata.owner_references, None);

    let second = bed.module("w", &image, &[]).await?;
    assert_ne!(first, second);
    let taken_over = || async {
        let work = bed.work("c1", "w").await?.context("no work")?;
        let images = bed.images().get("w").await?.metadata.owner_references.unwrap_or_default();
        ensure!(work["metadata"]["ownerReferences"][0]["uid"] == *second, "{}", work["metadata"]);
        ensure!(images.iter().any(|owner| owner.uid == second), "{images:?}");
        Ok(Some(()))
    };
    eventually(LIMIT, "work and images to be the next one's", taken_over).await?;

    // What was found out is lost and the tag has moved: what is in use stays, and that is told.
    let other = Image::new().layer(Layer::new().file("opt/other", b"other")).build()?;
    bed.registry.push("kmods/w", KERNELS[0], &other).await?;
    bed.images().delete("w", &DeleteParams::default()).await?;
    let told = || async {
        let events = Api::<Event>::all(bed.admin.clone()).list(&ListParams::default()).await?.items;
        Ok(events.into_iter().find(|event| event.reason.as_deref() == Some("ImageTagMoved")))
    };
    let event = eventually(LIMIT, "the tag that moved to be told", told).await?;
    let note = event.note.unwrap_or_default();
    ensure!(note.contains(&image.replace("${KERNEL_FULL_VERSION}", KERNELS[0])), "{note}");
    bed.settled(2).await?;
    let work = bed.work("c1", "w").await?.context("no work")?;
    assert_eq!((&work["metadata"]["uid"], sent(&work)), (&before["metadata"]["uid"], images));
    assert_eq!(bed.forbidden()?, [] as [String; 0]);
    Ok(())
}
