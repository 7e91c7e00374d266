//! What can go wrong with a call to the API server, and how to go on.

use std::error::Error as StdError;
use std::time::Duration;

/// How to go on after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Somebody else changed the object first: look again at once.
    Conflict,
    /// May pass by itself: retry with backoff.
    Transient,
    /// The server refuses what we sent: retrying alone will not help, though the backoff goes on, since
    /// a changed CRD or policy is not seen by any watch.
    Invalid,
    /// Not allowed: rights are missing.
    Denied,
}

impl Class {
    /// Label value for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Transient => "transient",
            Self::Invalid => "invalid",
            Self::Denied => "denied",
        }
    }
}

/// A failed call to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The server answered with an error, or could not be reached.
    #[error("failed to {action}")]
    Call {
        /// What was tried, with the object's name.
        action: String,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
    /// A JSON patch that is none: a fault of the program.
    #[error("failed to read a JSON patch")]
    Operations {
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// No answer in time.
    #[error("failed to {action}: no answer from the API server within {} s", after.as_secs_f32())]
    Deadline {
        /// What was tried, with the object's name.
        action: String,
        /// How long the answer was waited for.
        after: Duration,
    },
}

impl ApiError {
    /// How to go on.
    pub fn class(&self) -> Class {
        match self {
            Self::Deadline { .. } => Class::Transient,
            Self::Operations { .. } => Class::Invalid,
            Self::Call { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    409 => Class::Conflict,
                    401 | 403 => Class::Denied,
                    400 | 413 | 415 | 422 => Class::Invalid,
                    _ => Class::Transient,
                },
                _ => Class::Transient,
            },
        }
    }

    /// Whether the server said that the object (or its kind) does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { source, .. } if matches!(source.as_ref(), kube::Error::Api(status) if status.code == 404))
    }

    /// The server's own words, for a condition's message.
    pub fn reason(&self) -> String {
        match self {
            Self::Deadline { .. } | Self::Operations { .. } => self.to_string(),
            Self::Call { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => status.message.clone(),
                other => other.to_string(),
            },
        }
    }
}

/// An error with its sources, without repeating a source whose text the error already holds.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        // Where the server answered, its own words are enough: kube shows the whole answer, and that twice.
        let answer = answer(error);
        let words = answer.map_or_else(|| error.to_string(), |status| status.message.clone());
        if text.is_empty() {
            text = words;
        } else if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = if answer.is_some() { None } else { error.source() };
    }
    text
}

fn answer<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a kube::core::Status> {
    let boxed = || error.downcast_ref::<Box<kube::Error>>().map(Box::as_ref);
    match error.downcast_ref::<kube::Error>().or_else(boxed) {
        Some(kube::Error::Api(status)) => Some(status),
        _ => None,
    }
}
