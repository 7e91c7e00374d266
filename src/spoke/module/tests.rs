//! Decisions about a Module besides nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::ObjectMeta;
use kube_runtime::watcher::Event;
use serde_json::json;

use crate::api::names::{MODULE_FINALIZER, RELEASE_NODE_ANNOTATION};
use crate::api::{
    DaemonSetStatus, ImageState, ImageStatus, ModuleImagesConfigSpec, ModuleStatus, NodeModulesConfig,
    NodeModulesConfigSpec,
};
use crate::runtime::guarded::Guarded;
use crate::runtime::queue::Outcome;
use crate::runtime::store::{Projection, store};
use crate::spoke::outcome::{Deletion, Trouble};
use crate::spoke::tally::{Counted, ModuleTotals};
use crate::spoke::testing::{DIGEST, KERNEL, ModuleBuilder, a_module, an_entry};
use crate::spoke::view::{ImagesView, ModuleFacts, ModuleView, NodeView};

use super::apply::apply;
use super::observe::Observed;
use super::plan::{ImagesAction, Plan, plan, wanted_images};
use super::status;

fn gpu() -> ModuleBuilder {
    a_module("drivers", "gpu", "u1")
}

/// A Module whose image is a tag for each kernel.
fn tagged() -> ModuleBuilder {
    let mut module = gpu();
    module.container().kernel_mappings[0].container_image = "r.example/gpu:${KERNEL_FULL_VERSION}".into();
    module
}

fn totals(edit: impl FnOnce(&mut ModuleTotals)) -> ModuleTotals {
    let mut totals = ModuleTotals { matching: 3, desired: 3, available: 3, ..ModuleTotals::default() };
    for (kernel, nodes) in [(KERNEL, 2), ("6.1.0-2-amd64", 1), ("6.1.0-2-amd64+", 1), ("7.0.0", 1)] {
        totals.kernels.insert(kernel.parse().unwrap(), nodes);
    }
    edit(&mut totals);
    totals
}

fn plan_status(
    facts: &Arc<ModuleFacts>,
    old: &ModuleStatus,
    totals: &ModuleTotals,
    trigger: Option<i64>,
    now: Timestamp,
) -> Option<ModuleStatus> {
    status::plan_status(&Counted::new(Arc::clone(facts), totals.clone()), old, trigger, now)
}

fn observed_with(module: ModuleBuilder, images: Option<ImagesView>, totals: Option<ModuleTotals>) -> Observed {
    let (images, deletion) = (images.map(Arc::new), Some(Deletion::Ordered));
    Observed { facts: module.build(), images, pull_secrets: vec![], totals, counted: true, deletion }
}

#[test]
fn a_module_does_not_end_before_every_node_was_planned_by_who_knows_whose_wish_that_is() {
    let leaving = || observed_with(gpu().deleting(), None, Some(ModuleTotals::default()));
    assert_eq!(plan(&leaving()).finalizers, Some(vec![]));
    assert_eq!(plan(&Observed { counted: false, ..leaving() }).finalizers, None);
    assert_eq!(plan(&Observed { deletion: None, ..leaving() }).finalizers, None);
}

fn finalizers(module: ModuleBuilder, totals: Option<ModuleTotals>) -> Option<Vec<String>> {
    plan(&observed_with(module, None, totals)).finalizers
}

#[test]
fn the_finalizer_comes_first_and_goes_when_every_node_has_lost_the_module() {
    let mut new = gpu();
    new.meta.finalizers = Some(vec!["other/finalizer".into()]);
    let both = vec!["other/finalizer".to_owned(), MODULE_FINALIZER.to_owned()];
    assert_eq!(finalizers(new, None), Some(both.clone()));
    let leaving = || {
        let mut module = gpu().deleting();
        module.meta.finalizers = Some(both.clone());
        module
    };
    let over = Some(vec!["other/finalizer".to_owned()]);
    let table = [
        ("nothing is known yet", None, None),
        ("no node has it", Some(ModuleTotals::default()), over),
        ("a node has it", Some(totals(|t| t.holders = ["n".to_owned()].into())), None),
    ];
    for (what, totals, expected) in table {
        assert_eq!(finalizers(leaving(), totals), expected, "{what}");
    }
}

