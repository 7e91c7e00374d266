//! The CRDs accept, check and default everything that KMM's accept, check and default.
//!
//! `upstream-api.txt` holds what KMM's CRDs enforce, one line for each field. The generated CRDs, with
//! the additions below taken away, must give the same lines. The file itself is made from KMM's CRDs;
//! where they are at hand (folder `kmm-crds` in `KMM_REFERENCE_DIR`, or in `../shared/reference`) it is
//! checked that it is up to date. With `UPDATE=1` the generated files are written instead of compared.

use std::fs;
use std::path::{Path, PathBuf};

use kmm::api::crds::{crds, to_yaml};
use serde_json::Value;

use crate::schema_facts::Digest;

/// What our CRDs have beyond KMM's: definition, path, reason.
const ADDITIONS: &[(&str, &str, &str)] = &[
    // every kind
    ("*", "names.categories", "`kubectl get kmm` lists all kinds"),
    ("*", "additionalPrinterColumns", "`kubectl get` answers at a glance"),
    ("*", ".status.conditions", "whether it works and why not, in the place where people and tools look"),
    ("*", ".status.observedGeneration", "tells a fresh status from a stale one"),
    // Module
    ("modules.kmm.sigs.x-k8s.io", "names.shortNames", "a short name to type"),
    ("modules.kmm.sigs.x-k8s.io", ".status.renderedHash", "a Hub counts a status only if it is of what it sent"),
    ("modules.kmm.sigs.x-k8s.io", ".status.nodesFailing", "the first failing nodes are named"),
    ("modules.kmm.sigs.x-k8s.io", ".spec.moduleLoader.policy", "some modules must not leave while the node is up"),
    (
        "modules.kmm.sigs.x-k8s.io",
        ".spec.moduleLoader.container.modprobe.modprobeConfig",
        "options and aliases of modprobe.d together with a loading order",
    ),
    (
        "modules.kmm.sigs.x-k8s.io",
        ".spec.moduleLoader.container.modprobe.modprobedDir",
        "KMM has it since a later version",
    ),
    // ManagedClusterModule
    ("managedclustermodules.hub.kmm.sigs.x-k8s.io", ".spec.moduleSpec.moduleLoader.policy", "as in the Module"),
    (
        "managedclustermodules.hub.kmm.sigs.x-k8s.io",
        ".spec.moduleSpec.moduleLoader.container.modprobe.modprobeConfig",
        "as in the Module",
    ),
    (
        "managedclustermodules.hub.kmm.sigs.x-k8s.io",
        ".spec.moduleSpec.moduleLoader.container.modprobe.modprobedDir",
        "as in the Module",
    ),
    ("managedclustermodules.hub.kmm.sigs.x-k8s.io", "names.shortNames", "a short name to type"),
    ("managedclustermodules.hub.kmm.sigs.x-k8s.io", ".status.numberReady", "applied is not yet loaded"),
    ("managedclustermodules.hub.kmm.sigs.x-k8s.io", ".status.numberWaiting", "on its way is not failed"),
    ("managedclustermodules.hub.kmm.sigs.x-k8s.io", ".status.numberUnknown", "silence is not good news"),
    (
        "managedclustermodules.hub.kmm.sigs.x-k8s.io",
        ".status.numberAwaitingRemoval",
        "clusters that keep the Module until somebody confirms that they lose it",
    ),
    ("managedclustermodules.hub.kmm.sigs.x-k8s.io", ".status.nodes", "nodes of the whole fleet in one place"),
    (
        "managedclustermodules.hub.kmm.sigs.x-k8s.io",
        ".status.clusters",
        "the first clusters that are not ready are named",
    ),
    // NodeModulesConfig
    (
        "nodemodulesconfigs.kmm.sigs.x-k8s.io",
        ".spec.containerRuntime",
        "whose mirrors and certificates hold on the node",
    ),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".spec.unload", "a module is unloaded on a written order only"),
    (
        "nodemodulesconfigs.kmm.sigs.x-k8s.io",
        ".spec.modules[].imageSource",
        "a tag that moves changes no digest in use",
    ),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".spec.modules[].moduleUID", "a Module made again is another Module"),
    (
        "nodemodulesconfigs.kmm.sigs.x-k8s.io",
        ".spec.modules[].generation",
        "orders an entry against an order to unload",
    ),
    (
        "nodemodulesconfigs.kmm.sigs.x-k8s.io",
        ".spec.modules[].config.registryTLS",
        "`insecurePull` merges two meanings",
    ),
    (
        "nodemodulesconfigs.kmm.sigs.x-k8s.io",
        ".spec.modules[].imagePullSecrets",
        "the worker pulls by itself, so it has to know what the kubelet would use",
    ),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".spec.modules[].policy", "the worker has to know it"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".spec.modules[].config.modprobe.modprobeConfig", "as in the Module"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".spec.modules[].config.modprobe.modprobedDir", "as in the Module"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.modules[].config.modprobe.modprobedDir", "as in the Module"),
    (
        "nodemodulesconfigs.kmm.sigs.x-k8s.io",
        ".status.modules[].config.modprobe.modprobeConfig",
        "the same type as in the specification",
    ),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.bootID", "what is said of a node holds for one boot"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.kernelVersion", "the kernel that the worker saw"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.workerVersion", "a rollout of the worker can be followed"),
    (
        "nodemodulesconfigs.kmm.sigs.x-k8s.io",
        ".status.modules[].config.registryTLS",
        "the same type as in the specification",
    ),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.modules[].moduleUID", "a Module made again is another Module"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.modules[].state", "where the module is on its way"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.modules[].reason", "why, in one word"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.modules[].message", "why, in one sentence"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.modules[].digest", "which image the loaded file came from"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.modules[].buildID", "proof of what the kernel runs"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.modules[].srcversion", "proof of what the kernel runs"),
    (
        "nodemodulesconfigs.kmm.sigs.x-k8s.io",
        ".status.modules[].observedGeneration",
        "which entry or order it speaks of",
    ),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.modules[].lastTransitionTime", "since when"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.modules[].duration", "how long it took"),
    ("nodemodulesconfigs.kmm.sigs.x-k8s.io", ".status.modules[].loadTime", "tells one load from the next"),
    // ModuleImagesConfig
    (
        "moduleimagesconfigs.kmm.sigs.x-k8s.io",
        ".spec.imagePullSecrets",
        "a look-up uses what the kubelet would use for a pull",
    ),
    (
        "moduleimagesconfigs.kmm.sigs.x-k8s.io",
        ".status.imagesStates[].kernelVersion",
        "one image may serve two kernels",
    ),
    ("moduleimagesconfigs.kmm.sigs.x-k8s.io", ".status.imagesStates[].digest", "what is loaded is what was looked up"),
    ("moduleimagesconfigs.kmm.sigs.x-k8s.io", ".status.imagesStates[].reason", "why, in one word"),
    ("moduleimagesconfigs.kmm.sigs.x-k8s.io", ".status.imagesStates[].message", "why, in one sentence"),
    ("moduleimagesconfigs.kmm.sigs.x-k8s.io", ".status.imagesStates[].lastTransitionTime", "since when"),
];

