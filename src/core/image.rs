//! Names of images: parsed once, so that what follows cannot be handed nonsense.

use std::fmt;
use std::str::FromStr;

use crate::core::hash::{Algorithm, Hasher};

/// Whether this `imagePullPolicy` forbids to ask any registry.
pub fn is_never_pulled(policy: &str) -> bool {
    policy == "Never"
}

/// Why an image is not there whose policy is so: one sentence with the way out.
pub fn never_pulled(image: &str) -> String {
    format!(
        "image {image}: imagePullPolicy is Never, and images are fetched from registries only, not taken from the store of a \
         node's container runtime; push it to a registry that manager and nodes reach, and set imagePullPolicy to IfNotPresent"
    )
}

/// The registry of a name that gives none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// Where the API of [`DEFAULT_REGISTRY`] is served.
const DEFAULT_REGISTRY_API: &str = "registry-1.docker.io";
/// Older names of [`DEFAULT_REGISTRY`] that people still write.
const DEFAULT_REGISTRY_ALIASES: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];
/// The tag of a name that gives neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
/// Longest `registry/repository`, in bytes; the limit that registries and runtimes share.
const MAX_NAME: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// Why a string is no image reference. Every message names the value and a way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing was given.
    #[error("the image reference is empty: give registry/repository:tag or registry/repository@sha256:<digest>")]
    Empty,
    /// A blank or a control character somewhere.
    #[error("image {value:?} holds a blank or a control character: remove it")]
    Blank {
        /// What was given.
        value: String,
    },
    /// `registry/repository` is longer than registries accept.
    #[error("image {value:?} has a name of more than {MAX_NAME} bytes: shorten it")]
    TooLong {
        /// What was given.
        value: String,
    },
    /// The part before the first slash is no host.
    #[error("image {value:?} names the registry {registry:?}, which is no host[:port]")]
    Registry {
        /// What was given.
        value: String,
        /// The part that should be a host.
        registry: String,
    },
    /// The repository breaks the grammar.
    #[error(
        "image {value:?} names the repository {repository:?}: use lower-case letters and digits, separated by '/', '.', '_', '__' or '-'"
    )]
    Repository {
        /// What was given.
        value: String,
        /// The part that should be a repository.
        repository: String,
    },
    /// The tag breaks the grammar.
    #[error(
        "image {value:?} has the tag {tag:?}: use at most {MAX_TAG} letters, digits, '_', '.' and '-', the first neither '.' nor '-'"
    )]
    Tag {
        /// What was given.
        value: String,
        /// The part that should be a tag.
        tag: String,
    },
    /// The digest breaks the grammar.
    #[error(
        "{value:?} is no digest: use sha256:<64 hexadecimal digits> or sha512:<128 hexadecimal digits>, in lower case"
    )]
    Digest {
        /// What was given.
        value: String,
    },
}