#[test]
fn images_are_asked_for_once_for_each_kernel_and_only_where_a_digest_is_missing() {
    let observed =
        |module: ModuleBuilder, images: Option<ImagesView>| observed_with(module, images, Some(totals(|_| {})));
    let ImagesAction::Create(wanted) = plan(&observed(tagged(), None)).images else { panic!("nothing is asked for") };
    let asked: Vec<_> = wanted.images.iter().map(|image| (&*image.kernel_version, &*image.image)).collect();
    let expected = [(KERNEL, "r.example/gpu:6.1.0-1-amd64"), ("6.1.0-2-amd64", "r.example/gpu:6.1.0-2-amd64")];
    assert_eq!(asked, expected);

    let present = |spec: &ModuleImagesConfigSpec, owner: &str| {
        Some(ImagesView { uid: "i".into(), owner: Some(owner.into()), spec: spec.clone(), ..ImagesView::default() })
    };
    let secrets = vec![crate::api::LocalObjectReference { name: "of-account".into() }];
    let nobodys =
        |spec: &ModuleImagesConfigSpec| present(spec, "u1").map(|images| ImagesView { owner: None, ..images });
    let replaced = |spec: &ModuleImagesConfigSpec, adopt| ImagesAction::Update { spec: Box::new(spec.clone()), adopt };
    let mut older = (*wanted).clone();
    older.images.pop();
    let table = [
        ("as it is", observed(tagged(), present(&wanted, "u1")), ImagesAction::Nothing),
        ("one more", observed(tagged(), present(&older, "u1")), replaced(&wanted, false)),
        ("somebody else's", observed(tagged(), present(&older, "u0")), ImagesAction::Nothing),
        ("nobody's", observed(tagged(), nobodys(&wanted)), replaced(&wanted, true)),
        ("nobody's, and nothing to ask for", observed(gpu(), nobodys(&wanted)), ImagesAction::Nothing),
        ("pinned", observed(gpu(), None), ImagesAction::Nothing),
        ("pinned now", observed(gpu(), present(&wanted, "u1")), ImagesAction::Delete { uid: "i".into() }),
        ("being deleted", observed(tagged().deleting(), present(&older, "u1")), ImagesAction::Nothing),
        (
            "the service account has a pull secret",
            Observed { pull_secrets: secrets.clone(), ..observed(tagged(), present(&wanted, "u1")) },
            replaced(&ModuleImagesConfigSpec { image_pull_secrets: secrets, ..(*wanted).clone() }, false),
        ),
        (
            "nothing is known yet",
            Observed { totals: None, ..observed(tagged(), present(&wanted, "u1")) },
            ImagesAction::Nothing,
        ),
    ];
    for (what, observed, expected) in table {
        assert_eq!(plan(&observed).images, expected, "{what}");
    }
}

#[test]
fn what_was_found_for_a_kernel_that_no_node_has_now_is_remembered() {
    let found = |kernel: &str, image: &str, digest: Option<&str>| ImageState {
        kernel_version: Some(kernel.into()),
        image: image.into(),
        digest: digest.map(str::to_owned),
        status: if kernel == "6.1.0-6-amd64" { ImageStatus::DoesNotExist } else { ImageStatus::Exists },
        ..ImageState::default()
    };
    let present = ImagesView {
        uid: "i".into(),
        owner: Some("u1".into()),
        states: vec![
            found("6.1.0-9-amd64", "r.example/gpu:6.1.0-9-amd64", Some(DIGEST)),
            found("6.1.0-8-amd64", "r.example/gpu:6.1.0-8-amd64", None),
            found("6.1.0-6-amd64", "r.example/gpu:6.1.0-6-amd64", Some(DIGEST)),
            found("6.1.0-7-amd64", "r.example/gpu:of-an-older-mapping", Some(DIGEST)),
            found("7.0.0", "r.example/gpu:7.0.0", Some(DIGEST)),
        ],
        ..ImagesView::default()
    };
    let asked = |totals: &ModuleTotals| -> Vec<String> {
        let wanted = wanted_images(&tagged().build(), totals.kernels.keys(), Some(&present), &[]);
        wanted.images.into_iter().map(|image| image.kernel_version).collect()
    };
    assert_eq!(asked(&ModuleTotals::default()), ["6.1.0-9-amd64"]);
    assert_eq!(asked(&totals(|_| {})), [KERNEL, "6.1.0-2-amd64", "6.1.0-9-amd64"]);
    let mut triggered = tagged();
    triggered.spec.image_rebuild_trigger_generation = Some(1);
    let wanted = wanted_images(&triggered.build(), [].iter(), Some(&present), &[]);
    assert_eq!(wanted.images, [], "what nobody has is not looked up again");
}