/// Size past which an API server, or `kubectl apply` with its annotation, refuses an object, in bytes.
const MAX_ANNOTATION_BYTES: usize = 262_144;

#[test]
fn generated_crds_enforce_what_those_of_kmm_enforce() {
    let mut ours = Digest::default();
    for mut definition in definitions() {
        let name = name_of(&definition);
        for (_, path, reason) in ADDITIONS.iter().filter(|(owner, _, _)| *owner == "*" || *owner == name) {
            assert!(!reason.is_empty(), "{name} {path}: an addition needs a reason");
            assert!(remove(&mut definition, path), "{name} {path} is listed as an addition and is not there");
        }
        ours.add(&definition);
    }
    let upstream = read("tests/repository/upstream-api.txt");
    assert!(upstream.lines().count() > 400, "upstream-api.txt is cut off");
    assert_same_lines(&ours.text(), &upstream);
}

#[test]
fn the_list_of_what_kmm_enforces_is_up_to_date() {
    let Some(folder) = reference_folder() else {
        println!("skipped: no CRDs of KMM at hand; set KMM_REFERENCE_DIR to the folder that holds kmm-crds");
        return;
    };
    let mut upstream = Digest::default();
    for definition in definitions() {
        let file = folder.join(format!("{}.yaml", name_of(&definition)));
        let yaml = fs::read_to_string(&file).unwrap_or_else(|error| panic!("read {}: {error}", file.display()));
        upstream.add(&serde_saphyr::from_str(&yaml).unwrap());
    }
    assert_file("tests/repository/upstream-api.txt", &upstream.text());
}

