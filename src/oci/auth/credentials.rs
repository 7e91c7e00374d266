//! Credentials of pull secrets and of nodes, and which of them are for an image.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::pattern::matches;
use crate::core::image::{DEFAULT_REGISTRY, ImageRef};

/// Type of Secrets whose key [`DOCKER_CONFIG_JSON_KEY`] holds `{"auths": {…}}`.
pub const DOCKER_CONFIG_JSON_TYPE: &str = "kubernetes.io/dockerconfigjson";
/// The one key of a Secret of type [`DOCKER_CONFIG_JSON_TYPE`].
pub const DOCKER_CONFIG_JSON_KEY: &str = ".dockerconfigjson";
/// Type of Secrets whose key [`DOCKER_CFG_KEY`] holds the entries without a frame.
pub const DOCKER_CFG_TYPE: &str = "kubernetes.io/dockercfg";
/// The one key of a Secret of type [`DOCKER_CFG_TYPE`].
pub const DOCKER_CFG_KEY: &str = ".dockercfg";

/// Where docker's own tools store what is for the default registry.
const DEFAULT_REGISTRY_ENTRY: &str = "index.docker.io";

/// People and tools leave out the padding, and some add it; both are understood.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a pull secret cannot be used. No message holds any of its content but names of registries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither of the two keys is there.
    #[error("the secret has neither the key {DOCKER_CONFIG_JSON_KEY} nor {DOCKER_CFG_KEY}")]
    NoKey,
    /// The value is no JSON of the expected shape.
    #[error("the value of {key} is no docker configuration (line {line}, column {column})")]
    Malformed {
        /// The key of the secret.
        key: &'static str,
        /// Line inside the value, from 1.
        line: usize,
        /// Column inside the line, from 1.
        column: usize,
    },
    /// An `auth` field is no base64 of `user:password`.
    #[error("the field auth of the entry {entry:?} is no base64 of user:password")]
    Auth {
        /// The entry's name: a registry, with or without a path.
        entry: String,
    },
}

/// A user name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The user name.
    pub username: String,
    /// The password.
    pub password: String,
    /// Where they are from, in words for messages.
    pub source: Cow<'static, str>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").finish_non_exhaustive()
    }
}

/// The entries of any number of pull secrets, and then those of a node, in the order in which they are to be tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// All entries with a smaller number are tried before.
    turn: usize,
    /// `host[:port][/path]`; the host's parts may hold `*`, `?` and `[…]`.
    pattern: String,
    credential: Credential,
}

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: Option<BTreeMap<String, AuthEntry>>,
}

#[derive(Deserialize)]
struct AuthEntry {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    auth: Option<String>,
}

impl Credentials {
    /// No credentials: every registry is asked anonymously.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// What a Secret's data hold, of either type.
    pub fn from_secret_data(data: &BTreeMap<String, impl AsRef<[u8]>>) -> Result<Self, Error> {
        if let Some(value) = data.get(DOCKER_CONFIG_JSON_KEY) {
            return Self::from_docker_config_json(value.as_ref());
        }
        match data.get(DOCKER_CFG_KEY) {
            Some(value) => Self::from_docker_cfg(value.as_ref()),
            None => Err(Error::NoKey),
        }
    }

    /// The content of `.dockerconfigjson`.
    pub fn from_docker_config_json(value: &[u8]) -> Result<Self, Error> {
        let config: ConfigJson =
            serde_json::from_slice(value).map_err(|error| malformed(DOCKER_CONFIG_JSON_KEY, &error))?;
        Self::from_entries(config.auths.unwrap_or_default())
    }

    /// The content of `.dockercfg`.
    pub fn from_docker_cfg(value: &[u8]) -> Result<Self, Error> {
        let entries = serde_json::from_slice(value).map_err(|error| malformed(DOCKER_CFG_KEY, &error))?;
        Self::from_entries(entries)
    }