fn told(module: ModuleBuilder, totals: &ModuleTotals) -> (String, String, String) {
    let facts = module.build();
    let status =
        plan_status(&facts, &ModuleStatus::default(), totals, None, Timestamp::UNIX_EPOCH).expect("a first status");
    let again = plan_status(&facts, &status, totals, None, Timestamp::MAX);
    assert_eq!(again, None, "the same is not written twice");
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").expect("Ready");
    (ready.status.clone(), ready.reason.clone(), ready.message.clone())
}

#[test]
fn the_condition_about_images_says_why_the_first_of_them_is_missing() {
    for (reason, expected) in [("Unauthorized", "Unauthorized"), ("", "ImagesNotReady")] {
        let totals = totals(|t| t.without_image = [("n2".to_owned(), Trouble::new(reason, "because"))].into());
        let status = plan_status(&gpu().build(), &ModuleStatus::default(), &totals, None, Timestamp::UNIX_EPOCH);
        let conditions = status.expect("a first status").conditions;
        let images = conditions.iter().find(|condition| condition.type_ == "ImagesResolved").expect("ImagesResolved");
        assert_eq!((&*images.status, &*images.reason, &*images.message), ("False", expected, "n2: because"));
    }
}

fn cause(message: &str) -> BTreeMap<Arc<Trouble>, usize> {
    [(Trouble::new("", message), 2)].into()
}

#[test]
fn covered_names_kernels_without_mapping_or_image_and_taints_and_what_waits_for_them_is_on_its_way() {
    let said = |edit: fn(&mut ModuleTotals)| {
        let status = plan_status(&gpu().build(), &ModuleStatus::default(), &totals(edit), None, Timestamp::UNIX_EPOCH);
        let conditions = status.expect("a first status").conditions;
        let of = |type_: &str| {
            let is = conditions.iter().find(|condition| condition.type_ == type_).expect("a condition");
            format!("{} {} {}", is.status, is.reason, is.message)
        };
        [of("Ready"), of("Covered"), of("Progressing")]
    };
    let images = |t: &mut ModuleTotals, reason: &str| {
        (t.available, t.imageless) = (2, [("7.0".parse().unwrap(), 1)].into());
        t.without_image = [("n".to_owned(), Trouble::new(reason, "image"))].into();
    };
    let settled = "False Settled nothing is on its way";
    assert_eq!(said(|_| {})[1..], ["True AllNodesCovered all of 3 matching nodes get the module", settled]);
    let unmapped = said(|t| (t.matching, t.unmapped, t.awaiting) = (5, cause("no kernel mapping fits 7.0"), 1));
    assert!(unmapped[0].starts_with("True AllNodesReady"), "{unmapped:?}");
    let covered = "SomeKernelsUnmapped no kernel mapping fits 7.0 (2 nodes)";
    assert_eq!(unmapped[1..], [format!("False {covered}"), format!("True {covered}")]);
    let never = said(|t| (t.matching, t.unmapped, t.tainted) = (5, cause("m"), cause("t")));
    assert_eq!(never[1..], ["False SomeKernelsUnmapped m (2 nodes); t (2 nodes)", settled]);
    let tainted = said(|t| (t.matching, t.tainted) = (5, cause("taint k:NoSchedule")));
    assert_eq!(tainted[1..], ["False NodesTainted taint k:NoSchedule (2 nodes)", settled]);
    let table = [("Pending", "True"), ("NotFound", "False")].map(|(reason, moving)| {
        let mut totals = totals(|_| {});
        images(&mut totals, reason);
        (totals, moving)
    });
    for (totals, moving) in &table {
        let status = plan_status(&gpu().build(), &ModuleStatus::default(), totals, None, Timestamp::UNIX_EPOCH);
        let conditions = status.expect("a first status").conditions;
        let of = |type_: &str| conditions.iter().find(|condition| condition.type_ == type_).expect("a condition");
        assert_eq!(of("Covered").message, "no image for kernel 7.0 (1 nodes)");
        assert_eq!((&*of("Ready").status, &*of("Progressing").status), ("False", *moving));
    }
}

