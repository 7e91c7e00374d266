//! Feedback values of one applied object, by the rules of the work's `manifestConfigs`.

use serde_json::{Value, json};

use super::jsonpath::JsonPath;

/// The longest raw JSON value that the API server of the hub takes.
const MAX_JSON_RAW: usize = 1024;

/// What the rules yield for one object.
#[derive(Debug, Default, PartialEq)]
pub struct Feedback {
    /// Entries of `statusFeedback.values`, by name unique, the first of a name kept.
    pub values: Vec<Value>,
    /// One message per path that could not be evaluated; other values are still reported.
    pub errors: Vec<String>,
}

/// Evaluates `rules` (the list `feedbackRules`) against `object`. `raw` allows whole objects, lists and
/// floats as JSON text.
pub fn evaluate(rules: &[Value], object: &Value, raw: bool) -> Feedback {
    let mut out = Feedback::default();
    for rule in rules {
        let well_known;
        let paths = if rule["type"] == "WellKnownStatus" {
            let kind = object["kind"].as_str().unwrap_or_default();
            well_known = well_known_paths(object["apiVersion"].as_str().unwrap_or_default(), kind);
            if well_known.is_empty() {
                out.errors.push(format!("cannot find the wellknown statuses for resource with kind {kind}"));
            }
            &well_known
        } else {
            rule["jsonPaths"].as_array().map_or(&[][..], Vec::as_slice)
        };
        for path in paths {
            if let Err(error) = path_value(path, object, raw, &mut out.values) {
                out.errors.push(error);
            }
        }
    }
    out
}

fn path_value(rule: &Value, object: &Value, raw: bool, values: &mut Vec<Value>) -> Result<(), String> {
    let name = rule["name"].as_str().unwrap_or_default();
    let version = object["apiVersion"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    if let Some(wanted) = rule["version"].as_str().filter(|wanted| !wanted.is_empty() && *wanted != version) {
        return Err(format!("version set in the path of {name} is {wanted}, the object has {version}"));
    }
    let path = JsonPath::parse(rule["path"].as_str().unwrap_or_default()).map_err(|error| format!("{error:#}"))?;
    let Some(value) = path.first(object).map_err(|error| format!("{name}: {error:#}"))? else { return Ok(()) };
    if values.iter().any(|old| old["name"] == name) {
        return Ok(());
    }
    let field = match value {
        Value::Bool(value) => json!({"type": "Boolean", "boolean": value}),
        Value::String(value) => json!({"type": "String", "string": value}),
        Value::Number(number) if number.is_i64() => json!({"type": "Integer", "integer": number}),
        other if raw => {
            let text = other.to_string();
            if text.len() > MAX_JSON_RAW {
                return Err(format!("the value of {name} has {} characters, more than {MAX_JSON_RAW}", text.len()));
            }
            json!({"type": "JsonRaw", "jsonRaw": text})
        }
        other => return Err(format!("the type {} of the value for {name} is not found", type_name(other))),
    };
    values.push(json!({"name": name, "fieldValue": field}));
    Ok(())
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
        Value::Number(_) => "float64",
        Value::Null | Value::Bool(_) | Value::String(_) => "scalar",
    }
}

/// The built-in rules; no other kind has any.
fn well_known_paths(api_version: &str, kind: &str) -> Vec<Value> {
    let paths: &[(&str, &str)] = match (api_version, kind) {
        ("apps/v1", "Deployment") => &[
            ("ReadyReplicas", ".status.readyReplicas"),
            ("Replicas", ".status.replicas"),
            ("AvailableReplicas", ".status.availableReplicas"),
        ],
        ("apps/v1", "DaemonSet") => &[
            ("NumberReady", ".status.numberReady"),
            ("DesiredNumberScheduled", ".status.desiredNumberScheduled"),
            ("NumberAvailable", ".status.numberAvailable"),
        ],
        ("batch/v1", "Job") => &[
            ("JobComplete", r#".status.conditions[?(@.type=="Complete")].status"#),
            ("JobSucceeded", ".status.succeeded"),
        ],
        ("v1", "Pod") => {
            &[("PodReady", r#".status.conditions[?(@.type=="Ready")].status"#), ("PodPhase", ".status.phase")]
        }
        _ => &[],
    };
    paths.iter().map(|(name, path)| json!({"name": name, "path": path})).collect()
}
