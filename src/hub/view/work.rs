//! ManifestWork: whose it is, what it holds, what became of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use serde_json::{Value, json};

use crate::api::names::{MANAGED_CLUSTER_MODULE_LABEL, RENDERED_HASH_ANNOTATION, SENT_IMAGES_ANNOTATION};
use crate::api::ocm::{FieldValue, ManifestStatus, ManifestWork, ManifestWorkStatus, values};
use crate::core::conditions::State;
use crate::core::hash;
use crate::core::kernel::KernelVersion;
use crate::core::pin::source_id;
use crate::hub::intern::{self, Sent};
use crate::runtime::store::Projection;

use super::feedback;

/// What is read of a ManifestWork.
#[derive(Debug, PartialEq)]
pub struct Work {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// Value of the label that names the ManagedClusterModule.
    pub label: Arc<str>,
    /// Who controls it.
    pub owner: Owner,
    /// It is being deleted.
    pub deleting: bool,
    /// [`fingerprint`] of what the server holds.
    pub fingerprint: u128,
    /// Kernels and images in it, ordered by kernel.
    pub sent: Arc<[Sent]>,
    /// What the cluster's agent did with its present generation.
    pub applied: Applied,
    /// What the cluster says about the Module in it.
    pub feedback: Feedback,
}

/// Who controls an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody.
    Nobody,
    /// A ManagedClusterModule.
    Module {
        /// Its name.
        name: Arc<str>,
        /// Its uid.
        uid: Arc<str>,
    },
    /// Something else: kind and name.
    Other(Arc<str>),
}

/// What the cluster's agent did with the present generation of a work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing yet.
    NotYet,
    /// Applied all of it.
    Yes,
    /// Failed, with the agent's words.
    Failed(Arc<str>),
    /// Failed for want of a right of the agent: which, the way out, and its words.
    Forbidden(Arc<str>),
}

/// What the cluster says about the Module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feedback {
    /// Nothing.
    None,
    /// Something about another Module than the one in the work.
    Stale,
    /// Numbers alone, which may be of any version of the Module: KMM reports nothing else.
    CountersOnly(Nodes),
    /// About the Module in the work.
    Current(Box<Report>),
}

/// Nodes of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Nodes that match the Module's selector.
    pub matching: i64,
    /// Nodes that are to have the module.
    pub desired: i64,
    /// Nodes that have it.
    pub available: i64,
}

/// A cluster's report on the Module in a work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its nodes.
    pub nodes: Nodes,
    /// The Module's condition `Ready`, if it has one.
    pub ready: Option<Said>,
    /// The Module's condition `Covered`, if it has one.
    pub covered: Option<Said>,
}

/// A condition as a cluster reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its status.
    pub state: State,
    /// Its reason.
    pub reason: Arc<str>,
    /// Its reason and message, for people.
    pub why: Arc<str>,
}

/// Hash of the Module in a work, without the annotation that holds this hash.
///
/// # Errors
/// The value has no JSON form.
pub fn rendered_hash(module: &Value) -> Result<String, hash::Error> {
    let mut hash = hash::content_hash(module)?;
    hash.truncate(32);
    Ok(hash)
}

/// Hash of what the Hub owns in a work: label, annotation, owner and specification.
///
/// Two works that differ only in what a server adds by default, or in fields unknown here, have the same.
///
/// # Errors
/// The work has no JSON form.
pub fn fingerprint(work: &ManifestWork) -> Result<u128, hash::Error> {
    let mut spec = work.spec.clone();
    for config in &mut spec.manifest_configs {
        // Servers before this field existed drop it, later ones add it.
        config.feedback_scrape_type = config.feedback_scrape_type.take().filter(|kind| kind == values::FEEDBACK_WATCH);
    }
    let metadata = &work.metadata;
    let owner = controller(metadata.owner_references.as_deref()).map(
        |owner| json!({"kind": owner.kind, "name": owner.name, "uid": owner.uid, "block": owner.block_owner_deletion}),
    );
    let fields = json!({
        "label": metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_CLUSTER_MODULE_LABEL)),
        "images": metadata.annotations.as_ref().and_then(|annotations| annotations.get(SENT_IMAGES_ANNOTATION)),
        "owner": owner,
        "spec": spec,
    });
    let hash = hash::content_hash(&fields)?;
    // 32 hexadecimal characters always fit.
    Ok(u128::from_str_radix(&hash[..32], 16).unwrap_or_default())
}

