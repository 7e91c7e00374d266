//! Reads what the plan needs of the node. The only place where the observed world is put together.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::facts::{Published, Trouble};
use super::host::Host;
use super::host::firmware::foreign;
use super::kernel::Kernel;
use super::node::Node;
use super::plan::{Attempts, KernelView, Observed, Preparation, Prepared, RunningJob, Scope, Wants};
use super::record::firmware::FirmwareView;
use super::record::{Owner, Record, published};
use super::store::Store;
use crate::core::kmod::Identity;
use crate::core::kmod::gates::Gates;

/// What the worker knows without a look at the node.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Release of the running kernel.
    pub release: String,
    /// Time on the worker's own clock.
    pub now: Duration,
    /// What the API server, or the kept plan, says.
    pub desired: Arc<Wants>,
    /// Whether that is all.
    pub scope: Scope,
    /// The record of this boot: as it was before the kernel is looked at, so that what a job does meanwhile is seen as done
    /// and not as undone by somebody else.
    pub record: Record,
    /// Preparations by Module.
    pub prepared: BTreeMap<Owner, Prepared>,
    /// What is held against jobs.
    pub attempts: Attempts,
    /// Jobs that run now, by Module.
    pub running: BTreeMap<Owner, RunningJob>,
    /// Who uses modules that were to go and could not, in words.
    pub users: BTreeMap<String, String>,
    /// Why what is wanted could not be kept on the node's disk, if it could not.
    pub unkept: Option<Trouble>,
}

