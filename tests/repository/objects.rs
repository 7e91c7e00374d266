//! Objects as users and other versions write them: they can be read, and what is written back is the same.

use kmm::api::ocm::{ClusterClaim, ManagedCluster, ManifestWork};
use kmm::api::{
    ImageStatus, LoadPolicy, ManagedClusterModule, ModprobeSpec, Module, ModuleConfig, ModuleImagesConfig, ModuleState,
    NodeModuleSpec, NodeModuleStatus, NodeModulesConfig, OnChange, OnDrift, OnOtherFile, OnRemoval, TLSOptions,
    UnloadReason,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const MODULE: &str = include_str!("objects/module.yaml");
const DRA_MODULE: &str = include_str!("objects/module-dra.yaml");
const MANAGED_CLUSTER_MODULE: &str = include_str!("objects/managed-cluster-module.yaml");
const NODE_MODULES_CONFIG: &str = include_str!("objects/node-modules-config.yaml");
const MODULE_IMAGES_CONFIG: &str = include_str!("objects/module-images-config.yaml");
const MANIFEST_WORK: &str = include_str!("objects/manifest-work.yaml");
const CLUSTER_CLAIM: &str = include_str!("objects/cluster-claim.yaml");

fn yaml<T: DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap()
}

fn assert_round_trip<T: DeserializeOwned + Serialize>(text: &str) {
    let written = serde_json::to_value(yaml::<T>(text)).unwrap();
    assert_eq!(written, yaml::<Value>(text));
}

#[test]
fn objects_that_use_every_field_are_written_back_as_they_were_read() {
    assert_round_trip::<Module>(MODULE);
    assert_round_trip::<Module>(DRA_MODULE);
    assert_round_trip::<ManagedClusterModule>(MANAGED_CLUSTER_MODULE);
    assert_round_trip::<NodeModulesConfig>(NODE_MODULES_CONFIG);
    assert_round_trip::<ModuleImagesConfig>(MODULE_IMAGES_CONFIG);
    assert_round_trip::<ManifestWork>(MANIFEST_WORK);
    assert_round_trip::<ClusterClaim>(CLUSTER_CLAIM);
}

#[test]
fn what_the_go_implementation_writes_for_unset_fields_is_read_as_unset() {
    let module: Module = serde_json::from_value(json!({
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "Module",
        "metadata": {"name": "fpga", "namespace": "accel", "creationTimestamp": null},
        "spec": {
            "selector": {}, "devicePlugin": null, "imageRepoSecret": null, "tolerations": null,
            "moduleLoader": {"container": {
                "build": null, "sign": null, "containerImage": "", "imagePullPolicy": "", "version": "",
                "registryTLS": {}, "inTreeModuleToRemove": "", "inTreeModulesToRemove": null,
                "modprobe": {"moduleName": "fpga_core", "parameters": null, "args": null, "rawArgs": null,
                             "firmwarePath": "", "modulesLoadingOrder": null},
                "kernelMappings": [{
                    "containerImage": "", "literal": "6.1.0", "regexp": "", "registryTLS": null,
                    "inTreeModuleToRemove": "", "inTreeModulesToRemove": [],
                    "build": {"buildArgs": null, "secrets": null, "dockerfileConfigMap": {"name": "df"},
                              "baseImageRegistryTLS": {}, "selector": null},
                    "sign": null
                }]
            }}
        },
        "status": {"devicePlugin": {}, "dra": {}, "moduleLoader": {}}
    }))
    .unwrap();
    let written = serde_json::to_value(&module).unwrap();
    assert_eq!(
        written["spec"],
        json!({
            "selector": {},
            "moduleLoader": {"container": {
                "registryTLS": {},
                "modprobe": {"moduleName": "fpga_core", "dirName": "/opt"},
                "kernelMappings": [{
                    "containerImage": "", "literal": "6.1.0", "inTreeModulesToRemove": [],
                    "build": {"dockerfileConfigMap": {"name": "df"}, "baseImageRegistryTLS": {}}
                }]
            }}
        })
    );
    assert_eq!(written["status"], json!({"devicePlugin": {}, "dra": {}, "moduleLoader": {}}));
}

