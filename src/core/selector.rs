//! Label selectors of Modules and `ManagedClusterModules`: equality only.

use std::collections::BTreeMap;

/// Whether `labels` hold every key of `selector` with the same value.
///
/// An empty selector matches everything, an object without labels only the empty selector.
pub fn matches(selector: Option<&BTreeMap<String, String>>, labels: Option<&BTreeMap<String, String>>) -> bool {
    selector.into_iter().flatten().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_selector_matches_when_every_pair_is_there() {
        let labels = map(&[("a", "1"), ("b", ""), ("c", "3")]);
        let table = [
            (map(&[]), true),
            (map(&[("a", "1")]), true),
            (map(&[("b", "")]), true),
            (map(&[("a", "1"), ("c", "3")]), true),
            (map(&[("a", "2")]), false),
            (map(&[("a", "")]), false),
            (map(&[("a", "1"), ("d", "")]), false),
        ];
        for (selector, expected) in table {
            assert_eq!(matches(Some(&selector), Some(&labels)), expected, "{selector:?}");
        }
    }

    #[test]
    fn absent_labels_and_absent_selectors_are_empty_ones() {
        assert!(matches(None, None));
        assert!(matches(None, Some(&map(&[("a", "1")]))));
        assert!(matches(Some(&map(&[])), None));
        assert!(!matches(Some(&map(&[("a", "")])), None));
    }
}
