//! One folder `lib/modules/<release>`: of an image, or of the host.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::tree::MAX_FILES;
use crate::core::kmod::modules_dep::{self, Entry};
use crate::core::kmod::names::{self, Packing};
use crate::worker::module_file::read_module;

/// Deepest folder that is looked at.
const MAX_DEPTH: usize = 32;
/// Largest of the text files beside modules.
const MAX_TEXT: u64 = 64 * 1024 * 1024;
/// Modules of the kernel's own build that are tried for what it writes into all of them.
const TRIED: usize = 8;

/// Files of modules by name.
pub type Found = BTreeMap<String, (PathBuf, Packing)>;
/// Modules that should be loaded before and after another.
type Around = (Vec<String>, Vec<String>);

/// The modules of a folder. Texts beside them are read when something asks for them, and once: those of a distribution's
/// kernel list thousands of modules, of which a load needs a few or none.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    files: Found,
    dep: OnceCell<BTreeMap<String, Entry>>,
    soft: OnceCell<BTreeMap<String, Around>>,
    symbols: OnceCell<BTreeMap<String, String>>,
    builtin: OnceCell<BTreeSet<String>>,
}

impl Folder {
    /// A folder whose `modules.dep` lists all that counts; it may be missing.
    pub(super) fn listed(path: PathBuf) -> Self {
        let (dep, soft, symbols, builtin) = (OnceCell::new(), OnceCell::new(), OnceCell::new(), OnceCell::new());
        Self { path, files: Found::new(), dep, soft, symbols, builtin }
    }

    /// A folder that is searched for files that `modules.dep` does not list.
    pub(super) fn searched(path: PathBuf) -> io::Result<Self> {
        let mut folder = Self::listed(path);
        let listed = folder.dep().keys().filter_map(|name| Some((name.clone(), folder.listed_file(name)?)));
        let mut files = listed.collect();
        walk(&folder.path, None, 0, &mut files)?;
        folder.files = files;
        Ok(folder)
    }

    /// Names of the modules whose files were searched for.
    pub(super) fn files(&self) -> impl Iterator<Item = &String> {
        self.files.keys()
    }

    /// The file of a module.
    pub(super) fn file(&self, name: &str) -> Option<(PathBuf, Packing)> {
        self.files.get(name).cloned().or_else(|| self.listed_file(name))
    }

    /// Relative paths without `..` only: an image must not point at the host.
    fn listed_file(&self, name: &str) -> Option<(PathBuf, Packing)> {
        self.existing(&self.dep().get(name)?.path)
    }

    fn existing(&self, path: &str) -> Option<(PathBuf, Packing)> {
        let (_, packing) = names::of_file(path)?;
        let is_inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        let path = self.path.join(path);
        (is_inside && path.is_file()).then_some((path, packing))
    }

    /// What a module needs, as `modules.dep` says; `None` if it is not listed.
    pub(super) fn needs(&self, name: &str) -> Option<&[String]> {
        self.dep().get(name).map(|entry| entry.needs.as_slice())
    }

    /// The module that provides a symbol, as `modules.symbols` says.
    pub(super) fn provider(&self, symbol: &str) -> Option<&String> {
        self.symbols().get(symbol)
    }

    /// Symbols that modules provide which `modules.symbols` was not made from.
    pub(super) fn unlisted_symbols(&self, machine: &str) -> BTreeMap<String, String> {
        let mut providers = BTreeMap::new();
        for (name, (path, packing)) in &self.files {
            if (self.symbols().is_empty() || self.needs(name).is_none())
                && let Ok(file) = read_module(path, *packing, machine)
            {
                providers.extend(file.exported.into_iter().map(|symbol| (symbol, name.clone())));
            }
        }
        providers
    }

    fn symbols(&self) -> &BTreeMap<String, String> {
        self.symbols.get_or_init(|| modules_dep::parse_symbols(&self.text("modules.symbols").unwrap_or_default()))
    }

    /// What should be loaded before and after a module, as `modules.softdep` says.
    pub(super) fn soft(&self, name: &str) -> Option<&Around> {
        self.soft
            .get_or_init(|| modules_dep::parse_softdep(&self.text("modules.softdep").unwrap_or_default()))
            .get(name)
    }

    /// Whether the module is a part of the kernel.
    pub(super) fn is_built_in(&self, name: &str) -> bool {
        self.builtin
            .get_or_init(|| modules_dep::parse_builtin(&self.text("modules.builtin").unwrap_or_default()))
            .contains(name)
    }

    /// What the kernel's own build writes into modules, flags included.
    ///
    /// `None` where the folder is missing, or holds modules of another build: no check is better than a wrong one, since
    /// the kernel checks too.
    pub(super) fn vermagic(&self, machine: &str, release: &str) -> Option<String> {
        let dep = self.text("modules.dep")?;
        // The first readable one is as good as any: they are all of the kernel's own build.
        let own = modules_dep::entries(&dep).map(|(_, entry)| entry.path).filter(|path| path.starts_with("kernel/"));
        let magic = own.take(TRIED).find_map(|path| {
            let (path, packing) = self.existing(&path)?;
            read_module(&path, packing, machine).ok()?.info.vermagic
        });
        magic.filter(|magic| magic.split_whitespace().next() == Some(release))
    }

    fn dep(&self) -> &BTreeMap<String, Entry> {
        self.dep.get_or_init(|| modules_dep::parse(&self.text("modules.dep").unwrap_or_default()))
    }

    fn text(&self, name: &str) -> Option<String> {
        let path = self.path.join(name);
        if fs::metadata(&path).ok()?.len() > MAX_TEXT {
            return None;
        }
        Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned())
    }
}

/// Adds module files below the folder that are not known yet, but for those of one folder; links are not followed.
pub fn walk(folder: &Path, without: Option<&Path>, depth: usize, files: &mut Found) -> io::Result<()> {
    if depth > MAX_DEPTH || without == Some(folder) {
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type()?;
        let path = entry.path();
        if kind.is_dir() {
            walk(&path, without, depth + 1, files)?;
        } else if (kind.is_file() || (kind.is_symlink() && path.is_file()))
            && files.len() < MAX_FILES
            && let Some((name, packing)) = entry.file_name().to_str().and_then(names::of_file)
        {
            files.entry(name).or_insert((path, packing));
        }
    }
    Ok(())
}
