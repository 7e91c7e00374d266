use serde_json::{Value, json};

use super::plan::{Action, plan};
use super::plan_tests::{applied, observed, standing, two_images};
use crate::api::names::ClusterReason;
use crate::hub::standing::{Coverage, Phase};
use crate::hub::testing::{cluster, condition, digest, hash_in, images, module, reported, spec, stored, work};

#[test]
fn a_cluster_counts_as_ready_only_by_a_report_on_what_it_was_sent() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), None)).unwrap();
    let server = stored(applied(&first));
    let hash = hash_in(&server);
    let report = |hash: Value, status: &str, reason: &str| {
        let counters = [("moduleLoader.desiredNumber", json!(2)), ("moduleLoader.availableNumber", json!(1))];
        let ready = [
            ("renderedHash", hash),
            ("ready.status", json!(status)),
            ("ready.reason", json!(reason)),
            ("ready.message", json!("n1")),
        ];
        reported(server.clone(), &counters.into_iter().chain(ready).collect::<Vec<_>>())
    };
    let mut older = report(hash.clone(), "True", "AllNodesReady");
    older["status"]["conditions"][0]["observedGeneration"] = json!(2);
    let mut failed = report(hash.clone(), "True", "AllNodesReady");
    failed["status"]["conditions"] = json!([condition("Applied", "False", "1 of 2 failed")]);
    failed["status"]["resourceStatus"]["manifests"][0]["conditions"] =
        json!([condition("Applied", "False", "forbidden")]);
    let table = [
        (report(hash.clone(), "True", "AllNodesReady"), Phase::Ready, ClusterReason::Ready, "", true, 2),
        (report(hash.clone(), "False", "NoMatchingNodes"), Phase::Ready, ClusterReason::NoMatchingNodes, "", true, 2),
        (
            report(hash.clone(), "False", "NodesNotReady"),
            Phase::Waiting,
            ClusterReason::NodesNotReady,
            "NodesNotReady: n1",
            true,
            2,
        ),
        (
            report(hash.clone(), "False", "NodesFailing"),
            Phase::Degraded,
            ClusterReason::NodesNotReady,
            "NodesFailing: n1",
            true,
            2,
        ),
        (
            report(hash.clone(), "False", "NodesSilent"),
            Phase::Unknown,
            ClusterReason::NodesNotReady,
            "NodesSilent: n1",
            true,
            2,
        ),
        (report(hash.clone(), "Unknown", ""), Phase::Unknown, ClusterReason::NodesNotReady, "n1", true, 2),
        (
            report(json!("other"), "True", "AllNodesReady"),
            Phase::Unknown,
            ClusterReason::StaleStatus,
            "the cluster reports on an older version",
            true,
            0,
        ),
        (
            reported(server.clone(), &[]),
            Phase::Unknown,
            ClusterReason::WaitingForStatus,
            "the cluster has not reported yet",
            true,
            0,
        ),
        (older, Phase::Waiting, ClusterReason::WaitingForApply, "the cluster has not applied it yet", false, 0),
        (failed, Phase::Degraded, ClusterReason::NotApplied, "forbidden", false, 0),
        (
            server.clone(),
            Phase::Waiting,
            ClusterReason::WaitingForApply,
            "the cluster has not applied it yet",
            false,
            0,
        ),
    ];
    for (server, phase, reason, message, applied, desired) in table {
        let seen = observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), Some(work(server.clone())));
        let plan = plan(&seen).unwrap();
        assert_eq!(plan.action, Action::Nothing);
        assert_eq!(standing(&plan), (phase, reason, message.to_owned()));
        let standing = plan.standing.unwrap();
        assert_eq!((standing.applied, standing.nodes.desired), (applied, desired), "{reason}");
        let mut silent = cluster(&["6.1.0-a"]);
        silent.silent = true;
        let seen = observed(module(&spec()), silent, Some(two_images()), Some(work(server)));
        assert_eq!(
            super::plan::plan(&seen).unwrap().standing.unwrap().phase,
            Phase::Unknown,
            "silence is not {reason}"
        );
    }
}

