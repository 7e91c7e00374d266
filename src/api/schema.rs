//! Pieces of OpenAPI schema that the derive cannot say.
//!
//! Types of Kubernetes itself bring their properties and what is required; defaults, merge rules and the
//! notation of quantities are missing there, and are added here by type, so that an embedded type
//! is checked, defaulted and merged as it is in the CRDs of KMM.
//! Source: the OpenAPI document of Kubernetes 1.35.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::wire::ClosedList;

/// Types that are merged as one value.
const ATOMIC_MAPS: &[&str] = &[
    "ConfigMapKeySelector",
    "ConfigMapProjection",
    "ConfigMapVolumeSource",
    "FileKeySelector",
    "LabelSelector",
    "LocalObjectReference",
    "ObjectFieldSelector",
    "ResourceFieldSelector",
    "SecretKeySelector",
    "SecretProjection",
    "TypedLocalObjectReference",
];

/// Types that name another object, with a name that may be left out and is empty then.
const OPTIONAL_NAMES: &[&str] = &[
    "ConfigMapKeySelector",
    "ConfigMapProjection",
    "ConfigMapVolumeSource",
    "LocalObjectReference",
    "SecretKeySelector",
    "SecretProjection",
];

/// Lists that are merged as one value.
const ATOMIC_LISTS: &[(&str, &str)] = &[
    ("CephFSVolumeSource", "monitors"),
    ("ConfigMapProjection", "items"),
    ("ConfigMapVolumeSource", "items"),
    ("DownwardAPIProjection", "items"),
    ("DownwardAPIVolumeSource", "items"),
    ("FCVolumeSource", "targetWWNs"),
    ("FCVolumeSource", "wwids"),
    ("ISCSIVolumeSource", "portals"),
    ("LabelSelector", "matchExpressions"),
    ("LabelSelectorRequirement", "values"),
    ("PersistentVolumeClaimSpec", "accessModes"),
    ("ProjectedVolumeSource", "sources"),
    ("RBDVolumeSource", "monitors"),
    ("SecretProjection", "items"),
    ("SecretVolumeSource", "items"),
];

/// Lists that are merged by a key.
const MAP_LISTS: &[(&str, &str, &str)] = &[("ResourceRequirements", "claims", "name")];

/// Text that stands where none is given.
const TEXT_DEFAULTS: &[(&str, &str, &str)] = &[
    ("AzureDiskVolumeSource", "fsType", "ext4"),
    ("ISCSIVolumeSource", "iscsiInterface", "default"),
    ("RBDVolumeSource", "keyring", "/etc/ceph/keyring"),
    ("RBDVolumeSource", "pool", "rbd"),
    ("RBDVolumeSource", "user", "admin"),
    ("ScaleIOVolumeSource", "fsType", "xfs"),
    ("ScaleIOVolumeSource", "storageMode", "ThinProvisioned"),
];

/// Switches that are off where nothing is given.
const FALSE_DEFAULTS: &[(&str, &str)] = &[("AzureDiskVolumeSource", "readOnly"), ("FileKeySelector", "optional")];

/// The notation of a quantity.
const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// An integer without a format, as Go's `int` has it in the CRDs of KMM.
pub(crate) fn plain_integer(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer" })
}

/// A string of a closed list.
pub(crate) fn string_enum<T: ClosedList>(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": T::NAMES })
}

/// A string of a closed list with the default that stands where none is given.
pub(crate) fn policy<T: ClosedList + Default + Serialize>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = string_enum::<T>(generator);
    schema.insert("default".to_owned(), json!(T::default()));
    schema
}

/// Takes away the default that the derive finds in `#[serde(default)]`, which is meant for reading alone.
pub(crate) fn without_default(schema: &mut Schema) {
    schema.remove("default");
}

/// The schema of a type of Kubernetes itself, complete but for its descriptions.
///
/// The descriptions are long and documented by Kubernetes; with them the CRD that holds a whole
/// Module would be larger than what `kubectl apply` can note in an annotation.
pub(crate) fn embedded<T: JsonSchema>(_: &mut SchemaGenerator) -> Schema {
    // the caller's generator writes every type in place, and then a type can no longer be told by its name
    let mut generator = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = false).into_generator();
    let mut schema = generator.subschema_for::<T>().to_value();
    let definitions: Map<String, Value> = generator
        .take_definitions(false)
        .into_iter()
        .map(|(path, definition)| (short_name(&path).to_owned(), definition))
        .collect();
    write_in_place(&mut schema, &definitions);
    Schema::try_from(schema).unwrap_or_default()
}

fn short_name(path: &str) -> &str {
    path.rsplit(['.', '/']).next().unwrap_or(path)
}

fn write_in_place(schema: &mut Value, definitions: &Map<String, Value>) {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).map(|path| short_name(path).to_owned())
        && let Some(definition) = definitions.get(&name)
    {
        *schema = with_facts(&name, definition.clone());
    }
    match schema {
        Value::Object(members) => {
            // a property that is called description is an object, the keyword is a string
            if members.get("description").is_some_and(Value::is_string) {
                members.remove("description");
            }
            members.values_mut().for_each(|member| write_in_place(member, definitions));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| write_in_place(item, definitions)),
        _ => {}
    }
}

/// The schema of a type with what its definition in Rust lacks.
fn with_facts(name: &str, mut schema: Value) -> Value {
    match name {
        "Quantity" => {
            // its two types are written by `crds`: the derive takes them away
            return json!({ "pattern": QUANTITY, "x-kubernetes-int-or-string": true });
        }
        // metadata of an embedded object is checked by the controller that makes the object
        "ObjectMeta" => return json!({ "type": "object" }),
        "RawExtension" => return json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true }),
        _ => {}
    }
    if ATOMIC_MAPS.contains(&name) {
        schema["x-kubernetes-map-type"] = json!("atomic");
    }
    if OPTIONAL_NAMES.contains(&name) {
        set(&mut schema, "name", "default", json!(""));
        if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|field| field != "name");
        }
        if schema.get("required").and_then(Value::as_array).is_some_and(Vec::is_empty)
            && let Some(members) = schema.as_object_mut()
        {
            members.remove("required");
        }
    }
    for (_, field) in ATOMIC_LISTS.iter().filter(|(owner, _)| *owner == name) {
        set(&mut schema, field, "x-kubernetes-list-type", json!("atomic"));
    }
    for (_, field, key) in MAP_LISTS.iter().filter(|(owner, _, _)| *owner == name) {
        set(&mut schema, field, "x-kubernetes-list-type", json!("map"));
        set(&mut schema, field, "x-kubernetes-list-map-keys", json!([key]));
    }
    for (_, field, text) in TEXT_DEFAULTS.iter().filter(|(owner, _, _)| *owner == name) {
        set(&mut schema, field, "default", json!(text));
    }
    for (_, field) in FALSE_DEFAULTS.iter().filter(|(owner, _)| *owner == name) {
        set(&mut schema, field, "default", json!(false));
    }
    schema
}

/// Sets a keyword of a property that exists.
fn set(schema: &mut Value, property: &str, keyword: &str, value: Value) {
    if let Some(property) = schema.pointer_mut(&format!("/properties/{property}")).and_then(Value::as_object_mut) {
        property.insert(keyword.to_owned(), value);
    }
}
