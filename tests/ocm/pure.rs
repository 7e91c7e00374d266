//! What needs no API server: paths, feedback rules, retries, claims, the command lines of the real agents.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::ocm::apply::merged;
use crate::ocm::config::glob;
use crate::ocm::feedback::evaluate;
use crate::ocm::jsonpath::JsonPath;
use crate::ocm::register::selected_claims;
use crate::ocm::work::retry_delay;
use crate::ocm::{OcmOptions, real};

#[test]
fn paths_find_what_kubectl_finds() {
    let object = json!({
        "a": {"b": 1, "c.d": "dot", "e": null},
        "list": [{"type": "X", "ok": true, "n": 1}, {"type": "Y", "ok": false}, {"type": "]", "ok": "bracket"}],
        "empty": [],
    });
    let found = |path: &str| {
        JsonPath::parse(path)
            .map_err(|_| "parse")
            .and_then(|p| p.first(&object).map(Option::<&Value>::cloned).map_err(|_| "find"))
    };
    let cases: &[(&str, Result<Option<Value>, &str>)] = &[
        (".a.b", Ok(Some(json!(1)))),
        ("{.a.b}", Ok(Some(json!(1)))),
        ("$.a.b", Ok(Some(json!(1)))),
        (r".a.c\.d", Ok(Some(json!("dot")))),
        (".a['c.d']", Ok(Some(json!("dot")))),
        (".a.e", Ok(None)),
        (".a.missing.deeper", Ok(None)),
        (".a.b.deeper", Ok(None)),
        (".list[0].type", Ok(Some(json!("X")))),
        (".list[-1].type", Ok(Some(json!("]")))),
        (".list[7]", Err("find")),
        (".empty[0]", Err("find")),
        (".list[*].type", Ok(Some(json!("X")))),
        (".list.*.type", Ok(Some(json!("X")))),
        (r#".list[?(@.type=="Y")].ok"#, Ok(Some(json!(false)))),
        (r".list[?(@.type == 'Y')].ok", Ok(Some(json!(false)))),
        (r#".list[?(@.type!="X")].type"#, Ok(Some(json!("Y")))),
        (r#".list[?(@.type=="]")].ok"#, Ok(Some(json!("bracket")))),
        (".list[?(@.ok==true)].n", Ok(Some(json!(1)))),
        (r#".list[?(@.type=="none")].ok"#, Ok(None)),
        ("", Err("parse")),
        ("a.b", Err("parse")),
        (".a..b", Err("parse")),
        (".a.", Err("parse")),
        (".list[0", Err("parse")),
        (".list[x]", Err("parse")),
        (".list[?(@.n>1)]", Err("parse")),
        (".list[?(type==1)]", Err("parse")),
    ];
    for (path, want) in cases {
        assert_eq!(&found(path), want, "{path}");
    }
}

#[test]
fn feedback_values_have_the_type_of_the_field_or_are_an_error() {
    let object = json!({"apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "Module", "status": {
        "int": 3, "text": "x", "yes": true, "float": 1.5, "map": {"a": 1}, "list": [1], "long": "y".repeat(2000)}});
    let rule = |name: &str, path: &str| json!({"type": "JSONPaths", "jsonPaths": [{"name": name, "path": path}]});
    let value = |name: &str, field: Value| vec![json!({"name": name, "fieldValue": field})];
    let error = |text: &str| vec![text.to_owned()];
    let none: (Vec<Value>, Vec<String>) = Default::default();
    let cases = [
        (rule("int", ".status.int"), false, (value("int", json!({"type": "Integer", "integer": 3})), vec![])),
        (rule("text", ".status.text"), false, (value("text", json!({"type": "String", "string": "x"})), vec![])),
        (rule("yes", ".status.yes"), false, (value("yes", json!({"type": "Boolean", "boolean": true})), vec![])),
        (rule("gone", ".status.gone"), false, none),
        (
            rule("float", ".status.float"),
            false,
            (vec![], error("the type float64 of the value for float is not found")),
        ),
        (rule("map", ".status.map"), false, (vec![], error("the type map of the value for map is not found"))),
        (rule("list", ".status.list"), false, (vec![], error("the type slice of the value for list is not found"))),
        (rule("map", ".status.map"), true, (value("map", json!({"type": "JsonRaw", "jsonRaw": "{\"a\":1}"})), vec![])),
        (rule("all", ".status"), true, (vec![], error("the value of all has 2078 characters, more than 1024"))),
        (
            json!({"type": "WellKnownStatus"}),
            false,
            (vec![], error("cannot find the wellknown statuses for resource with kind Module")),
        ),
        (
            json!({"type": "JSONPaths", "jsonPaths": [{"name": "v", "path": ".status.int", "version": "v1"}]}),
            false,
            (vec![], error("version set in the path of v is v1, the object has v1beta1")),
        ),
    ];
    for (rule, raw, want) in cases {
        let have = evaluate(std::slice::from_ref(&rule), &object, raw);
        assert_eq!((have.values, have.errors), want, "{rule}");
    }
    let deployment =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "status": {"readyReplicas": 1, "replicas": 2}});
    let have = evaluate(&[json!({"type": "WellKnownStatus"})], &deployment, false);
    assert_eq!(
        have.values,
        [
            json!({"name": "ReadyReplicas", "fieldValue": {"type": "Integer", "integer": 1}}),
            json!({"name": "Replicas", "fieldValue": {"type": "Integer", "integer": 2}}),
        ]
    );
}

#[test]
fn the_pause_after_a_failure_doubles_up_to_a_thousand_seconds() {
    let options = OcmOptions::default();
    let delays: Vec<u128> = [0, 1, 2, 10, 17, 18, 31, 32, 1000].map(|n| retry_delay(&options, n).as_millis()).to_vec();
    assert_eq!(delays, [5, 10, 20, 5120, 655_360, 1_000_000, 1_000_000, 1_000_000, 1_000_000]);
}

#[test]
fn twenty_custom_claims_by_name_pass_and_reserved_ones_always() {
    let claim = |name: &str| json!({"metadata": {"name": name}, "spec": {"value": name}});
    let mut claims: Vec<Value> = (10..34).rev().map(|n| claim(&format!("c{n}"))).collect();
    claims.extend([claim("product.open-cluster-management.io"), claim("id.k8s.io"), claim("z.kept"), claim("a.kept")]);
    claims.push(json!({"metadata": {"name": "b", "labels": {"open-cluster-management.io/spoke-only": "x"}}, "spec": {"value": "v"}}));
    let names = |options: &OcmOptions| -> Vec<String> {
        selected_claims(&claims, options).iter().map(|claim| claim["name"].as_str().unwrap().to_owned()).collect()
    };
    let custom = |from: u32, to: u32| (from..to).map(|n| format!("c{n}"));
    let fixed = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let want: Vec<String> = fixed(&["id.k8s.io", "product.open-cluster-management.io", "a.kept"])
        .into_iter()
        .chain(custom(10, 29))
        .collect();
    assert_eq!(names(&OcmOptions::default()), want);
    let options = OcmOptions { reserved_claim_suffixes: vec![".kept".to_owned()], ..OcmOptions::default() };
    let want: Vec<String> = fixed(&["a.kept", "id.k8s.io", "product.open-cluster-management.io", "z.kept"])
        .into_iter()
        .chain(custom(10, 30))
        .collect();
    assert_eq!(names(&options), want);
}

#[test]
fn names_in_manifest_configs_may_hold_stars() {
    let cases = [
        ("a", "a", true),
        ("a", "b", false),
        ("*", "", true),
        ("a*c", "abbc", true),
        ("a*c", "ac", true),
        ("*b*", "abc", true),
        ("a*b*c", "axc", false),
        ("a*", "ba", false),
    ];
    for (pattern, text, want) in cases {
        assert_eq!(glob(pattern, text), want, "{pattern} {text}");
    }
}

#[test]
fn update_replaces_a_custom_resource_but_keeps_its_metadata_and_merges_core_kinds() {
    let have = json!({"apiVersion": "x.example.com/v1", "kind": "X", "metadata": {"name": "x", "labels": {"a": "1"}, "uid": "u"},
        "spec": {"a": 1, "extra": 2}, "status": {"s": 1}});
    let manifest = json!({"apiVersion": "x.example.com/v1", "kind": "X", "metadata": {"name": "x", "labels": {"b": "2"}}, "spec": {"a": 1}});
    let want = json!({"apiVersion": "x.example.com/v1", "kind": "X", "metadata": {"name": "x", "labels": {"a": "1", "b": "2"}, "uid": "u"}, "spec": {"a": 1}});
    assert_eq!(merged(&have, &manifest), Some(want.clone()));
    assert_eq!(merged(&want, &manifest), None);
    let have = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
    assert_eq!(merged(&have, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}})), None);
    let labelled = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "labels": {"a": "b"}}});
    let mut want = have.clone();
    want["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(merged(&have, &labelled), Some(want));
}

