//! A wanted entry, checked: what it asks for in the kernel, apart from how its image is fetched.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use super::kernel::Trouble;
use super::record::Owner;
use crate::api::names::NodeReason;
use crate::api::{ModprobeArgs, NodeModuleSpec};
use crate::core::hash;
use crate::core::image::{Digest, ImageRef};
use crate::core::kmod::{kernel_name, names, params};

/// What makes one load different from another. A change of the pull policy, of a secret or of TLS options is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadIdentity {
    /// Digest of the image.
    pub digest: Digest,
    /// Directory of the image that holds `lib/modules`.
    pub dir_name: String,
    /// Named kernel modules, as the kernel has them: the module itself first, each wanting the next one before it.
    pub named: Vec<String>,
    /// Parameters of the first, in the kernel's grammar.
    pub parameters: String,
    /// Folder of the image with firmware.
    pub firmware_path: Option<String>,
}

impl LoadIdentity {
    /// The module itself.
    pub fn main(&self) -> &str {
        self.named.first().map_or("", String::as_str)
    }

    /// Names of the parameters that are asked for.
    pub fn parameter_names(&self) -> BTreeSet<String> {
        params::decode(&self.parameters).into_iter().map(|(name, _)| name).collect()
    }

    /// Name of the folder with the unpacked image; the same digest may be unpacked for several directories.
    pub fn tree_key(&self, release: &str) -> String {
        let firmware = self.firmware_path.as_ref().map(|path| format!("\0{path}")).unwrap_or_default();
        let place = hash::hash_bytes(format!("{}\0{release}{firmware}", self.dir_name).as_bytes());
        format!("{}-{}-{}", self.digest.algorithm().name(), self.digest.hex(), &place[..16.min(place.len())])
    }
}

/// A wanted entry that can be carried out, at least as far as it says itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The Module that it belongs to.
    pub owner: Owner,
    /// The entry.
    pub spec: NodeModuleSpec,
    /// What it asks for.
    pub identity: LoadIdentity,
    /// Modules of the kernel itself that are to be gone before, as the kernel has them.
    pub in_tree: Vec<String>,
}

/// Without one trailing `+`: kernels of a modified source tree have one, NodeModulesConfigs do not.
pub fn trimmed(release: &str) -> &str {
    release.strip_suffix('+').unwrap_or(release)
}

/// Reads what an entry asks for, without looking at the kernel.
pub fn identity(spec: &NodeModuleSpec) -> Result<LoadIdentity, Trouble> {
    let config = &spec.config;
    let modprobe = &config.modprobe;
    let image: ImageRef = config
        .container_image
        .parse()
        .map_err(|error| Trouble::new(NodeReason::ImageInvalidReference, format!("{error}")))?;
    let digest = image.digest().cloned().ok_or_else(|| {
        let message =
            format!("image {} is not named by digest; the planner must resolve its tag", config.container_image);
        Trouble::new(NodeReason::ImageInvalidReference, message)
    })?;
    let is_set = |args: &Option<ModprobeArgs>| {
        args.as_ref().is_some_and(|args| !args.load.is_empty() || !args.unload.is_empty())
    };
    for (field, set, way_out) in [
        ("modprobe.rawArgs", is_set(&modprobe.raw_args), "use moduleName, parameters and modulesLoadingOrder"),
        ("modprobe.args", is_set(&modprobe.args), "use parameters and modulesLoadingOrder"),
    ] {
        if set {
            let message = format!("{field} is not carried out by this worker; {way_out}");
            return Err(Trouble::new(NodeReason::UnsupportedArgs, message));
        }
    }
    let invalid = |message: String| Trouble::new(NodeReason::ModuleNotFound, message);
    let main = modprobe
        .module_name
        .as_deref()
        .ok_or_else(|| invalid("modprobe.moduleName is not set; name the kernel module".into()))?;
    let mut named = vec![kernel_name(main)];
    for name in modprobe.modules_loading_order.iter().flatten().map(|name| kernel_name(name)) {
        if !named.contains(&name) {
            named.push(name);
        }
    }
    if let Some(name) = named.iter().find(|name| !names::is_valid(name)) {
        return Err(invalid(format!("`{name}` is no name that a kernel module can have")));
    }
    let firmware_path = modprobe.firmware_path.clone();
    let names_a_folder = |path: &String| Path::new(path).components().any(|part| matches!(part, Component::Normal(_)));
    if firmware_path.as_ref().is_some_and(|path| !names_a_folder(path)) {
        let message =
            format!("modprobe.firmwarePath is `{}`; name a folder of the image", firmware_path.unwrap_or_default());
        return Err(Trouble::new(NodeReason::FirmwareNotFound, message));
    }
    let parameters = params::encode(&modprobe.parameters)
        .map_err(|error| Trouble::new(NodeReason::ParameterRefused, error.to_string()))?;
    Ok(LoadIdentity { digest, dir_name: modprobe.dir_name.clone(), named, parameters, firmware_path })
}

