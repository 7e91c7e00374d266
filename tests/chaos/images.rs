//! The kernel modules of the chaos test and their images.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::support::bed;
use crate::support::images::kmod_image;
use crate::support::kmods::{self, Kmod};
use crate::support::registry::Registry;
use crate::world::build_id;

/// Says when it comes and when it goes; `@NEEDS@` and `@EXPORTS@` are filled in.
const SOURCE: &str = r#"#include <linux/module.h>
@NEEDS@
static unsigned int level;
module_param(level, uint, 0444);
static int __init chaos_init(void) { pr_info(KBUILD_MODNAME ": hello@WHO@\n"); return @RESULT@; }
static void __exit chaos_exit(void) { pr_info(KBUILD_MODNAME ": bye@WHO@\n"); }
@EXPORTS@
module_init(chaos_init);
module_exit(chaos_exit);
MODULE_LICENSE("GPL");
MODULE_VERSION("@VERSION@");
"#;

/// A Module of the cluster and what it brings into a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Brings {
    /// Name of the Module.
    pub(crate) module: &'static str,
    /// The kernel module that it names.
    pub(crate) main: &'static str,
    /// The kernel module that this one needs.
    pub(crate) needs: Option<&'static str>,
}

/// What the walk plays with.
pub(crate) const ALL: [Brings; 3] = [
    Brings { module: "alpha", main: "kmm_ca", needs: None },
    Brings { module: "beta", main: "kmm_cb", needs: None },
    Brings { module: "gamma", main: "kmm_ct", needs: Some("kmm_cs") },
];

/// Versions of each module; files of different versions have different build ids.
pub(crate) const VERSIONS: [u8; 2] = [1, 2];
/// The version of files that are in no image.
const STRANGER: u8 = 3;

fn source(version: u8, needs: &str, exports: &str, result: &str) -> String {
    SOURCE
        .replace("@VERSION@", &format!("{version}.0"))
        .replace("@WHO@", if version == STRANGER { " stranger" } else { "" })
        .replace("@NEEDS@", needs)
        .replace("@EXPORTS@", exports)
        .replace("@RESULT@", result)
}

/// Pushed images by Module and version: `<repository>@<digest>` below the registry's address.
#[derive(Debug)]
pub(crate) struct Images {
    digests: BTreeMap<(&'static str, u8), String>,
    ids: BTreeMap<(&'static str, u8), String>,
    /// Files of modules that need nothing, which are in no image.
    pub(crate) strangers: Vec<Kmod>,
}

impl Images {
    pub(crate) async fn push(registry: &Registry, release: &str) -> Result<Self> {
        let sets: Vec<(String, Vec<(&str, String)>)> = VERSIONS
            .iter()
            .chain([&STRANGER])
            .map(|version| {
                let declared = "int kmm_cs_answer(void);";
                let exports = "int kmm_cs_answer(void);\nint kmm_cs_answer(void) { return 42; }\nEXPORT_SYMBOL_GPL(kmm_cs_answer);";
                let files = vec![
                    ("kmm_ca.c", source(*version, "", "", "0")),
                    ("kmm_cb.c", source(*version, "", "", "0")),
                    ("kmm_cs.c", source(*version, "", exports, "0")),
                    ("kmm_ct.c", source(*version, declared, "", "kmm_cs_answer() - 42")),
                    ("Makefile", "obj-m := kmm_ca.o kmm_cb.o kmm_cs.o kmm_ct.o\n".to_owned()),
                ];
                (version.to_string(), files)
            })
            .collect();
        let borrowed: Vec<(&str, &[(&str, String)])> =
            sets.iter().map(|(name, files)| (name.as_str(), files.as_slice())).collect();
        let folder = kmods::compile(bed()?.kernel_named(release)?, "chaos", &borrowed)?;
        let (mut digests, mut ids) = (BTreeMap::new(), BTreeMap::new());
        let read = |version: u8, name: &str| Kmod::read(&folder.join(version.to_string()).join(format!("{name}.ko")));
        for version in VERSIONS {
            for brings in ALL {
                let mut files = vec![read(version, brings.main)?];
                files.extend(brings.needs.map(|needs| read(version, needs)).transpose()?);
                for file in &files {
                    let name = [Some(brings.main), brings.needs].into_iter().flatten().find(|name| *name == file.name);
                    ids.insert((name.context("an unknown name")?, version), build_id(file)?);
                }
                let repository = format!("chaos/{}", brings.module);
                let image = kmod_image(release, &files, "/opt")?.build()?;
                let digest = registry.push(&repository, &format!("v{version}"), &image).await?;
                digests.insert((brings.module, version), format!("{repository}@{digest}"));
            }
        }
        let alone = ALL.iter().filter(|brings| brings.needs.is_none());
        let strangers = alone.map(|brings| read(STRANGER, brings.main)).collect::<Result<_>>()?;
        Ok(Self { digests, ids, strangers })
    }

    /// The image by digest, or by tag: both name the same.
    pub(crate) fn name(&self, registry: &str, module: &'static str, version: u8, by_tag: bool) -> String {
        if by_tag {
            return format!("{registry}/chaos/{module}:v{version}");
        }
        format!("{registry}/{}", self.digests[&(module, version)])
    }

    /// Which version of a kernel module's file has this build id; `None` for one that is in no image.
    pub(crate) fn version(&self, kernel_module: &str, build_id: &str) -> Option<u8> {
        let mut ids = self.ids.iter();
        ids.find(|((name, _), id)| *name == kernel_module && *id == build_id).map(|((_, version), _)| *version)
    }
}
