//! Reads the module files of an unpacked image, and of the host where they are needed, into an order of loading.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::firmware::Firmware;
use super::kernel::Trouble;
use super::plan::{LoadFile, LoadSet};
use super::unpack;
use super::wanted::{self, LoadIdentity};
use crate::api::names::NodeReason;
use crate::core::image::Digest;
use crate::core::kmod::elf::{self, ModuleFile};
use crate::core::kmod::modules_dep::{self, Entry};
use crate::core::kmod::names::{self, Packing};
use crate::core::kmod::order::{self, Candidate, Candidates, Role, Source};
use crate::core::kmod::{cmdline, params, vermagic};

/// Deepest folder and most files that are looked at.
const MAX_DEPTH: usize = 32;
const MAX_FILES: usize = 100_000;
/// Longest name of a firmware file, folders included; the kernel takes no longer path.
const MAX_NAME: usize = 1024;
/// Largest of the text files beside modules.
const MAX_TEXT: u64 = 64 * 1024 * 1024;

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
    let folder = image_folder(place, identity)?;
    let host =
        Modules::of_folder(&place.host_modules.join(place.release), false).map_err(|error| store_failed(&error))?;
    let image = Modules::of_folder(&folder, true).map_err(|error| store_failed(&error))?;
    let builtin = modules_dep::parse_builtin(&text(&host.folder.join("modules.builtin")).unwrap_or_default());
    let mut present: BTreeSet<String> = place.loaded.clone();
    present.extend(builtin);

    let named = identity.named.iter().map(|name| (name.clone(), true)).collect();
    let (candidates, read) = gather(place, named, &image, &host)?;
    let steps = order::load_order(&identity.named, &candidates, &present).map_err(|error| {
        let reason = match error {
            order::Error::NotFound(_) => NodeReason::ModuleNotFound,
            order::Error::Missing { .. } | order::Error::Circle(_) | order::Error::TooLong(_) => {
                NodeReason::DependencyMissing
            }
        };
        Trouble::new(reason, error.to_string())
    })?;

    let kernel_magic = host.kernel_vermagic(place.machine, place.release);
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
    let folder = image_folder(place, identity)?;
    let host =
        Modules::of_folder(&place.host_modules.join(place.release), false).map_err(|error| store_failed(&error))?;
    let image = Modules::of_folder(&folder, true).map_err(|error| store_failed(&error))?;
    let open = image.files.keys().chain(more).map(|name| (name.clone(), false)).collect();
    let (mut candidates, read) = gather(place, open, &image, &host)?;
    let modules = read.into_iter().filter_map(|(name, (path, packing, file))| {
        let Candidate { source, soft_before, soft_after, .. } = candidates.remove(&name)?;
        Some((name, Reached { source, path, packing, file, soft: (soft_before, soft_after) }))
    });
    let modules = modules.collect();
    Ok(Reachable { modules, kernel_magic: host.kernel_vermagic(place.machine, place.release) })
}

fn store_failed(error: &io::Error) -> Trouble {
    Trouble::new(NodeReason::StoreFailed, format!("the unpacked image cannot be read: {error}"))
}

/// `<dirName>/lib/modules/<release>`, or with the release as the planner writes it.
fn image_folder(place: &Place<'_>, identity: &LoadIdentity) -> Result<PathBuf, Trouble> {
    let modules = inside(place.tree, &identity.dir_name).join("lib/modules");
    let candidates = [place.release, wanted::trimmed(place.release)];
    candidates.iter().map(|release| modules.join(release)).find(|folder| folder.is_dir()).ok_or_else(|| {
        let message =
            format!("the image holds no folder {}/lib/modules/{}", identity.dir_name, wanted::trimmed(place.release));
        Trouble::new(NodeReason::ModuleNotFound, message)
    })
}

/// Where a path of the image is in the tree. Cleaned as the unpacking cleans it: nothing leads out of the tree.
fn inside(tree: &Path, path: &str) -> PathBuf {
    let mut found = tree.to_owned();
    for part in Path::new(path).components() {
        match part {
            std::path::Component::Normal(part) => found.push(part),
            std::path::Component::ParentDir => {
                if found != tree {
                    found.pop();
                }
            }
            std::path::Component::RootDir | std::path::Component::CurDir | std::path::Component::Prefix(_) => {}
        }
    }
    found
}