#[test]
fn what_no_label_can_say_is_told_since_pods_that_select_by_it_wait_for_ever() {
    let named = |length: usize, version: &str| {
        let mut module = a_module("drivers", &"g".repeat(length), "u1");
        module.container().version = Some(version.to_owned()).filter(|version| !version.is_empty());
        module
    };
    let too_long = "namespace and name together are too long for";
    for (module, expected) in [
        (named(3, "1.2"), String::new()),
        (
            named(3, "1.2+deb12"),
            "; moduleLoader.container.version `1.2+deb12` cannot be a label of nodes, so none has it".to_owned(),
        ),
        (named(45, ""), String::new()),
        (named(45, "1.0"), format!("; {too_long} the version's label, so no node has it")),
        (named(60, "1.0"), format!("; {too_long} the label of nodes that have the module, so none has it")),
    ] {
        let (_, _, message) = told(module, &totals(|_| {}));
        assert_eq!(message, format!("3 of 3 nodes have the module{expected}"));
    }
}

#[test]
fn the_status_answers_what_is_missing_where_and_why() {
    type Edit = fn(&mut ModuleTotals);
    let trouble = || [("n2".to_owned(), Trouble::new("InUse", "used by 2"))].into();
    let with = |edit: Edit| totals(edit);
    let mut troubled = totals(|t| (t.available, t.failing) = (2, trouble()));
    let mut bad = gpu();
    bad.container().kernel_mappings[0].regexp = Some("(".into());
    let mut nothing = gpu();
    nothing.spec.module_loader = None;
    let zero = ModuleTotals::default();
    let table = vec![
        (gpu(), with(|_| {}), "True AllNodesReady 3 of 3 nodes have the module"),
        (gpu(), with(|t| t.available = 1), "False NodesNotReady 1 of 3 nodes have the module"),
        (gpu(), troubled.clone(), "False NodesFailing 2 of 3 nodes have the module; n2: used by 2"),
        (
            gpu(),
            totals(|t| (t.available, t.without_image) = (2, trouble())),
            "False ImagesNotReady 2 of 3 nodes have the module; n2: used by 2",
        ),
        (
            gpu(),
            with(|t| (t.available, t.silent) = (1, ["n1".to_owned(), "n2".to_owned()].into())),
            "Unknown NodesSilent 1 of 3 nodes have the module; n1: no worker has reported since the node started (and 1 more nodes)",
        ),
        (
            gpu(),
            with(|t| t.matching = 5),
            "True AllNodesReady 3 of 3 nodes have the module; 2 more match the selector and do not get it",
        ),
        (
            gpu(),
            ModuleTotals { matching: 2, unmapped: cause("no kernel mapping fits 7.0"), ..zero.clone() },
            "True NoMatchingKernel 0 of 0 nodes have the module; 2 more match the selector and do not get it",
        ),
        (
            gpu(),
            ModuleTotals { matching: 2, tainted: cause("taint k:NoSchedule"), ..zero.clone() },
            "True NodesTainted 0 of 0 nodes have the module; 2 more match the selector and do not get it",
        ),
        (gpu(), zero.clone(), "True NoMatchingNodes no node matches the selector"),
        (
            gpu(),
            with(|t| (t.available, t.waiting_for_reboot) = (1, 2)),
            "False NodesWaitingForReboot 1 of 3 nodes have the module; 2 more run an older file of it until they boot again",
        ),
        (
            gpu(),
            with(|t| (t.available, t.waiting_for_reboot) = (1, 1)),
            "False NodesNotReady 1 of 3 nodes have the module; 1 more run an older file of it until they boot again",
        ),
        (
            gpu(),
            with(|t| t.kept = 1),
            "True AllNodesReady 3 of 3 nodes have the module; 1 more keep it until they boot again",
        ),
        (
            gpu(),
            totals(|t| (t.available, t.waiting_for_consumers) = (2, trouble())),
            "False WaitingForConsumers 2 of 3 nodes have the module; n2: used by 2",
        ),
        (
            gpu().deleting(),
            totals(|t| (t.leaving, t.waiting_for_consumers) = (1, trouble())),
            "False WaitingForConsumers n2: used by 2",
        ),
        (nothing, zero.clone(), "True NoModuleLoader there is nothing to load"),
        (gpu().deleting(), zero, "False Unloading no node has the module any more"),
        (
            gpu().deleting(),
            with(|t| t.holders = ["n1".to_owned()].into()),
            "False Unloading n1: waiting for its worker to unload the module",
        ),
    ];
    for (module, totals, expected) in table {
        let (status, reason, message) = told(module, &totals);
        assert_eq!(format!("{status} {reason} {message}"), expected);
    }
    let (_, reason, message) = told(bad, &with(|_| {}));
    assert!(reason == "InvalidSpec" && message.contains("kernelMappings[0].regexp"), "{message}");
    troubled.holders = ["n2".to_owned()].into();
    let (_, reason, message) = told(gpu().deleting(), &troubled);
    assert_eq!((reason.as_str(), message.as_str()), ("UnloadBlocked", "cannot be unloaded: n2: used by 2"));
}