/// A content digest, `sha256:<hex>` or `sha512:<hex>`, in lower case and of the right length.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// The digest of all that this hash was given.
    pub fn of(hasher: Hasher) -> Self {
        Self { algorithm: hasher.algorithm(), hex: hasher.finish() }
    }

    /// The digest of bytes that are all there.
    pub fn of_bytes(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        Self::of(hasher)
    }

    /// The digest with these raw bytes of a SHA-256, whatever they are of.
    #[cfg(test)]
    pub(crate) fn from_sha256(bytes: [u8; 32]) -> Self {
        Self { algorithm: Algorithm::Sha256, hex: crate::core::hash::hex(&bytes) }
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The part behind the colon.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(value: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::Digest { value: value.to_owned() };
        let (name, hex) = value.split_once(':').ok_or_else(bad)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(bad()),
        };
        let lower_hex = hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if hex.len() == algorithm.hex_length() && lower_hex {
            Ok(Self { algorithm, hex: hex.to_owned() })
        } else {
            Err(bad())
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// A valid image reference in full form: registry and repository are always there, and a tag or a digest or both.
///
/// Written as people write it for docker: `registry[:port]/repository[:tag][@digest]`. Without a registry it is
/// [`DEFAULT_REGISTRY`], there a repository of one word lies below `library/`; without tag and digest the tag is
/// [`DEFAULT_TAG`].
///
/// **Source**: the reference grammar of the distribution project, which container runtimes share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// The registry as it is named: `host[:port]`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Where the registry's API is: [`Self::registry`], other for [`DEFAULT_REGISTRY`] only.
    pub fn registry_api(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_API } else { &self.registry }
    }

    /// The repository inside the registry, without a slash at either end.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; none where only a digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// True when a digest was given: the content cannot change any more.
    pub fn is_pinned(&self) -> bool {
        self.digest.is_some()
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository@digest`, without a tag: the form in which images travel.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl FromStr for ImageRef {
    type Err = ParseError;

    fn from_str(value: &str) -> Result<Self, ParseError> {
        if value.is_empty() {
            return Err(ParseError::Empty);
        }
        let owned = || value.to_owned();
        if value.chars().any(|character| character.is_whitespace() || character.is_control()) {
            return Err(ParseError::Blank { value: owned() });
        }
        let (rest, digest) = match value.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (value, None),
        };
        // A colon behind the last slash starts a tag; before it, a port.
        let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_end..].split_once(':') {
            Some((_, tag)) => (&rest[..rest.len() - tag.len() - 1], Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ParseError::Tag { value: owned(), tag: tag.to_owned() });
        }
        let (registry, repository) = split_registry(name);
        if !is_registry(registry) {
            return Err(ParseError::Registry { value: owned(), registry: registry.to_owned() });
        }
        if !repository.split('/').all(is_path_component) {
            return Err(ParseError::Repository { value: owned(), repository: repository.to_owned() });
        }
        let registry = if DEFAULT_REGISTRY_ALIASES.contains(&registry) { DEFAULT_REGISTRY } else { registry };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(ParseError::TooLong { value: owned() });
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// A first component counts as a registry when it could not be part of a repository on the default registry.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((address, "")) => return address.parse::<std::net::Ipv6Addr>().is_ok(),
            Some((address, rest)) => {
                return address.parse::<std::net::Ipv6Addr>().is_ok() && rest.strip_prefix(':').is_some_and(is_port);
            }
            None => return false,
        },
        None => registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port))),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// Words of lower-case letters and digits, with one of `.`, `_`, `__` or any number of `-` between them.
fn is_path_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(word) || !bytes.last().copied().is_some_and(word) {
        return false;
    }
    component
        .split(|character: char| character.is_ascii_lowercase() || character.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn parsed(registry: &str, repository: &str, tag: Option<&str>, digest: bool) -> ImageRef {
        ImageRef {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.then(|| Digest { algorithm: Algorithm::Sha256, hex: HEX.to_owned() }),
        }
    }

    #[test]
    fn references_are_completed_as_docker_does() {
        let pinned = format!("quay.io/a/b:v1@sha256:{HEX}");
        let only_digest = format!("localhost/b@sha256:{HEX}");
        let cases: [(&str, ImageRef); 13] = [
            ("nginx", parsed("docker.io", "library/nginx", Some("latest"), false)),
            ("nginx:1.2", parsed("docker.io", "library/nginx", Some("1.2"), false)),
            ("team/app", parsed("docker.io", "team/app", Some("latest"), false)),
            ("docker.io/app", parsed("docker.io", "library/app", Some("latest"), false)),
            ("index.docker.io/team/app:x", parsed("docker.io", "team/app", Some("x"), false)),
            ("registry:5000/img", parsed("registry:5000", "img", Some("latest"), false)),
            ("registry:5000/img:5000", parsed("registry:5000", "img", Some("5000"), false)),
            ("localhost/img", parsed("localhost", "img", Some("latest"), false)),
            ("Registry/img", parsed("Registry", "img", Some("latest"), false)),
            ("10.0.0.1:80/a/b/c__d/e--f:6.6.2-201.fc39.x86_64", {
                parsed("10.0.0.1:80", "a/b/c__d/e--f", Some("6.6.2-201.fc39.x86_64"), false)
            }),
            ("[::1]:5000/img:x", parsed("[::1]:5000", "img", Some("x"), false)),
            (&pinned, parsed("quay.io", "a/b", Some("v1"), true)),
            (&only_digest, parsed("localhost", "b", None, true)),
        ];
        for (value, expected) in cases {
            let image: ImageRef = value.parse().unwrap_or_else(|error| panic!("{value}: {error}"));
            assert_eq!(image, expected, "{value}");
            assert_eq!(image.to_string().parse(), Ok(expected), "{value}: the full form means the same");
        }
    }

    #[test]
    fn what_is_no_reference_is_named_with_the_part_that_is_wrong() {
        let long = format!("quay.io/{}", "a".repeat(248));
        let digest = |value: &str| ParseError::Digest { value: value.to_owned() };
        let repository =
            |value: &str, part: &str| ParseError::Repository { value: value.to_owned(), repository: part.to_owned() };
        let registry =
            |value: &str, part: &str| ParseError::Registry { value: value.to_owned(), registry: part.to_owned() };
        let tag = |value: &str, part: &str| ParseError::Tag { value: value.to_owned(), tag: part.to_owned() };
        let upper = format!("a/b@sha256:{}", HEX.to_uppercase());
        let cases: Vec<(&str, ParseError)> = vec![
            ("", ParseError::Empty),
            (" nginx", ParseError::Blank { value: " nginx".into() }),
            ("ng\u{7}inx", ParseError::Blank { value: "ng\u{7}inx".into() }),
            ("https://quay.io/a", registry("https://quay.io/a", "https:")),
            ("quay.io/", repository("quay.io/", "")),
            ("quay.io//a", repository("quay.io//a", "/a")),
            ("quay.io/A", repository("quay.io/A", "A")),
            ("quay.io/a..b", repository("quay.io/a..b", "a..b")),
            ("quay.io/../b", repository("quay.io/../b", "../b")),
            ("a/b-", repository("a/b-", "a/b-")),
            ("host:70000/a", registry("host:70000/a", "host:70000")),
            ("host:/a", registry("host:/a", "host:")),
            ("-a.b/c", registry("-a.b/c", "-a.b")),
            ("a/b:", tag("a/b:", "")),
            ("a/b:-x", tag("a/b:-x", "-x")),
            ("a/b:6.6.2+", tag("a/b:6.6.2+", "6.6.2+")),
            ("a/b:${KERNEL}", tag("a/b:${KERNEL}", "${KERNEL}")),
            ("a/b@", digest("")),
            ("a/b@md5:1", digest("md5:1")),
            ("a/b@sha256:12", digest("sha256:12")),
            (&upper, digest(&upper[4..])),
            (&long, ParseError::TooLong { value: long.clone() }),
        ];
        for (value, expected) in cases {
            assert_eq!(value.parse::<ImageRef>(), Err(expected), "{value}");
        }
    }

    #[test]
    fn a_digest_replaces_the_tag() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        let image: ImageRef = "registry:5000/a/b:v1".parse().unwrap();
        assert_eq!(image.with_digest(&digest), format!("registry:5000/a/b@sha256:{HEX}"));
        assert!(!image.is_pinned());
        let pinned: ImageRef = image.with_digest(&digest).parse().unwrap();
        assert!(pinned.is_pinned());
        assert_eq!(pinned.tag(), None);
    }

    #[test]
    fn the_default_registry_is_asked_where_its_api_is() {
        let api = |value: &str| value.parse::<ImageRef>().unwrap().registry_api().to_owned();
        assert_eq!(api("nginx"), "registry-1.docker.io");
        assert_eq!(api("quay.io/a"), "quay.io");
    }

    #[test]
    fn both_hash_functions_are_understood_with_their_own_length() {
        for (value, algorithm) in [
            (format!("sha256:{HEX}"), Some(Algorithm::Sha256)),
            (format!("sha512:{HEX}{HEX}"), Some(Algorithm::Sha512)),
            (format!("sha512:{HEX}"), None),
            (format!("sha256:{HEX}{HEX}"), None),
            (format!("sha384:{HEX}"), None),
        ] {
            let digest = value.parse::<Digest>();
            assert_eq!(digest.as_ref().ok().map(Digest::algorithm), algorithm, "{value}");
            if let Ok(digest) = digest {
                assert_eq!(digest.to_string(), value);
            }
        }
        let zero = Digest::from_sha256([0; 32]);
        assert_eq!(zero.to_string(), format!("sha256:{}", "0".repeat(64)));
    }
}