/// The firmware of an image, if it is asked for: every file below its folder, by content.
pub(super) fn firmware(tree: &Path, identity: &LoadIdentity) -> Result<Option<Firmware>, Trouble> {
    let Some(path) = identity.firmware_path.as_deref() else { return Ok(None) };
    let folder = inside(tree, path);
    let mut files = BTreeMap::new();
    let missing = |what: &str| {
        let message = format!("the image holds no {what} {path}, which modprobe.firmwarePath names");
        Trouble::new(NodeReason::FirmwareNotFound, message)
    };
    let root = fs::canonicalize(tree).map_err(|error| store_failed(&error))?;
    if !folder.is_dir() {
        return Err(missing("folder"));
    }
    walk_firmware(&root, &folder, "", &mut files).map_err(|error| store_failed(&error))?;
    if files.is_empty() {
        return Err(missing("file in"));
    }
    if files.len() >= MAX_FILES {
        let message =
            format!("modprobe.firmwarePath: there are more than {MAX_FILES} files in {path}; name a smaller folder");
        return Err(Trouble::new(NodeReason::ImageTooLarge, message));
    }
    Ok(Some(Firmware { folder, files }))
}

/// SHA-256 of a file's content.
fn sha256(path: &Path) -> io::Result<String> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_sha256(hasher.finalize().into()).hex().to_owned()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// Adds the files below a folder by name and SHA-256; links are followed as long as they stay in the tree `root`.
fn walk_firmware(root: &Path, folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Ok(real) = fs::canonicalize(&path) else { continue };
        let name = format!("{prefix}{name}");
        // A link to a folder above itself has no end.
        let is_circle = || fs::canonicalize(folder).is_ok_and(|folder| folder.starts_with(&real));
        if !real.starts_with(root) || files.len() >= MAX_FILES || name.len() > MAX_NAME {
            continue;
        }
        if real.is_file() {
            files.insert(name, sha256(&real)?);
        } else if real.is_dir() && !is_circle() {
            walk_firmware(root, &path, &format!("{name}/"), files)?;
        }
    }
    Ok(())
}

/// The modules of one folder `lib/modules/<release>`.
struct Modules {
    folder: PathBuf,
    files: BTreeMap<String, (PathBuf, Packing)>,
    dep: BTreeMap<String, Entry>,
    has_dep: bool,
    soft: BTreeMap<String, (Vec<String>, Vec<String>)>,
}

impl Modules {
    /// `search`: look for files too, not only at what `modules.dep` lists.
    fn of_folder(folder: &Path, search: bool) -> io::Result<Self> {
        let dep = text(&folder.join("modules.dep"));
        let has_dep = dep.is_some();
        let dep = modules_dep::parse(&dep.unwrap_or_default());
        let mut files = BTreeMap::new();
        for (name, entry) in &dep {
            let Some((_, packing)) = names::of_file(&entry.path) else { continue };
            // Relative paths without `..` only: an image must not point at the host.
            let inside = Path::new(&entry.path);
            if inside.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
                let path = folder.join(inside);
                if path.is_file() {
                    files.insert(name.clone(), (path, packing));
                }
            }
        }
        if search {
            walk(folder, 0, &mut files)?;
        }
        let soft = modules_dep::parse_softdep(&text(&folder.join("modules.softdep")).unwrap_or_default());
        Ok(Self { folder: folder.to_owned(), files, dep, has_dep, soft })
    }

    /// What the kernel's own build writes into modules, flags included.
    ///
    /// `None` where the folder is missing, or holds modules of another build: no check is better than a wrong one, since
    /// the kernel checks too.
    fn kernel_vermagic(&self, machine: &str, release: &str) -> Option<String> {
        let own = self.dep.iter().filter(|(_, entry)| entry.path.starts_with("kernel/"));
        // The first readable one is as good as any: they are all of the kernel's own build.
        let magic = own.take(8).find_map(|(name, _)| {
            let (path, packing) = self.files.get(name)?;
            elf::read(&unpack::read(path, *packing).ok()?, machine).ok()?.info.vermagic
        });
        magic.filter(|magic| magic.split_whitespace().next() == Some(release))
    }
}

/// Adds module files below the folder that are not known yet; links are not followed.
fn walk(folder: &Path, depth: usize, files: &mut BTreeMap<String, (PathBuf, Packing)>) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type()?;
        let path = entry.path();
        if kind.is_dir() {
            walk(&path, depth + 1, files)?;
        } else if (kind.is_file() || (kind.is_symlink() && path.is_file()))
            && files.len() < MAX_FILES
            && let Some((name, packing)) = entry.file_name().to_str().and_then(names::of_file)
        {
            files.entry(name).or_insert((path, packing));
        }
    }
    Ok(())
}

fn text(path: &Path) -> Option<String> {
    if fs::metadata(path).ok()?.len() > MAX_TEXT {
        return None;
    }
    Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned())
}