#[test]
fn a_cluster_that_reports_counters_only_is_counted_with_a_reason_of_its_own() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), None)).unwrap();
    let server = stored(applied(&first));
    let standing = |values: &[(&str, Value)], kernels: &[&str]| {
        let work = work(reported(server.clone(), values));
        plan(&observed(module(&spec()), cluster(kernels), Some(two_images()), Some(work))).unwrap().standing.unwrap()
    };
    let (desired, available) = ("moduleLoader.desiredNumber", "moduleLoader.availableNumber");
    let matching = ("moduleLoader.nodesMatchingSelectorNumber", json!(3));
    let version = "nodes have the module; the cluster does not tell of which version";
    // KMM leaves zeros out.
    for (values, phase, nodes) in [
        (vec![matching.clone(), (desired, json!(2)), (available, json!(2))], Phase::Ready, (3, 2, 2)),
        (vec![matching.clone(), (desired, json!(2)), (available, json!(1))], Phase::Waiting, (3, 2, 1)),
        (vec![matching.clone(), (desired, json!(2))], Phase::Waiting, (3, 2, 0)),
        (vec![matching.clone()], Phase::Ready, (3, 0, 0)),
    ] {
        let standing = standing(&values, &["6.1.0-a"]);
        assert_eq!((standing.phase, standing.reason), (phase, ClusterReason::CountersOnly));
        assert_eq!((standing.nodes.matching, standing.nodes.desired, standing.nodes.available), nodes);
        assert_eq!(&*standing.message, format!("{} of {} {version}", nodes.2, nodes.1));
        assert_eq!((standing.applied, standing.coverage), (true, Coverage::Covered));
    }
    let unmapped = standing(&[matching], &["6.1.0-a", "x86"]);
    assert!(matches!(unmapped.coverage, Coverage::NotCovered { reason: ClusterReason::SomeKernelsUnmapped, .. }));
}

#[test]
fn a_right_that_the_agent_lacks_is_named_with_the_way_out() {
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), None)).unwrap();
    let said = |message: &str| {
        let mut server = reported(stored(applied(&first)), &[]);
        server["status"]["conditions"] = json!([condition("Applied", "False", "Failed to apply manifest work")]);
        server["status"]["resourceStatus"]["manifests"][0]["conditions"] =
            json!([condition("Applied", "False", message)]);
        let seen = observed(module(&spec()), cluster(&["6.1.0-a"]), Some(two_images()), Some(work(server)));
        standing(&plan(&seen).unwrap())
    };
    let user = "system:serviceaccount:open-cluster-management-agent:klusterlet-work-sa";
    let table = [
        (
            format!(
                "Failed to apply manifest: modules.kmm.sigs.x-k8s.io \"gpu\" is forbidden: User \"{user}\" cannot patch \
                 resource \"modules\" in API group \"kmm.sigs.x-k8s.io\" in the namespace \"drivers\""
            ),
            Some("the cluster's work agent may not patch modules.kmm.sigs.x-k8s.io in the namespace drivers; "),
        ),
        (
            format!(
                "Failed to apply manifest: namespaces is forbidden: User \"{user}\" cannot create resource \"namespaces\" \
                 in API group \"\" at the cluster scope"
            ),
            Some("the cluster's work agent may not create namespaces; "),
        ),
        ("modules \"gpu\" is forbidden: ValidatingAdmissionPolicy 'x' denied request: no".to_owned(), None),
        ("modules \"gpu\" is forbidden: User \"a\" cannot".to_owned(), None),
    ];
    for (message, right) in table {
        let (phase, reason, told) = said(&message);
        let expected = if right.is_some() { ClusterReason::AgentForbidden } else { ClusterReason::NotApplied };
        assert_eq!((phase, reason), (Phase::Degraded, expected));
        assert!(told.starts_with(right.unwrap_or(&message)), "{told}");
        assert!(right.is_none() || told.contains("open-cluster-management.io/aggregate-to-work=true"), "{told}");
    }
}

