//! What becomes of the ManifestWork of one cluster. Pure.

use std::sync::Arc;
use std::time::Duration;

use super::observe::Observed;
use super::render::{self, Line};
use super::waits::Waited;
use crate::api::ModuleSpec;
use crate::api::ocm::ManifestWork;
use crate::core::hash;
use crate::core::image::ImageRef;
use crate::core::kernel::KernelVersion;
use crate::core::mapping::Resolved;
use crate::core::pin::{self, Known, Pinned};
use crate::hub::intern::{self, Sent};
use crate::hub::standing::{Gaps, Removal, Standing};
use crate::hub::view::{Cluster, FleetModule, Images, Kernels, Owner, Work, fingerprint};

/// Digests arrive one by one. A work is held back until every look-up has come to something, good or bad, and is then
/// written once; but no longer than this after the last answer, so that no registry holds up the kernels of another.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// And no longer than this in all.
pub(super) const LONGEST: Duration = Duration::from_secs(10);

/// A work goes this long after its cluster was deselected: clusters that lose a label one after the other, by one
/// command, are then seen as one change.
pub(super) const SETTLE: Duration = Duration::from_secs(5);

/// What is to be done, and how the cluster stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// What is to be done.
    pub action: Action,
    /// How the cluster stands once that is done; `None` if it is not selected.
    pub standing: Option<Standing>,
    /// Some image that the cluster needs was not asked for yet.
    pub wants_images: bool,
    /// The wait, while some look-up for the cluster has come to nothing yet, or its work is about to go.
    pub waits: Option<Waited>,
    /// When to look again although nothing changes.
    pub again: Option<Duration>,
}

/// What is to be done with the work.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Nothing.
    Nothing,
    /// It is to be as given.
    Apply {
        /// The whole work.
        work: Box<ManifestWork>,
        /// The work that is there; `None` if none is seen, and then no work of the name may be there at all.
        uid: Option<Box<str>>,
    },
    /// It is to go, if it is still the one with this uid.
    Delete {
        /// `metadata.uid` of the work.
        uid: Box<str>,
    },
}

impl Plan {
    pub(super) fn nothing(standing: Option<Standing>) -> Self {
        Self { action: Action::Nothing, standing, wants_images: false, waits: None, again: None }
    }
}

/// The plan for one cluster.
///
/// # Errors
/// Something has no JSON form.
pub(super) fn plan(observed: &Observed) -> Result<Plan, hash::Error> {
    // Without the ManagedClusterModule, Kubernetes removes the works by their owner reference.
    let Some(module) = observed.module.as_deref().filter(|module| !module.deleting) else {
        return Ok(Plan::nothing(None));
    };
    let work = observed.work.as_deref();
    let Some(cluster) = observed.cluster.as_deref() else {
        // What is not there says nothing: OCM removes the works of clusters that leave.
        let has_work = work.is_some_and(|work| work.is_held_by(&module.uid));
        return Ok(Plan::nothing(has_work.then(Standing::cluster_missing)));
    };
    if cluster.deleting || !module.selects(&cluster.labels) {
        return Ok(match work.filter(|work| work.is_held_by(&module.uid) && module.has_left(cluster)) {
            Some(work) => removed(module, work, observed),
            None => Plan::nothing(None),
        });
    }
    if let Some(work) = work.filter(|work| !is_usable(module, work)) {
        return Ok(Plan::nothing(Some(Standing::foreign(module, &work.owner))));
    }
    let as_it_is = |gaps: &Gaps| Standing::of_work(work, &cluster.kernels, gaps, cluster.silent);
    let Some(spec) = module.module_spec() else {
        return Ok(Plan::nothing(Some(as_it_is(&Gaps::default()).without_module(module))));
    };
    if work.is_some_and(|work| work.deleting) {
        return Ok(Plan::nothing(Some(Standing::deleting())));
    }
    if !cluster.accepted {
        return Ok(Plan::nothing(Some(as_it_is(&Gaps::default()).not_accepted())));
    }
    match observed.removal {
        Removal::Free => {}
        Removal::Held(_) if work.is_none() => return Ok(Plan::nothing(Some(Standing::awaiting_confirmation()))),
        // The event that tells of the change wakes this cluster again.
        Removal::Unknown if work.is_none() => return Ok(Plan::nothing(Some(Standing::pending()))),
        Removal::Held(_) | Removal::Unknown => {}
    }
    let (lines, gaps, wants_images) = if module.has_mappings() {
        lines(module, cluster, observed.images.as_deref(), work)
    } else {
        (Vec::new(), Gaps::default(), false)
    };
    let waited = Waited::after(observed.waited, module.generation, gaps.unanswered);
    let waits = (gaps.unanswered > 0).then_some(waited);
    let has_loader = spec.module_loader.is_some();
    let unknown_kernels = matches!(cluster.kernels, Kernels::Absent | Kernels::Invalid(_));
    // Nothing to send, or nobody can tell: what was sent before stays.
    if has_loader && (!lines.iter().any(Line::is_sent) || unknown_kernels) {
        return Ok(Plan { wants_images, waits, ..Plan::nothing(Some(as_it_is(&gaps))) });
    }
    // Without a loader, kernels do not matter.
    let kernels = if has_loader { &cluster.kernels } else { &Kernels::Complete(intern::kernels(&[])) };
    let rest = GRACE.saturating_sub(waited.still).min(LONGEST.saturating_sub(waited.in_all));
    if gaps.unanswered > 0 && !rest.is_zero() {
        return Ok(Plan { wants_images, waits, again: Some(rest), ..Plan::nothing(Some(as_it_is(&gaps))) });
    }
    planned(module, spec, observed, &lines).map(|action| Plan {
        standing: Some(match &action {
            Action::Nothing | Action::Delete { .. } => Standing::of_work(work, kernels, &gaps, cluster.silent),
            Action::Apply { .. } => Standing::of_sent(work, kernels, &gaps),
        }),
        action,
        wants_images,
        waits,
        again: None,
    })
}