    fn from_entries(auths: BTreeMap<String, AuthEntry>) -> Result<Self, Error> {
        let mut pairs = Vec::with_capacity(auths.len());
        for (name, auth) in auths {
            let pair = match auth.auth.as_deref() {
                Some(encoded) if !encoded.is_empty() => {
                    decode_auth(encoded).ok_or_else(|| Error::Auth { entry: name.clone() })?
                }
                _ => (auth.username.unwrap_or_default(), auth.password.unwrap_or_default()),
            };
            pairs.push((name, pair));
        }
        Ok(Self::from_pairs(pairs))
    }

    /// User name and password by the name of an entry.
    pub(super) fn from_pairs(pairs: impl IntoIterator<Item = (String, (String, String))>) -> Self {
        // Entries of credential helpers are empty: they say nothing about how to log in.
        let full = pairs.into_iter().filter(|(_, (username, password))| !username.is_empty() || !password.is_empty());
        let entries = full.map(|(name, (username, password))| Entry {
            turn: 0,
            pattern: normalize(&name),
            credential: Credential { username, password, source: Cow::Borrowed("the pull secret") },
        });
        let mut credentials = Self { entries: entries.collect() };
        credentials.sort();
        credentials
    }

    /// The same, said to be from somewhere else than "the pull secret".
    #[must_use]
    pub fn named(mut self, source: &str) -> Self {
        for entry in &mut self.entries {
            entry.credential.source = Cow::Owned(source.to_owned());
        }
        self
    }

    /// Adds the entries of another secret; of two equally exact entries the ones that were here first are tried first.
    pub fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.sort();
    }

    /// Adds entries that are tried after all others, however exact they are.
    pub fn extend_after(&mut self, other: Self) {
        let turn = self.entries.last().map_or(0, |last| last.turn + 1);
        self.extend(Self {
            entries: other.entries.into_iter().map(|entry| Entry { turn: turn + entry.turn, ..entry }).collect(),
        });
    }

    fn sort(&mut self) {
        self.entries.sort_by(|one, other| {
            let by_length = other.pattern.len().cmp(&one.pattern.len());
            one.turn.cmp(&other.turn).then(by_length).then_with(|| one.pattern.cmp(&other.pattern))
        });
    }

    /// What to try for an image, the most exact first; empty means that the registry is asked anonymously.
    pub fn candidates(&self, image: &ImageRef) -> Vec<&Credential> {
        self.of_name(&image.name())
    }

    /// As [`Self::candidates`], for `registry/repository`.
    pub(crate) fn of_name(&self, name: &str) -> Vec<&Credential> {
        let legacy = match name.split_once('/') {
            Some((DEFAULT_REGISTRY, repository)) => Some(format!("{DEFAULT_REGISTRY_ENTRY}/{repository}")),
            _ => None,
        };
        let mut matching: Vec<(&Entry, bool)> = Vec::new();
        for entry in &self.entries {
            let is_exact = matches(&entry.pattern, name);
            if is_exact || legacy.as_ref().is_some_and(|legacy| matches(&entry.pattern, legacy)) {
                matching.push((entry, is_exact));
            }
        }
        matching.sort_by_key(|(entry, is_exact)| (entry.turn, !is_exact));
        let mut found: Vec<&Credential> = Vec::new();
        for (Entry { credential, .. }, _) in matching {
            let is_same =
                |one: &&Credential| (&one.username, &one.password) == (&credential.username, &credential.password);
            if !found.iter().any(is_same) {
                found.push(credential);
            }
        }
        found
    }
}

fn malformed(key: &'static str, error: &serde_json::Error) -> Error {
    // The message of the parser may quote the value, so only the place is kept.
    Error::Malformed { key, line: error.line(), column: error.column() }
}

