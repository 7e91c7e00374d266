//! What the worker keeps on the node: one lock, the record of what it inserted, the last plan, unpacked images.
//!
//! Every file is replaced whole: written beside, then renamed. The record is written before the kernel is told anything,
//! so whatever the worker put into a kernel is in it, also after a crash of the worker at any point. What is of use after
//! a boot is flushed to the disk before that; the record is not, since it speaks of one boot and ends with it.

pub mod firmware_links;
pub mod manifest;
pub mod remove;
mod trees;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;

use self::firmware_links::FirmwareFolder;
use self::remove::remove;
use crate::core::kmod::modprobe;
use crate::runtime::client::chain;
use crate::worker::facts::Trouble;
use crate::worker::record::kept_plan::KeptPlan;
use crate::worker::record::{Record, VERSION};

const RECORD: &str = "record.json";
const PLAN: &str = "plan.json";
const LOCK: &str = "lock";
const TREES: &str = "trees";
const FIRMWARE: &str = "firmware";
const GENERATED: &str = "modprobe";

/// Who has the state folder: what the other one says to people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Holder {
    /// Version of the worker; empty if it has not said yet.
    pub version: String,
    /// A single pass (`kmm worker --once`), which answers no probes.
    pub once: bool,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if self.once { "`kmm worker --once`" } else { "`kmm worker`" };
        if self.version.is_empty() { f.write_str(how) } else { write!(f, "{how}, version {}", self.version) }
    }
}

/// Where the record is written to, and what is kept beside it for the kernel.
pub trait Store: Send + Sync + 'static {
    /// Replaces the record on the disk.
    fn save(&self, record: &Record) -> Result<(), Trouble>;
    /// The path of the folder of links to firmware.
    fn search_path(&self) -> String;
    /// Which set of links it holds, if it is there.
    fn merged(&self) -> Option<String>;
    /// Makes it hold this set of links.
    fn merge(&self, name: &str, links: &BTreeMap<String, PathBuf>) -> Result<(), Trouble>;
    /// Removes it.
    fn unmerge(&self) -> Result<(), Trouble>;
    /// Whether it was left to another worker: nothing is written to it any more.
    fn is_given_up(&self) -> bool;
    /// Whether such a folder, generated for modprobe, is there.
    fn is_generated(&self, folder: &Path) -> bool;
}

/// The worker's own files could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} {}", path.display())]
pub struct StoreError {
    /// What was tried.
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl From<&StoreError> for Trouble {
    fn from(error: &StoreError) -> Self {
        Self::of_store(&error.source, chain(error))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError { action, path: path.to_owned(), source }
}

/// Takes all rights of others away. A disk that cannot be written keeps them, which is told and stops nobody.
fn only_for_root(path: &Path, mode: u32) {
    let set = || match fs::metadata(path)?.permissions().mode() & 0o777 {
        is if is == mode => Ok(()),
        _ => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
    };
    if let Err(source) = set()
        && source.kind() != io::ErrorKind::NotFound
    {
        warn!("{}", chain(&failed("take the rights of others from", path)(source)));
    }
}

/// Removes what is in the folder and not named.
fn keep(folder: &Path, names: &BTreeSet<String>) -> Result<usize, StoreError> {
    let mut removed = 0;
    for found in fs::read_dir(folder).map_err(failed("list", folder))? {
        let path = found.map_err(failed("list", folder))?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| names.contains(name)) {
            continue;
        }
        remove(&path).map_err(failed("remove", &path))?;
        removed += 1;
    }
    Ok(removed)
}

/// The folder; whoever has one has the lock.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    /// `None` once it was given up.
    lock: Mutex<Option<Flock<File>>>,
}