fn controller(owners: Option<&[OwnerReference]>) -> Option<&OwnerReference> {
    owners.unwrap_or_default().iter().find(|owner| owner.controller == Some(true))
}

impl Work {
    /// Whether it is certainly that of the ManagedClusterModule with this uid, and not on its way out.
    pub fn is_held_by(&self, uid: &str) -> bool {
        !self.deleting && matches!(&self.owner, Owner::Module { uid: owner, .. } if **owner == *uid)
    }
}

impl Owner {
    /// The controller among the owner references.
    pub fn of(owners: Option<&[OwnerReference]>) -> Self {
        match controller(owners) {
            None => Self::Nobody,
            Some(owner)
                if owner.kind == "ManagedClusterModule" && owner.api_version.starts_with("hub.kmm.sigs.x-k8s.io/") =>
            {
                Self::Module { name: intern::text(&owner.name), uid: intern::text(&owner.uid) }
            }
            Some(owner) => Self::Other(intern::text(&format!("{} {}", owner.kind, owner.name))),
        }
    }
}

fn module_of(work: &ManifestWork) -> Option<&Value> {
    work.spec.workload.manifests.iter().find(|manifest| {
        manifest["kind"] == "Module"
            && manifest["apiVersion"].as_str().is_some_and(|version| version.starts_with("kmm.sigs.x-k8s.io/"))
    })
}

/// Kernels and images of the Module in the work, and without image the kernels that are only remembered. What is no
/// kernel is that of no node and left out. A work of KMM's Go implementation holds tags and no annotation: there, the
/// image is its own source.
fn sent_of(work: &ManifestWork, module: Option<&Value>) -> Arc<[Sent]> {
    let annotation = work.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SENT_IMAGES_ANNOTATION));
    let sources: BTreeMap<String, String> =
        annotation.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mappings = module.map(|module| &module["spec"]["moduleLoader"]["container"]["kernelMappings"]);
    let mut sent: Vec<Sent> = mappings
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|mapping| {
            let (kernel, image) = (mapping["literal"].as_str()?, mapping["containerImage"].as_str()?);
            let source =
                sources.get(kernel).map_or_else(|| intern::text(&source_id(image, None)), |id| intern::text(id));
            Some(Sent { kernel: kernel_of(kernel)?, image: intern::text(image), source })
        })
        .collect();
    sent.extend(sources.iter().filter_map(|(kernel, source)| {
        Some(Sent { kernel: kernel_of(kernel)?, image: intern::text(""), source: intern::text(source) })
    }));
    // Stable: of two lines for a kernel the one with an image comes first and stays.
    sent.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    sent.dedup_by(|a, b| a.kernel == b.kernel);
    intern::sent(&sent)
}

fn kernel_of(text: &str) -> Option<KernelVersion> {
    KernelVersion::parse(text).ok().map(|kernel| intern::kernel(&kernel))
}

fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

impl Applied {
    fn of(status: &ManifestWorkStatus, generation: Option<i64>) -> Self {
        let Some(applied) = condition(&status.conditions, values::WORK_APPLIED) else { return Self::NotYet };
        if applied.observed_generation != generation {
            return Self::NotYet;
        }
        if applied.status == "True" {
            return Self::Yes;
        }
        // The work's own message only counts; the manifest's says what went wrong.
        let failed = status
            .resource_status
            .manifests
            .iter()
            .filter_map(|manifest| condition(&manifest.conditions, values::WORK_APPLIED))
            .find(|condition| condition.status != "True");
        let said = &failed.unwrap_or(applied).message;
        match missing_right(said) {
            Some(right) => Self::Forbidden(intern::message(&format!(
                "the cluster's work agent may not {right}; on the cluster, give it the right by a ClusterRole with the \
                 label open-cluster-management.io/aggregate-to-work=true, as config/default-spoke has it: {said}"
            ))),
            None => Self::Failed(intern::message(said)),
        }
    }
}

