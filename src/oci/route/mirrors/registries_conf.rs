//! `registries.conf`: where CRI-O asks for images.
//!
//! **Source**: `containers-registries.conf(5)` and what the library `sysregistriesv2` of CRI-O does with the files.

use serde::Deserialize;

/// A table `[[registry]]`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registry {
    prefix: String,
    /// Empty where a prefix with `*` is only blocked, insecure or mirrored, and not moved.
    location: String,
    insecure: bool,
    /// Whether nothing may be pulled.
    pub(super) blocked: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirror {
    location: String,
    insecure: bool,
}

/// The configuration of all files together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Registries(Vec<Registry>);

/// Where an image is to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// `registry/repository`.
    pub(super) name: String,
    pub(super) insecure: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    registry: Vec<RawRegistry>,
    registries: Option<First>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct RawRegistry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<RawMirror>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct RawMirror {
    location: String,
    insecure: bool,
    pull_from_mirror: String,
}

/// The first version of the format.
#[derive(Default, Deserialize)]
#[serde(default)]
struct First {
    insecure: Names,
    block: Names,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Names {
    registries: Vec<String>,
}

impl Registries {
    /// Adds a file: a table takes the place of an earlier file's with the same prefix.
    ///
    /// **Errors**: in words, why CRI-O could not use the file either.
    pub(super) fn add(&mut self, text: &str) -> Result<(), String> {
        let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        if let Some(first) = file.registries {
            if !file.registry.is_empty() {
                return Err("it mixes version 1 and version 2 of the format".to_owned());
            }
            self.add_first_version(first)?;
        }
        let mut added = Vec::<Registry>::new();
        for raw in file.registry {
            let registry = check(raw)?;
            let other = added.iter().find(|other| {
                let same_place = !registry.location.is_empty() && other.location == registry.location;
                same_place && (other.insecure, other.blocked) != (registry.insecure, registry.blocked)
            });
            if other.is_some() {
                let location = &registry.location;
                return Err(format!(
                    "registry {location:?} stands there twice, and \"insecure\" or \"blocked\" differ"
                ));
            }
            added.push(registry);
        }
        for registry in added {
            match self.0.iter_mut().find(|known| known.prefix == registry.prefix) {
                Some(known) => *known = registry,
                None => self.0.push(registry),
            }
        }
        Ok(())
    }

    fn add_first_version(&mut self, first: First) -> Result<(), String> {
        let insecure = first.insecure.registries;
        for name in first.block.registries.iter().chain(&insecure) {
            let location = location(name)?;
            if !self.0.iter().any(|known| known.prefix == location) {
                self.0.push(Registry {
                    insecure: insecure.contains(name),
                    blocked: first.block.registries.contains(name),
                    prefix: location.clone(),
                    location,
                    mirrors: Vec::new(),
                });
            }
        }
        Ok(())
    }

