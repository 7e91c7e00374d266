//! Objects of which one that cannot be read spoils neither its list nor its watch.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// An object as the API server sent it, or why it cannot be read.
///
/// Read from JSON only, which is what the API server speaks; in a watch event the object follows its type, as API servers
/// write it. As `kube::core::DeserializeGuard`, without two copies of every object in between.
#[derive(Clone, Debug)]
pub struct Guarded<K>(pub Result<K, Unreadable>);

/// An object that is not of the shape of its kind.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Which object.
    pub metadata: ObjectMeta,
    /// What is wrong; the same for the same fault, wherever in the text it stands.
    pub error: String,
}

#[derive(Deserialize)]
struct OnlyMetadata {
    #[serde(default)]
    metadata: ObjectMeta,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let read = serde_json::from_str::<K>(text.get());
        Ok(Self(match read {
            Ok(object) => Ok(object),
            Err(error) => {
                let OnlyMetadata { metadata } = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
                Err(Unreadable { metadata, error: without_position(&error) })
            }
        }))
    }
}

/// An earlier field that grows moves the fault, and would make it look like another one.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&position).map(ToOwned::to_owned).unwrap_or(text)
}

impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unreadable| &unreadable.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unreadable| &mut unreadable.metadata, K::meta_mut)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::{ObjectList, WatchEvent};

    use super::*;

    type Object = Guarded<ConfigMap>;

    const GOOD: &str = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":"v"}}"#;
    const BAD: &str = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"k":[7]}}"#;

    #[test]
    fn one_object_that_cannot_be_read_spoils_neither_a_list_nor_an_event() {
        let list = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMapList","metadata":{{"resourceVersion":"7"}},"items":[{BAD},{GOOD}]}}"#
        );
        let list: ObjectList<Object> = serde_json::from_str(&list).unwrap();
        let names: Vec<_> = list.items.iter().map(|item| (item.meta().name.as_deref(), item.0.is_ok())).collect();
        assert_eq!(names, [(Some("b"), false), (Some("a"), true)]);
        for (object, readable) in [(BAD, false), (GOOD, true)] {
            let event = format!(r#"{{"type":"MODIFIED","object":{object}}}"#);
            match serde_json::from_str::<WatchEvent<Object>>(&event).unwrap() {
                WatchEvent::Modified(Guarded(object)) => assert_eq!(object.is_ok(), readable),
                other => panic!("{other:?}"),
            }
        }
        let bookmark =
            r#"{"type":"BOOKMARK","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"9"}}}"#;
        assert!(matches!(serde_json::from_str::<WatchEvent<Object>>(bookmark).unwrap(), WatchEvent::Bookmark(_)));
    }

    #[test]
    fn the_same_fault_has_the_same_words_wherever_it_stands() {
        let error = |text: &str| serde_json::from_str::<Object>(text).unwrap().0.unwrap_err().error;
        assert_eq!(error(BAD), "invalid type: sequence, expected a string");
        assert_eq!(error(&BAD.replace("\"b\"", "\"a-longer-name\"")), error(BAD));
        assert!(serde_json::from_str::<Object>(r#"{"metadata": 7}"#).is_err(), "nobody could say which it is");
    }
}
