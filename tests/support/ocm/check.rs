//! A judge of any `ManifestWork` that the Hub made: what OCM's webhook would refuse, what its agent would
//! do badly, and what a spoke must not be sent.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::config::{ResourceMeta, glob};
use super::jsonpath::JsonPath;
use super::kinds::{list, text};

const NAME_LABEL: &str = "kmm.node.kubernetes.io/managedclustermodule.name";
/// Sum of all manifests that the webhook of OCM lets pass.
const MAX_BYTES: usize = 500 * 1024;
/// The agent puts 64 digits and a dash in front.
const MAX_NAME: usize = 253 - 65;

/// What the work is expected to say.
#[derive(Clone, Debug, Default)]
pub struct Expectation {
    /// Name of the `ManagedClusterModule`, of the work and of the Module.
    pub module: String,
    /// Its uid; not looked at if empty.
    pub owner_uid: String,
    /// Name of the cluster, which is the work's namespace.
    pub cluster: String,
    /// Namespace of the Module on the spoke.
    pub spoke_namespace: String,
    /// The kernels that have a mapping, exactly, each with its image; an empty image is not compared.
    pub images: BTreeMap<String, String>,
    /// Whether the user has detached the fleet: everything stays on the spoke when the work goes.
    pub detached: bool,
}

/// Everything that is wrong with a work, one sentence each; empty if nothing is.
pub fn check_manifest_work(work: &Value, expected: &Expectation) -> Vec<String> {
    let mut faults = Vec::new();
    check_metadata(work, expected, &mut faults);
    let manifests = check_manifests(work, &mut faults);
    check_module(work, expected, &mut faults);
    check_configs(work, &manifests, &mut faults);
    check_delete_option(work, &manifests, expected, &mut faults);
    faults
}

fn expect_text(faults: &mut Vec<String>, what: &str, have: &str, want: &str) {
    if have != want {
        faults.push(format!("{what} is {have:?}, not {want:?}"));
    }
}

fn check_metadata(work: &Value, expected: &Expectation, faults: &mut Vec<String>) {
    expect_text(faults, "apiVersion", text(work, "/apiVersion"), "work.open-cluster-management.io/v1");
    expect_text(faults, "kind", text(work, "/kind"), "ManifestWork");
    let name = text(work, "/metadata/name");
    expect_text(faults, "name", name, &expected.module);
    if name.len() > MAX_NAME {
        faults.push(format!("name has {} characters, more than {MAX_NAME}", name.len()));
    }
    expect_text(faults, "namespace", text(work, "/metadata/namespace"), &expected.cluster);
    let label = work["metadata"]["labels"][NAME_LABEL].as_str().unwrap_or_default();
    expect_text(faults, &format!("label {NAME_LABEL}"), label, &expected.module);
    let controllers: Vec<&Value> =
        list(work, "/metadata/ownerReferences").iter().filter(|owner| owner["controller"] == true).collect();
    let [owner] = controllers[..] else {
        faults.push(format!("{} owner references are the controller, not 1", controllers.len()));
        return;
    };
    let group = text(owner, "/apiVersion").split('/').next().unwrap_or_default();
    expect_text(faults, "group of the owner", group, "hub.kmm.sigs.x-k8s.io");
    expect_text(faults, "kind of the owner", text(owner, "/kind"), "ManagedClusterModule");
    expect_text(faults, "name of the owner", text(owner, "/name"), &expected.module);
    if !expected.owner_uid.is_empty() {
        expect_text(faults, "uid of the owner", text(owner, "/uid"), &expected.owner_uid);
    }
}

/// The rules of OCM's webhook. Gives what each manifest speaks of.
fn check_manifests(work: &Value, faults: &mut Vec<String>) -> Vec<ResourceMeta> {
    let manifests = list(work, "/spec/workload/manifests");
    if manifests.is_empty() {
        faults.push("there is no manifest".to_owned());
    }
    let bytes: usize = manifests.iter().map(|manifest| manifest.to_string().len()).sum();
    if bytes > MAX_BYTES {
        faults.push(format!("the manifests have {bytes} bytes, more than {MAX_BYTES}"));
    }
    let mut seen = BTreeSet::new();
    let mut metas = Vec::new();
    for (ordinal, manifest) in manifests.iter().enumerate() {
        let meta = ResourceMeta::of(ordinal, manifest, &plural(text(manifest, "/kind")));
        for (field, value) in [("apiVersion", &meta.version), ("kind", &meta.kind), ("metadata.name", &meta.name)] {
            if value.is_empty() {
                faults.push(format!("manifest {ordinal} has no {field}"));
            }
        }
        for field in ["generateName", "uid", "resourceVersion", "managedFields", "creationTimestamp"] {
            if !manifest["metadata"][field].is_null() {
                faults.push(format!("manifest {ordinal} has metadata.{field}"));
            }
        }
        if !manifest["status"].is_null() {
            faults.push(format!("manifest {ordinal} has a status"));
        }
        if !seen.insert((meta.api_version(), meta.kind.clone(), meta.namespace.clone(), meta.name.clone())) {
            faults.push(format!("manifest {ordinal} is a second {} {}/{}", meta.kind, meta.namespace, meta.name));
        }
        metas.push(meta);
    }
    metas
}