    /// The table for an image `registry/repository`: the one with the longest prefix.
    pub(super) fn find(&self, name: &str) -> Option<&Registry> {
        let mut found: Option<&Registry> = None;
        for registry in self.0.iter().filter(|registry| matched(name, &registry.prefix).is_some()) {
            if found.is_none_or(|found| registry.prefix.len() > found.prefix.len()) {
                found = Some(registry);
            }
        }
        found
    }
}

impl Registry {
    /// Where an image that is named by digest is asked for, in this order; the registry itself last.
    pub(super) fn sources(&self, name: &str) -> Vec<Source> {
        let moved = |location: &str| match matched(name, &self.prefix) {
            Some(length) if !location.is_empty() => format!("{location}{}", &name[length..]),
            _ => name.to_owned(),
        };
        let source = |location: &str, insecure| Source { name: moved(location), insecure };
        let mirrors = self.mirrors.iter().map(|mirror| source(&mirror.location, mirror.insecure));
        mirrors.chain([source(&self.location, self.insecure)]).collect()
    }
}

fn check(raw: RawRegistry) -> Result<Registry, String> {
    let place = location(&raw.location)?;
    let prefix = if raw.prefix.is_empty() { place.clone() } else { location(&raw.prefix)? };
    if prefix.is_empty() {
        return Err("a registry has neither \"location\" nor \"prefix\"".to_owned());
    }
    if place.is_empty() && !prefix.starts_with("*.") {
        return Err(format!("the registry with the prefix {prefix:?} has no \"location\""));
    }
    let mut mirrors = Vec::with_capacity(raw.mirror.len());
    for mirror in raw.mirror {
        let location = location(&mirror.location)?;
        if location.is_empty() {
            return Err(format!("a mirror of {prefix:?} has no \"location\""));
        }
        match mirror.pull_from_mirror.as_str() {
            "" => {}
            _ if raw.mirror_by_digest_only => {
                return Err(format!("{prefix:?} has \"mirror-by-digest-only\", and its mirror \"pull-from-mirror\""));
            }
            "all" | "digest-only" => {}
            // Modules are pulled by digest, never by tag.
            "tag-only" => continue,
            other => return Err(format!("a mirror of {prefix:?} has the \"pull-from-mirror\" {other:?}")),
        }
        mirrors.push(Mirror { location, insecure: mirror.insecure });
    }
    Ok(Registry { prefix, location: place, insecure: raw.insecure, blocked: raw.blocked, mirrors })
}

fn location(text: &str) -> Result<String, String> {
    let trimmed = text.trim_end_matches('/');
    if trimmed.starts_with("http://") || trimmed.starts_with("https://") {
        return Err(format!("location {text:?} has a scheme, which has no place there"));
    }
    if trimmed.is_empty() && !text.is_empty() {
        return Err("a location is nothing but slashes".to_owned());
    }
    Ok(trimmed.to_owned())
}

/// How much of the name the prefix covers, `None` if it is not for it.
fn matched(name: &str, prefix: &str) -> Option<usize> {
    let length = match prefix.strip_prefix('*') {
        Some(domain) if domain.starts_with('.') => {
            let at = name.find(domain)?;
            (!name[..at].contains('/')).then_some(at + domain.len())?
        }
        _ if name.starts_with(prefix) => prefix.len(),
        _ => return None,
    };
    matches!(name.as_bytes().get(length), None | Some(b':' | b'/' | b'@')).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[&str], name: &str) -> Result<Vec<(String, bool)>, &'static str> {
        let mut all = Registries::default();
        for file in files {
            all.add(file).unwrap();
        }
        match all.find(name) {
            Some(registry) if registry.blocked => Err("blocked"),
            Some(registry) => {
                Ok(registry.sources(name).into_iter().map(|source| (source.name, source.insecure)).collect())
            }
            None => Err("not named"),
        }
    }

    #[test]
    fn an_image_is_asked_for_where_the_longest_prefix_says() {
        let file = r#"
            unqualified-search-registries = ["example.com"]
            [[registry]]
            prefix = "example.com/foo"
            location = "internal.example.net/bar"
            [[registry.mirror]]
            location = "mirror-0.local/for-foo/"
            [[registry.mirror]]
            location = "mirror-1.local:5000/foo"
            insecure = true
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "mirror-2.local"
            pull-from-mirror = "tag-only"
            [[registry]]
            location = "example.com"
            insecure = true
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "mirror-3.local"
            [[registry]]
            prefix = "*.wild.org"
            location = "tame.org/all"
            [[registry]]
            prefix = "*.evil.org"
            blocked = true
            [[registry]]
            prefix = "*.near.org"
            [[registry.mirror]]
            location = "near.local"
        "#;
        type Expected<'a> = Result<&'a [(&'a str, bool)], &'static str>;
        let cases: [(&str, Expected<'_>); 10] = [
            (
                "example.com/foo/image",
                Ok(&[
                    ("mirror-0.local/for-foo/image", false),
                    ("mirror-1.local:5000/foo/image", true),
                    ("internal.example.net/bar/image", false),
                ]),
            ),
            ("example.com/foobar", Ok(&[("mirror-3.local/foobar", false), ("example.com/foobar", true)])),
            ("example.com:5000/a", Ok(&[("mirror-3.local:5000/a", false), ("example.com:5000/a", true)])),
            ("example.com.org/a", Err("not named")),
            ("a.b.wild.org/x/y", Ok(&[("tame.org/all/x/y", false)])),
            ("wild.org/x", Err("not named")),
            ("registry/a.wild.org/x", Err("not named")),
            ("a.evil.org:5000/x", Err("blocked")),
            ("a.near.org/x", Ok(&[("near.local/x", false), ("a.near.org/x", false)])),
            ("quay.io/x", Err("not named")),
        ];
        for (name, expected) in cases {
            let expected =
                expected.map(|all| all.iter().map(|(name, insecure)| ((*name).to_owned(), *insecure)).collect());
            assert_eq!(sources(&[file], name), expected, "{name}");
        }
    }

    #[test]
    fn later_files_replace_tables_of_the_same_prefix() {
        let main =
            "[[registry]]\nlocation = \"a.io\"\nblocked = true\n[[registry]]\nlocation = \"b.io\"\ninsecure = true";
        let dropin = "[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\nlocation = \"m.io\"";
        let expected = Ok(vec![("m.io/x".to_owned(), false), ("a.io/x".to_owned(), false)]);
        assert_eq!(sources(&[main, dropin], "a.io/x"), expected);
        assert_eq!(sources(&[main, dropin], "b.io/x"), Ok(vec![("b.io/x".to_owned(), true)]));
    }

    #[test]
    fn the_first_version_of_the_format_is_read() {
        let file = "[registries.search]\nregistries = ['s.io']\n[registries.insecure]\nregistries = ['i.io']\n\
                    [registries.block]\nregistries = ['b.io']";
        assert_eq!(sources(&[file], "i.io/x"), Ok(vec![("i.io/x".to_owned(), true)]));
        assert_eq!(sources(&[file], "b.io/x"), Err("blocked"));
        assert_eq!(sources(&[file], "s.io/x"), Err("not named"));
    }

    #[test]
    fn what_cri_o_refuses_is_refused_in_words() {
        for (file, expected) in [
            ("[[registry", "unclosed array table, expected `]]`"),
            ("[[registry]]\ninsecure = true", "a registry has neither \"location\" nor \"prefix\""),
            ("[[registry]]\nprefix = \"a.io\"", "the registry with the prefix \"a.io\" has no \"location\""),
            (
                "[[registry]]\nlocation = \"https://a.io\"",
                "location \"https://a.io\" has a scheme, which has no place there",
            ),
            (
                "[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\ninsecure = true",
                "a mirror of \"a.io\" has no \"location\"",
            ),
            (
                "[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\nlocation = \"m\"\npull-from-mirror = \"some\"",
                "a mirror of \"a.io\" has the \"pull-from-mirror\" \"some\"",
            ),
            (
                "[[registry]]\nlocation = \"a.io\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m\"\n\
                 pull-from-mirror = \"all\"",
                "\"a.io\" has \"mirror-by-digest-only\", and its mirror \"pull-from-mirror\"",
            ),
            (
                "[[registry]]\nprefix = \"a.io\"\nlocation = \"x\"\n[[registry]]\nprefix = \"b.io\"\nlocation = \"x\"\nblocked = true",
                "registry \"x\" stands there twice, and \"insecure\" or \"blocked\" differ",
            ),
            (
                "[registries.block]\nregistries = ['b']\n[[registry]]\nlocation = 'a'",
                "it mixes version 1 and version 2 of the format",
            ),
        ] {
            let error = Registries::default().add(file).unwrap_err();
            assert_eq!(error, expected, "{file}");
        }
    }
}
