//! What is to be asked, and what is to be written, for one ModuleImagesConfig.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use super::observe::{Answer, ImagesView, Observed, Question, WantedImage};
use super::status::{self, Fact};
use crate::api::names::{EventReason, ImageReason};
use crate::api::{ImageState, ImageStatus, ModuleImagesConfigStatus};
use crate::core::image::{ImageRef, never_pulled};
use crate::runtime::store::ObjectKey;

/// What to do. Empty questions and no status mean: nothing, and nothing until the object changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Every question whose answer is still needed. Questions of this object that are not among them are dropped,
    /// and so are their answers.
    pub questions: BTreeSet<Question>,
    /// The status to be written; `None` if it is what the store holds.
    pub status: Option<ModuleImagesConfigStatus>,
    /// What is worth telling once `status` is written.
    pub event: Option<Told>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its reason.
    pub reason: EventReason,
    /// Its note, one sentence.
    pub note: String,
}

/// The plan for what was observed.
///
/// - A digest that is known is never asked for again, until `imageRebuildTriggerGeneration` changes.
/// - Then the status first says that everything is looked up again, with the trigger; the digests stay in it. So a
///   manager that ends in the middle goes on where it was, and no answer from before the change is taken.
/// - A digest that was known once for an image and a kernel stays, whatever a later look-up comes to.
/// - An image that is named by digest is there; a name that is none needs no look-up either, nor one that is never pulled.
/// - Answered questions stay among the questions until the store shows that they were written down.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let view = &observed.view;
    if view.deleting {
        return Plan::default();
    }
    let known: BTreeMap<(&str, &str), &ImageState> = view
        .status
        .images_states
        .iter()
        .filter_map(|state| Some(((state.kernel_version.as_deref()?, state.image.as_str()), state)))
        .collect();
    let triggered = view.trigger != view.status.image_rebuild_trigger_generation && !known.is_empty();
    let mut questions = BTreeSet::new();
    let mut unanswered = false;
    let mut facts: BTreeMap<(&str, &str), Fact> = BTreeMap::new();
    for wanted in &view.wanted {
        let id = (wanted.kernel.as_str(), wanted.image.as_str());
        if facts.contains_key(&id) {
            continue;
        }
        let old = known.get(&id).copied();
        let fact = match needs_no_look_up(view, wanted) {
            Some(answer) => Fact::answered(wanted, old, &answer),
            None if triggered => Fact::asked_again(wanted, old),
            None => match old {
                Some(old) if is_settled(old) => Fact::kept(old),
                _ => {
                    let question = question(&observed.key, view, wanted);
                    let answer = observed.answers.get(&question);
                    unanswered |= answer.is_none();
                    questions.insert(question);
                    match (answer, old) {
                        (Some(answer), _) => Fact::answered(wanted, old, answer),
                        // Until it is answered, what was said last is the best that is known.
                        (None, Some(old)) if old.digest.is_some() || old.status != ImageStatus::Exists => {
                            Fact::kept(old)
                        }
                        (None, _) => Fact::asked_again(wanted, None),
                    }
                }
            },
        };
        facts.insert(id, fact);
    }
    let facts: Vec<Fact> = facts.into_values().collect();
    // While answers are on their way and nothing else is new, the status of a moment later is worth waiting for.
    let news = triggered || status::is_news(&view.status, &facts);
    let status = if unanswered && !news {
        None
    } else {
        status::status(&view.status, &facts, view.trigger, view.generation, now)
    };
    let event = status.as_ref().and_then(|new| event(&view.status, new));
    Plan { questions, status, event }
}

/// The answer that follows from the name alone, or from a pull policy for which there can be none.
fn needs_no_look_up(view: &ImagesView, wanted: &WantedImage) -> Option<Answer> {
    match wanted.image.parse::<ImageRef>() {
        Ok(image) if image.is_pinned() || !view.is_never_pulled => image.digest().cloned().map(Answer::Found),
        Ok(_) => Some(Answer::Failed { reason: ImageReason::NeverPulled, message: never_pulled(&wanted.image) }),
        Err(error) => Some(Answer::Failed { reason: ImageReason::InvalidReference, message: error.to_string() }),
    }
}

fn is_settled(state: &ImageState) -> bool {
    state.status == ImageStatus::Exists && state.digest.is_some()
}

fn question(of: &ObjectKey, view: &ImagesView, wanted: &WantedImage) -> Question {
    let key = |name: &String| ObjectKey::new(of.namespace.clone(), name.as_str());
    Question {
        image: wanted.image.clone(),
        secret: view.secret.as_ref().map(key),
        pull_secrets: view.pull_secrets.iter().map(key).collect(),
        insecure: wanted.options.insecure,
        insecure_skip_tls_verify: wanted.options.insecure_skip_tls_verify,
    }
}

/// Told is what `ImagesResolved` becomes, once each time that it changes.
fn event(old: &ModuleImagesConfigStatus, new: &ModuleImagesConfigStatus) -> Option<Told> {
    let (before, after) = (status::images_resolved(old), status::images_resolved(new)?);
    if before.is_some_and(|before| before.status == after.status && before.reason == after.reason) {
        return None;
    }
    let reason = match ImageReason::from_name(&after.reason)? {
        ImageReason::Pending => return None,
        ImageReason::Resolved => EventReason::ImagesResolved,
        ImageReason::NotFound => EventReason::ImageNotFound,
        _ => EventReason::ImageLookupFailed,
    };
    Some(Told { reason, note: after.message.clone() })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
