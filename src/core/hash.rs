//! Content hashes and names made from them.

use serde::Serialize;
use serde_json::Value;
use sha2::Digest as _;
use std::fmt::Write as _;

/// Hex characters of the hash in a [`bounded_name`]: 40 bits, enough to tell some thousands of names apart.
pub const SHORT_LENGTH: usize = 10;

/// A value that has no JSON form, for instance a map whose keys are no strings.
#[derive(Debug, thiserror::Error)]
#[error("value has no JSON form to hash")]
pub struct Error {
    #[from]
    source: serde_json::Error,
}

/// SHA-256 (64 lower-case hex characters) of the value's JSON with sorted keys and no white space.
///
/// Equal JSON values give equal hashes, whatever the order of fields in the type or of keys in a map; the order of
/// lists counts. A field that is left out and a field that is `null` differ.
pub fn content_hash<T: Serialize + ?Sized>(value: &T) -> Result<String, Error> {
    let mut text = String::new();
    write_canonical(&serde_json::to_value(value)?, &mut text);
    Ok(hash_bytes(text.as_bytes()))
}

/// SHA-256 of the bytes, 64 lower-case hex characters.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

/// The bytes in lower-case hex characters.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// A hash function of digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// What nearly everything uses, and the only one that we give out.
    Sha256,
    /// Accepted where somebody else chose it.
    Sha512,
}

impl Algorithm {
    /// The name in front of the colon of a digest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the hash in hex characters.
    pub fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A hash under way, for content that is never all in memory.
#[derive(Debug, Clone)]
pub struct Hasher(Inner);

#[derive(Debug, Clone)]
enum Inner {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// The hash of nothing so far.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => Inner::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Inner::Sha512(sha2::Sha512::new()),
        })
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Inner::Sha256(_) => Algorithm::Sha256,
            Inner::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// More of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Inner::Sha256(hasher) => hasher.update(bytes),
            Inner::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The hash of everything that was given, in lower-case hex characters.
    pub fn finish(self) -> String {
        match self.0 {
            Inner::Sha256(hasher) => hex(&hasher.finalize()),
            Inner::Sha512(hasher) => hex(&hasher.finalize()),
        }
    }
}

/// Written by hand, because whether `serde_json` sorts keys depends on a feature that any dependency can switch.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _ = write!(out, "{value}");
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                let _ = write!(out, "{}:", Value::String(key.clone()));
                write_canonical(item, out);
            }
            out.push('}');
        }
    }
}

/// What a name may look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameForm {
    /// DNS-1123 label: lower-case letters, digits and `-`.
    Label,
    /// DNS-1123 subdomain: labels joined with dots.
    Subdomain,
}

impl NameForm {
    /// Whether the name has this form, whatever its length.
    pub fn is_valid(self, name: &str) -> bool {
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        match self {
            Self::Label => is_label(name),
            Self::Subdomain => name.split('.').all(is_label),
        }
    }
}