/// Modules of the kernel itself that an entry wants gone, as the kernel has them.
pub fn in_tree(spec: &NodeModuleSpec) -> Vec<String> {
    let single = spec.config.in_tree_module_to_remove.as_slice();
    let list = spec.config.in_tree_modules_to_remove.as_slice();
    if list.is_empty() { single } else { list }.iter().map(|name| kernel_name(name)).collect()
}

/// Checks an entry against the running kernel's release.
pub fn check(spec: &NodeModuleSpec, release: &str) -> Result<Wanted, Trouble> {
    let kernel = &spec.config.kernel_version;
    if trimmed(kernel) != trimmed(release) {
        let message = format!("wanted for kernel {kernel}, this node runs {release}; what is loaded stays");
        return Err(Trouble::new(NodeReason::WrongKernel, message));
    }
    let identity = identity(spec)?;
    Ok(Wanted { owner: Owner::of(spec), spec: spec.clone(), identity, in_tree: in_tree(spec) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ModprobeSpec, ModuleConfig};

    fn spec(change: impl FnOnce(&mut ModuleConfig)) -> NodeModuleSpec {
        let mut config = ModuleConfig {
            container_image: format!("registry.example/drivers/kmm@sha256:{}", "a".repeat(64)),
            kernel_version: "6.12.1".into(),
            modprobe: ModprobeSpec { module_name: Some("kmm-a".into()), ..ModprobeSpec::default() },
            ..ModuleConfig::default()
        };
        change(&mut config);
        NodeModuleSpec { config, name: "gpu".into(), namespace: "drivers".into(), ..NodeModuleSpec::default() }
    }

    #[test]
    fn entries_that_cannot_be_carried_out_have_a_reason() {
        let args = || Some(ModprobeArgs { load: vec!["-v".into()], unload: vec![] });
        let table: Vec<(NodeModuleSpec, NodeReason)> = vec![
            (spec(|c| c.kernel_version = "6.12.2".into()), NodeReason::WrongKernel),
            (spec(|c| c.container_image = "registry.example/kmm:1".into()), NodeReason::ImageInvalidReference),
            (spec(|c| c.container_image = "not an image".into()), NodeReason::ImageInvalidReference),
            (spec(|c| c.modprobe.args = args()), NodeReason::UnsupportedArgs),
            (spec(|c| c.modprobe.raw_args = args()), NodeReason::UnsupportedArgs),
            (spec(|c| c.modprobe.firmware_path = Some("/".into())), NodeReason::FirmwareNotFound),
            (spec(|c| c.modprobe.firmware_path = Some(String::new())), NodeReason::FirmwareNotFound),
            (spec(|c| c.modprobe.module_name = None), NodeReason::ModuleNotFound),
            (spec(|c| c.modprobe.module_name = Some("../../x".into())), NodeReason::ModuleNotFound),
            (spec(|c| c.modprobe.parameters = vec!["=1".into()]), NodeReason::ParameterRefused),
        ];
        for (spec, expected) in table {
            assert_eq!(check(&spec, "6.12.1+").unwrap_err().reason, expected);
        }
    }

    #[test]
    fn a_plus_at_the_end_of_the_release_does_not_count() {
        for (wanted, running) in [("6.12.1", "6.12.1+"), ("6.12.1+", "6.12.1"), ("6.12.1+", "6.12.1+")] {
            assert!(check(&spec(|c| c.kernel_version = wanted.into()), running).is_ok(), "{wanted} {running}");
        }
        assert!(check(&spec(|c| c.kernel_version = "6.12.1+deb12".into()), "6.12.1+deb12").is_ok());
        assert!(check(&spec(|c| c.kernel_version = "6.12.1".into()), "6.12.1+deb12").is_err());
    }

    #[test]
    fn names_are_the_kernels_and_how_an_image_is_fetched_does_not_matter() {
        let one = check(
            &spec(|c| {
                c.modprobe.modules_loading_order = Some(vec!["kmm_a".into(), "kmm-b".into()]);
                c.in_tree_modules_to_remove = vec!["old-a".into()];
                c.in_tree_module_to_remove = Some("ignored".into());
            }),
            "6.12.1",
        )
        .unwrap();
        assert_eq!(one.identity.named, ["kmm_a", "kmm_b"]);
        assert_eq!(one.in_tree, ["old_a"]);
        let other = identity(&spec(|c| {
            c.image_pull_policy = "Always".into();
            c.insecure_pull = true;
        }));
        assert_eq!(other, identity(&spec(|_| {})));
    }
}
