//! What is seen of a node, and what is wrong with it: the words that every other part of the worker speaks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use nix::errno::Errno;

use crate::api::names::NodeReason;
use crate::core::kmod::Identity;
use crate::oci::error::is_full;

/// What proves which file a loaded module is, and how it was set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// Build id and srcversion as `/sys/module` shows them.
    pub identity: Identity,
    /// Readable parameters of those that were asked about.
    pub parameters: BTreeMap<String, String>,
}

/// The kernel's search path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchPath {
    /// What it says; empty if nobody set it.
    pub value: String,
    /// Whether it can be written.
    pub writable: bool,
}

/// What is published on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Whether anything there can be changed.
    pub writable: bool,
    /// Folders by release and name, each with what tells its content; empty for one that nobody finished.
    pub folders: BTreeMap<(String, String), String>,
    /// Releases whose index is behind.
    pub stale: BTreeSet<String>,
}

/// Most lines of the log that a message repeats.
const MAX_LOG_LINES: usize = 4;

/// The kernel did not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{errno}{}", said(log.as_deref()))]
pub struct Refused {
    /// Its answer.
    pub errno: Errno,
    /// What it wrote into its log about the module meanwhile; `None` if the log cannot be read.
    pub log: Option<Vec<String>>,
}

fn said(log: Option<&[String]>) -> String {
    let lines = log.unwrap_or_default();
    let first = lines.get(..MAX_LOG_LINES.min(lines.len())).unwrap_or_default();
    if first.is_empty() { String::new() } else { format!("; the kernel says: {}", first.join(" | ")) }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self { errno, log: Some(Vec::new()) }
    }
}

/// Why something is not as wanted: one word of the closed list and one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The word.
    pub reason: NodeReason,
    /// The sentence: names the thing, and the way out where there is one.
    pub message: String,
}

impl Trouble {
    /// Both parts together.
    pub fn new(reason: NodeReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// That one of the worker's own files could not be read or written.
    pub fn of_store(error: &io::Error, message: impl Into<String>) -> Self {
        Self::new(if is_full(error) { NodeReason::StoreFull } else { NodeReason::StoreFailed }, message)
    }

    /// Whether the worker's own files are what is in the way.
    pub fn is_of_store(&self) -> bool {
        matches!(self.reason, NodeReason::StoreFull | NodeReason::StoreFailed)
    }
}
