//! Paths inside an image.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use crate::oci::limits::clean;

/// Most links followed on the way to one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// What symbolic links hold, with the number of the layer that has them.
pub(super) type Links = BTreeMap<PathBuf, (PathBuf, usize)>;

/// What a map has at and below a path.
pub(super) fn below<'a, V>(
    map: &'a BTreeMap<PathBuf, V>,
    path: &'a Path,
) -> impl Iterator<Item = (&'a PathBuf, &'a V)> {
    map.range::<Path, _>((Bound::Included(path), Bound::Unbounded))
        .take_while(move |(found, _)| found.starts_with(path))
}

/// Where `path` leads in the image; every path that was asked on the way goes to `asked`. `None` for endless links.
pub(super) fn follow(path: &Path, links: &Links, asked: &mut BTreeSet<PathBuf>) -> Option<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let mut so_far = PathBuf::new();
        let mut next = None;
        for part in path.components() {
            let parent = so_far.clone();
            so_far.push(part);
            asked.insert(so_far.clone());
            if let Some((target, _)) = links.get(&so_far) {
                let rest = path.strip_prefix(&so_far).unwrap_or(Path::new(""));
                // An absolute target replaces the parent.
                next = Some(clean(&parent.join(target).join(rest)));
                break;
            }
        }
        match next {
            Some(next) => path = next,
            None => return Some(path),
        }
    }
    None
}
