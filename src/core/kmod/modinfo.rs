//! The `.modinfo` section: `key=value` strings, each closed by a zero byte.

/// What a module says about itself. Absent keys are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modinfo {
    /// Name as the kernel will have it.
    pub name: Option<String>,
    /// Kernel that it was built for, with flags.
    pub vermagic: Option<String>,
    /// Hash over its sources, where the build makes one.
    pub srcversion: Option<String>,
    /// Its own version string.
    pub version: Option<String>,
    /// Modules whose symbols it uses, as the build knew them; names as the kernel has them.
    pub depends: Vec<String>,
    /// Modules that should be loaded before it, if there are such.
    pub soft_before: Vec<String>,
    /// Modules that should be loaded after it, if there are such.
    pub soft_after: Vec<String>,
    /// Parameters that it knows.
    pub parameters: Vec<String>,
    /// Firmware files that it may ask for.
    pub firmware: Vec<String>,
    /// Types of filesystems that it provides, from aliases such as `fs-ext3`.
    pub filesystems: Vec<String>,
}

/// Reads the section. Strings without `=` and unknown keys are skipped; bytes that are no UTF-8 are replaced.
pub fn parse(section: &[u8]) -> Modinfo {
    let mut info = Modinfo::default();
    for entry in section.split(|byte| *byte == 0) {
        let text = String::from_utf8_lossy(entry);
        let Some((key, value)) = text.split_once('=') else { continue };
        let value = value.trim();
        match key {
            "name" => info.name = Some(super::kernel_name(value)),
            "vermagic" => info.vermagic = Some(value.to_owned()),
            "srcversion" => info.srcversion = Some(value.to_owned()),
            "version" => info.version = Some(value.to_owned()),
            "depends" => {
                let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
                info.depends.extend(names.map(super::kernel_name));
            }
            "softdep" => {
                let (before, after) = soft_dependencies(value);
                info.soft_before.extend(before);
                info.soft_after.extend(after);
            }
            "parm" | "parmtype" => {
                let name = super::kernel_name(value.split(':').next().unwrap_or_default().trim());
                if !name.is_empty() && !info.parameters.contains(&name) {
                    info.parameters.push(name);
                }
            }
            "firmware" => info.firmware.push(value.to_owned()),
            "alias" => info.filesystems.extend(value.strip_prefix("fs-").map(ToOwned::to_owned)),
            _ => {}
        }
    }
    info
}

/// Names before and after of `pre: a b post: c`; words before the first of the two are not in the grammar and are skipped.
pub fn soft_dependencies(value: &str) -> (Vec<String>, Vec<String>) {
    let (mut before, mut behind) = (Vec::new(), Vec::new());
    let mut after = None;
    for word in value.split_whitespace() {
        match (word, after) {
            ("pre:", _) => after = Some(false),
            ("post:", _) => after = Some(true),
            (name, Some(false)) => before.push(super::kernel_name(name)),
            (name, Some(true)) => behind.push(super::kernel_name(name)),
            (_, None) => {}
        }
    }
    (before, behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_matters_is_read() {
        let section =
            b"license=GPL\0\0name=kmm-top\0vermagic=6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions \0\
            srcversion=ABC123\0version=1.2\0depends=kmm-base,crc32\0softdep=pre: a-b c post: d\0softdep=post: e\0\
            parm=level:how much\0parmtype=level:int\0parmtype=names:array of charp\0firmware=v/x.bin\0alias=fs-ext3\0alias=pci:*\0no_equals\0=\0";
        assert_eq!(
            parse(section),
            Modinfo {
                name: Some("kmm_top".into()),
                vermagic: Some("6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions".into()),
                srcversion: Some("ABC123".into()),
                version: Some("1.2".into()),
                depends: vec!["kmm_base".into(), "crc32".into()],
                soft_before: vec!["a_b".into(), "c".into()],
                soft_after: vec!["d".into(), "e".into()],
                parameters: vec!["level".into(), "names".into()],
                firmware: vec!["v/x.bin".into()],
                filesystems: vec!["ext3".into()],
            }
        );
    }

    #[test]
    fn an_empty_or_broken_section_is_an_empty_answer() {
        for section in [b"".as_slice(), b"\0\0\0", b"depends=\0", b"\xff\xfe\0=x", b"softdep=a b"] {
            assert_eq!(parse(section), Modinfo::default(), "{section:?}");
        }
    }
}
