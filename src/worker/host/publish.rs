//! Files of loaded modules below the host's `/lib/modules`, for `modinfo` and `modprobe` on the host.
//!
//! A Module that asks for it has its files in `updates/kmm/<namespace>.<name>`: depmod prefers `updates` to what the
//! kernel came with, so a tool on the host finds the file that runs. The folder is made beside and takes its name when it is
//! complete. Between a change and depmod's end a mark says that the index is stale, so an interrupted change is
//! finished by whoever comes next.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api::names::NodeReason;
use crate::core::kmod::{Identity, names};
use crate::runtime::client::chain;
use crate::worker::facts::{Published, Trouble};
use crate::worker::kernel::command;
use crate::worker::module_file::read_module;
use crate::worker::record::published::OURS;
use crate::worker::store::remove::remove;

/// In a Module's folder: a line that tells its content from another, then a line for each file with its length.
const CONTENT: &str = ".content";
/// In [`OURS`]: the index does not know the last change.
const STALE: &str = ".stale";
/// In [`OURS`]: a folder that is not complete.
const UNFINISHED: &str = ".new";
/// Longest time that depmod may take; on a slow disk with thousands of modules it takes seconds.
const DEPMOD_LIMIT: Duration = Duration::from_mins(2);

/// The host's `/lib/modules`, and kmod.
#[derive(Clone, Debug)]
pub struct HostModules {
    /// Where it can be read.
    pub read: PathBuf,
    /// Where it can be written, if it can: a path that ends in `lib/modules`.
    pub write: Option<PathBuf>,
    /// kmod's executable, by any of its names.
    pub kmod: PathBuf,
    /// Where the configuration of the host's depmod may be.
    pub config: Vec<PathBuf>,
}

fn trouble(what: impl Into<String>) -> Trouble {
    Trouble::new(NodeReason::NotPublished, what)
}

impl HostModules {
    /// What is published, for any kernel that has a folder.
    pub fn view(&self) -> io::Result<Published> {
        let mut view =
            Published { writable: self.write.as_ref().is_some_and(|path| path.is_dir()), ..Published::default() };
        for release in names_in(&self.read)? {
            let ours = self.read.join(&release).join(OURS);
            for name in names_in(&ours)? {
                if name == STALE || name == UNFINISHED {
                    view.stale.insert(release.clone());
                } else {
                    let content = content(&ours.join(&name));
                    view.folders.insert((release.clone(), name), content);
                }
            }
        }
        Ok(view)
    }

    /// Which file of which module lies in the folder of a Module; those that cannot be read are left out.
    pub fn files(&self, release: &str, name: &str) -> BTreeMap<String, Identity> {
        let folder = self.read.join(release).join(OURS).join(name);
        let files = names_in(&folder).unwrap_or_default().into_iter().filter_map(|file| {
            let (module, packing) = names::of_file(&file)?;
            let read = read_module(&folder.join(file), packing, std::env::consts::ARCH).ok()?;
            Some((module, read.identity))
        });
        files.collect()
    }

    fn writable(&self, release: &str) -> Result<PathBuf, Trouble> {
        let write = self.write.as_ref().ok_or_else(|| trouble("the host's /lib/modules is not mounted for writing"))?;
        Ok(write.join(release))
    }

    /// Puts files into the folder of a Module, in the place of what was in it. On return they are on the disk: the host
    /// takes them at the next boot, before any worker. The index is stale then.
    pub fn publish(&self, release: &str, name: &str, content: &str, files: &[PathBuf]) -> Result<(), Trouble> {
        let ours = self.writable(release)?.join(OURS);
        let put = || -> io::Result<()> {
            fs::create_dir_all(&ours)?;
            fs::write(ours.join(STALE), "")?;
            let unfinished = ours.join(UNFINISHED);
            remove(&unfinished)?;
            fs::create_dir(&unfinished)?;
            let mut told = format!("{content}\n");
            for file in files {
                let Some(file_name) = file.file_name() else { continue };
                let copy = unfinished.join(file_name);
                let length = fs::copy(file, &copy)?;
                sync(&copy)?;
                let _ = writeln!(told, "{length} {}", file_name.display());
            }
            fs::write(unfinished.join(CONTENT), told)?;
            sync(&unfinished.join(CONTENT))?;
            sync(&unfinished)?;
            remove(&ours.join(name))?;
            fs::rename(&unfinished, ours.join(name))?;
            sync(&ours)
        };
        put()
            .map_err(|error| trouble(format!("files cannot be put into {} of the host: {error}", shown(release, name))))
    }