/// "get modules.kmm.sigs.x-k8s.io in the namespace drivers" from the words in which RBAC refuses a request.
fn missing_right(said: &str) -> Option<String> {
    let (_, refused) = said.split_once(" is forbidden: User ")?;
    let (verb, rest) = refused.split_once(" cannot ")?.1.split_once(" resource \"")?;
    let (resource, rest) = rest.split_once("\" in API group \"")?;
    let (group, rest) = rest.split_once('"')?;
    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
    let namespace = rest.strip_prefix(" in the namespace \"").and_then(|rest| rest.split_once('"'));
    let place = namespace.map_or_else(String::new, |(namespace, _)| format!(" in the namespace {namespace}"));
    Some(format!("{verb} {resource}{group}{place}"))
}

impl Feedback {
    fn of(status: &ManifestWorkStatus, module: Option<&Value>) -> Self {
        let is_module = |manifest: &&ManifestStatus| {
            manifest.resource_meta.group == "kmm.sigs.x-k8s.io" && manifest.resource_meta.resource == "modules"
        };
        let Some(manifest) = status.resource_status.manifests.iter().find(is_module) else { return Self::None };
        let found = |name: &str| {
            manifest.status_feedback.values.iter().find(|value| value.name == name).map(|value| &value.field_value)
        };
        let string = |name: &str| found(name).and_then(|value| value.string.as_deref()).unwrap_or_default();
        let number = |name: &str| found(name).and_then(|value: &FieldValue| value.integer);
        let said = |condition: &str| {
            let part = |field: &str| string(&format!("{condition}.{field}"));
            Said::of(part(feedback::STATUS), part(feedback::REASON), part(feedback::MESSAGE))
        };
        let sent = module
            .and_then(|module| module["metadata"]["annotations"][RENDERED_HASH_ANNOTATION].as_str())
            .unwrap_or_default();
        let spec = module.map_or(&Value::Null, |module| &module["spec"]);
        let part = feedback::counted_part(spec);
        let counter = |name: &str| number(&format!("{part}.{name}"));
        let (matching, desired, available) =
            (counter(feedback::MATCHING), counter(feedback::DESIRED), counter(feedback::AVAILABLE));
        let counts = [matching, desired, available].iter().any(Option::is_some);
        let nodes = Nodes {
            matching: matching.unwrap_or_default(),
            desired: desired.unwrap_or_default(),
            available: available.unwrap_or_default(),
        };
        match string(feedback::RENDERED_HASH) {
            "" if counts => return Self::CountersOnly(nodes),
            "" => return Self::None,
            reported if reported != sent => return Self::Stale,
            _ => {}
        }
        Self::Current(Box::new(Report { nodes, ready: said(feedback::READY), covered: said(feedback::COVERED) }))
    }
}

impl Said {
    fn of(status: &str, reason: &str, message: &str) -> Option<Self> {
        let state = [State::True, State::False, State::Unknown].into_iter().find(|state| state.as_str() == status)?;
        let why: Vec<&str> = [reason, message].into_iter().filter(|text| !text.is_empty()).collect();
        Some(Self { state, reason: intern::message(reason), why: intern::message(&why.join(": ")) })
    }
}

impl Projection for Work {
    type Kind = ManifestWork;

    fn project(object: ManifestWork) -> Self {
        let module = module_of(&object);
        let nothing = ManifestWorkStatus::default();
        let status = object.status.as_ref().unwrap_or(&nothing);
        let labels = object.metadata.labels.as_ref();
        Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            label: intern::text(labels.and_then(|labels| labels.get(MANAGED_CLUSTER_MODULE_LABEL)).map_or("", |l| l)),
            owner: Owner::of(object.metadata.owner_references.as_deref()),
            deleting: object.metadata.deletion_timestamp.is_some(),
            // What was read as JSON has a JSON form.
            fingerprint: fingerprint(&object).unwrap_or_default(),
            sent: sent_of(&object, module),
            applied: Applied::of(status, object.metadata.generation),
            feedback: Feedback::of(status, module),
        }
    }
}