#[test]
fn whether_every_selected_node_gets_the_module_is_what_the_cluster_says_and_else_what_the_hub_knows() {
    let facts = || {
        images(&[
            ("6.1.0-a", "registry.test/gpu:6.1.0-a", Ok(&digest('a'))),
            ("6.1.0-b", "registry.test/gpu:6.1.0-b", Err("NotFound")),
        ])
    };
    let first = plan(&observed(module(&spec()), cluster(&["6.1.0-a"]), Some(facts()), None)).unwrap();
    assert_eq!(first.standing.as_ref().unwrap().coverage, Coverage::Unknown, "just sent");
    let server = stored(applied(&first));
    let report = |covered: Option<(&str, &str)>| {
        let mut values = vec![
            ("renderedHash", hash_in(&server)),
            ("ready.status", json!("True")),
            ("ready.reason", json!("AllNodesReady")),
        ];
        if let Some((status, reason)) = covered {
            values.extend(
                [("covered.status", status), ("covered.reason", reason), ("covered.message", "n1")]
                    .map(|(name, value)| (name, json!(value))),
            );
        }
        reported(server.clone(), &values)
    };
    let not = |reason, message: &str| Coverage::NotCovered { reason, message: message.into() };
    let image =
        || not(ClusterReason::ImagesNotReady, "no image yet for kernel 6.1.0-b (registry.test/gpu:6.1.0-b: NotFound)");
    let mapping = || not(ClusterReason::SomeKernelsUnmapped, "no usable mapping for kernel x86");
    let no = |reason| Some(("False", reason));
    let waits = (Phase::Waiting, ClusterReason::ImagesNotReady);
    let ready = (Phase::Ready, ClusterReason::Ready);
    let (a, b, x) = (&["6.1.0-a"][..], &["6.1.0-a", "6.1.0-b"][..], &["6.1.0-a", "x86"][..]);
    let table = [
        (a, report(None), ready, Coverage::Covered),
        (a, report(Some(("True", "Covered"))), ready, Coverage::Covered),
        (a, report(Some(("Unknown", "NodesSilent"))), ready, Coverage::Unknown),
        (a, report(no("SomethingNew")), ready, not(ClusterReason::NodesNotCovered, "SomethingNew: n1")),
        (a, report(no("NoMatchingKernel")), ready, not(ClusterReason::NoMatchingKernel, "NoMatchingKernel: n1")),
        // A node booted a kernel whose image is not there yet: that is no failure, and the Hub knows the cause.
        (b, report(None), waits, image()),
        (b, report(no("SomeKernelsUnmapped")), waits, image()),
        // No node that the Module selects has it.
        (b, report(Some(("True", "Covered"))), ready, Coverage::Covered),
        (x, report(None), ready, mapping()),
        (
            x,
            report(no("SomeKernelsUnmapped")),
            ready,
            not(ClusterReason::SomeKernelsUnmapped, "SomeKernelsUnmapped: n1"),
        ),
        (x, report(Some(("True", "Covered"))), ready, Coverage::Covered),
        (a, server.clone(), (Phase::Waiting, ClusterReason::WaitingForApply), Coverage::Unknown),
        (x, server.clone(), (Phase::Waiting, ClusterReason::WaitingForApply), mapping()),
    ];
    for (index, (kernels, server, phase, coverage)) in table.into_iter().enumerate() {
        let seen = observed(module(&spec()), cluster(kernels), Some(facts()), Some(work(server)));
        let standing = plan(&seen).unwrap().standing.unwrap();
        assert_eq!(((standing.phase, standing.reason), standing.coverage), (phase, coverage), "case {index}");
    }
    let none = plan(&observed(module(&spec()), cluster(&["x86"]), Some(facts()), None)).unwrap().standing.unwrap();
    assert_eq!((none.phase, none.reason), (Phase::Waiting, ClusterReason::NoMatchingKernel));
    assert_eq!(none.coverage, not(ClusterReason::NoMatchingKernel, "no usable mapping for kernel x86"));
    let mut silent = cluster(&["6.1.0-a"]);
    silent.silent = true;
    let silent = observed(module(&spec()), silent, Some(facts()), Some(work(report(Some(("True", "Covered"))))));
    assert_eq!(plan(&silent).unwrap().standing.unwrap().coverage, Coverage::Unknown);
}