#[test]
fn numbers_are_written_also_when_zero_and_ten_nodes_are_named() {
    let mut module = gpu();
    module.meta.annotations = Some([("kmm.node.kubernetes.io/rendered-hash".to_owned(), "h1".to_owned())].into());
    module.meta.generation = Some(4);
    let many = totals(|t| {
        t.available = 0;
        t.failing = (10..30).map(|n| (format!("n{n}"), Trouble::new("SymbolMissing", "x".repeat(600)))).collect();
    });
    let facts = module.build();
    let status = plan_status(&facts, &ModuleStatus::default(), &many, Some(7), Timestamp::UNIX_EPOCH).unwrap();
    let numbers = status.module_loader.unwrap();
    assert_eq!((numbers.available_number, numbers.desired_number), (Some(0), Some(3)));
    let names: Vec<_> = status.nodes_failing.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, (10..20).map(|n| format!("n{n}")).collect::<Vec<_>>());
    assert!(status.nodes_failing.iter().all(|node| node.message.as_ref().unwrap().chars().count() <= 512));
    assert_eq!((status.observed_generation, status.rendered_hash.as_deref()), (Some(4), Some("h1")));
    assert_eq!(status.image_rebuild_trigger_generation, Some(7));
}

#[test]
fn what_an_earlier_operator_counted_and_nobody_counts_now_is_said_no_longer() {
    let facts = gpu().build();
    let now = Timestamp::UNIX_EPOCH;
    let status = plan_status(&facts, &ModuleStatus::default(), &totals(|_| {}), None, now).unwrap();
    let counted = Some(DaemonSetStatus { desired_number: Some(3), ..DaemonSetStatus::default() });
    for old in [
        ModuleStatus { device_plugin: counted.clone(), ..status.clone() },
        ModuleStatus { dra: counted, ..status.clone() },
    ] {
        assert_eq!(plan_status(&facts, &old, &totals(|_| {}), None, now), Some(status.clone()));
    }
}

