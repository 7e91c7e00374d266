//! Loads that modprobe carries out: the folder that is generated for it, and what it would insert.
//!
//! The folder holds a root with the image's modules and those of the host that they lead to, indexed by depmod, and one
//! file of configuration. The host's `/etc/modprobe.d` is not read. Nothing in it is packed: which packings a modprobe
//! knows depends on its build.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;

use tracing::debug;

use super::examine::{self, Place, Reachable, Reached};
use crate::api::ModprobeSpec;
use crate::api::names::NodeReason;
use crate::core::kmod::modprobe::{self, CONFIG, Insertion, ROOT};
use crate::core::kmod::modprobe_d::{self, Soft};
use crate::core::kmod::names::{self, Packing};
use crate::core::kmod::order::{Role, Source};
use crate::core::kmod::{params, vermagic};
use crate::core::load::{ByModprobe, LoadIdentity};
use crate::worker::facts::Trouble;
use crate::worker::kernel::modprobe::Program;
use crate::worker::module_file::{self, read_module};
use crate::worker::plan::{LoadFile, LoadSet, Modprobe};

/// Bytes of all files of modprobe.d in an image.
const MAX_LINES: u64 = 1 << 20;

/// Of two preparations of one load the second waits.
static TURN: Mutex<()> = Mutex::new(());

/// Generates the folder for a load and asks modprobe what it would insert. Changes nothing in the kernel.
pub fn prepare(
    place: &Place<'_>,
    identity: &LoadIdentity,
    by: &ByModprobe,
    spec: &ModprobeSpec,
    program: &Program,
    folder: &Path,
) -> Result<LoadSet, Trouble> {
    let _turn = TURN.lock();
    let lines = lines(place.tree, by)?;
    let mut words = modprobe::aim(&by.load).modules;
    words.extend(identity.named.iter().cloned());
    words.extend(modprobe_d::words(&lines));
    let reachable = examine::reachable(place, identity, &words)?;
    let order = if by.raw { &[] } else { identity.named.as_slice() };
    if let Some(name) = order.iter().skip(1).find(|name| !is_of_image(&reachable, name)) {
        return Err(Trouble::new(NodeReason::ModuleNotFound, format!("the image holds no module `{name}`")));
    }
    generate(place, &reachable, order, &lines, program, folder)?;

    let arguments = modprobe::load_arguments(spec, folder);
    let finished = program.look_up("modprobe", &modprobe::dry_run(&arguments))?;
    let insertions = modprobe::insertions(&finished.answer);
    if !finished.success || insertions.is_empty() {
        let modules = identity.named.join(", ");
        let said = if finished.tail.is_empty() { finished.how } else { finished.tail.join(" | ") };
        let message = format!("modprobe would insert nothing for {modules}: {said}");
        return Err(Trouble::new(NodeReason::ModuleNotFound, message));
    }
    let forced = modprobe::aim(&arguments).forces;
    let files = files(place, identity, &reachable, insertions, forced, folder)?;
    let main = files.iter().find(|file| file.name == identity.main());
    let known = main.and_then(|file| reachable.modules.get(&file.name)).map(|reached| &reached.file.info.parameters);
    let unknown_parameters = params::decode(&identity.parameters)
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| known.is_some_and(|known| !known.contains(name)))
        .collect();
    let modprobe = Some(Modprobe { folder: folder.to_owned(), arguments });
    Ok(LoadSet { files, unknown_parameters, modprobe, ..LoadSet::default() })
}