fn planned(
    module: &FleetModule,
    spec: &ModuleSpec,
    observed: &Observed,
    lines: &[Line],
) -> Result<Action, hash::Error> {
    let rendered = render::render(module, spec, &observed.target.cluster, lines)?;
    let work = observed.work.as_deref();
    if work.is_some_and(|work| fingerprint(&rendered).is_ok_and(|wanted| wanted == work.fingerprint)) {
        return Ok(Action::Nothing);
    }
    Ok(Action::Apply { work: Box::new(rendered), uid: work.map(|work| work.uid.clone()) })
}

/// Whether the work may be applied: ours, or left behind by one of ours whose owner reference was taken away.
fn is_usable(module: &FleetModule, work: &Work) -> bool {
    match &work.owner {
        Owner::Module { uid, .. } => *uid == module.uid,
        Owner::Nobody => *work.label == *module.label_value(),
        Owner::Other(_) => false,
    }
}

/// The work of a cluster that is there and not selected goes, unless that waits for a confirmation.
fn removed(module: &FleetModule, work: &Work, observed: &Observed) -> Plan {
    if observed.removal != Removal::Free {
        return Plan::nothing(None);
    }
    let waited = Waited::after(observed.waited, module.generation, 0);
    let rest = SETTLE.saturating_sub(waited.still);
    let action = if rest.is_zero() { Action::Delete { uid: work.uid.clone() } } else { Action::Nothing };
    let again = (!rest.is_zero()).then_some(rest);
    Plan { action, waits: Some(waited), again, ..Plan::nothing(None) }
}

/// The lines of a cluster's Module, what is missing, and whether some image was not asked for yet.
fn lines(
    module: &FleetModule,
    cluster: &Cluster,
    images: Option<&Images>,
    work: Option<&Work>,
) -> (Vec<Line>, Gaps, bool) {
    let taken = images.filter(|images| images.is_foreign_to(&module.uid)).map(taken);
    let images = images.filter(|_| taken.is_none());
    let sent = || work.into_iter().flat_map(|work| work.sent.iter());
    let mut kernels = cluster.kernels.known().to_vec();
    if matches!(cluster.kernels, Kernels::Incomplete { .. }) {
        // What the cluster cannot tell now it told before: nothing is taken away.
        kernels.extend(sent().map(|sent| sent.kernel.clone()));
        kernels.sort_unstable();
        kernels.dedup();
    }
    let (mut lines, mut gaps, mut wants_images) = (Vec::with_capacity(kernels.len()), Gaps::default(), false);
    for kernel in kernels {
        let resolved = match module.resolve(&kernel) {
            Err(why) => {
                gaps.unmapped.push((kernel, why));
                continue;
            }
            Ok(resolved) => resolved,
        };
        wants_images |= !images.is_some_and(|images| images.asks_for(kernel.as_str(), &resolved.image));
        let before = sent().find(|sent| sent.kernel == kernel);
        let is_told = cluster.kernels.known().contains(&kernel);
        let (image, source) = match image(module, &kernel, &resolved, images, before) {
            Ok(pinned) => (intern::text(&pinned.image), intern::text(&pinned.source)),
            Err(Missing { why, unanswered }) => {
                gaps.unanswered += usize::from(taken.is_none() && unanswered);
                gaps.held_back.push((kernel.clone(), taken.clone().unwrap_or(why)));
                match before.filter(|_| !is_told) {
                    // Left out, it would be known nowhere any more.
                    Some(sent) => (intern::text(""), Arc::clone(&sent.source)),
                    None => continue,
                }
            }
        };
        lines.push(Line {
            kernel,
            image,
            source,
            registry_tls: resolved.registry_tls,
            in_tree_modules_to_remove: resolved.in_tree_modules_to_remove,
        });
    }
    (lines, gaps, wants_images)
}

fn taken(images: &Images) -> String {
    let (kind, name) = images.owner.as_ref().map_or(("somebody", "else"), |(kind, name, _)| (kind, name));
    format!("the ModuleImagesConfig of this name belongs to {kind} {name}")
}

/// An image without digest.
struct Missing {
    /// The image, and what is known of it.
    why: String,
    /// Its registry has not answered yet.
    unanswered: bool,
}

/// The image that travels; `before` is what was sent for the kernel.
fn image(
    module: &FleetModule,
    kernel: &KernelVersion,
    resolved: &Resolved,
    images: Option<&Images>,
    before: Option<&Sent>,
) -> Result<Pinned, Missing> {
    let (name, trigger) = (&*resolved.image, module.trigger());
    let reference = match name.parse::<ImageRef>() {
        Ok(reference) => reference,
        Err(error) => return Err(Missing { why: error.to_string(), unanswered: false }),
    };
    let known = images.map_or(Known::Pending, |images| images.known(kernel.as_str(), name, trigger));
    let in_use = before.filter(|sent| !sent.image.is_empty()).map(|sent| (&*sent.image, &*sent.source));
    pin::pin(&reference, name, trigger, &known, in_use).ok_or_else(|| {
        let fact = images.and_then(|images| images.fact(kernel.as_str(), name)).filter(|fact| !fact.reason.is_empty());
        Missing {
            why: fact.map_or_else(|| name.to_owned(), |fact| format!("{name}: {}", fact.reason)),
            unanswered: known == Known::Pending,
        }
    })
}
