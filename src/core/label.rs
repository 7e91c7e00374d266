//! What Kubernetes takes for a label. The API server refuses a whole object for one label that is none.

use super::hash::NameForm;

/// Longest name of a key, the part behind its slash, and longest value, in bytes.
pub const MAX_LENGTH: usize = 63;
/// Longest prefix of a key, the part in front of its slash, in bytes.
pub const MAX_PREFIX_LENGTH: usize = 253;

/// Whether this can be the value of a label: at most [`MAX_LENGTH`] letters, digits, `-`, `_` and `.`, the first and last
/// a letter or digit; or empty.
pub fn is_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

/// Whether this can be the key of a label: a name like a value's that is not empty, behind a DNS subdomain and a slash
/// where it has a prefix.
pub fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        None => is_name(text),
        Some((prefix, name)) => {
            prefix.len() <= MAX_PREFIX_LENGTH && NameForm::Subdomain.is_valid(prefix) && is_name(name)
        }
    }
}

fn is_name(text: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= MAX_LENGTH
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_those_that_the_api_server_takes() {
        let (longest, longer) = ("a".repeat(MAX_LENGTH), "a".repeat(MAX_LENGTH + 1));
        for text in ["a", "1.0-rc_1", "V2", longest.as_str()] {
            assert!(is_value(text) && is_key(text) && is_key(&format!("kmm.node.kubernetes.io/{text}")), "{text}");
        }
        for text in ["1.2+deb12", "1 2", "-1", "1.", "_", "ä", longer.as_str()] {
            assert!(!is_value(text) && !is_key(text) && !is_key(&format!("example.org/{text}")), "{text}");
        }
        assert!(is_value("") && !is_key("") && !is_key("example.org/"));
        let longest_prefix = format!("{}.a", "a".repeat(MAX_PREFIX_LENGTH - 2));
        assert!(is_key(&format!("{longest_prefix}/a")) && !is_key(&format!("a{longest_prefix}/a")));
        for prefix in ["", ".", "A.org", "a..org", "-a.org", "a_b.org", "a/b"] {
            assert!(!is_key(&format!("{prefix}/a")), "{prefix}");
        }
    }
}