/// The Module's own lines, and those of the files of its image, in the order of their names.
fn lines(tree: &Path, by: &ByModprobe) -> Result<String, Trouble> {
    let mut lines = by.config.clone();
    let Some(dir) = &by.dir else { return Ok(lines) };
    let refused = |why: &str| {
        Trouble::new(NodeReason::UnsupportedArgs, format!("modprobe.modprobedDir: {dir} of the image {why}"))
    };
    let unreadable =
        |error: &io::Error| Trouble::of_store(error, format!("{dir} of the image cannot be read: {error}"));
    let root = fs::canonicalize(tree).map_err(|error| unreadable(&error))?;
    let folder = match fs::read_dir(examine::inside(tree, dir)) {
        Ok(folder) => folder,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(refused("is no folder"));
        }
        Err(error) => return Err(unreadable(&error)),
    };
    let mut paths: Vec<_> =
        folder.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>().map_err(|e| unreadable(&e))?;
    paths.sort();
    let (mut any, mut size) = (false, 0);
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(real) = fs::canonicalize(&path).ok().filter(|real| real.starts_with(&root)) else { continue };
        if real.is_dir() {
            return Err(refused(&format!("holds a folder, `{name}`; put the files beside one another")));
        }
        any = true;
        // modprobe takes no others.
        if path.extension().is_none_or(|extension| extension != "conf") {
            continue;
        }
        size += fs::metadata(&real).map_err(|error| unreadable(&error))?.len();
        if size > MAX_LINES {
            return Err(refused(&format!("holds more than {MAX_LINES} bytes")));
        }
        let text = String::from_utf8_lossy(&fs::read(&real).map_err(|error| unreadable(&error))?).into_owned();
        modprobe_d::check(&text).map_err(|why| refused(&format!("cannot be carried out, {name}: {why}")))?;
        lines = format!("{lines}\n{text}");
    }
    if any { Ok(lines) } else { Err(refused("is empty")) }
}

fn is_of_image(reachable: &Reachable, name: &str) -> bool {
    reachable.modules.get(name).is_some_and(|reached| reached.source == Source::Image)
}

/// Writes the folder beside, indexes it and puts it in its place.
fn generate(
    place: &Place<'_>,
    reachable: &Reachable,
    order: &[String],
    config: &str,
    program: &Program,
    folder: &Path,
) -> Result<(), Trouble> {
    let beside = folder.with_extension("new");
    let write = || -> io::Result<()> {
        for old in [&beside, &folder.with_extension("old")] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
        }
        let (root, modules) = (beside.join(ROOT), beside.join(ROOT).join("lib/modules").join(place.release));
        for folder in [&modules, &root.join("usr"), &beside.join(CONFIG), &beside.join("depmod.d")] {
            fs::create_dir_all(folder)?;
        }
        // Where kmod was built to look there.
        symlink("../lib", root.join("usr/lib"))?;
        for reached in reachable.modules.values() {
            let below = modules.join(if reached.source == Source::Image { "image" } else { "host" });
            fs::create_dir_all(&below)?;
            put(reached, &below)?;
        }
        let host = place.host_modules.join(place.release);
        for text in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
            match fs::read(host.join(text)) {
                Ok(content) => fs::write(modules.join(text), content)?,
                Err(_) if text.ends_with("modinfo") => {}
                Err(_) => fs::write(modules.join(text), "")?,
            }
        }
        let soft: Soft = reachable.modules.iter().map(|(name, reached)| (name.clone(), reached.soft.clone())).collect();
        // Its name sorts before `modules.softdep`: of two lines for one module modprobe takes the first.
        fs::write(beside.join(CONFIG).join("kmm.conf"), modprobe_d::file(order, &soft, config))
    };
    let failed =
        |error: io::Error| Trouble::of_store(&error, format!("the files for modprobe cannot be written: {error}"));
    write().map_err(failed)?;
    let path = |part: &str| beside.join(part).display().to_string();
    let arguments = ["-b".into(), path(ROOT), "-C".into(), path("depmod.d"), place.release.to_owned()];
    let indexed = program.look_up("depmod", &arguments)?;
    if !indexed.success {
        let message = format!("depmod left with {}: {}", indexed.how, indexed.tail.join(" | "));
        return Err(Trouble::new(NodeReason::InvalidModule, message));
    }
    debug!(folder = %folder.display(), "generated for modprobe");
    let swap = || -> io::Result<()> {
        let old = folder.with_extension("old");
        if folder.exists() {
            fs::rename(folder, &old)?;
        }
        fs::rename(&beside, folder)?;
        if old.exists() { fs::remove_dir_all(old) } else { Ok(()) }
    };
    swap().map_err(failed)
}