type Read = BTreeMap<String, (PathBuf, Packing, ModuleFile)>;

/// Reads the modules of `open` and everything that they lead to; those that are not required may be unreadable.
fn gather(
    place: &Place<'_>,
    mut open: Vec<(String, bool)>,
    image: &Modules,
    host: &Modules,
) -> Result<(Candidates, Read), Trouble> {
    let mut candidates = Candidates::new();
    let mut read = Read::new();
    let mut providers: Option<BTreeMap<String, String>> = None;
    while let Some((name, required)) = open.pop() {
        if candidates.contains_key(&name) {
            continue;
        }
        let (source, modules) =
            if image.files.contains_key(&name) { (Source::Image, image) } else { (Source::Host, host) };
        let Some((path, packing)) = modules.files.get(&name) else { continue };
        let file = match read_module(path, *packing, place.machine) {
            Ok(file) => file,
            Err(_) if !required => continue,
            Err(why) => return Err(Trouble::new(NodeReason::InvalidModule, format!("{}: {why}", path.display()))),
        };
        let mut needs = match modules.dep.get(&name) {
            Some(entry) => entry.needs.clone(),
            None => file.info.depends.clone(),
        };
        let mut soft_before = file.info.soft_before.clone();
        let mut soft_after = file.info.soft_after.clone();
        if let Some((before, after)) = modules.soft.get(&name) {
            soft_before.extend_from_slice(before);
            soft_after.extend_from_slice(after);
        }
        if source == Source::Image && !image.has_dep {
            let providers = match &mut providers {
                Some(providers) => providers,
                None => providers.insert(exports(image, place.machine)),
            };
            needs.extend(file.undefined.iter().filter_map(|symbol| providers.get(symbol)).cloned());
        }
        let mut known = BTreeSet::from([name.clone()]);
        needs.retain(|need| known.insert(need.clone()));
        open.extend(needs.iter().map(|need| (need.clone(), required)));
        open.extend(soft_before.iter().chain(&soft_after).map(|soft| (soft.clone(), false)));
        candidates.insert(name.clone(), Candidate { source, needs, soft_before, soft_after });
        read.insert(name, (path.clone(), *packing, file));
    }
    Ok((candidates, read))
}

pub(super) fn read_module(path: &Path, packing: Packing, machine: &str) -> Result<ModuleFile, String> {
    let image = unpack::read(path, packing).map_err(|error| error.to_string())?;
    elf::read(&image, machine).map_err(|error| error.to_string())
}

