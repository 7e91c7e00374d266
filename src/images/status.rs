//! What a ModuleImagesConfig says of its images.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::observe::{Answer, WantedImage};
use crate::api::names::{ConditionType, ImageReason};
use crate::api::{ImageState, ImageStatus, ModuleImagesConfigStatus};
use crate::core::conditions::{self, State, Wanted};

/// Longest message of one image, in characters.
const MAX_MESSAGE: usize = 512;
/// Images that a condition's message names.
const NAMED: usize = 3;

/// What is known of one image for one kernel, without times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    kernel: String,
    image: String,
    status: ImageStatus,
    digest: Option<String>,
    reason: Option<String>,
    message: Option<String>,
}

impl Fact {
    /// What the status says already.
    pub fn kept(state: &ImageState) -> Self {
        Self {
            kernel: state.kernel_version.clone().unwrap_or_default(),
            image: state.image.clone(),
            status: state.status,
            digest: state.digest.clone(),
            reason: state.reason.clone(),
            message: state.message.clone(),
        }
    }

    /// Not known yet, or to be looked up again; a digest that was known stays.
    pub fn asked_again(wanted: &WantedImage, old: Option<&ImageState>) -> Self {
        let message = format!("image {} is being looked up", wanted.image);
        Self::failed(wanted, old, ImageReason::Pending, &message)
    }

    /// What a look-up came to; a digest that was known outlives a failure.
    pub fn answered(wanted: &WantedImage, old: Option<&ImageState>, answer: &Answer) -> Self {
        match answer {
            Answer::Found(digest) => Self {
                kernel: wanted.kernel.clone(),
                image: wanted.image.clone(),
                status: ImageStatus::Exists,
                digest: Some(digest.to_string()),
                reason: Some(ImageReason::Resolved.as_str().to_owned()),
                message: None,
            },
            Answer::Failed { reason, message } => Self::failed(wanted, old, *reason, message),
        }
    }

    fn failed(wanted: &WantedImage, old: Option<&ImageState>, reason: ImageReason, message: &str) -> Self {
        let missing = reason == ImageReason::NotFound;
        Self {
            kernel: wanted.kernel.clone(),
            image: wanted.image.clone(),
            status: if missing { ImageStatus::DoesNotExist } else { ImageStatus::Unknown },
            digest: old.and_then(|old| old.digest.clone()),
            reason: Some(reason.as_str().to_owned()),
            message: Some(conditions::truncate(message, MAX_MESSAGE)),
        }
    }

    fn reason(&self) -> ImageReason {
        self.reason.as_deref().and_then(ImageReason::from_name).unwrap_or(ImageReason::Pending)
    }

    fn is_resolved(&self) -> bool {
        self.status == ImageStatus::Exists && self.digest.is_some()
    }

    fn is_pending(&self) -> bool {
        !self.is_resolved() && self.reason() == ImageReason::Pending
    }

    fn says_the_same_as(&self, state: &ImageState) -> bool {
        *self == Self::kept(state)
    }

    fn describe(&self) -> String {
        let kept = if self.digest.is_some() { "; the digest known before stays in use" } else { "" };
        let message = self.message.as_deref().unwrap_or_default();
        // Most messages name the image themselves.
        if message.contains(&self.image) {
            format!("kernel {}: {message}{kept}", self.kernel)
        } else {
            format!("kernel {}: image {}: {message}{kept}", self.kernel, self.image)
        }
    }
}

/// Whether the facts say something of an image that the status does not, apart from images that nothing is known of.
pub fn is_news(old: &ModuleImagesConfigStatus, facts: &[Fact]) -> bool {
    let known: Vec<&Fact> = facts.iter().filter(|fact| !(fact.is_pending() && fact.digest.is_none())).collect();
    let written: Vec<&ImageState> = old.images_states.iter().filter(|state| !is_blank(state)).collect();
    known.len() != written.len() || known.iter().zip(written).any(|(fact, state)| !fact.says_the_same_as(state))
}

fn is_blank(state: &ImageState) -> bool {
    state.digest.is_none() && state.reason.as_deref() == Some(ImageReason::Pending.as_str())
}

/// The status that says these facts, ordered by kernel and image; `None` if the old one says them already.
///
/// `lastTransitionTime` of an image moves when its status, reason or digest does.
pub fn status(
    old: &ModuleImagesConfigStatus,
    facts: &[Fact],
    trigger: Option<i64>,
    generation: Option<i64>,
    now: Timestamp,
) -> Option<ModuleImagesConfigStatus> {
    let states = facts.iter().map(|fact| {
        let before = old
            .images_states
            .iter()
            .find(|state| state.image == fact.image && state.kernel_version.as_deref() == Some(&fact.kernel));
        let since = before
            .filter(|state| (state.status, &state.reason, &state.digest) == (fact.status, &fact.reason, &fact.digest))
            .and_then(|state| state.last_transition_time.clone());
        ImageState {
            digest: fact.digest.clone(),
            image: fact.image.clone(),
            kernel_version: Some(fact.kernel.clone()),
            last_transition_time: Some(since.unwrap_or(Time(now))),
            message: fact.message.clone(),
            reason: fact.reason.clone(),
            status: fact.status,
        }
    });
    let mut new = ModuleImagesConfigStatus {
        conditions: old.conditions.clone(),
        image_rebuild_trigger_generation: trigger,
        images_states: states.collect(),
        observed_generation: generation,
    };
    let (state, reason, message) = summary(facts);
    let wanted = [ConditionType::ImagesResolved, ConditionType::Ready]
        .map(|type_| Wanted::new(type_.as_str(), state, reason.as_str(), message.clone()));
    let conditions_changed = conditions::set(&mut new.conditions, &wanted, generation, now);
    (conditions_changed || new != *old).then_some(new)
}

/// The condition that sums the images up, if it is there.
pub fn images_resolved(status: &ModuleImagesConfigStatus) -> Option<&Condition> {
    conditions::find(&status.conditions, ConditionType::ImagesResolved.as_str())
}

/// False where an image is missing for certain, unknown where it cannot be told.
fn summary(facts: &[Fact]) -> (State, ImageReason, String) {
    let missing: Vec<&Fact> = facts.iter().filter(|fact| !fact.is_resolved()).collect();
    if missing.is_empty() {
        let message = match facts.len() {
            0 => "no image is asked for".to_owned(),
            1 => "the image is there".to_owned(),
            count => format!("all {count} images are there"),
        };
        return (State::True, ImageReason::Resolved, message);
    }
    let certain = |fact: &&Fact| {
        fact.status == ImageStatus::DoesNotExist
            || matches!(fact.reason(), ImageReason::InvalidReference | ImageReason::NeverPulled)
    };
    let state = if missing.iter().any(certain) { State::False } else { State::Unknown };
    // What failed for certain is named first, what is still on its way last.
    let mut named = missing.clone();
    named.sort_by_key(|fact| if certain(fact) { 0 } else { 1 + u8::from(fact.is_pending()) });
    let reason = named.first().map_or(ImageReason::Pending, |fact| fact.reason());
    let mut message = format!("{} of {} images are not resolved: ", missing.len(), facts.len());
    let described: Vec<String> = named.iter().take(NAMED).map(|fact| fact.describe()).collect();
    message.push_str(&described.join("; "));
    if missing.len() > NAMED {
        message.push_str("; …");
    }
    (state, reason, message)
}