#[test]
fn a_node_modules_config_of_the_pod_based_worker_is_read() {
    let config: NodeModulesConfig = serde_json::from_value(json!({
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1", "kind": "NodeModulesConfig",
        "metadata": {"name": "node-7"},
        "spec": {"modules": [{
            "name": "fpga", "namespace": "accel", "serviceAccountName": "default",
            "config": {"kernelVersion": "6.1.0", "containerImage": "reg.example/fpga:1", "imagePullPolicy": "",
                       "insecurePull": true, "inTreeModulesToRemove": null,
                       "modprobe": {"moduleName": "fpga_core", "dirName": ""}}
        }]},
        "status": {"modules": [
            {"name": "fpga", "namespace": "accel", "serviceAccountName": "default", "bootId": "b-1",
             "config": {"kernelVersion": "6.1.0", "containerImage": "reg.example/fpga:1", "insecurePull": true,
                        "modprobe": {"moduleName": "fpga_core"}}},
            {"name": "old", "namespace": "accel", "serviceAccountName": "default"}
        ]}
    }))
    .unwrap();
    let loaded = |dir_name: &str| ModuleConfig {
        kernel_version: "6.1.0".into(),
        container_image: "reg.example/fpga:1".into(),
        insecure_pull: true,
        modprobe: ModprobeSpec {
            module_name: Some("fpga_core".into()),
            dir_name: dir_name.into(),
            ..ModprobeSpec::default()
        },
        ..ModuleConfig::default()
    };
    assert_eq!(
        config.spec.modules,
        [NodeModuleSpec {
            name: "fpga".into(),
            namespace: "accel".into(),
            service_account_name: "default".into(),
            // an empty directory is the root of the image, an absent one is the default
            config: loaded(""),
            ..NodeModuleSpec::default()
        }]
    );
    assert_eq!(config.spec.modules[0].config.image_pull_policy, "IfNotPresent");
    let entry = |name: &str| NodeModuleStatus {
        name: name.into(),
        namespace: "accel".into(),
        service_account_name: "default".into(),
        ..NodeModuleStatus::default()
    };
    assert_eq!(
        config.status.unwrap().modules,
        [NodeModuleStatus { boot_id: Some("b-1".into()), config: Some(loaded("/opt")), ..entry("fpga") }, entry("old")]
    );
}

#[test]
fn values_of_a_later_version_do_not_make_an_object_unreadable() {
    let mut config: Value = yaml(NODE_MODULES_CONFIG);
    config["status"]["modules"][0]["state"] = json!("Verifying");
    config["spec"]["unload"][0]["reason"] = json!("Obsolete");
    config["spec"]["unload"][0]["grace"] = json!({"seconds": 5});
    // Of policies a value that is not known is read as the one that touches least, and a field that is not known is none.
    config["spec"]["modules"][0]["policy"] = json!({
        "onChange": "OnMaintenance", "onRemoval": "Park", "onDrift": "Ask", "onOtherFile": "Merge", "onFire": "Run",
    });
    let config: NodeModulesConfig = serde_json::from_value(config).unwrap();
    assert_eq!(config.status.unwrap().modules[0].state, Some(ModuleState::Unknown));
    assert_eq!(config.spec.unload[0].reason, UnloadReason::Unknown);
    let careful = LoadPolicy {
        on_change: OnChange::OnReboot,
        on_removal: OnRemoval::Keep,
        on_drift: OnDrift::Report,
        on_other_file: OnOtherFile::Report,
        ..LoadPolicy::default()
    };
    assert_eq!(config.spec.modules[0].policy, Some(careful));

    let mut images: Value = yaml(MODULE_IMAGES_CONFIG);
    images["status"]["imagesStates"][0]["status"] = json!("Mirrored");
    let images: ModuleImagesConfig = serde_json::from_value(images).unwrap();
    assert_eq!(images.status.unwrap().images_states[0].status, ImageStatus::Unknown);
}

#[test]
fn the_least_that_the_api_server_accepts_is_read() {
    let least = |kind: &str, spec: Value| json!({"kind": kind, "metadata": {"name": "x"}, "spec": spec, "status": {}});
    serde_json::from_value::<Module>(least("Module", json!({"selector": {}}))).unwrap();
    let managed = json!({"selector": {}, "spokeNamespace": "accel"});
    serde_json::from_value::<ManagedClusterModule>(least("ManagedClusterModule", managed)).unwrap();
    serde_json::from_value::<NodeModulesConfig>(least("NodeModulesConfig", json!({}))).unwrap();
    serde_json::from_value::<ModuleImagesConfig>(least("ModuleImagesConfig", json!({}))).unwrap();
    serde_json::from_value::<ManagedCluster>(least("ManagedCluster", json!({}))).unwrap();
    serde_json::from_value::<ManifestWork>(least("ManifestWork", json!({}))).unwrap();
    serde_json::from_value::<ClusterClaim>(least("ClusterClaim", json!({}))).unwrap();
}

#[test]
fn switches_that_are_off_are_left_out() {
    let off: TLSOptions = serde_json::from_value(json!({"insecure": false, "insecureSkipTLSVerify": null})).unwrap();
    assert_eq!(serde_json::to_value(&off).unwrap(), json!({}));
    let on = TLSOptions { insecure: true, insecure_skip_tls_verify: true };
    assert_eq!(serde_json::to_value(&on).unwrap(), json!({"insecure": true, "insecureSkipTLSVerify": true}));
}