#[test]
fn the_real_agents_get_their_files_and_flags() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let kubeconfig = dir.path().join("agent.kubeconfig");
    let config = json!({
        "clusters": [{"name": "c", "cluster": {"server": "https://hub:6443", "certificate-authority-data": "Q0E="}}],
        "users": [{"name": "u", "user": {"client-certificate-data": "Q0VSVA==", "client-key-data": "S0VZ"}}],
    });
    std::fs::write(&kubeconfig, config.to_string())?;
    real::identity_files(&kubeconfig, dir.path())?;
    let read = |file: &str| std::fs::read_to_string(dir.path().join(file));
    assert_eq!((read("hub/tls.crt")?.as_str(), read("hub/tls.key")?.as_str()), ("CERT", "KEY"));
    let parse = |file: &str| -> Result<Value> { Ok(serde_json::from_str(&read(file)?)?) };
    let (hub, bootstrap) = (parse("hub/kubeconfig")?, parse("bootstrap.kubeconfig")?);
    assert_eq!(hub["clusters"], bootstrap["clusters"]);
    assert_eq!(hub["contexts"], bootstrap["contexts"]);
    assert_eq!(hub["clusters"][0]["cluster"], config["clusters"][0]["cluster"]);
    assert_eq!(hub["users"][0]["user"], json!({"client-certificate": "tls.crt", "client-key": "tls.key"}));
    assert_eq!(bootstrap["users"][0]["user"], json!({}));

    let options =
        OcmOptions { reserved_claim_suffixes: vec![".one".to_owned(), ".two".to_owned()], ..OcmOptions::default() };
    let files = real::Files { hub: Path::new("/hub"), work: Path::new("/work"), registration: Path::new("/reg") };
    let setup = real::Setup {
        programs: Path::new("/bin"),
        files,
        cluster: "c1",
        agent_id: "agent1",
        dir: Path::new("/d"),
        options: &options,
        ports: (1, 2),
    };
    assert_eq!(
        setup.work().join(" "),
        "/bin/work agent --kubeconfig=/work --spoke-cluster-name=c1 --agent-id=agent1 \
        --workload-source-driver=kube --workload-source-config=/hub --disable-leader-election --listen=127.0.0.1:1 \
        --status-sync-interval=10000ms --appliedmanifestwork-eviction-grace-period=3600000ms \
        --feature-gates=RawFeedbackJsonString=false"
    );
    assert_eq!(
        setup.registration().join(" "),
        "/bin/registration agent --kubeconfig=/reg --namespace=open-cluster-management-agent \
        --spoke-cluster-name=c1 --agent-id=agent1 --bootstrap-kubeconfig=/d/bootstrap.kubeconfig --hub-kubeconfig-dir=/d/hub \
        --disable-leader-election --listen=127.0.0.1:2 --max-custom-cluster-claims=20 --cluster-healthcheck-period=60000ms \
        --feature-gates=AddonManagement=false --reserved-cluster-claim-suffixes=.one,.two"
    );
    Ok(())
}
