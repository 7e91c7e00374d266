//! The kubelet's credential provider plugins: which of them are for an image, what they are asked and what they answer.
//!
//! **Source**: `CredentialProviderConfig` (`kubelet.config.k8s.io`) and the exec protocol
//! (`credentialprovider.kubelet.k8s.io`) of the Kubernetes documentation, and `pkg/credentialprovider/plugin` of
//! Kubernetes 1.36, where the documentation is silent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::credentials::Credentials;
use super::pattern::matches;

/// Group and kind of the file that names the plugins.
const GROUP: &str = "kubelet.config.k8s.io";
const KIND: &str = "CredentialProviderConfig";
/// Versions of the exec protocol. Without service account tokens they differ in their names only.
const PROTOCOL: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// Why the kubelet's file that names the plugins cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is no such file.
    #[error("it is no {KIND} of {GROUP}: {0}")]
    Malformed(String),
    /// Two providers have one name.
    #[error("it names the provider {0} twice")]
    Twice(String),
}

/// Why the answer of a plugin cannot be used. No message holds any of it: it may be a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is not of the expected shape.
    #[error("its answer is no CredentialProviderResponse (line {line}, column {column})")]
    Malformed {
        /// Line of the answer, from 1.
        line: usize,
        /// Column inside the line, from 1.
        column: usize,
    },
    /// It is of another version than the question.
    #[error("its answer is of another version than the question")]
    Version,
    /// It does not say for which images it is.
    #[error("its answer has no valid cacheKeyType")]
    CacheKeyType,
}

/// A plugin, and when and how it is run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Provider {
    /// Name of the plugin; also that of its executable.
    pub name: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Variables besides those of the kubelet, which they replace.
    pub env: Vec<(String, String)>,
    match_images: Vec<String>,
    default_cache_duration: Duration,
    api_version: String,
    /// Why it cannot be used here.
    unusable: Option<String>,
}

/// What a plugin answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// For which images it holds.
    pub scope: Scope,
    /// How long it holds; zero means for this question only.
    pub lasts: Duration,
    /// The credentials.
    pub credentials: Credentials,
}

/// The images for which an answer of a plugin holds (`cacheKeyType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Scope {
    /// The repository that was asked for.
    Image,
    /// All of its registry.
    Registry,
    /// All for which the plugin is.
    Global,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Option<Vec<ProviderEntry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProviderEntry {
    name: String,
    #[serde(default)]
    match_images: Option<Vec<String>>,
    #[serde(default)]
    default_cache_duration: Option<String>,
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    token_attributes: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

/// The plugins of a file: YAML, of which JSON is a part.
pub fn parse_config(text: &str) -> Result<Vec<Provider>, ConfigError> {
    let file: ConfigFile =
        serde_saphyr::from_str(text).map_err(|error| ConfigError::Malformed(first_line(&error.to_string())))?;
    let group = file.api_version.split_once('/').map(|(group, _)| group);
    if group != Some(GROUP) || file.kind != KIND {
        return Err(ConfigError::Malformed(format!("its kind is {} of {}", file.kind, file.api_version)));
    }
    let providers: Vec<Provider> = file.providers.unwrap_or_default().into_iter().map(Provider::new).collect();
    named_once(&providers)?;
    Ok(providers)
}

/// Checks the plugins of several files together, as those of one.
pub fn named_once(providers: &[Provider]) -> Result<(), ConfigError> {
    let mut names = BTreeSet::new();
    match providers.iter().find(|provider| !names.insert(&provider.name)) {
        Some(provider) => Err(ConfigError::Twice(provider.name.clone())),
        None => Ok(()),
    }
}

/// Parsers show the line at fault below their words; a variable in it may hold a secret.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl Provider {
    fn new(entry: ProviderEntry) -> Self {
        let duration = entry.default_cache_duration.as_deref().map_or(Some(Duration::ZERO), duration);
        let unusable = if matches!(entry.name.as_str(), "" | "." | "..") || entry.name.contains(['/', ' ']) {
            Some("its name is none of an executable".to_owned())
        } else if !PROTOCOL.contains(&entry.api_version.as_str()) {
            Some(format!("its protocol {} is not known", entry.api_version))
        } else if entry.token_attributes.is_some() {
            Some("it wants tokens of service accounts (tokenAttributes), which is not supported".to_owned())
        } else if duration.is_none() {
            Some("its defaultCacheDuration is no duration".to_owned())
        } else {
            None
        };
        Self {
            name: entry.name,
            args: entry.args.unwrap_or_default(),
            env: entry.env.unwrap_or_default().into_iter().map(|Variable { name, value }| (name, value)).collect(),
            match_images: entry.match_images.unwrap_or_default(),
            default_cache_duration: duration.unwrap_or_default(),
            api_version: entry.api_version,
            unusable,
        }
    }

    /// Whether the kubelet would ask it for an image, named by `registry/repository`.
    pub fn is_for(&self, name: &str) -> bool {
        self.match_images.iter().any(|pattern| matches(pattern, name))
    }

    /// Why it cannot be asked here, if so.
    pub fn unusable(&self) -> Option<&str> {
        self.unusable.as_deref()
    }

    /// What it reads from its standard input.
    pub fn question(&self, name: &str) -> Vec<u8> {
        let request = json!({ "apiVersion": self.api_version, "kind": "CredentialProviderRequest", "image": name });
        request.to_string().into_bytes()
    }

    /// What it wrote to its standard output.
    pub fn answer(&self, text: &str) -> Result<Answer, AnswerError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Response {
            api_version: String,
            kind: String,
            #[serde(default)]
            cache_key_type: Option<String>,
            #[serde(default)]
            cache_duration: Option<String>,
            #[serde(default)]
            auth: Option<BTreeMap<String, AuthConfig>>,
        }
        #[derive(Deserialize)]
        struct AuthConfig {
            #[serde(default)]
            username: String,
            #[serde(default)]
            password: String,
        }
        let malformed = |line, column| AnswerError::Malformed { line, column };
        let response: Response = serde_json::from_str(text).map_err(|error| malformed(error.line(), error.column()))?;
        if response.kind != "CredentialProviderResponse" {
            return Err(malformed(1, 1));
        }
        if response.api_version != self.api_version {
            return Err(AnswerError::Version);
        }
        let scope = match response.cache_key_type.as_deref() {
            Some("Image") => Scope::Image,
            Some("Registry") => Scope::Registry,
            Some("Global") => Scope::Global,
            _ => return Err(AnswerError::CacheKeyType),
        };
        let lasts = match response.cache_duration {
            Some(text) => duration(&text).ok_or(malformed(1, 1))?,
            None => self.default_cache_duration,
        };
        let pairs = response.auth.unwrap_or_default().into_iter();
        let credentials = Credentials::from_pairs(pairs.map(|(name, auth)| (name, (auth.username, auth.password))));
        let source = format!("the node's credential provider {}", self.name);
        Ok(Answer { scope, lasts, credentials: credentials.named(&source) })
    }
}

