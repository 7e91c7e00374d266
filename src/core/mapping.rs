//! From a kernel to an image: the kernel mappings of a Module, compiled once, asked for every kernel.
//!
//! Source of the rules: KMM (`internal/module/kernelmapper.go` and what it calls). Where a field of a mapping is
//! silently without effect there because the container has a section of the same kind, it counts here:
//! `build.baseImageRegistryTLS`, `build.kanikoParams`, `build.selector` and `sign.unsignedImageRegistryTLS`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::LocalObjectReference;
use regex::Regex;

use super::kernel::{self, KernelVersion, trimmed};
use super::regexp;
use super::template::{self, Variables};
use crate::api::{Build, BuildArg, KernelMapping, ModuleLoaderContainerSpec, Sign, TLSOptions};

/// Kernel mappings that cannot be used, for any kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A regular expression that is none.
    #[error("kernelMappings[{mapping}].regexp {value:?} is not a regular expression: {why}")]
    Regexp {
        /// Index of the mapping, from 0.
        mapping: usize,
        /// The expression.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Why a mapping that matches a kernel gives no image for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The kernel lacks the parts that templates use.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// A template that cannot be read.
    #[error("kernelMappings[{mapping}]: {field}: {source}")]
    Template {
        /// Index of the mapping, from 0.
        mapping: usize,
        /// The field that holds the template.
        field: &'static str,
        /// What is wrong with it.
        source: template::Error,
    },
    /// Neither the mapping nor the container names an image, or the template came to nothing.
    #[error(
        "kernelMappings[{mapping}] gives no image for kernel {kernel}: set containerImage there or for the container"
    )]
    NoImage {
        /// Index of the mapping, from 0.
        mapping: usize,
        /// The kernel.
        kernel: KernelVersion,
    },
}

/// What holds for one kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The image, templates resolved.
    pub image: String,
    /// How its registry is talked to.
    pub registry_tls: TLSOptions,
    /// Modules of the kernel itself to be unloaded first.
    pub in_tree_modules_to_remove: Vec<String>,
    /// How the image is built where it does not exist.
    pub build: Option<Build>,
    /// How its files are signed, templates resolved.
    pub sign: Option<Sign>,
    /// Index of the mapping that matched, from 0.
    pub mapping_index: usize,
}

/// The answer for one kernel.
#[derive(Debug, Clone, PartialEq)]
pub enum Resolution {
    /// A mapping matches, and this is what it gives.
    Matched(Box<Resolved>),
    /// No mapping matches: the kernel is not served.
    NoMapping,
    /// A mapping matches but gives no usable image. Nothing may be taken away from the kernel for that.
    Failed(ResolveError),
}

impl Resolution {
    /// What was resolved, if a mapping matched and gave an image.
    pub fn matched(&self) -> Option<&Resolved> {
        match self {
            Self::Matched(resolved) => Some(resolved),
            Self::NoMapping | Self::Failed(_) => None,
        }
    }
}

/// The kernel mappings of one Module.
#[derive(Debug, Clone)]
pub struct Mappings(Vec<Mapping>);

#[derive(Debug, Clone)]
struct Mapping {
    literal: Option<String>,
    regexp: Option<Regex>,
    image: Option<String>,
    registry_tls: TLSOptions,
    in_tree: Vec<String>,
    build: Option<Build>,
    sign: Option<Sign>,
}

impl Mappings {
    /// Compiles every expression and merges what mapping and container say.
    ///
    /// # Errors
    /// [`CompileError::Regexp`] for the first expression that cannot be used.
    pub fn compile(container: &ModuleLoaderContainerSpec) -> Result<Self, CompileError> {
        container
            .kernel_mappings
            .iter()
            .enumerate()
            .map(|(index, mapping)| Mapping::compile(index, mapping, container))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What the first matching mapping gives for the kernel; the same input always gives the same answer.
    ///
    /// A `literal` matches the same kernel, a `regexp` anywhere in it, both apart from one trailing `+`. A mapping
    /// with neither matches nothing. `name` and `namespace` are those of the Module, for `MOD_NAME` and
    /// `MOD_NAMESPACE` in the image; `unsignedImage` and `filesToSign` know the kernel's variables only.
    pub fn resolve(&self, kernel: &KernelVersion, name: &str, namespace: &str) -> Resolution {
        match self.0.iter().enumerate().find(|(_, mapping)| mapping.matches(kernel)) {
            None => Resolution::NoMapping,
            Some((index, mapping)) => match mapping.resolve(index, kernel, name, namespace) {
                Ok(resolved) => Resolution::Matched(Box::new(resolved)),
                Err(error) => Resolution::Failed(error),
            },
        }
    }
}

impl Mapping {
    fn compile(
        index: usize,
        mapping: &KernelMapping,
        container: &ModuleLoaderContainerSpec,
    ) -> Result<Self, CompileError> {
        let regexp = match non_empty(mapping.regexp.as_deref()) {
            None => None,
            Some(value) => Some(regexp::compile(value).map_err(|why| CompileError::Regexp {
                mapping: index,
                value: value.chars().take(regexp::MAX_LENGTH).collect(),
                why,
            })?),
        };
        let image = non_empty(Some(&mapping.container_image)).or(non_empty(container.container_image.as_deref()));
        Ok(Self {
            literal: non_empty(mapping.literal.as_deref()).map(|literal| trimmed(literal).to_owned()),
            regexp,
            image: image.map(str::to_owned),
            registry_tls: mapping.registry_tls.clone().or_else(|| container.registry_tls.clone()).unwrap_or_default(),
            in_tree: in_tree_modules(mapping, container),
            build: merged(container.build.as_ref(), mapping.build.as_ref(), merge_build),
            sign: merged(container.sign.as_ref(), mapping.sign.as_ref(), merge_sign),
        })
    }

