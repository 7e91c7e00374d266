//! Reads the module files of an unpacked image, and of the host where they are needed, into an order of loading.

mod firmware_files;
pub mod folder;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use self::firmware_files::firmware;
use self::folder::Folder;
use self::tree::{inside, store_failed};
use crate::api::names::NodeReason;
use crate::core::kernel::{spellings, trimmed};
use crate::core::kmod::elf::ModuleFile;
use crate::core::kmod::names::Packing;
use crate::core::kmod::order::{self, Candidate, Candidates, Role, Source};
use crate::core::kmod::{cmdline, params, vermagic};
use crate::core::load::LoadIdentity;
use crate::worker::facts::Trouble;
use crate::worker::module_file::read_module;
use crate::worker::plan::{LoadFile, LoadSet};

/// Where to look, and what the kernel is.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// Folder with the unpacked image.
    pub tree: &'a Path,
    /// The host's `/lib/modules`.
    pub host_modules: &'a Path,
    /// Release of the running kernel.
    pub release: &'a str,
    /// Architecture by Rust's name.
    pub machine: &'a str,
    /// Modules that are loaded now.
    pub loaded: &'a BTreeSet<String>,
    /// The kernel's command line.
    pub kernel_cmdline: &'a str,
}

/// Everything that must be loaded for an entry, checked as the kernel will check it.
pub fn load_set(place: &Place<'_>, identity: &LoadIdentity) -> Result<LoadSet, Trouble> {
    let (image, host) = folders(place, identity)?;
    let named = identity.named.iter().map(|name| (name.clone(), true)).collect();
    let (candidates, read) = gather(place, named, &image, &host)?;
    let present = |name: &str| place.loaded.contains(name) || host.is_built_in(name);
    let steps = order::load_order(&identity.named, &candidates, &present).map_err(|error| {
        let reason = match error {
            order::Error::NotFound(_) => NodeReason::ModuleNotFound,
            order::Error::Missing { .. } | order::Error::Circle(_) | order::Error::TooLong(_) => {
                NodeReason::DependencyMissing
            }
        };
        Trouble::new(reason, error.to_string())
    })?;

    let kernel_magic = host.vermagic(place.machine, place.release);
    let (mut files, mut of_image) = (Vec::with_capacity(steps.len()), Vec::new());
    for step in steps {
        let Some((path, packing, file)) = read.get(&step.name) else { continue };
        if step.source == Source::Image && step.role != Role::Optional {
            let magic = file.info.vermagic.as_deref();
            vermagic::check(magic, file.has_symbol_versions, kernel_magic.as_deref(), place.release)
                .map_err(|why| Trouble::new(NodeReason::VermagicMismatch, format!("{}: {why}", path.display())))?;
        }
        if step.source == Source::Image {
            of_image.push(path.clone());
        }
        files.push(LoadFile {
            name: step.name.clone(),
            path: path.clone(),
            packing: *packing,
            role: step.role,
            identity: file.identity.clone(),
            preset: cmdline::parameters(place.kernel_cmdline, &step.name).join(" "),
            facts: file.facts.clone(),
        });
    }
    let known = read.get(identity.main()).map(|(_, _, file)| file.info.parameters.clone()).unwrap_or_default();
    let unknown_parameters = params::decode(&identity.parameters)
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| !known.contains(name))
        .collect();
    let firmware = firmware(place.tree, identity)?;
    Ok(LoadSet { files, unknown_parameters, firmware, of_image, modprobe: None })
}

/// A module that can be reached from an image.
#[derive(Clone, Debug)]
pub(super) struct Reached {
    /// Where its file is.
    pub(super) source: Source,
    /// Its file.
    pub(super) path: PathBuf,
    /// How it is packed.
    pub(super) packing: Packing,
    /// What stands in it.
    pub(super) file: ModuleFile,
    /// What should be loaded before and after it.
    pub(super) soft: (Vec<String>, Vec<String>),
}

/// Everything that can be reached from an image.
#[derive(Clone, Debug)]
pub(super) struct Reachable {
    /// By name as the kernel has it.
    pub(super) modules: BTreeMap<String, Reached>,
    /// Vermagic of the kernel, where its own modules tell.
    pub(super) kernel_magic: Option<String>,
}

