//! Our CRDs of OCM against the original ones.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::ocm::crds;
use crate::ocm::kinds::text;

/// What may differ: texts, and what only people look at.
const FREE: [&str; 3] = ["description", "additionalPrinterColumns", "preserveUnknownFields"];

/// Every difference in what our schema says; properties that only the original has are allowed.
fn differences(at: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(mine), Value::Object(other)) => {
            let is_list_of_fields = at.ends_with("/properties");
            let keys: BTreeSet<&String> = mine.keys().chain(other.keys().filter(|_| !is_list_of_fields)).collect();
            for key in keys.into_iter().filter(|key| is_list_of_fields || !FREE.contains(&key.as_str())) {
                let missing = Value::Null;
                differences(
                    &format!("{at}/{key}"),
                    mine.get(key).unwrap_or(&missing),
                    other.get(key).unwrap_or(&missing),
                    out,
                );
            }
        }
        (Value::Array(mine), Value::Array(other)) if at.ends_with("/required") || at.ends_with("/enum") => {
            let sorted = |list: &[Value]| list.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
            if sorted(mine) != sorted(other) {
                out.push(format!("{at}: ours {ours}, theirs {theirs}"));
            }
        }
        (Value::Array(mine), Value::Array(other)) if mine.len() == other.len() => {
            for (index, (ours, theirs)) in mine.iter().zip(other).enumerate() {
                differences(&format!("{at}/{index}"), ours, theirs, out);
            }
        }
        _ if ours == theirs => {}
        _ => out.push(format!("{at}: ours {ours}, theirs {theirs}")),
    }
}

#[test]
fn a_difference_of_each_sort_is_seen() {
    let theirs = serde_json::json!({"properties": {
        "a": {"type": "string", "maxLength": 3, "description": "text"}, "b": {"type": "integer"}}, "required": ["a", "b"]});
    let same = serde_json::json!({"properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["b", "a"]});
    let mut out = Vec::new();
    differences("", &same, &theirs, &mut out);
    assert_eq!(out, Vec::<String>::new());
    let wrong = serde_json::json!({"properties": {"a": {"type": "string", "default": "x"}, "c": {"type": "string"}}, "required": ["a"]});
    differences("", &wrong, &theirs, &mut out);
    assert_eq!(
        out,
        [
            "/properties/a/default: ours \"x\", theirs null",
            "/properties/a/maxLength: ours null, theirs 3",
            "/properties/c: ours {\"type\":\"string\"}, theirs null",
            "/required: ours [\"a\"], theirs [\"a\",\"b\"]",
        ]
    );
}

#[test]
#[ignore = "needs OCM_CRD_DIR, a folder with OCM's CRDs named <plural>.<group>.yaml"]
fn our_crds_say_what_the_original_ones_say() -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "the setting of a test bed, not of the product")]
    let folder = std::env::var("OCM_CRD_DIR").context("OCM_CRD_DIR is not set")?;
    let mut out = Vec::new();
    for entry in fs::read_dir(crds())? {
        let ours: Value = serde_saphyr::from_str(&fs::read_to_string(entry?.path())?)?;
        let name = text(&ours, "/metadata/name");
        let file = format!("{folder}/{name}.yaml");
        let theirs: Value = serde_saphyr::from_str(&fs::read_to_string(&file).with_context(|| file.clone())?)?;
        differences(name, &ours["spec"], &theirs["spec"], &mut out);
    }
    assert_eq!(out, Vec::<String>::new());
    Ok(())
}
