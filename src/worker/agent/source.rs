//! Where what is wanted comes from: the API server, or the plan that was kept for the time without it.

use std::sync::Arc;

use kube::ResourceExt;
use kube_runtime::watcher::Event;
use tracing::info;

use crate::api::{NodeModulesConfig, NodeModulesConfigSpec};
use crate::runtime::guarded::Guarded;
use crate::worker::plan::{Scope, Wants};
use crate::worker::record::kept_plan::KeptPlan;

/// The object as it is watched.
pub(super) type Watched = Guarded<NodeModulesConfig>;

/// What a list that is not complete yet has shown.
#[derive(Debug, Default)]
enum Listing {
    #[default]
    Empty,
    Unreadable,
    Found(Box<NodeModulesConfig>),
}

/// What the API server says.
#[derive(Debug)]
pub(super) enum Heard {
    /// The object.
    Object(Box<NodeModulesConfig>),
    /// There is none.
    Nothing,
    /// There is one that cannot be read: it must not be taken for a missing one.
    Unreadable(String),
}

impl Listing {
    /// Takes in an event of the watch; `None` while nothing follows from it.
    fn hear(&mut self, event: Event<Watched>) -> Option<Heard> {
        match event {
            Event::Init => *self = Self::Empty,
            Event::InitApply(Guarded(Ok(object))) => *self = Self::Found(Box::new(object)),
            Event::InitApply(Guarded(Err(error))) => {
                *self = Self::Unreadable;
                return Some(Heard::Unreadable(error.error));
            }
            Event::InitDone => match std::mem::take(self) {
                Self::Found(object) => return Some(Heard::Object(object)),
                Self::Empty => return Some(Heard::Nothing),
                Self::Unreadable => {}
            },
            Event::Apply(Guarded(Ok(object))) => return Some(Heard::Object(Box::new(object))),
            Event::Apply(Guarded(Err(error))) => return Some(Heard::Unreadable(error.error)),
            Event::Delete(_) => return Some(Heard::Nothing),
        }
        None
    }
}

/// What is wanted, and who said so.
#[derive(Debug)]
pub(super) struct Source {
    listing: Listing,
    /// What is to be carried out; `None` until the API server or the kept plan said so.
    wanted: Option<KeptPlan>,
    /// A kept plan that waits for its time.
    kept: Option<KeptPlan>,
    /// The API server has said in this process what is wanted.
    answered: bool,
    /// What is carried out now, read once.
    carried_out: Option<(Arc<Wants>, Scope)>,
}

/// What another word about what is wanted means.
#[derive(Debug)]
pub(super) struct Change {
    /// The plan that waited for its time, and does so no more.
    pub(super) kept: Option<KeptPlan>,
    /// It is another one than before.
    pub(super) is_new: bool,
}

impl Source {
    /// Nobody has said anything yet.
    pub(super) fn new(kept: Option<KeptPlan>) -> Self {
        let mut source = Self { listing: Listing::Empty, wanted: None, kept, answered: false, carried_out: None };
        source.renew();
        source
    }

    /// Takes in what the API server says.
    pub(super) fn hear(&mut self, event: Event<Watched>) -> Option<Heard> {
        self.listing.hear(event)
    }

    /// What is wanted, once it is known.
    pub(super) fn wanted(&self) -> Option<&KeptPlan> {
        self.wanted.as_ref()
    }

    /// A plan waits for its time.
    pub(super) fn waits(&self) -> bool {
        self.kept.is_some()
    }

    /// Makes the specification of an object, or nothing, what is wanted.
    pub(super) fn want(&mut self, object: Option<&NodeModulesConfig>) -> Change {
        let next = match object {
            Some(object) => {
                let generation = object.metadata.generation.unwrap_or_default();
                KeptPlan::new(object.uid().unwrap_or_default(), generation, object.spec.clone())
            }
            None => KeptPlan::new("", 0, NodeModulesConfigSpec::default()),
        };
        let kept = self.kept.take();
        let is_new = self.wanted.as_ref() != Some(&next);
        let was_answered = std::mem::replace(&mut self.answered, true);
        if is_new {
            let (generation, spec) = (next.generation, &next.spec);
            info!(generation, modules = spec.modules.len(), unload = spec.unload.len(), "wanted");
            self.wanted = Some(next);
        }
        if is_new || !was_answered {
            self.renew();
        }
        Change { kept, is_new }
    }

    /// The API server did not answer for long enough: what it said last counts.
    pub(super) fn use_kept_plan(&mut self) -> Option<&KeptPlan> {
        if self.wanted.is_some() {
            return None;
        }
        let kept = self.kept.take()?;
        info!(
            generation = kept.generation,
            "no answer from the API server; carrying out the last plan that was kept, apart from its orders to unload"
        );
        self.wanted = Some(kept);
        self.renew();
        self.wanted.as_ref()
    }

    /// What is carried out now: what is wanted, without orders while nobody can take one back, and before that is known
    /// the entries of the kept plan that are to be loaded at boot.
    pub(super) fn carried_out(&self) -> Option<(Arc<Wants>, Scope)> {
        self.carried_out.clone()
    }

    fn renew(&mut self) {
        let (spec, scope) = match (&self.wanted, &self.kept) {
            (Some(wanted), _) if self.answered => (wanted.spec.clone(), Scope::Everything),
            (Some(wanted), _) => (wanted.without_orders(), Scope::Everything),
            (None, Some(kept)) => (kept.at_boot(), Scope::AtBoot),
            (None, None) => return self.carried_out = None,
        };
        self.carried_out = Some((Arc::new(spec.into()), scope));
    }
}
