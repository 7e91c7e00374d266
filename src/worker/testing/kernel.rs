//! A kernel in memory, with faults, and the host around it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use nix::errno::Errno;
use tokio_util::sync::CancellationToken;

use super::values::{RELEASE, identity};
use crate::api::names::NodeReason;
use crate::core::kmod::Identity;
use crate::core::kmod::gates::Gates;
use crate::core::kmod::names::Packing;
use crate::core::kmod::proc_modules::{InitState, Listed};
use crate::core::kmod::users::Users;
use crate::core::kmod::{modprobe, params};
use crate::worker::facts::{Published, Refused, Running, SearchPath, Trouble};
use crate::worker::host::Host;
use crate::worker::kernel::Kernel;
use crate::worker::kernel::refusal::{load_trouble, unload_trouble};

/// A loaded module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::worker) struct Loaded {
    pub(in crate::worker) id: String,
    pub(in crate::worker) needs: Vec<String>,
    pub(in crate::worker) parameters: BTreeMap<String, String>,
    /// References besides those of modules that need it.
    pub(in crate::worker) references: u32,
    pub(in crate::worker) permanent: bool,
    pub(in crate::worker) state: Option<InitState>,
}

/// The kernel in memory.
#[derive(Debug, Default)]
pub(in crate::worker) struct SimulatedKernel {
    modules: Mutex<BTreeMap<String, Loaded>>,
    /// What the next load or unload of a module answers.
    faults: Mutex<BTreeMap<String, Errno>>,
    /// What it demands of modules.
    pub(in crate::worker) gates: Mutex<Gates>,
    /// Memory that it has, bytes.
    pub(in crate::worker) memory: Mutex<Option<u64>>,
    /// Files that are not where they were.
    pub(in crate::worker) lost: Mutex<BTreeSet<PathBuf>>,
    /// Every change that the worker made: `+name` and `-name`.
    calls: Mutex<Vec<String>>,
    /// The search path for firmware; `None` for a kernel without one.
    pub(in crate::worker) search_path: Mutex<Option<String>>,
    /// What is published on the host.
    pub(in crate::worker) published: Mutex<Published>,
    /// The files in its folders.
    published_files: Mutex<BTreeMap<(String, String), BTreeMap<String, Identity>>>,
    /// Modules that the kernel itself came with, each with what it needs.
    pub(in crate::worker) own: Mutex<BTreeMap<String, Vec<String>>>,
    /// A change, and what is told right after it.
    told_after: Mutex<Option<(String, CancellationToken)>>,
    hanging: Hanging,
    /// Files in `/opt/fw` besides `admin.bin`.
    pub(in crate::worker) foreign: Mutex<BTreeSet<String>>,
}

/// Modules whose load does not return.
#[derive(Clone, Debug, Default)]
struct Hanging(Arc<(Mutex<BTreeSet<String>>, Condvar)>);

struct LetGo(Hanging, String);

impl Drop for LetGo {
    fn drop(&mut self) {
        let (hanging, changed) = &*self.0.0;
        hanging.lock().unwrap().remove(&self.1);
        changed.notify_all();
    }
}

impl SimulatedKernel {
    pub(in crate::worker) fn with(&self, change: impl FnOnce(&mut BTreeMap<String, Loaded>)) {
        change(&mut self.modules.lock().unwrap());
    }

    pub(in crate::worker) fn fail(&self, module: &str, errno: Errno) {
        self.faults.lock().unwrap().insert(module.to_owned(), errno);
    }

    /// Loads of this module, and no others, do not return before this is dropped.
    pub(in crate::worker) fn hang(&self, module: &str) -> impl Drop + use<> {
        self.hanging.0.0.lock().unwrap().insert(module.to_owned());
        LetGo(self.hanging.clone(), module.to_owned())
    }

    /// Loads and unloads do not return before this is dropped.
    pub(in crate::worker) fn hold(&self) -> impl Drop {
        self.faults.lock().unwrap()
    }

    pub(in crate::worker) fn heal(&self) {
        self.faults.lock().unwrap().clear();
    }

    pub(in crate::worker) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    pub(in crate::worker) fn names(&self) -> Vec<String> {
        self.modules.lock().unwrap().keys().cloned().collect()
    }

    pub(in crate::worker) fn id(&self, name: &str) -> Option<String> {
        self.modules.lock().unwrap().get(name).map(|loaded| loaded.id.clone())
    }