#[test]
fn a_module_that_was_never_read_says_so_and_ends_when_every_node_has_lost_it() {
    let never_read = |module: ModuleBuilder| ModuleView::unreadable(&module.meta, "bad", None).unwrap().facts;
    let (zero, now) = (ModuleTotals::default(), Timestamp::UNIX_EPOCH);
    let status = plan_status(&never_read(gpu()), &ModuleStatus::default(), &zero, None, now).unwrap();
    assert_eq!(status.module_loader, None, "nobody knows how many nodes it selects");
    let said: Vec<_> = status.conditions.iter().map(|is| (&*is.type_, &*is.status, &*is.message)).collect();
    let ready = "what nodes have stays; the object cannot be read: bad";
    let rest = [
        ("Covered", "Unknown", "bad"),
        ("ImagesResolved", "False", "bad"),
        ("Progressing", "False", "nothing is on its way"),
    ];
    assert_eq!(said, [rest[0], rest[1], rest[2], ("Ready", "False", ready)]);

    let finalizers = |module: ModuleBuilder, totals| {
        let facts = never_read(module);
        plan(&Observed { facts, ..observed_with(gpu(), None, Some(totals)) }).finalizers
    };
    assert_eq!(finalizers(gpu().deleting(), totals(|t| t.holders = ["n".to_owned()].into())), None);
    assert_eq!(finalizers(gpu().deleting(), zero.clone()), Some(vec![]));
    let mut bare = gpu();
    bare.meta.finalizers = None;
    assert_eq!(finalizers(bare, zero), None, "nothing is written into it");
}

#[tokio::test]
async fn a_module_does_not_go_while_the_server_knows_a_node_that_wants_it() {
    let entry = |uid: &str| an_entry("drivers", "gpu", uid);
    let (nodes, mut writer) = store::<NodeView>();
    for (name, annotations) in
        [("n1", None), ("n2", Some([(RELEASE_NODE_ANNOTATION.to_owned(), String::new())].into()))]
    {
        let metadata = ObjectMeta { name: Some(name.to_owned()), annotations, ..ObjectMeta::default() };
        writer.update(Event::Apply(Guarded(Ok(Node { metadata, ..Node::default() }))));
    }
    let long = "g".repeat(60);
    for (what, node, entries, name, gone) in [
        ("the watch lags", "n1", vec![entry("u1")], "gpu", false),
        ("a person has released the node", "n2", vec![entry("u1")], "gpu", true),
        ("the node is gone", "n0", vec![entry("u1")], "gpu", true),
        ("an earlier Module of the name left it", "n1", vec![entry("u0")], "gpu", true),
        ("none has the label", "n1", vec![], "gpu", true),
        ("a name that is too long for the label", "n1", vec![an_entry("drivers", &long, "u1")], &*long, false),
    ] {
        let facts = a_module("drivers", name, "u1").deleting().build();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, named) = (Arc::clone(&asked), !entries.is_empty());
        let server = Router::new().fallback(move |request: Request| {
            let uri = request.uri().to_string();
            seen.lock().unwrap().push((request.method().clone(), uri.clone()));
            let mut config = NodeModulesConfig::new(node, NodeModulesConfigSpec::default());
            config.spec.modules.clone_from(&entries);
            let items: Vec<_> = named.then_some(config).into_iter().collect();
            let list = json!({"apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "NodeModulesConfigList",
                "metadata": {"resourceVersion": "1"}, "items": items});
            async move { list.to_string() }
        });
        let client = Client::new(server, "default");
        let plan = Plan { finalizers: Some(vec![]), images: ImagesAction::Nothing };
        let outcome = apply(&client, &nodes, &facts, &plan).await.unwrap();
        assert_eq!(outcome == Outcome::Done, gone, "{what}");
        let asked = asked.lock().unwrap();
        assert_eq!(asked.iter().any(|(method, _)| method == Method::PATCH), gone, "{what}");
        assert_eq!(asked[0].1.contains("labelSelector"), name.len() < 60, "{what}");
    }
}