fn decode_auth(encoded: &str) -> Option<(String, String)> {
    let decoded = BASE64.decode(encoded.trim()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (username, password) = decoded.split_once(':')?;
    // Old tools pad the decoded value.
    Some((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// `host[:port][/path]` of an entry's name: without scheme, and without the version of the API that tools append.
fn normalize(name: &str) -> String {
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    let (host, path) = name.split_once('/').unwrap_or((name, ""));
    let path = match path {
        "v1" | "v2" => "",
        _ => path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path),
    };
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(config: &str, image: &str) -> Vec<String> {
        let credentials = Credentials::from_docker_config_json(config.as_bytes()).unwrap();
        let image: ImageRef = image.parse().unwrap();
        credentials.candidates(&image).iter().map(|credential| credential.username.clone()).collect()
    }

    fn config(entries: &[(&str, &str)]) -> String {
        let auths: BTreeMap<_, _> = entries
            .iter()
            .map(|(name, user)| (name, serde_json::json!({"username": user, "password": "secret"})))
            .collect();
        serde_json::json!({ "auths": auths }).to_string()
    }

    #[test]
    fn an_entry_is_for_an_image_when_the_kubelet_thinks_so() {
        let cases: [(&str, &str, bool); 24] = [
            ("quay.io", "quay.io/a/b", true),
            ("https://quay.io", "quay.io/a/b", true),
            ("https://quay.io/v2/", "quay.io/a/b", true),
            ("https://quay.io/v1", "quay.io/a/b", true),
            ("http://quay.io/v2/a", "quay.io/a/b", true),
            ("quay.io/a", "quay.io/a/b", true),
            ("quay.io/a/b", "quay.io/a/b:v1", true),
            ("quay.io/a/c", "quay.io/a/b", false),
            ("quay.io/a/b/c", "quay.io/a/b", false),
            ("*.quay.io", "eu.quay.io/a", true),
            ("*.quay.io", "quay.io/a", false),
            ("*.quay.io", "a.b.quay.io/a", false),
            ("*.*.quay.io", "a.b.quay.io/a", true),
            ("eu-?.quay.io", "eu-1.quay.io/a", true),
            ("eu-[0-3].quay.io", "eu-4.quay.io/a", false),
            ("eu-[^0-3].quay.io", "eu-4.quay.io/a", true),
            ("eu-[.quay.io", "eu-4.quay.io/a", false),
            ("quay.io:443", "quay.io/a", false),
            ("quay.io", "quay.io:443/a", false),
            ("registry:5000", "registry:5000/a", true),
            ("[::1]:5000", "[::1]:5000/a", true),
            ("https://index.docker.io/v1/", "nginx", true),
            ("docker.io", "nginx", true),
            ("index.docker.io", "quay.io/nginx", false),
        ];
        for (entry, image, expected) in cases {
            assert_eq!(!users(&config(&[(entry, "user")]), image).is_empty(), expected, "{entry} for {image}");
        }
    }

    #[test]
    fn the_most_exact_entry_is_tried_first_and_the_others_after_it() {
        let config = config(&[("quay.io", "host"), ("quay.io/team", "team"), ("quay.*", "glob"), ("gcr.io", "other")]);
        assert_eq!(users(&config, "quay.io/team/app"), ["team", "host", "glob"]);
        assert_eq!(users(&config, "quay.io/other"), ["host", "glob"]);
        assert_eq!(users(&config, "ghcr.io/other"), [""; 0]);
    }

    #[test]
    fn equal_credentials_are_tried_once() {
        let config = config(&[("quay.io", "one"), ("quay.io/team", "one")]);
        assert_eq!(users(&config, "quay.io/team/app"), ["one"]);
    }

    #[test]
    fn several_secrets_are_one_list() {
        let mut all = Credentials::from_docker_config_json(config(&[("quay.io", "host")]).as_bytes()).unwrap();
        all.extend(Credentials::from_docker_config_json(config(&[("quay.io", "second")]).as_bytes()).unwrap());
        all.extend(Credentials::from_docker_config_json(config(&[("quay.io/a", "exact")]).as_bytes()).unwrap());
        let image: ImageRef = "quay.io/a".parse().unwrap();
        let users: Vec<_> = all.candidates(&image).iter().map(|credential| credential.username.as_str()).collect();
        assert_eq!(users, ["exact", "host", "second"]);
    }

    #[test]
    fn what_comes_after_is_tried_after_however_exact_it_is() {
        let of = |entries: &[(&str, &str)]| Credentials::from_docker_config_json(config(entries).as_bytes()).unwrap();
        let names = |all: &Credentials, image: &str| -> Vec<String> {
            let image: ImageRef = image.parse().unwrap();
            all.candidates(&image).iter().map(|one| format!("{} of {}", one.username, one.source)).collect()
        };
        let mut all = of(&[("*.io", "secret"), ("index.docker.io", "old")]);
        all.extend_after(of(&[("quay.io/a", "file"), ("docker.io", "hub")]).named("the file"));
        all.extend_after(of(&[("quay.io/a/b", "plugin"), ("quay.io", "secret")]).named("the plugin"));
        let expected = ["secret of the pull secret", "file of the file", "plugin of the plugin"];
        assert_eq!(names(&all, "quay.io/a/b"), expected);
        assert_eq!(names(&all, "nginx"), ["secret of the pull secret", "old of the pull secret", "hub of the file"]);
        let mut later = Credentials::anonymous();
        later.extend_after(all.clone());
        assert_eq!(later, all, "nothing before changes nothing");
    }

    #[test]
    fn the_auth_field_wins_over_the_plain_ones_and_needs_no_padding() {
        let credential = |username: &str, password: &str| Credential {
            username: username.to_owned(),
            password: password.to_owned(),
            source: "the pull secret".into(),
        };
        for (entry, expected) in [
            (r#"{"auth":"dTpwOnE=","username":"x","password":"y"}"#, Some(credential("u", "p:q"))),
            (r#"{"auth":"dTpwOnE"}"#, Some(credential("u", "p:q"))),
            (r#"{"auth":"","username":"x","password":"y"}"#, Some(credential("x", "y"))),
            (r#"{"email":"a@b"}"#, None),
        ] {
            let credentials = Credentials::from_docker_cfg(format!(r#"{{"quay.io":{entry}}}"#).as_bytes()).unwrap();
            let image: ImageRef = "quay.io/a".parse().unwrap();
            assert_eq!(credentials.candidates(&image).first().copied(), expected.as_ref(), "{entry}");
        }
    }

    #[test]
    fn a_secret_of_either_type_is_read_and_others_are_told() {
        let data = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.as_bytes().to_vec())]);
        let json = r#"{"auths":{"quay.io":{"auth":"dTpw"}}}"#;
        let cfg = r#"{"quay.io":{"auth":"dTpw"}}"#;
        let expected = Credentials::from_docker_cfg(cfg.as_bytes());
        assert_eq!(Credentials::from_secret_data(&data(".dockerconfigjson", json)), expected);
        assert_eq!(Credentials::from_secret_data(&data(".dockercfg", cfg)), expected);
        assert_eq!(Credentials::from_secret_data(&data("password", "x")), Err(Error::NoKey));
        assert_eq!(Credentials::from_secret_data(&data(".dockerconfigjson", "{}")), Ok(Credentials::anonymous()));
    }

    #[test]
    fn neither_errors_nor_debug_output_hold_secrets() {
        for value in [r#"{"auths":{"quay.io":{"auth":"c2VjcmV0"}}}"#, r#"{"auths":{"quay.io":"secret"}}"#, "secret"] {
            let error = Credentials::from_docker_config_json(value.as_bytes()).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(!text.contains("secret") && !text.contains("c2VjcmV0"), "{text}");
        }
        let credentials = Credentials::from_docker_config_json(config(&[("quay.io", "user")]).as_bytes()).unwrap();
        assert!(!format!("{credentials:?}").contains("secret"));
    }
}