    /// Removes the folder of a Module. The index is stale then.
    pub fn unpublish(&self, release: &str, name: &str) -> Result<(), Trouble> {
        let ours = self.writable(release)?.join(OURS);
        let take = || fs::write(ours.join(STALE), "").and_then(|()| remove(&ours.join(name)));
        take().map_err(|error| trouble(format!("{} of the host cannot be removed: {error}", shown(release, name))))
    }

    /// Lets depmod read what is there, as the host's own would.
    pub fn renew_index(&self, release: &str) -> Result<(), Trouble> {
        let folder = self.writable(release)?;
        // A kernel that was removed but for what lay here has no index.
        let is_kernel = folder.join("modules.dep").exists() || folder.join("kernel").is_dir();
        if is_kernel {
            let base = folder.parent().and_then(Path::parent).and_then(Path::parent).unwrap_or(Path::new("/"));
            let mut arguments = vec!["-b".to_owned(), base.display().to_string()];
            for config in self.config.iter().filter(|config| config.is_dir()) {
                arguments.extend(["-C".to_owned(), config.display().to_string()]);
            }
            arguments.push(release.to_owned());
            let ended = command::run(&self.kmod, "depmod", &arguments, DEPMOD_LIMIT)
                .map_err(|error| trouble(format!("the index of /lib/modules/{release} is stale: {}", chain(&error))))?;
            if !ended.success {
                let words = ended.tail.join(" | ");
                return Err(trouble(format!(
                    "the index of /lib/modules/{release} is stale: depmod left with {}: {words}",
                    ended.how
                )));
            }
        }
        let ours = folder.join(OURS);
        let done = || -> io::Result<()> {
            // depmod flushes nothing: without the mark, an index that an outage of the power emptied would stay so.
            for index in names_in(&folder)?.into_iter().filter(|name| name.starts_with("modules.")) {
                sync(&folder.join(index))?;
            }
            sync(&folder)?;
            remove(&ours.join(UNFINISHED))?;
            remove(&ours.join(STALE))
        };
        done()
            .map_err(|error| trouble(format!("/lib/modules/{release}/{OURS} of the host cannot be tidied: {error}")))?;
        // Folders that somebody else uses too are not empty, and stay.
        let _ = fs::remove_dir(&ours)
            .and_then(|()| fs::remove_dir(folder.join("updates")))
            .and_then(|()| if is_kernel { Ok(()) } else { fs::remove_dir(&folder) });
        Ok(())
    }
}

/// What a Module's folder says it holds; empty, as of a folder that nobody knows, where a file is not as long as it was
/// when it was put there.
fn content(folder: &Path) -> String {
    let told = fs::read_to_string(folder.join(CONTENT)).unwrap_or_default();
    let mut lines = told.lines();
    let content = lines.next().unwrap_or_default();
    let is_whole = |line: &str| {
        let Some((length, name)) = line.split_once(' ') else { return false };
        fs::metadata(folder.join(name)).is_ok_and(|found| length.parse() == Ok(found.len()))
    };
    if lines.all(is_whole) { content.to_owned() } else { String::new() }
}

