//! `modules.dep`, `modules.softdep`, `modules.symbols` and `modules.builtin`, the text files that depmod and the kernel's build leave beside
//! modules.

use std::collections::{BTreeMap, BTreeSet};

use super::{kernel_name, modinfo, names};

/// One line of `modules.dep`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path of the file, relative to the folder of `modules.dep` unless absolute.
    pub path: String,
    /// Names of the modules that it needs, as the kernel has them, in the order of loading, which is the line's reversed.
    pub needs: Vec<String>,
}

/// Reads `modules.dep`: modules by name, as the kernel has it.
///
/// Lines that are no entry are skipped. Of two files of one name the first wins, as in kmod's index.
pub fn parse(text: &str) -> BTreeMap<String, Entry> {
    let mut modules = BTreeMap::new();
    for (name, entry) in entries(text) {
        modules.entry(name).or_insert(entry);
    }
    modules
}

/// The lines of `modules.dep` as they stand, each with the name of its module.
pub fn entries(text: &str) -> impl Iterator<Item = (String, Entry)> {
    text.lines().filter_map(|line| {
        let (path, needs) = line.split_once(':')?;
        let path = path.trim();
        let (name, _) = names::of_file(path)?;
        let needs = needs.split_whitespace().rev().filter_map(|need| Some(names::of_file(need)?.0)).collect();
        Some((name, Entry { path: path.to_owned(), needs }))
    })
}

/// Reads `modules.softdep`: by module, as the kernel has it, what should be loaded before and after it.
///
/// All lines of a module count; kmod takes the first only, and would lose what a module says in two places.
pub fn parse_softdep(text: &str) -> BTreeMap<String, (Vec<String>, Vec<String>)> {
    let mut modules: BTreeMap<String, (Vec<String>, Vec<String>)> = BTreeMap::new();
    for line in text.lines() {
        let Some(("softdep", rest)) = line.trim().split_once(char::is_whitespace) else { continue };
        let Some((name, rest)) = rest.trim().split_once(char::is_whitespace) else { continue };
        let (before, after) = modinfo::soft_dependencies(rest);
        let known = modules.entry(kernel_name(name)).or_default();
        known.0.extend(before);
        known.1.extend(after);
    }
    modules
}

/// Reads `modules.symbols`: by symbol, the module that provides it, as the kernel has it. Of two the first wins.
pub fn parse_symbols(text: &str) -> BTreeMap<String, String> {
    let mut modules = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some("alias"), Some(symbol), Some(module)) = (words.next(), words.next(), words.next())
            && let Some(symbol) = symbol.strip_prefix("symbol:")
        {
            modules.entry(symbol.to_owned()).or_insert_with(|| kernel_name(module));
        }
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
                ("kmm_top".into(), Entry { path: "kmm-top.ko".into(), needs: vec!["crc_x".into(), "kmm_base".into()] }),
            ])
        );
    }

    #[test]
    fn all_soft_dependencies_of_a_module_count() {
        let text = "# Soft dependencies\nsoftdep kmm-top pre: a-b c post: d\nsoftdep kmm_top post: e\nsoftdep lone\nalias x y z\n";
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let expected = (strings(&["a_b", "c"]), strings(&["d", "e"]));
        assert_eq!(parse_softdep(text), BTreeMap::from([("kmm_top".to_owned(), expected)]));
    }

    #[test]
    fn symbols_tell_who_provides_them() {
        let text = "# Aliases for symbols, used by symbol_request().\nalias symbol:crc_itu_t crc-itu-t\n\
                    alias symbol:f one\nalias symbol:f two\nalias pci:x y\nalias symbol:alone\nsymbol:x y\n\n";
        let of = |symbol: &str, module: &str| (symbol.to_owned(), module.to_owned());
        assert_eq!(parse_symbols(text), BTreeMap::from([of("crc_itu_t", "crc_itu_t"), of("f", "one")]));
    }

    #[test]
    fn builtin_modules_are_names() {
        assert_eq!(
            parse_builtin("kernel/fs/ext4/ext4.ko\nkernel/lib/crc-ccitt.ko\n\njunk\n"),
            BTreeSet::from(["crc_ccitt".to_owned(), "ext4".to_owned()])
        );
    }
}
