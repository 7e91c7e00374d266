//! Names of kernel modules and of their files.

/// How a module's file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// `.ko`
    Plain,
    /// `.ko.gz`
    Gzip,
    /// `.ko.xz`
    Xz,
    /// `.ko.zst`
    Zstd,
}

const ENDINGS: [(&str, Packing); 4] =
    [(".ko", Packing::Plain), (".ko.gz", Packing::Gzip), (".ko.xz", Packing::Xz), (".ko.zst", Packing::Zstd)];

/// The name as the kernel has it: `-` is `_`. Source: `KBUILD_MODNAME` in `scripts/Makefile.lib` of Linux.
pub fn kernel_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Name (as the kernel has it) and packing of a module's file; `None` for a file that is no module.
///
/// Only the last component of `path` counts.
pub fn of_file(path: &str) -> Option<(String, Packing)> {
    let file = path.rsplit('/').next().unwrap_or(path);
    ENDINGS.iter().find_map(|(ending, packing)| {
        let stem = file.strip_suffix(ending)?;
        (!stem.is_empty()).then(|| (kernel_name(stem), *packing))
    })
}

/// Whether the kernel, `/sys` and our own paths can take this as a module's name.
///
/// 55 bytes is `MODULE_NAME_LEN` of a 64-bit kernel without the closing zero.
pub fn is_valid(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 55
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_tells_the_kernels_name_and_its_packing() {
        let table = [
            ("/opt/lib/modules/6.1/kmm-dash.ko", Some(("kmm_dash", Packing::Plain))),
            ("a/b_c-d.ko.gz", Some(("b_c_d", Packing::Gzip))),
            ("x.ko.xz", Some(("x", Packing::Xz))),
            ("x.ko.zst", Some(("x", Packing::Zstd))),
            ("dots.in.name.ko", Some(("dots.in.name", Packing::Plain))),
            (".ko", None),
            ("modules.dep", None),
            ("x.ko.bz2", None),
            ("x.kot", None),
            ("dir.ko/", None),
            ("", None),
        ];
        for (path, expected) in table {
            assert_eq!(of_file(path), expected.map(|(name, packing)| (name.to_owned(), packing)), "{path}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let long = "x".repeat(56);
        for (name, expected) in [
            ("kmm_plain", true),
            ("a.b", true),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("ä", false),
            ("a\0", false),
            (long.as_str(), false),
            (&long[..55], true),
        ] {
            assert_eq!(is_valid(name), expected, "{name:?}");
        }
    }
}
