//! The DaemonSet of the worker, as it should be.

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Resource;
use serde_json::{Value, json};

use crate::api::names::{RENDERED_HASH_ANNOTATION, WORKER_DAEMON_SET, WORKER_NODE_LABEL};
use crate::core::hash;
use crate::spoke::settings::SpokeSettings;
use crate::spoke::view::{DaemonSetView, HOST_MODULES};

/// Where the worker keeps its record and the unpacked images, on the host and in the container.
const STATE_DIR: &str = "/var/lib/kmm";
/// Where the host's `/proc`, with its processes, is seen in the container.
const HOST_PROC: &str = "/host/proc";
/// Where kernels keep their own modules, on the host and in the container.
const LIB_MODULES: &str = "/lib/modules";
/// Where the container has the host's `/etc`.
const HOST_ETC: &str = "/host/etc";

/// The DaemonSet, each with the hash of its specification.
#[derive(Debug)]
pub(in crate::spoke) struct Rendered {
    plain: (Value, String),
    publishing: (Value, String),
}

impl Rendered {
    /// Both forms.
    pub(in crate::spoke) fn new(settings: &SpokeSettings) -> Result<Self, hash::Error> {
        Ok(Self { plain: render(settings, false)?, publishing: render(settings, true)? })
    }

    /// The form to be written. Workers that could write below `/lib/modules` can for as long as there is a DaemonSet: they
    /// remove what they have put there after the last Module has stopped asking.
    pub(super) fn of(&self, asked: bool, present: Option<&DaemonSetView>) -> &(Value, String) {
        if asked || present.is_some_and(|set| set.publishes) { &self.publishing } else { &self.plain }
    }
}

/// The whole object, with the hash of its specification as an annotation. `publishes`: workers may put files of Modules
/// below the host's `/lib/modules`.
///
/// # Errors
/// Never for these settings; the hash function is fallible for other values.
fn render(settings: &SpokeSettings, publishes: bool) -> Result<(Value, String), hash::Error> {
    let labels = json!({ "app.kubernetes.io/name": "kmm", "app.kubernetes.io/component": "worker" });
    // The worker shares the node's network and answers on its loopback address only. Whoever has the port before it makes
    // its pod look not ready; it must not end it, so there is no liveness probe: the worker looks after itself.
    let port = settings.worker_health_port;
    let ready = json!({ "httpGet": { "host": "127.0.0.1", "path": "/readyz", "port": port } });
    let mut env = vec![
        json!({ "name": "NODE_NAME", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } }),
        json!({ "name": "KMM_PROC", "value": HOST_PROC }),
        json!({ "name": "KMM_HEALTH_ADDRESS", "value": format!("127.0.0.1:{port}") }),
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
                        // A module's file is read whole, also one of a few hundred MiB; what is not used is not taken.
                        "limits": { "memory": "1Gi" },
                    },
                    // It loads kernel modules: whatever capability it had less, it could give itself.
                    "securityContext": { "privileged": true, "readOnlyRootFilesystem": true, "runAsUser": 0 },
                    "readinessProbe": ready,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    use super::*;
    use crate::runtime::store::Projection;
    use crate::spoke::settings::Mode;

    fn settings(image: &str) -> SpokeSettings {
        SpokeSettings {
            mode: Mode::Standalone,
            operator_namespace: "kmm".into(),
            worker_image: image.into(),
            worker_service_account: "worker".into(),
            worker_health_port: 8081,
            worker_variables: vec![("HTTPS_PROXY", "http://proxy:3128".into())],
            tolerations: Vec::new(),
            instance: "test".into(),
        }
    }

    #[test]
    fn modules_can_be_written_only_once_a_module_asks_and_as_long_as_something_may_lie_there() {
        let rendered = Rendered::new(&settings("a")).unwrap();
        let view = |(body, _): &(Value, String)| DaemonSetView::project(serde_json::from_value(body.clone()).unwrap());
        let plain = view(rendered.of(false, None));
        let publishing = view(rendered.of(true, Some(&plain)));
        assert_eq!((plain.publishes, publishing.publishes), (false, true));
        assert!(view(rendered.of(false, Some(&publishing))).publishes, "what was published can still be removed");
        assert!(!view(rendered.of(false, Some(&plain))).publishes);
        let set: DaemonSet = serde_json::from_value(rendered.of(false, None).0.clone()).unwrap();
        let pod = set.spec.unwrap().template.spec.unwrap();
        let writable = pod.containers[0].volume_mounts.iter().flatten().filter(|mount| mount.read_only != Some(true));
        assert_eq!(writable.map(|mount| mount.mount_path.as_str()).collect::<Vec<_>>(), ["/var/lib/kmm"]);
    }

    #[test]
    fn whoever_has_the_workers_port_makes_its_pod_look_not_ready_and_never_ends_it() {
        let settings = SpokeSettings { worker_health_port: 20_001, ..settings("a") };
        let set: DaemonSet = serde_json::from_value(render(&settings, false).unwrap().0).unwrap();
        let container = set.spec.unwrap().template.spec.unwrap().containers.remove(0);
        assert_eq!((container.liveness_probe, container.startup_probe), (None, None));
        let asked = container.readiness_probe.unwrap().http_get.unwrap();
        assert_eq!((asked.host.as_deref(), asked.port), (Some("127.0.0.1"), IntOrString::Int(20_001)));
        let address =
            container.env.unwrap().into_iter().find(|variable| variable.name == "KMM_HEALTH_ADDRESS").unwrap();
        assert_eq!(address.value.as_deref(), Some("127.0.0.1:20001"));
    }

    #[test]
    fn the_documented_host_paths_are_those_of_the_pod() {
        let docs = include_str!("../../../docs/security.md");
        let documented = |row: &str| -> BTreeSet<String> {
            let line = docs.lines().find(|line| line.starts_with(&format!("| {row} |"))).unwrap();
            line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let set: DaemonSet = serde_json::from_value(render(&settings("a"), false).unwrap().0).unwrap();
        let pod = set.spec.unwrap().template.spec.unwrap();
        let volumes = pod.volumes.unwrap_or_default();
        let paths = |read_only: bool| -> BTreeSet<String> {
            let mounts = pod.containers[0].volume_mounts.iter().flatten();
            let names = mounts.filter(|mount| mount.read_only.unwrap_or(false) == read_only).map(|mount| &mount.name);
            let of = |name: &String| volumes.iter().find(|volume| volume.name == *name)?.host_path.clone();
            names.filter_map(of).map(|path| path.path).collect()
        };
        assert_eq!(paths(true), documented("Host paths, read-only"));
        assert_eq!(paths(false), documented("Host paths, writable"));
    }

    #[test]
    fn the_hash_follows_what_is_rendered_and_the_object_is_a_daemon_set() {
        let ((one, hash), (_, same)) = (render(&settings("a"), false).unwrap(), render(&settings("a"), false).unwrap());
        assert_eq!(hash, same);
        assert_ne!(hash, render(&settings("b"), false).unwrap().1);
        let set: DaemonSet = serde_json::from_value(one).unwrap();
        let pod = set.spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.containers[0].image.as_deref(), Some("a"));
        assert_eq!(pod.tolerations.unwrap()[0].operator.as_deref(), Some("Exists"));
        assert!(pod.node_selector.unwrap().contains_key("kmm.node.kubernetes.io/worker"));
        let proxy = pod.containers[0].env.iter().flatten().find(|variable| variable.name == "HTTPS_PROXY");
        assert_eq!(proxy.and_then(|variable| variable.value.as_deref()), Some("http://proxy:3128"));
    }
}
