//! What a ManifestWork says about one of its manifests.

use serde_json::{Value, json};

use super::kinds::{list, split_api_version, text};

/// Which object of the spoke a manifest speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceMeta {
    pub ordinal: usize,
    pub group: String,
    pub version: String,
    pub kind: String,
    /// Plural; empty if the spoke does not know the kind.
    pub resource: String,
    pub namespace: String,
    pub name: String,
}

impl ResourceMeta {
    /// From the manifest at `ordinal`; `resource` is what discovery said.
    pub fn of(ordinal: usize, manifest: &Value, resource: &str) -> Self {
        let (group, version) = split_api_version(text(manifest, "/apiVersion"));
        Self {
            ordinal,
            group: group.to_owned(),
            version: version.to_owned(),
            kind: text(manifest, "/kind").to_owned(),
            resource: resource.to_owned(),
            namespace: text(manifest, "/metadata/namespace").to_owned(),
            name: text(manifest, "/metadata/name").to_owned(),
        }
    }

    /// From `status.resourceStatus.manifests[].resourceMeta`.
    pub fn read(meta: &Value) -> Self {
        let field = |name: &str| meta[name].as_str().unwrap_or_default().to_owned();
        Self {
            ordinal: meta["ordinal"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_default(),
            group: field("group"),
            version: field("version"),
            kind: field("kind"),
            resource: field("resource"),
            namespace: field("namespace"),
            name: field("name"),
        }
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "ordinal": self.ordinal, "group": self.group, "version": self.version, "kind": self.kind,
            "resource": self.resource, "namespace": self.namespace, "name": self.name,
        })
    }

    /// Whether both speak of one object, wherever it stands in its work.
    pub fn same_object(&self, other: &Self) -> bool {
        Self { ordinal: 0, resource: String::new(), ..self.clone() }
            == Self { ordinal: 0, resource: String::new(), ..other.clone() }
    }

    /// Whether an entry of `manifestConfigs` speaks of this object; name and namespace may hold `*`.
    fn matches(&self, identifier: &Value) -> bool {
        text(identifier, "/group") == self.group
            && text(identifier, "/resource") == self.resource
            && glob(text(identifier, "/namespace"), &self.namespace)
            && glob(text(identifier, "/name"), &self.name)
    }

    /// The first matching entry that has `field`, else null.
    pub fn config<'a>(&self, work: &'a Value, field: &str) -> &'a Value {
        list(work, "/spec/manifestConfigs")
            .iter()
            .filter(|config| self.matches(&config["resourceIdentifier"]))
            .map(|config| &config[field])
            .find(|value| !value.is_null())
            .unwrap_or(&Value::Null)
    }

    /// Whether feedback comes by watch; here the *last* matching entry wins.
    pub fn is_watched(&self, work: &Value) -> bool {
        let mut configs = list(work, "/spec/manifestConfigs").iter();
        let last = configs.rfind(|config| self.matches(&config["resourceIdentifier"]));
        last.is_some_and(|config| config["feedbackScrapeType"] == "Watch")
    }

    /// What the work asks for about this object and this stand-in cannot do.
    pub fn unsupported(&self, work: &Value) -> Option<&'static str> {
        let is_asked = |value: &Value| value.as_array().is_some_and(|rules| !rules.is_empty());
        if !work["spec"]["executor"].is_null() {
            Some("executors are not supported by this agent")
        } else if is_asked(self.config(work, "conditionRules")) {
            Some("condition rules are not supported by this agent")
        } else if is_asked(&self.config(work, "updateStrategy")["serverSideApply"]["ignoreFields"]) {
            Some("ignoreFields is not supported by this agent")
        } else {
            None
        }
    }

    /// Whether the object goes when the work goes.
    pub fn is_owned(&self, work: &Value) -> bool {
        match text(work, "/spec/deleteOption/propagationPolicy") {
            "Orphan" => false,
            "SelectivelyOrphan" => {
                !list(work, "/spec/deleteOption/selectivelyOrphans/orphaningRules").iter().any(|rule| {
                    text(rule, "/group") == self.group
                        && text(rule, "/resource") == self.resource
                        && text(rule, "/namespace") == self.namespace
                        && text(rule, "/name") == self.name
                })
            }
            _ => true,
        }
    }
}

/// `*` stands for any text, also none.
pub fn glob(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(head) else { return false };
    rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| glob(tail, &rest[at..]))
}
