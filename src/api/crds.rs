//! The CustomResourceDefinitions of the kinds of ours.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

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

/// The definition as it is installed: see [`crds`].
fn finished(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    definition.spec.names.list_kind = Some(format!("{}List", definition.spec.names.kind));
    let schemas = definition.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    for schema in schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut()) {
        schema.title = None;
        schema.required = None;
        settle(schema);
        let properties = schema.properties.get_or_insert_default();
        for (name, type_) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
            let property = JSONSchemaProps { type_: Some(type_.into()), ..Default::default() };
            properties.entry(name.into()).or_insert(property);
        }
    }
    definition
}

/// Brings a schema, and everything below it, to the form that Go's generator gives it.
fn settle(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if schema.x_kubernetes_int_or_string == Some(true) {
        let either = ["integer", "string"];
        schema.any_of =
            Some(either.map(|type_| JSONSchemaProps { type_: Some(type_.into()), ..Default::default() }).into());
    }
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(settle);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        settle(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        settle(values);
    }
}
