//! Modules that a kernel itself came with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::core::kmod::modules_dep::{self, Entry};
use crate::worker::image::examine::folder::{Found, walk};
use crate::worker::module_file::read_module;
use crate::worker::record::published::OURS;

/// Files of a module that `modules.dep` of a kernel's folder lists, in the order of loading: what it needs first, the
/// module last. Empty if it lists none of that name.
///
/// depmod lists one file of a name only, and of one that is published for a Module that one. The kernel's own is
/// searched for then, and itself says what it needs.
pub(super) fn own_module(folder: &Path, machine: &str, name: &str) -> io::Result<Vec<PathBuf>> {
    let listed = modules_dep::parse(&fs::read_to_string(folder.join("modules.dep"))?);
    let mut own = Own { folder, machine, listed, found: Found::new(), seen: BTreeSet::new(), files: Vec::new() };
    own.add(name)?;
    Ok(own.files)
}

struct Own<'a> {
    folder: &'a Path,
    machine: &'a str,
    listed: BTreeMap<String, Entry>,
    /// All files but those of Modules; none before they had to be searched for.
    found: Found,
    seen: BTreeSet<String>,
    files: Vec<PathBuf>,
}

impl Own<'_> {
    fn add(&mut self, name: &str) -> io::Result<()> {
        let Some(entry) = self.listed.get(name).cloned() else { return Ok(()) };
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let ours = self.folder.join(OURS);
        let mut path = self.folder.join(entry.path);
        let mut needs = entry.needs;
        if path.starts_with(&ours) {
            let Some((own, packing)) = self.found()?.get(name).cloned() else { return Ok(()) };
            needs = read_module(&own, packing, self.machine).map(|file| file.info.depends).map_err(io::Error::other)?;
            path = own;
        }
        for need in needs {
            self.add(&need)?;
        }
        self.files.push(path);
        Ok(())
    }

    fn found(&mut self) -> io::Result<&Found> {
        if self.found.is_empty() {
            let (updates, ours) = (self.folder.join("updates"), self.folder.join(OURS));
            // As depmod prefers them where nothing else is configured.
            if updates.is_dir() {
                walk(&updates, Some(&ours), 0, &mut self.found)?;
            }
            walk(self.folder, Some(&ours), 0, &mut self.found)?;
        }
        Ok(&self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::kmod::elf;

    #[test]
    fn what_is_published_for_a_module_is_not_the_kernels_own() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        let put = |path: &str, depends: &str| {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, elf::testing::module(&format!("depends={depends}\0"), &[1])).unwrap();
        };
        put("updates/kmm/drivers.gpu/gpu.ko", "lib");
        put("updates/kmm/drivers.gpu/lib.ko", "");
        put("updates/kmm/drivers.gpu/only.ko", "");
        put("updates/net.ko", "");
        put("kernel/gpu.ko", "deep");
        put("kernel/net.ko", "");
        put("kernel/lib/lib.ko", "core");
        let dep = "updates/kmm/drivers.gpu/gpu.ko: updates/kmm/drivers.gpu/lib.ko\n\
                   updates/kmm/drivers.gpu/lib.ko:\nupdates/kmm/drivers.gpu/only.ko:\n\
                   updates/kmm/drivers.net/net.ko:\nkernel/core.ko:\nkernel/deep.ko: kernel/mid.ko kernel/core.ko\n\
                   kernel/mid.ko: kernel/core.ko\nkernel/top.ko: updates/kmm/drivers.gpu/lib.ko\n";
        fs::write(folder.join("modules.dep"), dep).unwrap();
        let own = |name: &str| {
            let files = own_module(folder, "x86_64", name).unwrap();
            files.iter().map(|path| path.strip_prefix(folder).unwrap().display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(own("deep"), ["kernel/core.ko", "kernel/mid.ko", "kernel/deep.ko"]);
        assert_eq!(own("gpu"), ["kernel/core.ko", "kernel/mid.ko", "kernel/deep.ko", "kernel/gpu.ko"]);
        assert_eq!(own("top"), ["kernel/core.ko", "kernel/lib/lib.ko", "kernel/top.ko"]);
        assert_eq!(own("net"), ["updates/net.ko"]);
        assert_eq!(own("only"), [""; 0], "the kernel came with none of that name");
        assert_eq!(own("absent"), [""; 0]);
    }
}