fn plural(kind: &str) -> String {
    format!("{}s", kind.to_lowercase())
}

fn check_module(work: &Value, expected: &Expectation, faults: &mut Vec<String>) {
    let modules: Vec<&Value> =
        list(work, "/spec/workload/manifests").iter().filter(|manifest| manifest["kind"] == "Module").collect();
    let [module] = modules[..] else {
        faults.push(format!("{} manifests are Modules, not 1", modules.len()));
        return;
    };
    expect_text(faults, "apiVersion of the Module", text(module, "/apiVersion"), "kmm.sigs.x-k8s.io/v1beta1");
    expect_text(faults, "name of the Module", text(module, "/metadata/name"), &expected.module);
    expect_text(faults, "namespace of the Module", text(module, "/metadata/namespace"), &expected.spoke_namespace);
    let loader = &module["spec"]["moduleLoader"];
    if loader.is_null() {
        if !expected.images.is_empty() {
            faults.push("the Module has no moduleLoader".to_owned());
        }
        return;
    }
    let container = &loader["container"];
    for field in ["build", "sign"] {
        if !container[field].is_null() {
            faults.push(format!("the container still has {field}"));
        }
    }
    if let Some(image) = container["containerImage"].as_str().filter(|image| !is_pinned(image)) {
        faults.push(format!("image {image:?} of the container is not repo@sha256:<64 hexadecimal digits>"));
    }
    check_mappings(list(container, "/kernelMappings"), expected, faults);
}

fn check_mappings(mappings: &[Value], expected: &Expectation, faults: &mut Vec<String>) {
    let mut literals = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        let literal = text(mapping, "/literal");
        if literal.is_empty() {
            faults.push(format!("mapping {index} has no literal"));
        }
        for field in ["regexp", "build", "sign"] {
            if !mapping[field].is_null() {
                faults.push(format!("mapping {literal:?} has {field}"));
            }
        }
        let image = text(mapping, "/containerImage");
        if !is_pinned(image) {
            faults.push(format!("image {image:?} of mapping {literal:?} is not repo@sha256:<64 hexadecimal digits>"));
        }
        match expected.images.get(literal).map(String::as_str) {
            None => faults.push(format!("mapping {literal:?} is for a kernel that was not expected")),
            Some(want) if !want.is_empty() && want != image => {
                faults.push(format!("image {image:?} of mapping {literal:?} is not {want:?}"));
            }
            Some(_) => {}
        }
        if mapping["inTreeModulesToRemove"].is_array() && !mapping["inTreeModuleToRemove"].is_null() {
            faults.push(format!("mapping {literal:?} names modules to remove twice, which the spoke refuses"));
        }
        literals.push(literal);
    }
    for kernel in expected.images.keys().filter(|kernel| !literals.contains(&kernel.as_str())) {
        faults.push(format!("there is no mapping for kernel {kernel:?}"));
    }
    if !literals.is_sorted_by(|a, b| a < b) {
        faults.push(format!("the mappings are not in strictly ascending order: {literals:?}"));
    }
}

