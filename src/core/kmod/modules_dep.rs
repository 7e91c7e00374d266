//! `modules.dep` and `modules.builtin`, the text files that depmod and the kernel's build leave beside modules.

use std::collections::{BTreeMap, BTreeSet};

use super::names;

/// One line of `modules.dep`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path of the file, relative to the folder of `modules.dep` unless absolute.
    pub path: String,
    /// Names of the modules that it needs, as the kernel has them, in the order of the line.
    pub needs: Vec<String>,
}

/// Reads `modules.dep`: modules by name, as the kernel has it.
///
/// Lines that are no entry are skipped. Of two files of one name the first wins, as in kmod's index.
pub fn parse(text: &str) -> BTreeMap<String, Entry> {
    let mut modules = BTreeMap::new();
    for line in text.lines() {
        let Some((path, needs)) = line.split_once(':') else { continue };
        let path = path.trim();
        let Some((name, _)) = names::of_file(path) else { continue };
        let needs = needs.split_whitespace().filter_map(|need| Some(names::of_file(need)?.0)).collect();
        modules.entry(name).or_insert(Entry { path: path.to_owned(), needs });
    }
    modules
}

/// Reads `modules.builtin`: names, as the kernel has them, of modules that are part of the kernel.
pub fn parse_builtin(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| Some(names::of_file(line.trim())?.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_the_kernels_name() {
        let text = "kmm-top.ko: kmm-base.ko host/kernel/lib/crc-x.ko.xz\nkmm-base.ko:\n\nnonsense\nsecond/kmm-base.ko: a.ko\nnot-a-module: b.ko\n";
        assert_eq!(
            parse(text),
            BTreeMap::from([
                ("kmm_base".into(), Entry { path: "kmm-base.ko".into(), needs: vec![] }),
                ("kmm_top".into(), Entry { path: "kmm-top.ko".into(), needs: vec!["kmm_base".into(), "crc_x".into()] }),
            ])
        );
    }

    #[test]
    fn builtin_modules_are_names() {
        assert_eq!(
            parse_builtin("kernel/fs/ext4/ext4.ko\nkernel/lib/crc-ccitt.ko\n\njunk\n"),
            BTreeSet::from(["crc_ccitt".to_owned(), "ext4".to_owned()])
        );
    }
}
