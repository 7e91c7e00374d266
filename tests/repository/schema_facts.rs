//! What the API server enforces of a CustomResourceDefinition, as lines of text that can be compared.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// Keywords that hold other schemas, or that are for people.
const NO_FACTS: &[&str] = &["properties", "items", "additionalProperties", "description"];

/// A subtree of fewer lines is written again instead of being referred to.
const SHORTEST_REFERENCE: usize = 4;

/// Turns definitions into lines: a path and what is enforced there, in the order of the paths.
///
/// A subtree that was written before is not written again: its line refers to the first one.
#[derive(Default)]
pub(crate) struct Digest {
    lines: Vec<String>,
    written: HashMap<String, String>,
}

impl Digest {
    /// Adds a definition.
    pub(crate) fn add(&mut self, definition: &Value) {
        let name = text(&definition["metadata"]["name"]);
        let spec = &definition["spec"];
        for fact in ["group", "scope", "names", "conversion"] {
            if let Some(value) = spec.get(fact) {
                self.lines.push(format!("{name} {fact} {value}"));
            }
        }
        for version in spec["versions"].as_array().into_iter().flatten() {
            let path = format!("{name}/{}", text(&version["name"]));
            let facts: Map<_, _> =
                version.as_object().into_iter().flatten().filter(|(key, _)| *key != "schema").map(owned).collect();
            self.lines.push(format!("{path} {}", Value::Object(facts)));
            let mut subtree = Vec::new();
            walk("", &version["schema"]["openAPIV3Schema"], &mut subtree);
            self.write(&path, &subtree);
        }
    }

    /// The lines.
    pub(crate) fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }

    fn write(&mut self, root: &str, subtree: &[(String, String)]) {
        let mut next = 0;
        while let Some((path, facts)) = subtree.get(next) {
            let below: Vec<_> = subtree[next..].iter().take_while(|(other, _)| is_at_or_below(other, path)).collect();
            let content: String =
                below.iter().map(|(other, facts)| format!("{} {facts}\n", &other[path.len()..])).collect();
            let here = format!("{root}{path}");
            match self.written.get(&content) {
                Some(first) if below.len() >= SHORTEST_REFERENCE => {
                    self.lines.push(format!("{here} = {first}"));
                    next += below.len();
                }
                _ => {
                    self.lines.push(format!("{here} {facts}"));
                    self.written.entry(content).or_insert(here);
                    next += 1;
                }
            }
        }
    }
}

fn is_at_or_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
}

fn walk(path: &str, schema: &Value, subtree: &mut Vec<(String, String)>) {
    let facts: Map<_, _> = schema
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| !NO_FACTS.contains(&key.as_str()))
        .map(owned)
        .collect();
    subtree.push((path.to_owned(), json!(facts).to_string()));
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, subtree);
    }
    if let Some(items) = schema.get("items") {
        walk(&format!("{path}[]"), items, subtree);
    }
    if let Some(values) = schema.get("additionalProperties") {
        walk(&format!("{path}{{}}"), values, subtree);
    }
}

fn owned((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