/// Flushes a file, or the names in a folder, to the disk.
fn sync(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn shown(release: &str, name: &str) -> String {
    format!("/lib/modules/{release}/{OURS}/{name}")
}

/// Names in a folder; none if it is not there or no folder.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<Vec<_>>>()?
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::kmod::elf::testing::module;

    #[test]
    fn which_files_lie_in_a_folder_is_read_from_them() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("6.1").join(OURS).join("ns.m");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(CONTENT), "one").unwrap();
        fs::write(folder.join("a-b.ko"), module("", &[7; 20])).unwrap();
        fs::write(folder.join("damaged.ko"), "").unwrap();
        let (read, kmod) = (root.path().to_owned(), PathBuf::new());
        let host = HostModules { read, write: None, kmod, config: Vec::new() };
        let build_id = Some("07".repeat(20));
        let files = BTreeMap::from([("a_b".to_owned(), Identity { build_id, srcversion: None })]);
        assert_eq!(host.files("6.1", "ns.m"), files);
        assert!(host.files("6.2", "ns.m").is_empty());
    }

    #[test]
    fn a_folder_is_whole_or_not_there_and_the_index_is_stale_until_depmod_has_read_it() {
        let root = tempfile::tempdir().unwrap();
        let modules = root.path().join("lib/modules");
        fs::create_dir_all(modules.join("6.1/kernel")).unwrap();
        fs::write(modules.join("no-folder"), "").unwrap();
        let file = |name: &str, content: &str| {
            let path = root.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let kmod = root.path().join("no-such-program");
        let host = HostModules { read: modules.clone(), write: Some(modules.clone()), kmod, config: Vec::new() };
        let shown = || {
            let view = host.view().unwrap();
            let folders = view.folders.iter().map(|((release, name), content)| format!("{release} {name} {content}"));
            (folders.collect::<Vec<_>>(), view.stale.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(host.view().unwrap(), Published { writable: true, ..Published::default() });
        let (a, b) = (file("a.ko", "a"), file("b.ko.xz", "b"));
        host.publish("6.1", "ns.m", "one", &[a.clone(), b.clone()]).unwrap();
        assert_eq!(shown(), (vec!["6.1 ns.m one".to_owned()], vec!["6.1".to_owned()]));
        let folder = modules.join("6.1").join(OURS).join("ns.m");
        assert_eq!(fs::read_to_string(folder.join("b.ko.xz")).unwrap(), "b");
        // What an outage of the power leaves of a file that was there already, or takes away, is seen and put there again.
        for damage in [&|path: &Path| fs::write(path, "").unwrap(), &|path: &Path| fs::remove_file(path).unwrap()]
            as [&dyn Fn(&Path); 2]
        {
            damage(&folder.join("b.ko.xz"));
            assert_eq!(shown().0, ["6.1 ns.m "]);
            host.publish("6.1", "ns.m", "one", &[a.clone(), b.clone()]).unwrap();
            assert_eq!(shown().0, ["6.1 ns.m one"]);
        }
        let trouble = host.renew_index("6.1").unwrap_err();
        assert_eq!(trouble.reason, NodeReason::NotPublished);
        assert!(trouble.message.contains("/lib/modules/6.1 is stale"), "{}", trouble.message);
        // What a crash left in the middle of a change counts as a change, and is in nobody's way.
        fs::create_dir_all(modules.join("6.1").join(OURS).join(UNFINISHED).join("x")).unwrap();
        host.publish("6.1", "ns.m", "two", &[a]).unwrap();
        assert_eq!(shown().0, ["6.1 ns.m two"]);
        assert!(!folder.join("b.ko.xz").exists());
        assert!(host.publish("6.1", "ns.m", "three", &[root.path().join("gone.ko")]).is_err());
        assert_eq!(shown(), (vec!["6.1 ns.m two".to_owned()], vec!["6.1".to_owned()]), "the old one stays");
        host.unpublish("6.1", "ns.m").unwrap();
        assert_eq!(shown(), (vec![], vec!["6.1".to_owned()]));
        // Of a kernel that is not there any more nothing is left.
        fs::create_dir_all(modules.join("5.0").join(OURS).join("x.y")).unwrap();
        host.unpublish("5.0", "x.y").unwrap();
        host.renew_index("5.0").unwrap();
        assert!(!modules.join("5.0").exists());
        let blind = HostModules { write: None, ..host };
        assert!(!blind.view().unwrap().writable);
        assert_eq!(blind.unpublish("6.1", "ns.m").unwrap_err().reason, NodeReason::NotPublished);
    }
}