/// A duration as Go writes it: `12h`, `1h30m`, `0`. What is below zero never holds.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let signed: jiff::SignedDuration = text.parse().ok()?;
    Some(Duration::try_from(signed).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::image::ImageRef;

    const ECR: &str = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr-credential-provider
    matchImages:
      - "*.dkr.ecr.*.amazonaws.com"
      - public.ecr.aws/team
    defaultCacheDuration: 12h
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get-credentials, --endpoint=x]
    env:
      - {name: AWS_PROFILE, value: node}
"#;

    fn config(provider: &str) -> Result<Vec<Provider>, ConfigError> {
        parse_config(&format!(
            r#"{{"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": [{provider}]}}"#
        ))
    }

    fn entry(more: &str) -> String {
        format!(
            r#"{{"name": "p", "matchImages": ["quay.io"], "apiVersion": "credentialprovider.kubelet.k8s.io/v1"{more}}}"#
        )
    }

    fn provider() -> Provider {
        config(&entry(r#", "defaultCacheDuration": "1h30m""#)).unwrap().remove(0)
    }

    fn response(more: &str) -> String {
        format!(
            r#"{{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse"{more}}}"#
        )
    }

    #[test]
    fn a_file_is_read_as_kubelets_have_it() {
        let [provider] = parse_config(ECR).unwrap().try_into().unwrap();
        assert_eq!(provider.name, "ecr-credential-provider");
        assert_eq!(provider.args, ["get-credentials", "--endpoint=x"]);
        assert_eq!(provider.env, [("AWS_PROFILE".to_owned(), "node".to_owned())]);
        assert_eq!(provider.default_cache_duration, Duration::from_hours(12));
        assert_eq!(provider.unusable(), None);
        for (image, expected) in [
            ("123.dkr.ecr.us-east-1.amazonaws.com/a/b", true),
            ("123.dkr.ecr.us-east-1.amazonaws.com:443/a/b", false),
            ("123.dkr.ecr.us-east-1.amazonaws.com.cn/a/b", false),
            ("a.123.dkr.ecr.us-east-1.amazonaws.com/a/b", false),
            ("public.ecr.aws/team/a", true),
            ("public.ecr.aws/other/a", false),
        ] {
            assert_eq!(provider.is_for(image), expected, "{image}");
        }
        assert_eq!(config("").unwrap(), []);
        assert_eq!(
            parse_config("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: CredentialProviderConfig"),
            Ok(vec![])
        );
    }

    #[test]
    fn what_cannot_be_used_is_told_of_the_provider_and_what_is_no_configuration_of_the_file() {
        let table = [
            (r#", "tokenAttributes": {"serviceAccountTokenAudience": "a"}"#, Some("tokenAttributes")),
            (r#", "tokenAttributes": null"#, None),
            (r#", "defaultCacheDuration": "soon""#, Some("defaultCacheDuration")),
            (r#", "defaultCacheDuration": "0""#, None),
            (r#", "fieldOfTomorrow": {"a": [1]}"#, None),
        ];
        for (more, expected) in table {
            let [provider] = config(&entry(more)).unwrap().try_into().unwrap();
            let why = provider.unusable().unwrap_or_default();
            assert!(expected.map_or(why.is_empty(), |word| why.contains(word)), "{more}: {why}");
        }
        for name in ["", ".", "..", "a/b", "../a", "a b"] {
            let [provider] = config(&entry("").replace(r#""p""#, &format!("{name:?}"))).unwrap().try_into().unwrap();
            assert!(provider.unusable().is_some_and(|why| why.contains("name")), "{name}");
        }
        let [provider] = config(&entry("").replace("io/v1", "io/v9")).unwrap().try_into().unwrap();
        assert!(provider.unusable().is_some_and(|why| why.contains("v9")));

        assert_eq!(config(&format!("{0}, {0}", entry(""))), Err(ConfigError::Twice("p".to_owned())));
        for text in ["", "[]", "{", "kind: CredentialProviderConfig", "apiVersion: v1\nkind: CredentialProviderConfig"]
        {
            assert!(matches!(parse_config(text), Err(ConfigError::Malformed(_))), "{text}");
        }
        let secret =
            entry(r#", "env": [{"name": "PASSWORD", "value": "hunter2"}, {"name": "PASSWORD", "value": ["hunter2"]}]"#);
        let error = config(&secret).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }

    #[test]
    fn a_plugin_is_asked_in_its_own_version() {
        let question: serde_json::Value = serde_json::from_slice(&provider().question("quay.io/a/b")).unwrap();
        let expected = json!({
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": "quay.io/a/b",
        });
        assert_eq!(question, expected);
    }

    #[test]
    fn an_answer_holds_for_as_long_and_for_what_it_says() {
        let table = [
            ("", Duration::from_mins(90)),
            (r#", "cacheDuration": null"#, Duration::from_mins(90)),
            (r#", "cacheDuration": "6h0m0s""#, Duration::from_hours(6)),
            (r#", "cacheDuration": "0s""#, Duration::ZERO),
            (r#", "cacheDuration": "1.5h""#, Duration::from_mins(90)),
            (r#", "cacheDuration": "-1m""#, Duration::ZERO),
        ];
        for (more, expected) in table {
            let answer = provider().answer(&response(&format!(r#", "cacheKeyType": "Registry"{more}"#))).unwrap();
            assert_eq!((answer.scope, answer.lasts), (Scope::Registry, expected), "{more}");
            assert_eq!(answer.credentials, Credentials::anonymous());
        }
        let auth = r#", "cacheKeyType": "Global", "auth": {
            "quay.io": {"username": "host", "password": "x"}, "https://quay.io/v2/team": {"username": "", "password": "token"},
            "*.io": {"username": "", "password": ""}}"#;
        let answer = provider().answer(&response(auth)).unwrap();
        let image: ImageRef = "quay.io/team/app".parse().unwrap();
        let found: Vec<_> =
            answer.credentials.candidates(&image).into_iter().map(|c| (&*c.username, &*c.source)).collect();
        let source = "the node's credential provider p";
        assert_eq!(found, [("", source), ("host", source)]);
    }

    #[test]
    fn an_answer_that_is_none_is_refused_without_a_word_of_it() {
        let key = r#", "cacheKeyType": "Image""#;
        let table = [
            (String::new(), AnswerError::Malformed { line: 1, column: 0 }),
            ("hunter2".to_owned(), AnswerError::Malformed { line: 1, column: 1 }),
            (response(key).replace("Response", "Request"), AnswerError::Malformed { line: 1, column: 1 }),
            (response(key).replace("io/v1", "io/v1beta1"), AnswerError::Version),
            (response(""), AnswerError::CacheKeyType),
            (response(r#", "cacheKeyType": "hunter2""#), AnswerError::CacheKeyType),
            (response(&format!(r#"{key}, "cacheDuration": "hunter2""#)), AnswerError::Malformed { line: 1, column: 1 }),
        ];
        for (text, expected) in table {
            let error = provider().answer(&text).unwrap_err();
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("hunter2"));
        }
        let wrong = response(&format!(r#"{key}, "auth": {{"quay.io": "hunter2"}}"#));
        let error = provider().answer(&wrong).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        let answer =
            provider().answer(&response(&format!(r#"{key}, "auth": {{"quay.io": {{"password": "hunter2"}}}}"#)));
        assert!(!format!("{answer:?}").contains("hunter2"));
    }
}