/// All readable modules of the image, and those of the host that they lead to or that are among `more`.
pub(super) fn reachable(place: &Place<'_>, identity: &LoadIdentity, more: &[String]) -> Result<Reachable, Trouble> {
    let (image, host) = folders(place, identity)?;
    let open = image.files().chain(more).map(|name| (name.clone(), false)).collect();
    let (mut candidates, read) = gather(place, open, &image, &host)?;
    let modules = read.into_iter().filter_map(|(name, (path, packing, file))| {
        let Candidate { source, soft_before, soft_after, .. } = candidates.remove(&name)?;
        Some((name, Reached { source, path, packing, file, soft: (soft_before, soft_after) }))
    });
    let modules = modules.collect();
    Ok(Reachable { modules, kernel_magic: host.vermagic(place.machine, place.release) })
}

/// The modules of the image, and those of the host.
fn folders(place: &Place<'_>, identity: &LoadIdentity) -> Result<(Folder, Folder), Trouble> {
    let image = Folder::searched(image_folder(place, identity)?).map_err(|error| store_failed(&error))?;
    Ok((image, Folder::listed(place.host_modules.join(place.release))))
}

/// `<dirName>/lib/modules/<release>`, or with the release as the planner writes it.
fn image_folder(place: &Place<'_>, identity: &LoadIdentity) -> Result<PathBuf, Trouble> {
    let modules = inside(place.tree, &identity.dir_name).join("lib/modules");
    let candidates = spellings(place.release);
    candidates.iter().map(|release| modules.join(release)).find(|folder| folder.is_dir()).ok_or_else(|| {
        let message = format!("the image holds no folder {}/lib/modules/{}", identity.dir_name, trimmed(place.release));
        Trouble::new(NodeReason::ModuleNotFound, message)
    })
}

type Read = BTreeMap<String, (PathBuf, Packing, ModuleFile)>;

/// Reads the modules of `open` and everything that they lead to; those that are not required may be unreadable.
fn gather(
    place: &Place<'_>,
    mut open: Vec<(String, bool)>,
    image: &Folder,
    host: &Folder,
) -> Result<(Candidates, Read), Trouble> {
    let mut candidates = Candidates::new();
    let mut read = Read::new();
    let mut unlisted: Option<BTreeMap<String, String>> = None;
    while let Some((name, required)) = open.pop() {
        if candidates.contains_key(&name) {
            continue;
        }
        let of_image = image.file(&name).map(|found| (Source::Image, image, found));
        let of_host = || host.file(&name).map(|found| (Source::Host, host, found));
        let Some((source, modules, (path, packing))) = of_image.or_else(of_host) else { continue };
        let file = match read_module(&path, packing, place.machine) {
            Ok(file) => file,
            Err(_) if !required => continue,
            Err(why) => return Err(Trouble::new(NodeReason::InvalidModule, format!("{}: {why}", path.display()))),
        };
        let mut needs = modules.needs(&name).unwrap_or(&file.info.depends).to_vec();
        let mut soft_before = file.info.soft_before.clone();
        let mut soft_after = file.info.soft_after.clone();
        if let Some((before, after)) = modules.soft(&name) {
            soft_before.extend_from_slice(before);
            soft_after.extend_from_slice(after);
        }
        if source == Source::Image {
            // The index may be of a depmod that could not see the kernel's own modules, or of other files. What the file alone
            // tells counts where it can be had: otherwise the kernel may have it built in, and says so if not.
            let unlisted = unlisted.get_or_insert_with(|| image.unlisted_symbols(place.machine));
            let is_there = |need: &&String| image.file(need).or_else(|| host.file(need)).is_some();
            let provider = |symbol: &String| {
                let of_image = unlisted.get(symbol).or_else(|| image.provider(symbol)).filter(is_there);
                of_image.or_else(|| host.provider(symbol).filter(is_there))
            };
            let symbols = file.undefined.iter().filter_map(provider);
            needs.extend(file.info.depends.iter().filter(is_there).chain(symbols).cloned());
        }
        let mut known = BTreeSet::from([name.clone()]);
        needs.retain(|need| known.insert(need.clone()));
        open.extend(needs.iter().map(|need| (need.clone(), required)));
        open.extend(soft_before.iter().chain(&soft_after).map(|soft| (soft.clone(), false)));
        candidates.insert(name.clone(), Candidate { source, needs, soft_before, soft_after });
        read.insert(name, (path, packing, file));
    }
    Ok((candidates, read))
}