impl StateDir {
    /// Takes the folder if no other worker has it; `None` if one has.
    pub fn open(root: &Path) -> Result<Option<Self>, StoreError> {
        let trees = root.join(TREES);
        fs::create_dir_all(&trees).map_err(failed("create", &trees))?;
        let path = root.join(LOCK);
        // Whoever could open the lock could hold it, and keep every worker from this node.
        only_for_root(root, 0o700);
        // Read only: a disk that cannot be written any more, or is to be made so, does not concern the lock.
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                OpenOptions::new().create(true).truncate(false).write(true).open(&path).and_then(|_| File::open(&path))
            }
            opened => opened,
        };
        only_for_root(&path, 0o600);
        let file = file.map_err(failed("open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self { root: root.to_owned(), lock: Mutex::new(Some(lock)) })),
            Err((_, Errno::EAGAIN)) => Ok(None),
            Err((_, errno)) => Err(failed("lock", &path)(errno.into())),
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Flock<File>>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the folder to another worker, while a job of this one hangs in the kernel: what that job comes to is seen in
    /// the kernel, and written down by nobody.
    pub fn give_up(&self) {
        self.held().take();
    }

    /// Writes into the lock who has it, for those who wait. They wait as well if it cannot be written.
    pub fn sign(&self, once: bool) {
        if let Err(error) = self.write_holder(once) {
            warn!("{}", chain(&error));
        }
    }

    fn write_holder(&self, once: bool) -> Result<(), StoreError> {
        let holder = Holder { version: env!("CARGO_PKG_VERSION").to_owned(), once };
        let path = self.root.join(LOCK);
        let write = || fs::write(&path, serde_json::to_vec(&holder).map_err(io::Error::other)?);
        write().map_err(failed("write", &path))
    }

    /// Who has the folder, as far as it has said so.
    pub fn holder(root: &Path) -> Holder {
        fs::read(root.join(LOCK)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// The record, if it is of this boot; otherwise an empty one, because nothing survives a boot in the kernel. Where
    /// there is none that can be read, whatever its boot, it counts as lost.
    ///
    /// A file that cannot be read is put aside under another name and told by the second value.
    pub fn record(&self, boot_id: &str) -> Result<(Record, Option<PathBuf>), StoreError> {
        let (record, aside) = self.load::<Record>(RECORD, Lasts::ThisBoot, |record| record.version)?;
        let lost = record.is_none();
        let record = record.filter(|record| record.boot_id == boot_id);
        Ok((record.unwrap_or_else(|| Record { lost, ..Record::new(boot_id) }), aside))
    }

    /// Replaces the record; on return every later worker of this boot finds it.
    pub fn save_record(&self, record: &Record) -> Result<(), StoreError> {
        let held = self.held();
        if held.is_none() {
            let source = io::Error::other("another worker may have the folder by now");
            return Err(failed("write", &self.root.join(RECORD))(source));
        }
        self.save(RECORD, record, Lasts::ThisBoot)
    }

    /// The last plan, if one was kept and can be read.
    pub fn plan(&self) -> Result<(Option<KeptPlan>, Option<PathBuf>), StoreError> {
        self.load::<KeptPlan>(PLAN, Lasts::ForGood, |plan| plan.version)
    }

    /// Replaces the kept plan; on return it is on the disk.
    pub fn save_plan(&self, plan: &KeptPlan) -> Result<(), StoreError> {
        self.save(PLAN, plan, Lasts::ForGood)
    }

    /// Where an unpacked image is, or would be.
    pub fn tree(&self, key: &str) -> PathBuf {
        self.root.join(TREES).join(key)
    }

    /// The folder of links to firmware; absolute, as the kernel knows no other folder to begin at.
    pub fn firmware(&self) -> FirmwareFolder {
        let folder = self.root.join(FIRMWARE);
        FirmwareFolder::new(std::path::absolute(&folder).unwrap_or(folder))
    }

    /// The folder with what is generated for modprobe, a folder for each load. It may not exist.
    pub fn generated(&self) -> PathBuf {
        self.root.join(GENERATED)
    }

    /// Removes what was generated for modprobe and is not named. Returns how many.
    pub fn keep_generated(&self, keys: &BTreeSet<String>) -> Result<usize, StoreError> {
        let folder = self.generated();
        if folder.is_dir() { keep(&folder, keys) } else { Ok(0) }
    }

    /// Removes what an interrupted unpacking left. To be called before anything is unpacked. Returns how many.
    pub fn sweep_trees(&self) -> Result<usize, StoreError> {
        trees::sweep(&self.root.join(TREES)).map_err(|(path, source)| failed("remove", &path)(source))
    }

    /// Takes unpacked images out of use, those that were not used for longest first, until the others and what was generated
    /// for modprobe take at most `limit` bytes; never one of `in_use`. They are on the disk until [`StateDir::clear_trees`] removes them, which can take long.
    pub fn set_trees_aside(&self, in_use: &BTreeSet<String>, limit: u64) -> Result<Vec<PathBuf>, StoreError> {
        let folder = self.generated();
        let generated = if folder.is_dir() { trees::size(&folder) } else { Ok(0) };
        let generated = generated.map_err(|(path, source)| failed("list", &path)(source))?;
        trees::set_aside(&self.root.join(TREES), in_use, limit.saturating_sub(generated))
            .map_err(|(path, source)| failed("remove", &path)(source))
    }

    /// Removes what was set aside; what an end of the process leaves of it goes at the next start.
    pub fn clear_trees(aside: &[PathBuf]) -> Result<(), StoreError> {
        trees::clear(aside).map_err(|(path, source)| failed("remove", &path)(source))
    }

    /// Removes one unpacked image.
    pub fn drop_tree(&self, key: &str) -> Result<(), StoreError> {
        trees::drop(&self.root.join(TREES), key).map_err(|(path, source)| failed("remove", &path)(source))
    }

    /// Notes that an unpacked image, if it is there, was used until now.
    pub fn touch_tree(&self, key: &str) -> Result<(), StoreError> {
        let tree = self.tree(key);
        match trees::touch(&tree) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("touch", &tree)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn load<T: DeserializeOwned>(
        &self,
        file: &str,
        lasts: Lasts,
        version: impl Fn(&T) -> u32,
    ) -> Result<(Option<T>, Option<PathBuf>), StoreError> {
        let path = self.root.join(file);
        let text = match fs::read(&path) {
            // What an outage of the power leaves of a file that was not flushed.
            Ok(text) if text.is_empty() && lasts == Lasts::ThisBoot => return Ok((None, None)),
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, None)),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        if let Ok(value) = serde_json::from_slice::<T>(&text)
            && version(&value) == VERSION
        {
            return Ok((Some(value), None));
        }
        let aside = (0..1000)
            .map(|n: u32| self.root.join(format!("{file}.unreadable-{n}")))
            .find(|aside| !aside.exists())
            .unwrap_or_else(|| self.root.join(format!("{file}.unreadable")));
        fs::rename(&path, &aside).map_err(failed("put aside", &path))?;
        Ok((None, Some(aside)))
    }

    fn save<T: Serialize>(&self, file: &str, value: &T, lasts: Lasts) -> Result<(), StoreError> {
        let path = self.root.join(file);
        let beside = self.root.join(format!("{file}.new"));
        let write = || -> io::Result<()> {
            let mut out = File::create(&beside)?;
            out.write_all(&serde_json::to_vec(value).map_err(io::Error::other)?)?;
            if lasts == Lasts::ThisBoot {
                return fs::rename(&beside, &path);
            }
            out.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }
}

impl Store for StateDir {
    fn save(&self, record: &Record) -> Result<(), Trouble> {
        self.save_record(record).map_err(|error| Trouble::from(&error))
    }

    fn search_path(&self) -> String {
        self.firmware().search_path().to_string_lossy().into_owned()
    }

    fn merged(&self) -> Option<String> {
        self.firmware().merged()
    }

    fn merge(&self, name: &str, links: &BTreeMap<String, PathBuf>) -> Result<(), Trouble> {
        self.firmware().merge(name, links).map_err(|error| links_failed(&error))
    }

    fn unmerge(&self) -> Result<(), Trouble> {
        self.firmware().unmerge().map_err(|error| links_failed(&error))
    }

    fn is_given_up(&self) -> bool {
        self.held().is_none()
    }

    fn is_generated(&self, folder: &Path) -> bool {
        folder.join(modprobe::ROOT).is_dir()
    }
}

fn links_failed(error: &io::Error) -> Trouble {
    Trouble::of_store(error, format!("the folder of links to firmware cannot be written: {error}"))
}

/// How long a file is of use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasts {
    ThisBoot,
    ForGood,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{NodeModuleSpec, NodeModulesConfigSpec};
    use crate::core::kmod::Identity;
    use crate::worker::record::{Entry, RecordedModule};

    fn lost(boot_id: &str) -> Record {
        Record { lost: true, ..Record::new(boot_id) }
    }

    fn entry(name: &str) -> Entry {
        Entry {
            modules: vec![RecordedModule {
                name: "m".into(),
                named: true,
                inserted: true,
                identity: Identity::default(),
                filesystems: vec!["ext9".into()],
            }],
            took_ms: Some(3),
            complete: true,
            ..Entry::of(NodeModuleSpec { name: name.into(), namespace: "ns".into(), ..NodeModuleSpec::default() })
        }
    }

    #[test]
    fn nobody_but_root_can_open_the_lock_also_where_an_earlier_worker_made_it_for_all() {
        let root = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for open_to_all in [false, true] {
            if open_to_all {
                fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
                fs::set_permissions(root.path().join(LOCK), fs::Permissions::from_mode(0o644)).unwrap();
            }
            let state = StateDir::open(root.path()).unwrap().unwrap();
            state.sign(false);
            assert_eq!((mode(root.path()), mode(&root.path().join(LOCK))), (0o700, 0o600), "{open_to_all}");
        }
    }

    #[test]
    fn a_record_is_read_back_in_the_same_boot_and_empty_in_another() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap().unwrap();
        assert_eq!(state.record("b1").unwrap(), (lost("b1"), None));
        let mut record = Record::new("b1");
        record.put(entry("a"));
        record.put(entry("b"));
        record.put(Entry { adopted: true, ..entry("a") });
        record.remove(&entry("b").owner());
        state.save_record(&record).unwrap();
        assert_eq!(state.record("b1").unwrap(), (record, None));
        assert_eq!(state.record("b2").unwrap(), (Record::new("b2"), None));
    }

    #[test]
    fn only_one_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDir::open(folder.path()).unwrap();
        assert_eq!(StateDir::holder(folder.path()).to_string(), "`kmm worker`");
        for (once, told) in [(true, "`kmm worker --once`"), (false, "`kmm worker`")] {
            first.as_ref().unwrap().sign(once);
            let version = env!("CARGO_PKG_VERSION");
            assert_eq!(StateDir::holder(folder.path()).to_string(), format!("{told}, version {version}"));
        }
        assert!(StateDir::open(folder.path()).unwrap().is_none());
        drop(first);
        assert!(StateDir::open(folder.path()).unwrap().is_some());
    }

    #[test]
    fn what_was_given_up_is_another_workers_and_its_record_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDir::open(folder.path()).unwrap().unwrap();
        first.save_record(&Record::new("b1")).unwrap();
        assert!(!first.is_given_up());
        first.give_up();
        let second = StateDir::open(folder.path()).unwrap().unwrap();
        let mut record = Record::new("b1");
        record.put(entry("a"));
        second.save_record(&record).unwrap();
        assert!(first.is_given_up() && first.save_record(&Record::new("b1")).is_err());
        drop(first);
        assert_eq!(second.record("b1").unwrap(), (record, None));
        assert!(StateDir::open(folder.path()).unwrap().is_none());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_put_aside_and_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap().unwrap();
        for (n, text) in
            ["{\"version\":1,\"boot", "{\"version\":99,\"bootID\":\"b\",\"entries\":[]}", "null"].iter().enumerate()
        {
            fs::write(folder.path().join(RECORD), text).unwrap();
            let (record, aside) = state.record("b").unwrap();
            assert_eq!(record, lost("b"));
            let aside = aside.unwrap();
            assert_eq!(aside, folder.path().join(format!("record.json.unreadable-{n}")));
            assert_eq!(fs::read_to_string(aside).unwrap(), *text);
        }
    }

    #[test]
    fn an_empty_record_says_nothing_and_an_empty_plan_was_lost() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap().unwrap();
        fs::write(folder.path().join(RECORD), "").unwrap();
        assert_eq!(state.record("b").unwrap(), (lost("b"), None));
        fs::write(folder.path().join(PLAN), "").unwrap();
        assert_eq!(state.plan().unwrap(), (None, Some(folder.path().join("plan.json.unreadable-0"))));
    }

    #[test]
    fn the_last_plan_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap().unwrap();
        assert_eq!(state.plan().unwrap(), (None, None));
        let spec = NodeModulesConfigSpec { modules: vec![entry("a").spec], ..NodeModulesConfigSpec::default() };
        let plan = KeptPlan::new("u1", 7, spec);
        state.save_plan(&plan).unwrap();
        assert_eq!(state.plan().unwrap(), (Some(plan), None));
    }
}