/// A valid object name of at most `max` bytes: `base` itself where it is one, else a readable beginning of it, `-` and
/// a hash of the whole `base`, so that two long names with the same beginning stay apart.
///
/// The same `base` always gives the same name. A `max` below [`SHORT_LENGTH`] leaves the first characters of the hash.
pub fn bounded_name(base: &str, max: usize, form: NameForm) -> String {
    if base.len() <= max && form.is_valid(base) {
        return base.to_owned();
    }
    let hash = hash_bytes(base.as_bytes());
    let hash = &hash[..SHORT_LENGTH.min(max)];
    let room = max.saturating_sub(SHORT_LENGTH + 1);
    let mut prefix = String::with_capacity(room);
    for c in base.chars() {
        let c = match c {
            'a'..='z' | '0'..='9' | '-' => c,
            'A'..='Z' => c.to_ascii_lowercase(),
            '.' if form == NameForm::Subdomain => '.',
            _ => '-',
        };
        // A dot may neither begin a name nor follow, nor be followed by, anything but a letter or a digit.
        let after_separator = prefix.is_empty() || prefix.ends_with(['.', '-']);
        let c = if c == '.' && after_separator { '-' } else { c };
        if (c == '-' && (prefix.is_empty() || prefix.ends_with('.'))) || prefix.len() == room {
            if prefix.len() == room {
                break;
            }
            continue;
        }
        prefix.push(c);
    }
    let prefix = prefix.trim_end_matches(['.', '-']);
    if prefix.is_empty() { hash.to_owned() } else { format!("{prefix}-{hash}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashMap;

    #[test]
    fn equal_content_has_one_hash_whatever_the_order_of_keys() {
        #[derive(Serialize)]
        struct Declared {
            b: i32,
            a: Vec<Option<&'static str>>,
        }
        let declared = Declared { b: 1, a: vec![Some("x"), None] };
        let hash = content_hash(&declared).unwrap();
        assert_eq!(hash, content_hash(&json!({"a": ["x", null], "b": 1})).unwrap());
        assert_eq!(hash, hash_bytes(br#"{"a":["x",null],"b":1}"#));
        let many: HashMap<String, usize> = (0..100).map(|i| (format!("k{i}"), i)).collect();
        let again: HashMap<String, usize> = (0..100).rev().map(|i| (format!("k{i}"), i)).collect();
        assert_eq!(content_hash(&many).unwrap(), content_hash(&again).unwrap());
    }

    #[test]
    fn the_hash_is_sha256_in_hex() {
        assert_eq!(hash_bytes(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn content_in_pieces_has_the_hash_of_the_whole() {
        for (algorithm, expected) in [
            (Algorithm::Sha256, hash_bytes(b"abc")),
            (
                Algorithm::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
                    .to_owned(),
            ),
        ] {
            let mut hasher = Hasher::new(algorithm);
            for piece in [&b"a"[..], b"", b"bc"] {
                hasher.update(piece);
            }
            assert_eq!((hasher.algorithm(), hasher.finish()), (algorithm, expected));
        }
    }

    #[test]
    fn different_content_has_different_hashes() {
        let values = [
            json!({}),
            json!([]),
            json!(null),
            json!(""),
            json!({"a": null}),
            json!({"a": 1}),
            json!({"a": "1"}),
            json!(["a", "b"]),
            json!(["b", "a"]),
            json!({"a": "\",\"b\":\""}),
            json!({"a": "", "b": ""}),
        ];
        let hashes: std::collections::BTreeSet<String> = values.iter().map(|v| content_hash(v).unwrap()).collect();
        assert_eq!(hashes.len(), values.len());
    }

    #[test]
    fn a_value_without_json_form_is_an_error_and_no_panic() {
        let map: HashMap<(u8, u8), u8> = HashMap::from([((1, 2), 3)]);
        assert!(content_hash(&map).is_err());
    }

    #[test]
    fn a_name_that_fits_stays_and_any_other_keeps_a_readable_beginning() {
        let hashed = |prefix: &str, base: &str| format!("{prefix}-{}", &hash_bytes(base.as_bytes())[..SHORT_LENGTH]);
        let table = [
            ("acx-node1", 63, NameForm::Label, "acx-node1".to_owned()),
            ("a.b", 63, NameForm::Subdomain, "a.b".to_owned()),
            ("a.b", 63, NameForm::Label, hashed("a-b", "a.b")),
            ("a_B", 63, NameForm::Subdomain, hashed("a-b", "a_B")),
            ("6.1+x", 63, NameForm::Subdomain, hashed("6.1-x", "6.1+x")),
            ("-.a-.b-", 63, NameForm::Subdomain, hashed("a--b", "-.a-.b-")),
            ("ä", 63, NameForm::Label, hash_bytes("ä".as_bytes())[..SHORT_LENGTH].to_owned()),
            ("abcdefghijklmn", 13, NameForm::Label, hashed("ab", "abcdefghijklmn")),
        ];
        for (base, max, form, expected) in table {
            assert_eq!(bounded_name(base, max, form), expected, "{base}");
        }
    }

    #[test]
    fn bounded_names_are_always_valid_short_enough_and_distinct() {
        let bases: Vec<String> = ["", ".", "-", "..", "a..b", "A", "ü.ü", "x-.-.y", "a.-b", "a-.b"]
            .iter()
            .map(|s| (*s).to_owned())
            .chain((0..300).map(|n| "a.b-C_".repeat(n)))
            .collect();
        for form in [NameForm::Label, NameForm::Subdomain] {
            for max in [1, 5, SHORT_LENGTH, SHORT_LENGTH + 1, 12, 20, 63, 253] {
                let names: Vec<String> = bases.iter().map(|b| bounded_name(b, max, form)).collect();
                for (base, name) in bases.iter().zip(&names) {
                    assert!(name.len() <= max, "{base:?} → {name:?}");
                    assert!(form.is_valid(name), "{base:?} → {name:?}");
                }
                if max >= SHORT_LENGTH {
                    let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
                    let given: std::collections::BTreeSet<&String> = bases.iter().collect();
                    assert_eq!(distinct.len(), given.len());
                }
            }
        }
    }
}
