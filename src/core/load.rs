//! What an entry of a NodeModulesConfig asks for in the kernel, apart from how its image is fetched.
//!
//! Planner and worker both ask here whether two entries mean the same. Where they differed, one would order what the
//! other sees no reason for, or the other way round.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use crate::api::names::NodeReason;
use crate::api::{ModprobeSpec, ModuleConfig};
use crate::core::hash;
use crate::core::image::{Digest, ImageRef};
use crate::core::kernel::trimmed;
use crate::core::kmod::modprobe::{aim, own_parameters};
use crate::core::kmod::{kernel_name, modprobe_d, names, params};

/// What makes one load different from another. Two are equal if they mean the same, however they are spelled.
#[derive(Clone, Debug)]
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
    /// Modules of the kernel itself that are to be gone before, as the kernel has them.
    pub in_tree: BTreeSet<String>,
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

/// Why an entry cannot be carried out, whatever the kernel is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The word.
    pub reason: NodeReason,
    /// The sentence: names the field, and the way out where there is one.
    pub message: String,
}

impl Refusal {
    fn new(reason: NodeReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl PartialEq for LoadIdentity {
    fn eq(&self, other: &Self) -> bool {
        let meaning = |of: &Self| {
            // A field more has to be thought of here.
            let Self { digest, dir_name, named, parameters, firmware_path, by_modprobe: _, in_tree } = of;
            let parameters = params::decode(parameters);
            (digest.clone(), dir_name.clone(), named.clone(), parameters, firmware_path.clone(), in_tree.clone())
        };
        self.arguments() == other.arguments() && meaning(self) == meaning(other)
    }
}

impl Eq for LoadIdentity {}

impl LoadIdentity {
    /// The module itself.
    pub fn main(&self) -> &str {
        self.named.first().map_or("", String::as_str)
    }

    /// Names of the parameters that are asked for.
    pub fn parameter_names(&self) -> BTreeSet<String> {
        params::decode(&self.parameters).into_iter().map(|(name, _)| name).collect()
    }

    /// What modprobe is told about the load. It is told nothing where it only has arguments for unloading: then it puts
    /// into the kernel what is put there without it.
    pub fn arguments(&self) -> Option<&ByModprobe> {
        self.by_modprobe.as_ref().filter(|by| by.raw || !by.load.is_empty() || !by.config.is_empty())
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

/// Whether both configurations put the same into the kernel.
///
/// What only concerns the way there (repository, pull policy, TLS, credentials), how modprobe unloads, and mere spelling
/// make no difference; which modules of the kernel itself make room does. Two that cannot be carried out are the same if
/// it is for the same reason.
pub fn same_in_kernel(a: &ModuleConfig, b: &ModuleConfig) -> bool {
    a == b || (trimmed(&a.kernel_version) == trimmed(&b.kernel_version) && identity(a) == identity(b))
}

/// Reads what a configuration asks for, without looking at the kernel.
///
/// # Errors
/// It cannot be carried out, on whatever node.
pub fn identity(config: &ModuleConfig) -> Result<LoadIdentity, Refusal> {
    let modprobe = &config.modprobe;
    let image: ImageRef = config
        .container_image
        .parse()
        .map_err(|error| Refusal::new(NodeReason::ImageInvalidReference, format!("{error}")))?;
    let digest = image.digest().cloned().ok_or_else(|| {
        let message =
            format!("image {} is not named by digest; the planner must resolve its tag", config.container_image);
        Refusal::new(NodeReason::ImageInvalidReference, message)
    })?;
    let by_modprobe = by_modprobe(modprobe)?;
    let invalid = |message: String| Refusal::new(NodeReason::ModuleNotFound, message);
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
        return Err(Refusal::new(NodeReason::FirmwareNotFound, message));
    }
    let main = named.first().map(String::as_str).unwrap_or_default();
    let (field, own) = match &raw {
        Some(aim) => ("modprobe.rawArgs.load", aim.parameters.clone()),
        None => ("modprobe.parameters", own_parameters(&modprobe.parameters)),
    };
    let own = params::encode(&own)
        .map_err(|error| Refusal::new(NodeReason::ParameterRefused, format!("{field}: {error}")))?;
    let lines = by_modprobe.as_ref().map(|by| by.config.as_str()).unwrap_or_default();
    // Of a name given twice the kernel takes the last: what the Module asks for comes after what its lines say.
    let parameters = modprobe_d::options(lines, main).into_iter().chain([own]).collect::<Vec<_>>();
    let parameters = parameters.join(" ").trim().to_owned();
    let in_tree = in_tree(config).into_iter().collect();
    let dir_name = modprobe.dir_name.clone();
    Ok(LoadIdentity { digest, dir_name, named, parameters, firmware_path, by_modprobe, in_tree })
}

/// What modprobe is to do, if the configuration asks for it. Empty `args` ask for nothing.
fn by_modprobe(modprobe: &ModprobeSpec) -> Result<Option<ByModprobe>, Refusal> {
    let refused = |message: String| Err(Refusal::new(NodeReason::UnsupportedArgs, message));
    let config = modprobe.modprobe_config.clone().unwrap_or_default();
    if let Err(why) = modprobe_d::check(&config) {
        return refused(format!("modprobe.modprobeConfig: {why}"));
    }
    let own = modprobe.args.as_ref().filter(|args| !args.load.is_empty() || !args.unload.is_empty());
    let args = modprobe.raw_args.as_ref().or(own);
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
    if aim.looks {
        return refused(format!(
            "{field}.load has an option with which modprobe shows something and loads nothing; take it out"
        ));
    }
    if raw && aim.modules.is_empty() {
        return refused(format!("{field}.load names no module; write it as the first word that is no option"));
    }
    Ok(Some(ByModprobe { raw, load, config }))
}

/// Modules of the kernel itself that a configuration wants gone, as the kernel has them, in its order.
pub fn in_tree(config: &ModuleConfig) -> Vec<String> {
    let single = config.in_tree_module_to_remove.as_slice();
    let list = config.in_tree_modules_to_remove.as_slice();
    if list.is_empty() { single } else { list }.iter().map(|name| kernel_name(name)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::api::{ModprobeArgs, TLSOptions};

    /// A configuration that can be carried out, with this change.
    pub(crate) fn config(change: impl FnOnce(&mut ModuleConfig)) -> ModuleConfig {
        let mut config = ModuleConfig {
            container_image: format!("registry.example/drivers/kmm@sha256:{}", "a".repeat(64)),
            kernel_version: "6.12.1".into(),
            modprobe: ModprobeSpec { module_name: Some("kmm-a".into()), ..ModprobeSpec::default() },
            ..ModuleConfig::default()
        };
        change(&mut config);
        config
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[allow(clippy::unnecessary_wraps, reason = "what a configuration holds")]
    fn args(load: &[&str], unload: &[&str]) -> Option<ModprobeArgs> {
        Some(ModprobeArgs { load: strings(load), unload: strings(unload) })
    }

    #[test]
    fn only_what_reaches_the_kernel_makes_a_difference() {
        type Edit = fn(&mut ModuleConfig);
        let table: [(&str, Edit, bool); 25] = [
            ("nothing", |_| {}, true),
            ("another mirror", |c| c.container_image = format!("other.example/gpu@sha256:{}", "a".repeat(64)), true),
            ("pull policy", |c| c.image_pull_policy = "Always".into(), true),
            ("insecure", |c| c.insecure_pull = true, true),
            ("TLS", |c| c.registry_tls = Some(TLSOptions { insecure: true, ..TLSOptions::default() }), true),
            ("trailing plus", |c| c.kernel_version = "6.12.1+".into(), true),
            ("empty order", |c| c.modprobe.modules_loading_order = Some(Vec::new()), true),
            ("order of itself", |c| c.modprobe.modules_loading_order = Some(strings(&["kmm_a"])), true),
            ("spelling of the module", |c| c.modprobe.module_name = Some("kmm_a".into()), true),
            ("empty arguments", |c| c.modprobe.args = args(&[], &[]), true),
            ("arguments for unloading", |c| c.modprobe.args = args(&[], &["-v"]), true),
            ("empty parameters", |c| c.modprobe.parameters = strings(&["", " "]), true),
            ("options that say nothing", |c| c.modprobe.parameters = strings(&["--first-time", "--"]), true),
            ("empty lines", |c| c.modprobe.modprobe_config = Some(String::new()), true),
            (
                "digest",
                |c| c.container_image = format!("registry.example/drivers/kmm@sha256:{}", "b".repeat(64)),
                false,
            ),
            ("kernel", |c| c.kernel_version = "6.12.2".into(), false),
            ("module", |c| c.modprobe.module_name = Some("kmm_b".into()), false),
            ("parameters", |c| c.modprobe.parameters = strings(&["debug=1"]), false),
            ("directory", |c| c.modprobe.dir_name = "/lib2".into(), false),
            ("order", |c| c.modprobe.modules_loading_order = Some(strings(&["a"])), false),
            ("firmware", |c| c.modprobe.firmware_path = Some("/firmware".into()), false),
            ("arguments", |c| c.modprobe.args = args(&["-v"], &[]), false),
            ("lines", |c| c.modprobe.modprobe_config = Some("# x".into()), false),
            ("in-tree", |c| c.in_tree_modules_to_remove = strings(&["nouveau"]), false),
            ("in-tree, the old field", |c| c.in_tree_module_to_remove = Some("nouveau".into()), false),
        ];
        for (what, edit, same) in table {
            assert_eq!(same_in_kernel(&config(|_| {}), &config(edit)), same, "{what}");
        }
    }

    #[test]
    fn the_same_in_other_words_is_the_same() {
        type Edit = fn(&mut ModuleConfig);
        let table: [(Edit, Edit, bool); 9] = [
            (|c| c.modprobe.parameters = strings(&["a b=2"]), |c| c.modprobe.parameters = strings(&["a", "b=2"]), true),
            // One word is one parameter, as for modprobe: its value holds the white space.
            (
                |c| c.modprobe.parameters = strings(&["a=1 b=2"]),
                |c| c.modprobe.parameters = strings(&["a=1", "b=2"]),
                false,
            ),
            (|c| c.modprobe.parameters = strings(&["a-b=1"]), |c| c.modprobe.parameters = strings(&["a_b=1"]), true),
            (
                |c| c.modprobe.parameters = strings(&["a=x y"]),
                |c| c.modprobe.parameters = strings(&["a=\"x y\""]),
                true,
            ),
            (|c| c.modprobe.parameters = strings(&["a=1"]), |c| c.modprobe.parameters = strings(&["a"]), false),
            (
                |c| c.in_tree_modules_to_remove = strings(&["old-a", "b"]),
                |c| c.in_tree_modules_to_remove = strings(&["b", "old_a", "b"]),
                true,
            ),
            (
                |c| c.in_tree_modules_to_remove = strings(&["old-a"]),
                |c| c.in_tree_module_to_remove = Some("old_a".into()),
                true,
            ),
            (|c| c.modprobe.args = args(&["-v"], &[]), |c| c.modprobe.args = args(&["-v"], &["-v"]), true),
            // Neither gets anything into the kernel, and for the same reason.
            (|c| c.modprobe.args = args(&["-r"], &[]), |c| c.modprobe.args = args(&["-r", "x"], &[]), true),
        ];
        for (at, (one, other, same)) in table.into_iter().enumerate() {
            assert_eq!(same_in_kernel(&config(one), &config(other)), same, "{at}");
        }
    }

    #[test]
    fn what_modprobe_is_to_do_is_part_of_the_load_and_how_it_unloads_is_not() {
        let plain = identity(&config(|_| {})).unwrap();
        assert_eq!((plain.by_modprobe.as_ref(), plain.generated_key("6.12.1")), (None, None));
        let one = identity(&config(|c| c.modprobe.args = args(&["-v"], &[]))).unwrap();
        let configured = identity(&config(|c| {
            c.modprobe.modprobe_config = Some("options kmm-a level=2 colour=3".into());
            c.modprobe.parameters = vec!["level=5".into()];
        }))
        .unwrap();
        assert_eq!(configured.parameters, "level=2 colour=3 level=5");
        assert_ne!(configured.generated_key("6.12.1"), one.generated_key("6.12.1"));
        let raw = identity(&config(|c| {
            c.modprobe.module_name = None;
            c.modprobe.raw_args = args(&["-d", "/opt", "kmm-b", "x=a b"], &[]);
        }))
        .unwrap();
        assert_eq!((raw.main(), raw.parameters.as_str()), ("kmm_b", "x=\"a b\""));
        // With arguments for unloading alone modprobe has its folder, so that it can unload.
        let unloads = identity(&config(|c| c.modprobe.args = args(&[], &["-v"]))).unwrap();
        assert!(unloads.generated_key("6.12.1").is_some() && unloads == plain);
    }

    #[test]
    fn names_are_the_kernels() {
        let config = config(|c| {
            c.modprobe.modules_loading_order = Some(strings(&["kmm_a", "kmm-b"]));
            c.in_tree_modules_to_remove = strings(&["old-a"]);
            c.in_tree_module_to_remove = Some("ignored".into());
        });
        assert_eq!(identity(&config).unwrap().named, ["kmm_a", "kmm_b"]);
        assert_eq!(in_tree(&config), ["old_a"]);
    }
}