    /// What is told right after this change.
    pub(in crate::worker) fn tells_after(&self, call: &str) -> CancellationToken {
        let token = CancellationToken::new();
        *self.told_after.lock().unwrap() = Some((call.to_owned(), token.clone()));
        token
    }

    /// Notes a change.
    fn called(&self, call: String) {
        if let Some((after, token)) = &*self.told_after.lock().unwrap()
            && *after == call
        {
            token.cancel();
        }
        self.calls.lock().unwrap().push(call);
    }

    fn fault(&self, name: &str) -> Result<(), Refused> {
        self.faults.lock().unwrap().get(name).map_or(Ok(()), |errno| Err((*errno).into()))
    }
}

impl Kernel for SimulatedKernel {
    fn boot_id(&self) -> io::Result<String> {
        Ok("boot-1".into())
    }

    fn release(&self) -> io::Result<String> {
        Ok(RELEASE.into())
    }

    fn command_line(&self) -> String {
        String::new()
    }

    fn listed(&self) -> io::Result<BTreeMap<String, Listed>> {
        let modules = self.modules.lock().unwrap();
        let entry = |name: &String, loaded: &Loaded| {
            let holders: Vec<String> =
                modules.iter().filter(|(_, other)| other.needs.contains(name)).map(|(name, _)| name.clone()).collect();
            let refcnt = loaded.references + u32::try_from(holders.len()).unwrap();
            Listed {
                refcnt: Some(refcnt),
                holders,
                permanent: loaded.permanent,
                state: loaded.state.unwrap_or(InitState::Live),
            }
        };
        Ok(modules.iter().map(|(name, loaded)| (name.clone(), entry(name, loaded))).collect())
    }

    fn running(&self, name: &str, parameters: &BTreeSet<String>) -> io::Result<Option<Running>> {
        Ok(self.modules.lock().unwrap().get(name).map(|loaded| Running {
            identity: identity(&loaded.id),
            parameters: loaded
                .parameters
                .iter()
                .filter(|(name, _)| parameters.contains(*name))
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect(),
        }))
    }

    fn load(&self, name: &str, file: &Path, _: Packing, parameters: &str) -> Result<(), Refused> {
        self.fault(name)?;
        let (hanging, changed) = &*self.hanging.0;
        drop(changed.wait_while(hanging.lock().unwrap(), |hanging| hanging.contains(name)).unwrap());
        if self.readable(file).is_err() {
            return Err(Errno::ENOENT.into());
        }
        let parts: Vec<String> = file.iter().skip(1).map(|part| part.to_string_lossy().into_owned()).collect();
        let needs: Vec<String> =
            parts.get(2).map(|needs| needs.split(',').map(ToOwned::to_owned).collect()).unwrap_or_default();
        let (id, needs) = if parts[0] == "own" {
            let own = self.own.lock().unwrap();
            ("own".to_owned(), own.get(name).cloned().unwrap_or_default())
        } else {
            (parts[0].clone(), needs)
        };
        let mut modules = self.modules.lock().unwrap();
        if modules.contains_key(name) {
            return Err(Errno::EEXIST.into());
        }
        if needs.iter().any(|need| !modules.contains_key(need)) {
            return Err(Errno::ENOENT.into());
        }
        let parameters =
            params::decode(parameters).into_iter().map(|(name, value)| (name, value.unwrap_or_default())).collect();
        modules.insert(name.to_owned(), Loaded { id, needs, parameters, ..Loaded::default() });
        self.called(format!("+{name}"));
        Ok(())
    }

    fn unload(&self, name: &str) -> Result<(), Refused> {
        self.fault(name)?;
        let listed = self.listed().unwrap();
        let entry = listed.get(name).ok_or(Errno::ENOENT)?;
        if entry.permanent {
            return Err(Errno::EBUSY.into());
        }
        if entry.refcnt != Some(0) {
            return Err(Errno::EAGAIN.into());
        }
        self.modules.lock().unwrap().remove(name);
        self.called(format!("-{name}"));
        Ok(())
    }

    fn parameters(&self, name: &str) -> io::Result<BTreeMap<String, String>> {
        Ok(self.modules.lock().unwrap().get(name).map(|loaded| loaded.parameters.clone()).unwrap_or_default())
    }

