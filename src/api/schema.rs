//! Pieces of OpenAPI schema that the derive cannot say.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::wire::ClosedList;

/// An integer without a format, as Go's `int` has it in the CRDs of KMM.
pub(crate) fn plain_integer(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer" })
}

/// The schema of a type of Kubernetes itself, without its descriptions.
///
/// The descriptions are long and documented by Kubernetes; with them the CRD that holds a whole
/// ModuleSpec would come near the size at which `kubectl apply` fails.
pub(crate) fn embedded<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = T::json_schema(generator).to_value();
    drop_descriptions(&mut schema);
    Schema::try_from(schema).unwrap_or_default()
}

/// A string of a closed list.
pub(crate) fn string_enum<T: ClosedList>(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": T::NAMES })
}

fn drop_descriptions(schema: &mut serde_json::Value) {
    match schema {
        serde_json::Value::Object(members) => {
            // a property that is called description is an object, the keyword is a string
            if members.get("description").is_some_and(serde_json::Value::is_string) {
                members.remove("description");
            }
            members.values_mut().for_each(drop_descriptions);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(drop_descriptions),
        _ => {}
    }
}