    fn matches(&self, kernel: &KernelVersion) -> bool {
        self.literal.as_deref() == Some(kernel.trimmed())
            || self.regexp.as_ref().is_some_and(|regexp| regexp.is_match(kernel.trimmed()))
    }

    fn resolve(
        &self,
        mapping: usize,
        kernel: &KernelVersion,
        name: &str,
        namespace: &str,
    ) -> Result<Resolved, ResolveError> {
        let of_kernel = kernel_variables(kernel)?;
        let substitute = |field, text: &str, variables: &Variables| {
            template::substitute(text, variables).map_err(|source| ResolveError::Template { mapping, field, source })
        };
        let mut variables = of_kernel.clone();
        variables.insert("MOD_NAME", name.to_owned());
        variables.insert("MOD_NAMESPACE", namespace.to_owned());
        let image = substitute("containerImage", self.image.as_deref().unwrap_or_default(), &variables)?;
        if image.is_empty() {
            return Err(ResolveError::NoImage { mapping, kernel: kernel.clone() });
        }
        let mut sign = self.sign.clone();
        if let Some(sign) = &mut sign {
            if let Some(unsigned) = &mut sign.unsigned_image {
                *unsigned = substitute("sign.unsignedImage", unsigned, &of_kernel)?;
            }
            for file in &mut sign.files_to_sign {
                *file = substitute("sign.filesToSign", file, &of_kernel)?;
            }
        }
        Ok(Resolved {
            image,
            registry_tls: self.registry_tls.clone(),
            in_tree_modules_to_remove: self.in_tree.clone(),
            build: self.build.clone(),
            sign,
            mapping_index: mapping,
        })
    }
}

fn kernel_variables(kernel: &KernelVersion) -> Result<Variables, kernel::Error> {
    let parts = kernel.parts()?;
    Ok(BTreeMap::from([
        ("KERNEL_FULL_VERSION", kernel.normalised()),
        ("KERNEL_VERSION", kernel.normalised()),
        ("KERNEL_XYZ", parts.xyz()),
        ("KERNEL_X", parts.x),
        ("KERNEL_Y", parts.y),
        ("KERNEL_Z", parts.z),
    ]))
}

fn in_tree_modules(mapping: &KernelMapping, container: &ModuleLoaderContainerSpec) -> Vec<String> {
    let single = non_empty(mapping.in_tree_module_to_remove.as_deref())
        .or(non_empty(container.in_tree_module_to_remove.as_deref()));
    if let Some(single) = single {
        return vec![single.to_owned()];
    }
    // A list that is there but empty clears the container's.
    mapping
        .in_tree_modules_to_remove
        .as_ref()
        .or(container.in_tree_modules_to_remove.as_ref())
        .cloned()
        .unwrap_or_default()
}

fn merged<T: Clone>(container: Option<&T>, mapping: Option<&T>, merge: fn(&T, &T) -> T) -> Option<T> {
    match (container, mapping) {
        (Some(container), Some(mapping)) => Some(merge(container, mapping)),
        (one, other) => one.or(other).cloned(),
    }
}

/// The container's section, overridden by what the mapping sets.
fn merge_build(container: &Build, mapping: &Build) -> Build {
    let mut secrets = container.secrets.clone();
    for secret in &mapping.secrets {
        if !secrets.contains(secret) {
            secrets.push(secret.clone());
        }
    }
    Build {
        build_args: merge_build_args(&container.build_args, &mapping.build_args),
        dockerfile_config_map: overridden(&container.dockerfile_config_map, &mapping.dockerfile_config_map),
        base_image_registry_tls: mapping
            .base_image_registry_tls
            .clone()
            .or_else(|| container.base_image_registry_tls.clone()),
        secrets,
        kaniko_params: mapping.kaniko_params.clone().or_else(|| container.kaniko_params.clone()),
        selector: if mapping.selector.is_empty() { container.selector.clone() } else { mapping.selector.clone() },
    }
}

fn merge_sign(container: &Sign, mapping: &Sign) -> Sign {
    let mut files_to_sign = container.files_to_sign.clone();
    files_to_sign.extend(mapping.files_to_sign.iter().cloned());
    Sign {
        unsigned_image: non_empty(mapping.unsigned_image.as_deref())
            .map(str::to_owned)
            .or_else(|| container.unsigned_image.clone()),
        unsigned_image_registry_tls: mapping
            .unsigned_image_registry_tls
            .clone()
            .or_else(|| container.unsigned_image_registry_tls.clone()),
        key_secret: overridden(&container.key_secret, &mapping.key_secret),
        cert_secret: overridden(&container.cert_secret, &mapping.cert_secret),
        files_to_sign,
    }
}

/// Arguments of the same name are replaced where they stand, new ones follow in the order of their names.
fn merge_build_args(base: &[BuildArg], overrides: &[BuildArg]) -> Vec<BuildArg> {
    let by_name: BTreeMap<&str, &BuildArg> = overrides.iter().map(|arg| (arg.name.as_str(), arg)).collect();
    let mut merged: Vec<BuildArg> =
        base.iter().map(|arg| by_name.get(arg.name.as_str()).map_or_else(|| arg.clone(), |o| (*o).clone())).collect();
    for (name, arg) in by_name {
        if !base.iter().any(|arg| arg.name == name) {
            merged.push(arg.clone());
        }
    }
    merged
}

fn overridden(container: &LocalObjectReference, mapping: &LocalObjectReference) -> LocalObjectReference {
    if mapping.name.is_empty() { container.clone() } else { mapping.clone() }
}

fn non_empty(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
