use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::{Coverage, Gaps, Standing, Tally, Totals};
use crate::hub::intern::{self, MESSAGE_MAX};
use crate::hub::testing::{cluster, condition, hash_in, module, reported, spec, work};
use crate::hub::view::{Applied, Feedback, Work};

/// Longest message of a condition, which is how much an agent may say.
const LONGEST: usize = 32_768;

/// What a work and its standing hold of the words of others, each text once.
fn bytes(works: &[Arc<Work>], standings: &[Standing]) -> usize {
    let mut texts: BTreeMap<*const u8, usize> = BTreeMap::new();
    let mut add = |text: &Arc<str>| _ = texts.insert(text.as_ptr(), text.len());
    for work in works {
        if let Applied::Failed(why) | Applied::Forbidden(why) = &work.applied {
            add(why);
        }
        if let Feedback::Current(report) = &work.feedback {
            for said in [&report.ready, &report.covered].into_iter().flatten() {
                add(&said.reason);
                add(&said.why);
            }
        }
    }
    for standing in standings {
        add(&standing.message);
        if let Coverage::NotCovered { message, .. } = &standing.coverage {
            add(message);
        }
    }
    texts.values().sum()
}

#[test]
fn a_fleet_that_fails_at_once_with_long_messages_is_held_once_and_cut() {
    const CLUSTERS: usize = 500;
    let whole = json!({
        "apiVersion": "work.open-cluster-management.io/v1", "kind": "ManifestWork",
        "metadata": {"name": "gpu", "namespace": "c", "generation": 3},
        "spec": {"workload": {"manifests": [{}, {"apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "Module",
            "metadata": {"annotations": {"kmm.node.kubernetes.io/rendered-hash": "hash"}}}]}},
    });
    let long = |n: usize, what: &str| format!("{what} of cluster {n}: {}", "x".repeat(LONGEST));
    let failing = |n| {
        let covered = [("covered.status", "False".to_owned()), ("covered.message", long(n, "kernels"))];
        let ready = [("ready.status", "False".to_owned()), ("ready.reason", "NodesFailing".to_owned())];
        let words = covered.into_iter().chain(ready).chain([("ready.message", long(n, "nodes"))]);
        let values: Vec<_> = words.map(|(name, text)| (name, json!(text))).collect();
        let values: Vec<_> = [("renderedHash", hash_in(&whole))].into_iter().chain(values).collect();
        reported(whole.clone(), &values)
    };
    let refused = |n| {
        let mut work = reported(whole.clone(), &[]);
        work["status"]["conditions"] = json!([condition("Applied", "False", &long(n, "work"))]);
        work
    };
    let works: Vec<Arc<Work>> = (0..CLUSTERS).map(|n| work(if n % 2 == 0 { failing(n) } else { refused(n) })).collect();
    let kernels = cluster(&["6.1.0-a"]).kernels;
    let standings: Vec<Standing> =
        works.iter().map(|work| Standing::of_work(Some(work), &kernels, &Gaps::default(), false)).collect();
    for standing in &standings {
        assert_eq!(standing.message.chars().count(), MESSAGE_MAX);
    }
    // A text for what failed, and where it is told one for what is not covered.
    let held = bytes(&works, &standings);
    assert!(held <= CLUSTERS * (2 * MESSAGE_MAX + 64), "{held} bytes for {CLUSTERS} clusters");

    let (tally, module) = (Tally::default(), module(&spec()));
    tally.begin(&module.name, module.revision(), Vec::new);
    for (n, standing) in standings.into_iter().enumerate() {
        tally.put(&module.name, &module.revision(), &intern::text(&format!("c{n:03}")), Some(standing));
    }
    let Totals { first, reasons, first_not_covered, .. } = tally.totals(&module.name, &module.revision()).unwrap();
    let named = first.iter().map(|(_, standing)| standing);
    let named = named.chain(reasons.values().map(|(_, _, standing)| standing));
    let said: usize =
        named.chain(first_not_covered.iter().map(|(_, standing)| standing)).map(|s| s.message.len()).sum();
    assert!(said < 16 * 1024, "{said} bytes in one status");
}
