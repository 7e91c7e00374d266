//! The CustomResourceDefinitions of the kinds of ours.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use super::{ManagedClusterModule, Module, ModuleImagesConfig, NodeModulesConfig};

/// Why the definitions could not be printed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The YAML printer refused a definition.
    #[error("print custom resource definition {name}")]
    Print {
        /// Name of the definition.
        name: String,
        /// What the printer says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Every definition, ordered by name.
///
/// The schemas are those of the Rust types with what Go's CRDs do not have taken away: `nullable`
/// (the API server then drops `null` instead of storing it) and the requirement of `spec`.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut definitions: Vec<_> =
        [ManagedClusterModule::crd(), Module::crd(), ModuleImagesConfig::crd(), NodeModulesConfig::crd()]
            .map(finished)
            .into();
    definitions.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    definitions
}

/// The definitions as one stream of YAML documents.
///
/// # Errors
///
/// [`Error::Print`] names the definition that could not be printed.
pub fn to_yaml(definitions: &[CustomResourceDefinition]) -> Result<String, Error> {
    let mut printed = String::new();
    for definition in definitions {
        let yaml = serde_saphyr::to_string(definition).map_err(|source| Error::Print {
            name: definition.metadata.name.clone().unwrap_or_default(),
            source: Box::new(source),
        })?;
        printed.push_str("---\n");
        printed.push_str(&yaml);
    }
    Ok(printed)
}

fn finished(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    definition.spec.names.list_kind = Some(format!("{}List", definition.spec.names.kind));
    for version in &mut definition.spec.versions {
        let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) else {
            continue;
        };
        schema.required = None;
        let Ok(mut value) = serde_json::to_value(&*schema) else { continue };
        drop_nullable(&mut value);
        if let Ok(plain) = serde_json::from_value(value) {
            *schema = plain;
        }
    }
    definition
}

fn drop_nullable(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if members.get("nullable").is_some_and(Value::is_boolean) {
                members.remove("nullable");
            }
            members.values_mut().for_each(drop_nullable);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nullable),
        _ => {}
    }
}