/// A look at the node failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to look at {what}")]
pub struct Error {
    /// At what.
    pub what: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The world, as what is known and a look at the node show it. `read` keeps what was read in published folders from one
/// look to the next.
///
/// # Errors
/// The kernel does not tell what it holds. A host that does not tell what is published is left alone.
pub fn world(node: Node<'_>, known: Known, read: &mut FilesRead) -> Result<Observed, Error> {
    let Known { release, now, desired, scope, record, prepared, attempts, running, users, unkept } = known;
    let names = Observed::interesting(&record, &desired, &prepared);
    let about_to_load = prepared.values().any(|prepared| matches!(prepared.state, Preparation::Ready(_)));
    let kernel = kernel(node.kernel, &names, about_to_load)?;
    let asked = Observed::asks_for_firmware(&record, &desired);
    let firmware = firmware(node.host, node.store, &record, asked);
    let seen = node.host.published().inspect_err(|error| warn!("/lib/modules cannot be looked at: {error}")).ok();
    let published_files = published_files(node.host, &release, seen.as_ref(), &record, &prepared, read);
    let generated = record.entries.iter().filter_map(|entry| entry.generated.clone());
    Ok(Observed {
        generated: generated.filter(|folder| node.store.is_generated(folder)).collect(),
        kernel: KernelView { users, ..kernel },
        firmware,
        // Of a part of what is wanted nothing can be said about the rest.
        published: seen.filter(|_| scope == Scope::Everything),
        published_files,
        release,
        now,
        desired,
        scope,
        record,
        prepared,
        attempts,
        running,
        unkept,
    })
}

/// The loaded modules, and proof of those that matter; `names` are these, each with the parameters to read.
///
/// What the kernel demands of modules is read only when something is `about_to_load`: at rest nobody needs it.
/// A module that comes or goes while it is looked at is listed without proof: the plan takes it for passing.
pub fn kernel(
    kernel: &dyn Kernel,
    names: &BTreeMap<String, BTreeSet<String>>,
    about_to_load: bool,
) -> Result<KernelView, Error> {
    let failed = |source| Error { what: "the kernel", source };
    let listed = kernel.listed().map_err(failed)?;
    let mut running = BTreeMap::new();
    for (name, parameters) in names.iter().filter(|(name, _)| listed.contains_key(*name)) {
        if let Some(found) = kernel.running(name, parameters).map_err(failed)? {
            running.insert(name.clone(), found);
        }
    }
    let gates = if about_to_load { kernel.gates() } else { Gates::default() };
    Ok(KernelView { listed, running, gates, users: BTreeMap::new() })
}

/// The search path for firmware. The kernel is asked only if somebody asks for firmware or the folder of links is there.
fn firmware(host: &dyn Host, store: &dyn Store, record: &Record, asked: bool) -> Option<FirmwareView> {
    let merged = store.merged();
    if !asked && merged.is_none() {
        return None;
    }
    let (kernel, unreadable) = match host.firmware_path() {
        Ok(kernel) => (kernel, None),
        Err(error) => (None, Some(error.to_string())),
    };
    // What cannot be listed now is told by whoever next has to make links to it.
    let before = record.firmware_before.as_deref().unwrap_or_default();
    let foreign = foreign(host, record, before).unwrap_or_default();
    Some(FirmwareView { kernel, unreadable, ours: store.search_path(), merged, foreign })
}

/// Files that were read in folders on the host, by the Module, with what told the folder's content from another.
pub type FilesRead = BTreeMap<Owner, (String, BTreeMap<String, Identity>)>;

/// What lies on the host for Modules of which nothing is recorded in this boot: the host may have loaded it by itself.
/// Read only for those that are about to be loaded, and again only when the folder has another content than what was `read`.
/// Where the record was lost, that nothing is recorded says nothing.
fn published_files(
    host: &dyn Host,
    release: &str,
    seen: Option<&Published>,
    record: &Record,
    prepared: &BTreeMap<Owner, Prepared>,
    read: &mut FilesRead,
) -> BTreeMap<Owner, BTreeMap<String, Identity>> {
    let ready = prepared.iter().filter(|(_, prepared)| matches!(prepared.state, Preparation::Ready(_)));
    let unrecorded =
        ready.map(|(owner, _)| owner).filter(|owner| !record.lost && !record.made_up && record.entry(owner).is_none());
    let folders = unrecorded.filter_map(|owner| {
        let name = published::folder(owner);
        let content = seen?.folders.get(&(release.to_owned(), name.clone()))?;
        let known = read.get(owner).filter(|(known, _)| known == content).cloned();
        let found = known.unwrap_or_else(|| (content.clone(), host.published_files(release, &name)));
        Some((owner.clone(), found))
    });
    *read = folders.collect();
    read.iter().map(|(owner, (_, files))| (owner.clone(), files.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::core::kmod::order::Role::Named;
    use crate::worker::record::Entry;
    use crate::worker::testing::{RELEASE, World, file, spec};

    #[test]
    fn what_lies_on_the_host_is_read_once_and_only_where_the_record_knows_that_it_is_of_nobody() {
        let mut world = World::new();
        world.image('a', vec![file("gpu", "gpu1", Named, &[])]);
        let wanted = spec("gpu", "gpu", 'a', 1);
        world.desired.modules = vec![wanted.clone()];
        world.round(&tokio_util::sync::CancellationToken::new());
        let mut read = FilesRead::new();
        let mut found = |world: &World, record: &Record| {
            let published = world.kernel.published().unwrap();
            let prepared = &world.prepared;
            let found =
                published_files(&world.kernel, RELEASE, Some(&published), record, prepared, &mut read).into_values();
            found.flat_map(|files| files.values().map(Identity::describe).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        let publish = |content: &str, id: &str| {
            let path = file("gpu", id, Named, &[]).path;
            world.kernel.publish(RELEASE, "drivers.gpu", content, slice::from_ref(&path)).unwrap();
        };
        let record = Record::new("boot-1");
        assert_eq!(found(&world, &record), [""; 0]);
        publish("one", "old");
        assert_eq!(found(&world, &record), ["build id old"]);
        publish("one", "never read");
        assert_eq!(found(&world, &record), ["build id old"]);
        publish("two", "new");
        assert_eq!(found(&world, &record), ["build id new"]);
        assert_eq!(found(&world, &Record { lost: true, ..record.clone() }), [""; 0]);
        assert_eq!(found(&world, &Record { made_up: true, ..record.clone() }), [""; 0]);
        let entries = vec![Entry::of(wanted)];
        assert_eq!(found(&world, &Record { entries, ..record }), [""; 0]);
    }
}
