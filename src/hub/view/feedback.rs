//! The values of a Module's status that a cluster reports back: their names and where they are.
//!
//! The nine counters have KMM's names, so that whoever reads them from the work goes on finding them.

use serde_json::Value;

use crate::api::names::ConditionType;
use crate::api::ocm::{FeedbackRule, JsonPath, values};

/// Name of the hash of the Module that a status speaks of.
pub const RENDERED_HASH: &str = "renderedHash";
/// Name of the generation that a status speaks of.
pub const OBSERVED_GENERATION: &str = "observedGeneration";
/// The conditions that are reported: what their values are called, and their types.
const CONDITIONS: [(&str, ConditionType); 2] = [(READY, ConditionType::Ready), (COVERED, ConditionType::Covered)];
/// Beginning of the names of the values of the condition `Ready`.
pub const READY: &str = "ready";
/// Beginning of the names of the values of the condition `Covered`.
pub const COVERED: &str = "covered";
/// End of the name of a condition's status.
pub const STATUS: &str = "status";
/// End of the name of a condition's reason.
pub const REASON: &str = "reason";
/// End of the name of a condition's message.
pub const MESSAGE: &str = "message";
/// End of the name of the counter of nodes that have what is wanted.
pub const AVAILABLE: &str = "availableNumber";
/// End of the name of the counter of nodes that are to have it.
pub const DESIRED: &str = "desiredNumber";
/// End of the name of the counter of nodes that match the selector.
pub const MATCHING: &str = "nodesMatchingSelectorNumber";

/// The parts of a Module that have counters.
const PARTS: [&str; 3] = ["devicePlugin", "dra", "moduleLoader"];

/// The part whose counters stand for the Module: what loads the kernel module, else what runs beside it.
pub fn counted_part(module_spec: &Value) -> &'static str {
    ["moduleLoader", "dra", "devicePlugin"]
        .into_iter()
        .find(|part| module_spec.get(part).is_some_and(|part| !part.is_null()))
        .unwrap_or("moduleLoader")
}

/// The rules for the Module in a work.
pub fn rules() -> Vec<FeedbackRule> {
    let counters = PARTS
        .iter()
        .flat_map(|part| [AVAILABLE, DESIRED, MATCHING].map(|counter| format!("{part}.{counter}")))
        .map(|name| (format!(".status.{name}"), name));
    let scalars = [RENDERED_HASH, OBSERVED_GENERATION].map(|name| (format!(".status.{name}"), name.to_owned()));
    let conditions = CONDITIONS.iter().flat_map(|(name, type_)| {
        [STATUS, REASON, MESSAGE].map(|field| {
            (format!(r#".status.conditions[?(@.type=="{}")].{field}"#, type_.as_str()), format!("{name}.{field}"))
        })
    });
    let json_paths = counters.chain(scalars).chain(conditions).map(|(path, name)| JsonPath { name, path }).collect();
    vec![FeedbackRule { type_: values::FEEDBACK_JSON_PATHS.to_owned(), json_paths }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_nine_counters_keep_their_names_and_every_name_is_there_once() {
        let rules = rules();
        let mut names: Vec<&str> = rules[0].json_paths.iter().map(|path| path.name.as_str()).collect();
        names.sort_unstable();
        let expected = [
            "covered.message",
            "covered.reason",
            "covered.status",
            "devicePlugin.availableNumber",
            "devicePlugin.desiredNumber",
            "devicePlugin.nodesMatchingSelectorNumber",
            "dra.availableNumber",
            "dra.desiredNumber",
            "dra.nodesMatchingSelectorNumber",
            "moduleLoader.availableNumber",
            "moduleLoader.desiredNumber",
            "moduleLoader.nodesMatchingSelectorNumber",
            "observedGeneration",
            "ready.message",
            "ready.reason",
            "ready.status",
            "renderedHash",
        ];
        assert_eq!(names, expected);
        assert!(rules[0].json_paths.iter().all(|path| path.path.starts_with(".status.")));
    }

    #[test]
    fn the_loader_is_counted_where_there_is_one() {
        let table = [
            (json!({"moduleLoader": {}, "devicePlugin": {}}), "moduleLoader"),
            (json!({"devicePlugin": {}}), "devicePlugin"),
            (json!({"dra": {}, "devicePlugin": null}), "dra"),
            (json!({}), "moduleLoader"),
            (Value::Null, "moduleLoader"),
        ];
        for (spec, expected) in table {
            assert_eq!(counted_part(&spec), expected, "{spec}");
        }
    }
}
