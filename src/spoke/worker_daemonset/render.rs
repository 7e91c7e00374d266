//! The DaemonSet of the worker, as it should be.

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Resource;
use serde_json::{Value, json};

use crate::api::names::{RENDERED_HASH_ANNOTATION, WORKER_DAEMON_SET, WORKER_NODE_LABEL};
use crate::core::hash;

use crate::spoke::SpokeSettings;

/// Where the worker keeps its record and the unpacked images, on the host and in the container.
const STATE_DIR: &str = "/var/lib/kmm";
/// Where the host's `/proc`, with its processes, is seen in the container.
const HOST_PROC: &str = "/host/proc";
/// Where kernels keep their own modules, on the host and in the container.
const LIB_MODULES: &str = "/lib/modules";
/// The same where it can be written; mounted only if a Module is to be published on the host.
pub(crate) const HOST_MODULES: &str = "/host/lib/modules";
/// Where the container has the host's `/etc`.
const HOST_ETC: &str = "/host/etc";

/// The whole object, with the hash of its specification as an annotation. `publishes`: workers may put files of Modules
/// below the host's `/lib/modules`.
///
/// # Errors
/// Never for these settings; the hash function is fallible for other values.
pub(crate) fn render(settings: &SpokeSettings, publishes: bool) -> Result<(Value, String), hash::Error> {
    let labels = json!({ "app.kubernetes.io/name": "kmm", "app.kubernetes.io/component": "worker" });
    // The worker shares the node's network and answers on its loopback address only.
    let probe =
        |path: &str| json!({ "httpGet": { "host": "127.0.0.1", "path": path, "port": settings.worker_health_port } });
    let mut env = vec![
        json!({ "name": "NODE_NAME", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } }),
        json!({ "name": "KMM_PROC", "value": HOST_PROC }),
    ];
    env.extend(settings.worker_variables.iter().map(|(name, value)| json!({ "name": name, "value": value })));
    let mut spec = json!({
        "selector": { "matchLabels": labels },
        "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "10%" } },
        "template": {
            "metadata": {
                "labels": labels,
                "annotations": { "kubectl.kubernetes.io/default-container": "worker" },
            },
            "spec": {
                "serviceAccountName": settings.worker_service_account,
                "nodeSelector": { WORKER_NODE_LABEL: "" },
                "tolerations": [{ "operator": "Exists" }],
                "priorityClassName": "system-node-critical",
                // A network driver may be what is missing: the worker needs no pod network and no cluster DNS.
                "hostNetwork": true,
                "dnsPolicy": "Default",
                "terminationGracePeriodSeconds": 30,
                "containers": [{
                    "name": "worker",
                    "image": settings.worker_image,
                    "args": ["worker"],
                    "env": env,
                    "resources": {
                        "requests": { "cpu": "10m", "memory": "16Mi" },
                        "limits": { "memory": "128Mi" },
                    },
                    // It loads kernel modules: whatever capability it had less, it could give itself.
                    "securityContext": { "privileged": true, "readOnlyRootFilesystem": true, "runAsUser": 0 },
                    "livenessProbe": probe("/healthz"),
                    "readinessProbe": probe("/readyz"),
                    // /sys needs no mount: a privileged container sees that of the host's kernel. Its /proc shows its own
                    // processes only; whoever keeps a module from leaving is one of the host's.
                    "volumeMounts": [
                        { "name": "lib-modules", "mountPath": LIB_MODULES, "readOnly": true },
                        { "name": "proc", "mountPath": HOST_PROC, "readOnly": true },
                        { "name": "state", "mountPath": STATE_DIR },
                        // Mirrors and certificates of the container runtime; it cannot be narrower, as a folder below
                        // a read-only /etc cannot be made where it is missing.
                        { "name": "host-etc", "mountPath": HOST_ETC, "readOnly": true },
                    ],
                }],
                "volumes": [
                    { "name": "lib-modules", "hostPath": { "path": LIB_MODULES, "type": "DirectoryOrCreate" } },
                    { "name": "proc", "hostPath": { "path": "/proc", "type": "Directory" } },
                    { "name": "state", "hostPath": { "path": STATE_DIR, "type": "DirectoryOrCreate" } },
                    { "name": "host-etc", "hostPath": { "path": "/etc", "type": "Directory" } },
                ],
            },
        },
    });
    if publishes {
        let pod = &mut spec["template"]["spec"];
        let container = &mut pod["containers"][0];
        push(&mut container["env"], json!({ "name": "KMM_HOST_MODULES", "value": HOST_MODULES }));
        push(&mut container["volumeMounts"], json!({ "name": "lib-modules", "mountPath": HOST_MODULES }));
    }
    let hash = hash::content_hash(&spec)?;
    let body = json!({
        "apiVersion": DaemonSet::api_version(&()),
        "kind": DaemonSet::kind(&()),
        "metadata": {
            "name": WORKER_DAEMON_SET,
            "namespace": settings.operator_namespace,
            "labels": labels,
            "annotations": { RENDERED_HASH_ANNOTATION: hash },
        },
        "spec": spec,
    });
    Ok((body, hash))
}

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}
