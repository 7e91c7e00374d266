//! What comes in from outside keeps to deny.toml, and all of it is used.
//!
//! The rules are those of cargo-deny, read from its own file; asked of `cargo metadata` they cost no tool that has to be
//! compiled first. Advisories need its database, and are asked for where that can be reached (hack/lint).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use crate::imports::{code, rust_files};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// deny.toml; a rule that is not known here is an error, not left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    graph: Graph,
    #[serde(rename = "advisories")]
    _advisories: toml::Table,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Licenses {
    allow: BTreeSet<String>,
    // How sure cargo-deny must be of a text; here every crate names its licence.
    #[serde(rename = "confidence-threshold")]
    _confidence_threshold: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    multiple_versions: String,
    wildcards: String,
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: String,
    unknown_git: String,
}

/// What `cargo metadata` tells.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    rename: Option<String>,
    kind: Option<String>,
    req: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rules() -> Rules {
    toml::from_str(&fs::read_to_string(root().join("deny.toml")).unwrap()).unwrap()
}

/// Every package that is built for one of the targets, tests included.
fn packages(targets: &[String]) -> Vec<Package> {
    let read = |target: &String| {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", target])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Metadata>(&output.stdout).unwrap().packages
    };
    targets.iter().flat_map(read).collect()
}

/// Whether an SPDX expression leaves a choice of which every part is allowed; `None` if it is no such expression. `/` is an
/// old way to write `OR`.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> Option<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let result = any(&mut words, allow)?;
    words.next().is_none().then_some(result)
}

type Words<'a, 'b> = &'a mut std::iter::Peekable<std::str::SplitWhitespace<'b>>;

fn any(words: Words, allow: &BTreeSet<String>) -> Option<bool> {
    let mut result = all(words, allow)?;
    while words.next_if_eq(&"OR").is_some() {
        result |= all(words, allow)?;
    }
    Some(result)
}

fn all(words: Words, allow: &BTreeSet<String>) -> Option<bool> {
    let mut result = one(words, allow)?;
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allow)?;
    }
    Some(result)
}

fn one(words: Words, allow: &BTreeSet<String>) -> Option<bool> {
    match words.next()? {
        "(" => {
            let result = any(words, allow)?;
            (words.next()? == ")").then_some(result)
        }
        ")" | "OR" | "AND" | "WITH" => None,
        name if words.next_if_eq(&"WITH").is_some() => Some(allow.contains(&format!("{name} WITH {}", words.next()?))),
        name => Some(allow.contains(name)),
    }
}

#[test]
fn an_expression_of_licences_is_read_as_spdx_says() {
    let allow = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for (expression, expected) in [
        ("MIT", Some(true)),
        ("GPL-3.0", Some(false)),
        ("GPL-3.0 OR MIT", Some(true)),
        ("GPL-3.0/MIT", Some(true)),
        ("GPL-3.0 AND MIT", Some(false)),
        ("GPL-3.0 AND MIT OR ISC", Some(true)),
        ("(GPL-3.0 OR MIT) AND ISC", Some(true)),
        ("GPL-3.0 AND (MIT OR ISC)", Some(false)),
        ("Apache-2.0", Some(false)),
        ("Apache-2.0 WITH LLVM-exception", Some(true)),
        ("MIT ISC", None),
        ("(MIT", None),
        ("MIT OR", None),
        ("", None),
    ] {
        assert_eq!(allowed(expression, &allow), expected, "{expression}");
    }
}

#[test]
fn every_crate_is_of_an_allowed_licence_from_a_known_source_and_not_banned() {
    let rules = rules();
    // Other words here would ask for checks that this test does not make.
    assert_eq!((rules.bans.multiple_versions.as_str(), rules.bans.wildcards.as_str()), ("allow", "deny"));
    assert_eq!((rules.sources.unknown_registry.as_str(), rules.sources.unknown_git.as_str()), ("deny", "deny"));
    let packages = packages(&rules.graph.targets);
    assert!(packages.len() > 100, "{} packages are no proof", packages.len());
    let mut wrong = BTreeSet::new();
    for package in &packages {
        let shown = format!("{} {}", package.name, package.version);
        let license = package.license.as_deref().unwrap_or_default();
        if allowed(license, &rules.licenses.allow) != Some(true) {
            wrong.insert(format!("{shown}: licence {license:?}"));
        }
        if let Some(ban) = rules.bans.deny.iter().find(|ban| ban.name == package.name) {
            wrong.insert(format!("{shown}: {}", ban.reason));
        }
        match package.source.as_deref() {
            Some(CRATES_IO) => {}
            None if package.name == env!("CARGO_PKG_NAME") => {
                let any = package.dependencies.iter().filter(|dependency| dependency.req == "*");
                wrong.extend(any.map(|dependency| format!("{}: any version", dependency.name)));
            }
            source => _ = wrong.insert(format!("{shown}: source {source:?}")),
        }
    }
    assert_eq!(wrong, BTreeSet::new());
}

/// Whether the code names the crate: `name::`, `use name;`, `extern crate name`.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            && (after.starts_with("::") || after.starts_with(';') || after.starts_with(" as "))
    })
}

#[test]
fn a_crate_is_found_where_it_is_named_as_one() {
    for code in ["use tar::Archive;", "use tar;", "use tar as t;", "let x = tar::Archive::new();", "(tar::x)"] {
        assert!(names(code, "tar"), "{code}");
    }
    for code in ["crate::tar::x", "mod start::x", "let tar = 1", "avatar::x", "tar_x::y"] {
        assert!(!names(code, "tar"), "{code}");
    }
}

#[test]
fn every_dependency_is_used() {
    let files = |folder: &str| rust_files(&root().join(folder));
    let product: Vec<_> = files("src").iter().map(|file| code(file)).collect();
    let everything: Vec<_> =
        [files("src"), files("tests")].concat().iter().map(|f| fs::read_to_string(f).unwrap()).collect();
    let packages = packages(&rules().graph.targets[..1]);
    let own = packages.iter().find(|package| package.name == env!("CARGO_PKG_NAME")).unwrap();
    let unused: Vec<_> = own
        .dependencies
        .iter()
        .filter(|dependency| {
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name).replace('-', "_");
            let places = if dependency.kind.is_none() { &product } else { &everything };
            !places.iter().any(|code| names(code, &name))
        })
        .map(|dependency| (&dependency.name, &dependency.kind))
        .collect();
    assert_eq!(unused, Vec::new());
}