    /// Loads the paths among the arguments, the words after `--` being parameters of the last; removes as the real one
    /// does, with what nothing uses any more.
    fn modprobe(&self, arguments: &[String], _: &[String], removes: bool) -> Result<(), Trouble> {
        self.calls.lock().unwrap().push("modprobe".into());
        let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
        if !removes {
            for (at, path) in arguments[..end].iter().enumerate() {
                let name = path.split('/').nth(2).unwrap();
                let parameters = if at + 1 == end { arguments[end + 1..].join(" ") } else { String::new() };
                if !self.names().contains(&name.to_owned()) {
                    self.load(name, Path::new(path), Packing::Plain, &parameters)
                        .map_err(|refused| load_trouble(name, None, &refused))?;
                }
            }
            return Ok(());
        }
        for name in modprobe::aim(arguments).modules {
            let Some(loaded) = self.modules.lock().unwrap().get(&name).cloned() else { continue };
            self.unload(&name).map_err(|refused| unload_trouble(&name, &refused))?;
            for need in &loaded.needs {
                let _ = self.unload(need);
            }
        }
        Ok(())
    }

    fn gates(&self) -> Gates {
        self.gates.lock().unwrap().clone()
    }

    fn available_memory(&self) -> Option<u64> {
        *self.memory.lock().unwrap()
    }

    fn users(&self, name: &str, _: &[String]) -> Users {
        Users { mounts: BTreeSet::from([format!("/{name}")]), ..Users::default() }
    }
}

impl Host for SimulatedKernel {
    fn readable(&self, file: &Path) -> io::Result<()> {
        self.fault(&file.display().to_string()).map_err(|refused| refused.errno)?;
        if self.lost.lock().unwrap().contains(file) { Err(Errno::ENOENT.into()) } else { Ok(()) }
    }

    fn own_module(&self, _: &str, name: &str) -> io::Result<Vec<PathBuf>> {
        let own = self.own.lock().unwrap();
        let file = |name: &String| PathBuf::from(format!("/own/{name}.ko"));
        Ok(own.get(name).map(|needs| needs.iter().chain([&name.to_owned()]).map(file).collect()).unwrap_or_default())
    }

    fn firmware_path(&self) -> io::Result<Option<SearchPath>> {
        self.fault("firmware_path").map_err(|refused| refused.errno)?;
        Ok(self.search_path.lock().unwrap().clone().map(|value| SearchPath { value, writable: true }))
    }

    fn set_firmware_path(&self, value: &str) -> Result<(), Refused> {
        self.fault("firmware_class")?;
        *self.search_path.lock().unwrap() = Some(value.to_owned());
        Ok(())
    }

    fn published(&self) -> io::Result<Published> {
        Ok(self.published.lock().unwrap().clone())
    }

    fn published_files(&self, release: &str, name: &str) -> BTreeMap<String, Identity> {
        let folder = (release.to_owned(), name.to_owned());
        self.published_files.lock().unwrap().get(&folder).cloned().unwrap_or_default()
    }

    fn publish(&self, release: &str, name: &str, content: &str, files: &[PathBuf]) -> Result<(), Trouble> {
        let part = |file: &PathBuf, at| file.iter().nth(at).unwrap().to_string_lossy().into_owned();
        let identities = files.iter().map(|file| (part(file, 2), identity(&part(file, 1)))).collect();
        self.published_files.lock().unwrap().insert((release.to_owned(), name.to_owned()), identities);
        let mut published = self.published.lock().unwrap();
        published.stale.insert(release.to_owned());
        published.folders.insert((release.to_owned(), name.to_owned()), content.to_owned());
        Ok(())
    }

    fn unpublish(&self, release: &str, name: &str) -> Result<(), Trouble> {
        let mut published = self.published.lock().unwrap();
        published.stale.insert(release.to_owned());
        let folder = (release.to_owned(), name.to_owned());
        published.folders.remove(&folder);
        self.published_files.lock().unwrap().remove(&folder);
        Ok(())
    }

    fn renew_index(&self, release: &str) -> Result<(), Trouble> {
        self.fault("depmod").map_err(|refused| Trouble::new(NodeReason::NotPublished, refused.to_string()))?;
        self.published.lock().unwrap().stale.remove(release);
        Ok(())
    }

    fn folder(&self, path: &Path) -> io::Result<BTreeMap<String, bool>> {
        let names = self.foreign.lock().unwrap();
        let there = path == Path::new("/opt/fw");
        let names = ["admin.bin"].into_iter().chain(names.iter().map(String::as_str)).filter(|_| there);
        Ok(names.map(|name| (name.to_owned(), false)).collect())
    }
}