/// Which module of the image provides which symbol, for an image without `modules.dep`.
fn exports(image: &Modules, machine: &str) -> BTreeMap<String, String> {
    let mut providers = BTreeMap::new();
    for (name, (path, packing)) in &image.files {
        if let Ok(file) = read_module(path, *packing, machine) {
            providers.extend(file.exported.into_iter().map(|symbol| (symbol, name.clone())));
        }
    }
    providers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::kmod::elf::testing::module;
    use crate::core::kmod::signature::{self, Signature};
    use crate::core::kmod::{FileFacts, Identity};

    const RELEASE: &str = "6.12.1+";
    const MAGIC: &str = "vermagic=6.12.1+ SMP mod_unload";

    struct Case {
        _root: tempfile::TempDir,
        tree: PathBuf,
        host: PathBuf,
        firmware: Option<String>,
    }

    impl Case {
        fn new(image: &[(&str, Vec<u8>)], host: &[(&str, Vec<u8>)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let (tree, modules) = (root.path().join("tree"), root.path().join("modules"));
            for (folder, files) in [(tree.join("opt/lib/modules/6.12.1"), image), (modules.join(RELEASE), host)] {
                fs::create_dir_all(&folder).unwrap();
                for (name, content) in files {
                    fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
                    fs::write(folder.join(name), content).unwrap();
                }
            }
            Self { _root: root, tree, host: modules, firmware: None }
        }

        fn examine(&self, named: &[&str], parameters: &str) -> Result<LoadSet, Trouble> {
            let identity = LoadIdentity {
                digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
                dir_name: "/opt".into(),
                named: named.iter().map(|name| (*name).to_owned()).collect(),
                parameters: parameters.into(),
                firmware_path: self.firmware.clone(),
                by_modprobe: None,
            };
            let place = Place {
                tree: &self.tree,
                host_modules: &self.host,
                release: RELEASE,
                machine: "x86_64",
                loaded: &BTreeSet::new(),
                kernel_cmdline: "quiet kmm-a.debug=1 kmm_b.debug=2",
            };
            load_set(&place, &identity)
        }

        fn order(&self, named: &[&str]) -> Result<Vec<String>, NodeReason> {
            let set = self.examine(named, "").map_err(|trouble| trouble.reason)?;
            Ok(set.files.into_iter().map(|file| format!("{:?} {}", file.role, file.name)).collect())
        }
    }

    fn ko(info: &str, id: u8) -> Vec<u8> {
        module(&format!("{MAGIC}\0{info}\0"), &[id])
    }

    #[test]
    fn dependencies_come_from_the_image_then_from_the_host() {
        let host: [(&str, Vec<u8>); 4] = [
            ("modules.dep", b"kernel/h.ko: kernel/g.ko\nkernel/g.ko:\n".to_vec()),
            ("modules.builtin", b"kernel/built-in-one.ko\n".to_vec()),
            ("kernel/h.ko", ko("name=h", 8)),
            ("kernel/g.ko", ko("name=g", 9)),
        ];
        let with_dep = Case::new(
            &[
                (
                    "modules.dep",
                    b"extra/kmm-top.ko: kmm-base.ko host/kernel/h.ko host/kernel/g.ko\nkmm-base.ko:\n".to_vec(),
                ),
                ("extra/kmm-top.ko", ko("depends=", 1)),
                ("kmm-base.ko", ko("softdep=pre: g absent", 2)),
            ],
            &host,
        );
        assert_eq!(with_dep.order(&["kmm_top"]).unwrap(), ["Needed g", "Needed h", "Needed kmm_base", "Named kmm_top"]);
        let without = Case::new(
            &[("extra/kmm-top.ko", ko("depends=kmm_base,h,built_in_one", 1)), ("kmm-base.ko", ko("", 2))],
            &host,
        );
        assert_eq!(without.order(&["kmm_top"]).unwrap(), ["Needed kmm_base", "Needed g", "Needed h", "Named kmm_top"]);
    }

    #[test]
    fn soft_dependencies_come_from_the_module_and_from_the_text_beside_it() {
        let host: [(&str, Vec<u8>); 4] = [
            ("modules.dep", b"kernel/h.ko:\nkernel/g.ko:\n".to_vec()),
            ("modules.softdep", b"softdep h pre: g\n".to_vec()),
            ("kernel/h.ko", ko("name=h", 8)),
            ("kernel/g.ko", ko("name=g", 9)),
        ];
        let case = Case::new(
            &[
                ("modules.softdep", b"softdep kmm-top pre: h post: late\n".to_vec()),
                ("kmm-top.ko", ko("softdep=pre: early", 1)),
                ("early.ko", ko("", 2)),
                ("late.ko", ko("", 3)),
            ],
            &host,
        );
        assert_eq!(
            case.order(&["kmm_top"]).unwrap(),
            ["Optional early", "Optional g", "Optional h", "Named kmm_top", "Optional late"]
        );
    }

    #[test]
    fn a_packed_module_is_found_and_known_by_its_build_id() {
        let case = Case::new(&[("kmm-a.ko.zst", zstd::encode_all(ko("parm=level:x", 7).as_slice(), 1).unwrap())], &[]);
        let set = case.examine(&["kmm_a"], "level=1 colour=2").unwrap();
        assert_eq!(set.unknown_parameters, ["colour"]);
        assert_eq!(
            set.files,
            [LoadFile {
                name: "kmm_a".into(),
                path: case.tree.join("opt/lib/modules/6.12.1/kmm-a.ko.zst"),
                packing: Packing::Zstd,
                role: Role::Named,
                identity: Identity { build_id: Some("07".into()), srcversion: None },
                preset: "debug=1".into(),
                facts: FileFacts { size: ko("parm=level:x", 7).len() as u64, ..FileFacts::default() },
            }]
        );
    }

    #[test]
    fn firmware_is_every_file_below_its_folder_and_nothing_outside_the_image() {
        let mut case = Case::new(&[("kmm-a.ko", ko("", 1))], &[]);
        let put = |name: &str, content: &str| {
            let path = case.tree.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        put("firmware/v/a.bin", "a");
        put("firmware/v/deep/b.bin", "b");
        put("other/c.bin", "c");
        fs::create_dir(case.tree.join("empty")).unwrap();
        for (link, target) in [
            ("firmware/same.bin", "v/a.bin"),
            ("firmware/v/deep/up", "../.."),
            ("firmware/w", "v"),
            ("firmware/out", "/etc"),
            ("firmware/gone", "nowhere"),
            ("firmware/near", "../other"),
        ] {
            std::os::unix::fs::symlink(target, case.tree.join(link)).unwrap();
        }
        case.firmware = Some("/firmware/./".into());
        let firmware = case.examine(&["kmm_a"], "").unwrap().firmware.unwrap();
        assert_eq!(firmware.folder, case.tree.join("firmware"));
        let digests: BTreeSet<&String> = firmware.files.values().collect();
        assert_eq!(
            firmware.files.keys().collect::<Vec<_>>(),
            ["near/c.bin", "same.bin", "v/a.bin", "v/deep/b.bin", "w/a.bin", "w/deep/b.bin"]
        );
        assert_eq!(digests.len(), 3);
        assert_eq!(firmware.files["same.bin"], crate::core::hash::hash_bytes(b"a"));
        for missing in ["/absent", "/empty", "/firmware/v/a.bin"] {
            case.firmware = Some(missing.into());
            let trouble = case.examine(&["kmm_a"], "").unwrap_err();
            assert_eq!(trouble.reason, NodeReason::FirmwareNotFound, "{missing}");
            assert!(trouble.message.contains(missing), "{}", trouble.message);
        }
    }

    #[test]
    fn signatures_of_packed_files_and_of_the_hosts_modules_are_seen() {
        let signed = |name: &str| signature::testing::signed(&ko(&format!("name={name}\0depends=g"), 1), b"message");
        let host: [(&str, Vec<u8>); 2] = [
            ("modules.dep", b"kernel/g.ko.xz:\n".to_vec()),
            ("kernel/g.ko.xz", {
                let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
                std::io::Write::write_all(&mut xz, &signature::testing::signed(&ko("name=g", 2), b"")).unwrap();
                xz.finish().unwrap()
            }),
        ];
        let case = Case::new(&[("m.ko.zst", zstd::encode_all(signed("m").as_slice(), 1).unwrap())], &host);
        let set = case.examine(&["m"], "").unwrap();
        assert_eq!(set.files.len(), 2);
        assert!(set.files.iter().all(|file| file.facts.signature == Some(Signature::default())), "{set:?}");
        assert_eq!(set.files[1].facts.size, signed("m").len() as u64, "the size is that of the unpacked file");
    }

    #[test]
    fn a_hosts_folder_of_another_build_does_not_decide_over_a_module() {
        let other = module("name=g\0vermagic=6.12.0 SMP preempt\0", &[9]);
        for (magic, expected) in [("6.12.1+ SMP", true), ("6.12.2 SMP", false)] {
            let host: [(&str, Vec<u8>); 2] =
                [("modules.dep", b"kernel/g.ko:\n".to_vec()), ("kernel/g.ko", other.clone())];
            let case = Case::new(&[("m.ko", module(&format!("vermagic={magic}\0"), &[1]))], &host);
            assert_eq!(case.order(&["m"]).is_ok(), expected, "{magic}");
        }
    }

    #[test]
    fn what_cannot_be_loaded_is_told_before_the_kernel_is_asked() {
        let host: [(&str, Vec<u8>); 2] =
            [("modules.dep", b"kernel/g.ko:\n".to_vec()), ("kernel/g.ko", ko("name=g", 9))];
        let case = Case::new(
            &[
                ("needs.ko", ko("depends=nowhere", 1)),
                ("text.ko", b"no module at all, just text".to_vec()),
                ("other.ko", module("vermagic=5.10.0 SMP mod_unload\0", &[3])),
                ("broken.ko.xz", b"\xfd7zXZ\0rest".to_vec()),
                ("c1.ko", ko("depends=c2", 4)),
                ("c2.ko", ko("depends=c1", 5)),
            ],
            &host,
        );
        for (name, expected) in [
            ("absent", NodeReason::ModuleNotFound),
            ("g", NodeReason::ModuleNotFound),
            ("needs", NodeReason::DependencyMissing),
            ("c1", NodeReason::DependencyMissing),
            ("text", NodeReason::InvalidModule),
            ("broken", NodeReason::InvalidModule),
            ("other", NodeReason::VermagicMismatch),
        ] {
            assert_eq!(case.order(&[name]), Err(expected), "{name}");
        }
        let empty = Case::new(&[], &[]);
        fs::remove_dir_all(empty.tree.join("opt")).unwrap();
        assert_eq!(empty.order(&["a"]), Err(NodeReason::ModuleNotFound));
    }

    #[test]
    fn modules_dep_of_an_image_cannot_lead_out_of_it() {
        let case = Case::new(&[("modules.dep", b"../../../../../etc/evil.ko:\n/etc/evil2.ko:\n".to_vec())], &[]);
        fs::create_dir_all(case.tree.join("../etc")).unwrap();
        fs::write(case.tree.join("../etc/evil.ko"), ko("", 1)).unwrap();
        assert_eq!(case.order(&["evil"]), Err(NodeReason::ModuleNotFound));
    }
}