/// `repo@sha256:…`, lower-case digits, no tag.
fn is_pinned(image: &str) -> bool {
    let Some((repository, digest)) = image.split_once("@sha256:") else { return false };
    let last = repository.rsplit('/').next().unwrap_or_default();
    // A colon before the last slash is a port, one after it a tag; `host:port` alone is no repository.
    !repository.is_empty()
        && !last.is_empty()
        && !last.contains(':')
        && !repository.contains(char::is_whitespace)
        && digest.len() == 64
        && digest.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

fn check_configs(work: &Value, manifests: &[ResourceMeta], faults: &mut Vec<String>) {
    for config in list(work, "/spec/manifestConfigs") {
        let identifier = &config["resourceIdentifier"];
        let target = format!("{}/{}", text(identifier, "/resource"), text(identifier, "/name"));
        let hits = manifests.iter().filter(|meta| {
            text(identifier, "/group") == meta.group
                && text(identifier, "/resource") == meta.resource
                && glob(text(identifier, "/namespace"), &meta.namespace)
                && glob(text(identifier, "/name"), &meta.name)
        });
        if hits.count() == 0 {
            faults.push(format!("the entry for {target} speaks of no manifest"));
        }
        check_strategy(&config["updateStrategy"], &target, faults);
        if let Some(scrape) = config["feedbackScrapeType"].as_str()
            && !["Poll", "Watch"].contains(&scrape)
        {
            faults.push(format!("feedbackScrapeType {scrape:?} of {target} is unknown"));
        }
        check_feedback(config, &target, faults);
    }
    for meta in manifests {
        let strategy = meta.config(work, "updateStrategy");
        let kind = text(strategy, "/type");
        match meta.kind.as_str() {
            "Module" => {
                expect_text(faults, "strategy of the Module", kind, "ServerSideApply");
                let manager = text(strategy, "/serverSideApply/fieldManager");
                expect_text(faults, "field manager of the Module", manager, "work-agent-kmm");
                if strategy.pointer("/serverSideApply/force") != Some(&Value::Bool(true)) {
                    faults.push("the Module is applied without force".to_owned());
                }
            }
            "Namespace" => expect_text(faults, "strategy of the Namespace", kind, "CreateOnly"),
            _ => {}
        }
    }
}

fn check_strategy(strategy: &Value, target: &str, faults: &mut Vec<String>) {
    if strategy.is_null() {
        return;
    }
    let kind = text(strategy, "/type");
    if !["Update", "CreateOnly", "ServerSideApply", "ReadOnly"].contains(&kind) {
        faults.push(format!("strategy {kind:?} of {target} is unknown"));
    }
    let apply = &strategy["serverSideApply"];
    if let Some(manager) = apply["fieldManager"].as_str().filter(|manager| !manager.starts_with("work-agent")) {
        faults.push(format!("field manager {manager:?} of {target} does not start with work-agent"));
    }
    if !apply.is_null() && kind != "ServerSideApply" {
        faults.push(format!("{target} has serverSideApply beside the strategy {kind:?}"));
    }
}

fn check_feedback(config: &Value, target: &str, faults: &mut Vec<String>) {
    let mut names = BTreeSet::new();
    for rule in list(config, "/feedbackRules") {
        match text(rule, "/type") {
            "JSONPaths" => {}
            "WellKnownStatus" => {
                let resource = text(config, "/resourceIdentifier/resource");
                if !["deployments", "daemonsets", "jobs", "pods"].contains(&resource) {
                    faults.push(format!("{target} has no well-known status"));
                }
                continue;
            }
            other => faults.push(format!("feedback rule type {other:?} of {target} is unknown")),
        }
        if list(rule, "/jsonPaths").is_empty() {
            faults.push(format!("a feedback rule of {target} has no path"));
        }
        for path in list(rule, "/jsonPaths") {
            let name = text(path, "/name");
            if name.is_empty() || !names.insert(name) {
                faults.push(format!("feedback name {name:?} of {target} is empty or there twice"));
            }
            let path = text(path, "/path");
            if let Err(error) = JsonPath::parse(path) {
                faults.push(format!("feedback {name:?} of {target}: {error:#}"));
            } else if !path.starts_with('.') || path.starts_with("..") {
                faults.push(format!("feedback path {path:?} of {target} does not start with a single dot"));
            }
        }
    }
}

fn check_delete_option(work: &Value, manifests: &[ResourceMeta], expected: &Expectation, faults: &mut Vec<String>) {
    let policy = text(work, "/spec/deleteOption/propagationPolicy");
    if !["", "Foreground", "Orphan", "SelectivelyOrphan"].contains(&policy) {
        faults.push(format!("propagation policy {policy:?} is unknown"));
    }
    for rule in list(work, "/spec/deleteOption/selectivelyOrphans/orphaningRules") {
        let hit = manifests.iter().any(|meta| {
            text(rule, "/group") == meta.group
                && text(rule, "/resource") == meta.resource
                && text(rule, "/namespace") == meta.namespace
                && text(rule, "/name") == meta.name
        });
        if !hit {
            faults.push(format!("orphaning rule {rule} speaks of no manifest"));
        }
    }
    for meta in manifests {
        let owned = meta.is_owned(work);
        match (meta.kind.as_str(), owned) {
            ("Namespace", true) => {
                faults.push(format!("deleting the work deletes namespace {} of the spoke", meta.name));
            }
            ("Module", true) if expected.detached => {
                faults.push("deleting the work deletes the Module although detached".to_owned());
            }
            ("Module", false) if !expected.detached => faults.push("deleting the work leaves the Module".to_owned()),
            _ => {}
        }
    }
}