/// A module below a folder of the root: a link, or an unpacked copy of a packed one.
fn put(reached: &Reached, below: &Path) -> io::Result<()> {
    let file = reached.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = file.split_once(".ko").map_or(file, |(stem, _)| stem);
    let target = below.join(format!("{stem}.ko"));
    match reached.packing {
        Packing::Plain => symlink(&reached.path, target),
        Packing::Gzip | Packing::Xz | Packing::Zstd => {
            fs::write(target, &*module_file::read(&reached.path, reached.packing)?)
        }
    }
}

/// What will be inserted, checked as far as the files are the image's.
fn files(
    place: &Place<'_>,
    identity: &LoadIdentity,
    reachable: &Reachable,
    insertions: Vec<Insertion>,
    forced: bool,
    folder: &Path,
) -> Result<Vec<LoadFile>, Trouble> {
    let named: BTreeSet<&String> = identity.named.iter().collect();
    let mut files = Vec::with_capacity(insertions.len());
    for Insertion { path, parameters } in insertions {
        let Some((name, packing)) = names::of_file(&path.display().to_string()) else { continue };
        let role = if named.contains(&name) { Role::Named } else { Role::Needed };
        let own = reachable.modules.get(&name).filter(|_| path.starts_with(folder));
        // Not among ours: from a folder of the user's choice.
        let Some(reached) = own else {
            let file = read_module(&path, packing, place.machine).unwrap_or_default();
            let (identity, facts) = (file.identity, file.facts);
            files.push(LoadFile { name, path, packing, role, identity, preset: parameters, facts });
            continue;
        };
        if reached.source == Source::Image && !forced {
            let (magic, versions) = (reached.file.info.vermagic.as_deref(), reached.file.has_symbol_versions);
            vermagic::check(magic, versions, reachable.kernel_magic.as_deref(), place.release).map_err(|why| {
                Trouble::new(NodeReason::VermagicMismatch, format!("{}: {why}", reached.path.display()))
            })?;
        }
        let (path, packing) = (reached.path.clone(), reached.packing);
        let (identity, facts) = (reached.file.identity.clone(), reached.file.facts.clone());
        files.push(LoadFile { name, path, packing, role, identity, preset: parameters, facts });
    }
    // The name was an alias: modprobe inserts what it stands for after everything that this needs.
    if !files.iter().any(|file| file.role == Role::Named)
        && let Some(last) = files.last_mut()
    {
        last.role = Role::Named;
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_image_count_in_the_order_of_their_names_and_what_cannot_be_carried_out_is_named() {
        type Fault = fn(&Path);
        const LINES: Result<&str, &str> = Ok("alias x y\noptions kmm_a level=1\n\noptions kmm_a level=2\n");
        let faults: [(Fault, Result<&str, &str>); 7] = [
            (|_| {}, LINES),
            (|dir| fs::write(dir.join("c.txt"), "install x /bin/sh").unwrap(), LINES),
            (|dir| symlink("/etc/passwd", dir.join("out.conf")).unwrap(), LINES),
            (|dir| fs::write(dir.join("c.conf"), "\ninstall x /bin/sh").unwrap(), Err("c.conf: line 2: `install`")),
            (|dir| fs::create_dir(dir.join("deep")).unwrap(), Err("holds a folder, `deep`")),
            (|dir| fs::remove_dir_all(dir).unwrap(), Err("is no folder")),
            (
                |dir| ["a.conf", "b.conf"].iter().for_each(|name| fs::remove_file(dir.join(name)).unwrap()),
                Err("is empty"),
            ),
        ];
        for (fault, expected) in faults {
            let tree = tempfile::tempdir().unwrap();
            let dir = tree.path().join("etc/modprobe.d");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("b.conf"), "options kmm_a level=2\n").unwrap();
            fs::write(dir.join("a.conf"), "options kmm_a level=1\n").unwrap();
            fault(&dir);
            let dir = Some("/etc/modprobe.d".to_owned());
            let by = ByModprobe { raw: false, load: Vec::new(), config: "alias x y".into(), dir };
            match (lines(tree.path(), &by), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(trouble), Err(words)) => {
                    assert_eq!(trouble.reason, NodeReason::UnsupportedArgs);
                    assert!(trouble.message.contains(words), "{}", trouble.message);
                }
                (found, expected) => panic!("{found:?}, expected {expected:?}"),
            }
        }
    }
}