#[test]
fn committed_crds_are_those_of_the_types() {
    let mut expected: Vec<String> = Vec::new();
    for definition in crds() {
        let file = format!("crds/{}.yaml", definition.metadata.name.as_deref().unwrap());
        assert_file(&file, &to_yaml(std::slice::from_ref(&definition)).unwrap());
        expected.push(file);
    }
    let mut present: Vec<String> = fs::read_dir(root().join("crds"))
        .unwrap()
        .map(|entry| format!("crds/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|file| !file.ends_with("/kustomization.yaml"))
        .collect();
    present.sort();
    let listed = read("crds/kustomization.yaml");
    for file in &expected {
        let name = file.trim_start_matches("crds/");
        assert!(listed.lines().any(|line| line.trim() == format!("- {name}")), "{name} is not in the kustomization");
    }
    assert_eq!(present, expected, "files in crds/");
}

#[test]
fn printed_yaml_reads_back_as_the_definition_it_was_printed_from() {
    for definition in crds() {
        let yaml = to_yaml(std::slice::from_ref(&definition)).unwrap();
        let read: Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(read, serde_json::to_value(&definition).unwrap());
    }
}

#[test]
fn every_crd_can_be_applied_by_kubectl_with_room_to_grow() {
    for definition in definitions() {
        let bytes = definition.to_string().len();
        assert!(bytes < MAX_ANNOTATION_BYTES / 2, "{}: {bytes} bytes", name_of(&definition));
    }
}

#[test]
fn every_field_of_ours_is_described() {
    for definition in definitions() {
        let mut bare = Vec::new();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            let (undescribed, described) = descriptions(&format!(".{part}"), &schema["properties"][part]);
            assert!(described > 5, "{} .{part}: {described} descriptions", name_of(&definition));
            bare.extend(undescribed);
        }
        assert_eq!(bare, Vec::<String>::new(), "{}", name_of(&definition));
    }
}

/// Properties without a description, as far as the parent has one, and the number of those with one.
/// Below a type of Kubernetes nothing is described.
fn descriptions(path: &str, schema: &Value) -> (Vec<String>, usize) {
    let inner = schema.get("items").unwrap_or(schema);
    let ours = inner.get("description").is_some();
    let (mut bare, mut count) = (Vec::new(), usize::from(schema.get("description").is_some()));
    for (name, property) in inner["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let of_kubernetes = !inner["properties"].as_object().unwrap().values().any(|p| p.get("description").is_some());
        if of_kubernetes {
            continue;
        }
        if property.get("description").is_none() && ours {
            bare.push(path.clone());
        }
        let (below, described) = descriptions(&path, property);
        bare.extend(below);
        count += described;
    }
    (bare, count)
}

/// Removes what a path names; false if it is not there.
fn remove(definition: &mut Value, path: &str) -> bool {
    if let Some(name) = path.strip_prefix("names.") {
        return take(&mut definition["spec"]["names"], name);
    }
    let version = &mut definition["spec"]["versions"][0];
    let Some(path) = path.strip_prefix('.') else { return take(version, path) };
    let mut schema = &mut version["schema"]["openAPIV3Schema"];
    let mut steps = path.split('.').peekable();
    while let Some(step) = steps.next() {
        if steps.peek().is_none() {
            return take(&mut schema["properties"], step);
        }
        let name = step.trim_end_matches("[]");
        schema = &mut schema["properties"][name];
        if step.ends_with("[]") {
            schema = &mut schema["items"];
        }
    }
    false
}

fn take(object: &mut Value, key: &str) -> bool {
    object.as_object_mut().is_some_and(|members| members.remove(key).is_some())
}

fn definitions() -> Vec<Value> {
    crds().iter().map(|definition| serde_json::to_value(definition).unwrap()).collect()
}

fn name_of(definition: &Value) -> String {
    definition["metadata"]["name"].as_str().unwrap().to_owned()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("read {file}: {error}"))
}

/// Compares a generated file with the committed one, or writes it where the caller asks for that.
#[allow(clippy::disallowed_methods)] // a test has no settings but the environment
fn assert_file(file: &str, generated: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(root().join(file), generated).unwrap();
    }
    assert!(read(file) == generated, "{file} is not up to date: run `UPDATE=1 cargo test --test repository`");
}

#[allow(clippy::disallowed_methods)] // a test has no settings but the environment
fn reference_folder() -> Option<PathBuf> {
    let folder =
        std::env::var_os("KMM_REFERENCE_DIR").map_or_else(|| root().join("../shared/reference"), PathBuf::from);
    Some(folder.join("kmm-crds")).filter(|folder| folder.is_dir())
}

fn assert_same_lines(ours: &str, upstream: &str) {
    let differing: Vec<String> = [(ours, upstream, "only ours"), (upstream, ours, "only KMM's")]
        .into_iter()
        .flat_map(|(these, those, label)| {
            let those: std::collections::HashSet<&str> = those.lines().collect();
            these.lines().filter(move |line| !those.contains(line)).map(move |line| format!("{label}: {line}"))
        })
        .collect();
    assert!(differing.is_empty(), "the API differs from KMM's:\n{}", differing.join("\n"));
    assert!(ours == upstream, "the same lines in another order");
}
