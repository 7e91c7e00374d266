//! A wanted entry, checked: what it asks for in the kernel, apart from how its image is fetched.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use super::kernel::Trouble;
use super::record::Owner;
use crate::api::names::NodeReason;
use crate::api::{ModprobeSpec, NodeModuleSpec};
use crate::core::hash;
use crate::core::image::{Digest, ImageRef};
use crate::core::kmod::modprobe::aim;
use crate::core::kmod::{kernel_name, modprobe_d, names, params};

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
    /// What modprobe is asked for, where it does the loading.
    pub by_modprobe: Option<ByModprobe>,
}

/// A load that modprobe carries out, as the Module wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByModprobe {
    /// The arguments are the whole command line.
    pub raw: bool,
    /// Arguments for loading.
    pub load: Vec<String>,
    /// Lines of modprobe.d.
    pub config: String,
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

    /// Name of the folder that is generated for modprobe; `None` where it does not do the loading.
    pub fn generated_key(&self, release: &str) -> Option<String> {
        let by = self.by_modprobe.as_ref()?;
        let parts = [self.named.join(","), by.load.join("\u{1}"), by.config.clone(), by.raw.to_string()];
        let rest = hash::hash_bytes(parts.join("\0").as_bytes());
        Some(format!("{}-{}", self.tree_key(release), &rest[..16.min(rest.len())]))
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
    let by_modprobe = by_modprobe(modprobe)?;
    let invalid = |message: String| Trouble::new(NodeReason::ModuleNotFound, message);
    let raw = by_modprobe.as_ref().filter(|by| by.raw).map(|by| aim(&by.load));
    let mut named = match &raw {
        Some(aim) => aim.modules.clone(),
        None => vec![kernel_name(
            modprobe
                .module_name
                .as_deref()
                .ok_or_else(|| invalid("modprobe.moduleName is not set; name the kernel module".into()))?,
        )],
    };
    // A whole command line says itself what is loaded, the order only in which order.
    let order = modprobe.modules_loading_order.iter().flatten().map(|name| kernel_name(name));
    for name in order.filter(|_| raw.is_none()) {
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
    let main = named.first().map(String::as_str).unwrap_or_default();
    let own = raw.as_ref().map_or(modprobe.parameters.as_slice(), |aim| aim.parameters.as_slice());
    let own = params::encode(own).map_err(|error| Trouble::new(NodeReason::ParameterRefused, error.to_string()))?;
    let config = by_modprobe.as_ref().map(|by| by.config.as_str()).unwrap_or_default();
    // Of a name given twice the kernel takes the last: what the Module asks for comes after what its lines say.
    let parameters = modprobe_d::options(config, main).into_iter().chain([own]).collect::<Vec<_>>();
    let parameters = parameters.join(" ").trim().to_owned();
    Ok(LoadIdentity { digest, dir_name: modprobe.dir_name.clone(), named, parameters, firmware_path, by_modprobe })
}

/// What modprobe is to do, if the entry asks for it.
fn by_modprobe(modprobe: &ModprobeSpec) -> Result<Option<ByModprobe>, Trouble> {
    let refused = |message: String| Err(Trouble::new(NodeReason::UnsupportedArgs, message));
    let config = modprobe.modprobe_config.clone().unwrap_or_default();
    if let Err(why) = modprobe_d::check(&config) {
        return refused(format!("modprobe.modprobeConfig: {why}"));
    }
    let args = modprobe.raw_args.as_ref().or(modprobe.args.as_ref());
    if args.is_none() && config.is_empty() {
        return Ok(None);
    }
    let raw = modprobe.raw_args.is_some();
    let field = if raw { "modprobe.rawArgs" } else { "modprobe.args" };
    let load = args.map(|args| args.load.clone()).unwrap_or_default();
    let unload = args.map(|args| args.unload.as_slice()).unwrap_or_default();
    if let Some(argument) = load.iter().chain(unload).find(|argument| argument.contains('\0')) {
        return refused(format!("{field}: `{}` holds a zero byte", argument.replace('\0', "\\0")));
    }
    let aim = aim(&load);
    if aim.removes {
        return refused(format!("{field}.load removes modules; what is to be unloaded stands in {field}.unload"));
    }
    if raw && aim.modules.is_empty() {
        return refused(format!("{field}.load names no module; write it as the first word that is no option"));
    }
    Ok(Some(ByModprobe { raw, load, config }))
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
    use crate::api::{ModprobeArgs, ModuleConfig};

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
        let args =
            |load: &str| Some(ModprobeArgs { load: load.split(' ').map(ToOwned::to_owned).collect(), unload: vec![] });
        let table: Vec<(NodeModuleSpec, NodeReason)> = vec![
            (spec(|c| c.kernel_version = "6.12.2".into()), NodeReason::WrongKernel),
            (spec(|c| c.container_image = "registry.example/kmm:1".into()), NodeReason::ImageInvalidReference),
            (spec(|c| c.container_image = "not an image".into()), NodeReason::ImageInvalidReference),
            (spec(|c| c.modprobe.args = args("-r")), NodeReason::UnsupportedArgs),
            (spec(|c| c.modprobe.args = args("a\0b")), NodeReason::UnsupportedArgs),
            (spec(|c| c.modprobe.raw_args = args("-v -d /opt")), NodeReason::UnsupportedArgs),
            (spec(|c| c.modprobe.raw_args = Some(ModprobeArgs::default())), NodeReason::UnsupportedArgs),
            (spec(|c| c.modprobe.raw_args = args("../x")), NodeReason::ModuleNotFound),
            (
                spec(|c| c.modprobe.modprobe_config = Some("install kmm_a /bin/true".into())),
                NodeReason::UnsupportedArgs,
            ),
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
    fn what_modprobe_is_to_do_is_part_of_the_load_and_how_it_unloads_is_not() {
        let args = |load: &[&str], unload: &[&str]| {
            let strings = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
            Some(ModprobeArgs { load: strings(load), unload: strings(unload) })
        };
        let plain = identity(&spec(|_| {})).unwrap();
        assert_eq!((plain.by_modprobe.as_ref(), plain.generated_key("6.12.1")), (None, None));
        let one = identity(&spec(|c| c.modprobe.args = args(&["-v"], &[]))).unwrap();
        let other = identity(&spec(|c| c.modprobe.args = args(&["-v"], &["-v"]))).unwrap();
        assert_eq!(one, other);
        let configured = identity(&spec(|c| {
            c.modprobe.modprobe_config = Some("options kmm-a level=2 colour=3".into());
            c.modprobe.parameters = vec!["level=5".into()];
        }))
        .unwrap();
        assert_eq!(configured.parameters, "level=2 colour=3 level=5");
        assert_ne!(configured.generated_key("6.12.1"), one.generated_key("6.12.1"));
        let raw = identity(&spec(|c| {
            c.modprobe.module_name = None;
            c.modprobe.raw_args = args(&["-d", "/opt", "kmm-b", "x=a b"], &[]);
        }))
        .unwrap();
        assert_eq!((raw.main(), raw.parameters.as_str()), ("kmm_b", "x=\"a b\""));
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
