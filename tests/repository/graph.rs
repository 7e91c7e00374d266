//! Which file of `src` uses which: by the paths in its code, followed through re-exports to the file that defines the name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::imports::{rust_files, without_tests};

/// Files by the path of their module: `hub::works::plan`; the crate's root is the empty path.
#[derive(Default)]
pub(crate) struct Graph {
    modules: BTreeMap<String, Module>,
}

#[derive(Default)]
struct Module {
    file: String,
    uses: Vec<Use>,
    /// Paths in expressions, types and attributes.
    paths: Vec<Vec<String>>,
    defines: BTreeSet<String>,
}

struct Use {
    path: Vec<String>,
    /// The name that it brings; none for `*`.
    name: Option<String>,
    /// Whether it only names a part of the module's own folder for others.
    reexport: bool,
}

impl Graph {
    /// All files below `src` that are there outside tests.
    pub(crate) fn read(src: &Path) -> Self {
        let mut texts = BTreeMap::new();
        let mut only_tests = BTreeSet::new();
        for file in rust_files(src) {
            let name = file.strip_prefix(src).unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&file).unwrap();
            only_tests.extend(test_modules(&name, &text));
            texts.insert(name, text);
        }
        texts.retain(|name, _| {
            name != "main.rs"
                && !only_tests.iter().any(|test| name == test || name.starts_with(&format!("{}/", stem(test))))
        });
        Self::of(&texts)
    }

    fn of(texts: &BTreeMap<String, String>) -> Self {
        let modules = texts.iter().map(|(file, text)| (module_path(file), Module::parse(file, text))).collect();
        Self { modules }
    }

    /// Files and the files that each of them uses; what only names a part of its own folder for others is no use of it.
    pub(crate) fn edges(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let edges = self.modules.iter().map(|(at, module)| {
            let uses = module.uses.iter().filter(|one| !one.reexport).map(|one| &one.path);
            let used = uses.chain(&module.paths).filter_map(|path| self.resolve(at, path, 0));
            let files = used.filter(|used| used != at).map(|used| &*self.modules[&used].file).collect();
            (&*module.file, files)
        });
        edges.collect()
    }

    /// The module that defines what `path` names where it stands in `at`; none for other crates.
    fn resolve(&self, at: &str, path: &[String], depth: usize) -> Option<String> {
        let mut rest = path;
        let mut here = match path.first()?.as_str() {
            "crate" => {
                rest = &rest[1..];
                String::new()
            }
            "self" | "super" => at.to_owned(),
            first if self.modules.contains_key(&join(at, first)) => at.to_owned(),
            _ => return None,
        };
        while let Some((first, others)) = rest.split_first() {
            let next = match first.as_str() {
                "self" => here.clone(),
                "super" => here.rsplit_once("::").map_or("", |(parent, _)| parent).to_owned(),
                name => join(&here, name),
            };
            if !self.modules.contains_key(&next) {
                break;
            }
            (here, rest) = (next, others);
        }
        let Some((name, others)) = rest.split_first() else { return Some(here) };
        let module = &self.modules[&here];
        if module.defines.contains(name) || depth > 8 {
            return Some(here);
        }
        if let Some(import) = module.uses.iter().find(|import| import.name.as_ref() == Some(name)) {
            let whole = [&import.path[..], others].concat();
            return self.resolve(&here, &whole, depth + 1).or(Some(here));
        }
        let globs = module.uses.iter().filter(|import| import.name.is_none());
        let mut targets = globs.filter_map(|glob| self.resolve(&here, &glob.path, depth + 1));
        targets.find(|target| self.modules[target].defines.contains(name)).or(Some(here))
    }

    /// Groups of files each of which reaches all others of its group.
    pub(crate) fn circles(&self) -> BTreeSet<BTreeSet<&str>> {
        let edges = self.edges();
        let reach: BTreeMap<_, _> = edges.keys().map(|file| (*file, reachable(&edges, file))).collect();
        let of = |file: &str| reach[file].iter().copied().filter(|other| reach[other].contains(file)).collect();
        reach.keys().map(|file| of(file)).filter(|group: &BTreeSet<_>| !group.is_empty()).collect()
    }
}

fn reachable<'a>(edges: &BTreeMap<&str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&str> = edges[from].iter().copied().collect();
    while let Some(file) = next.pop() {
        if found.insert(file) {
            next.extend(&edges[file]);
        }
    }
    found
}

fn join(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

/// The folder of a module's children: its file without the ending, or the folder of its `mod.rs`.
fn stem(file: &str) -> &str {
    file.strip_suffix("/mod.rs").or(file.strip_suffix(".rs")).unwrap_or(file)
}

fn module_path(file: &str) -> String {
    if file == "lib.rs" { String::new() } else { stem(file).replace('/', "::") }
}

/// Files that a file declares for tests only, also by `#[path]`.
fn test_modules(file: &str, text: &str) -> Vec<String> {
    let folder = if file == "lib.rs" { "" } else { stem(file) };
    let beside = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    let inside =
        |folder: &str, name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    let (mut found, mut lines) = (Vec::new(), text.lines().map(str::trim));
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            continue;
        }
        let mut path = None;
        for line in lines.by_ref() {
            if let Some(rest) = line.strip_prefix("#[path = \"") {
                path = rest.strip_suffix("\"]");
            } else if !line.starts_with("#[") {
                let name = line.trim_start_matches("pub ").strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'));
                match (path, name) {
                    (Some(path), _) => found.push(inside(beside, path)),
                    (None, Some(name)) => {
                        found.extend(["{}.rs", "{}/mod.rs"].map(|f| inside(folder, &f.replace("{}", name))));
                    }
                    (None, None) => {}
                }
                break;
            }
        }
    }
    found
}

/// Identifiers, `::`, and every other character by itself; no comments, no text between quotes.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    for line in text.lines() {
        // What a comment says is no use; an address in a string ends the line too, which hides no path.
        let mut rest = line.split("//").next().unwrap_or_default();
        while let Some(first) = rest.chars().next() {
            let length = if first.is_alphabetic() || first == '_' {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else if first == '"' {
                let mut escaped = false;
                let end = rest[1..].find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                end.map_or(1, |end| end + 2)
            } else {
                first.len_utf8()
            };
            if !first.is_whitespace() {
                tokens.push(rest[..length].to_owned());
            }
            rest = &rest[length..];
        }
    }
    tokens
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

impl Module {
    fn parse(file: &str, text: &str) -> Self {
        let mut module = Self { file: file.to_owned(), ..Self::default() };
        let tokens = tokens(&without_tests(text));
        let token = |at: usize| tokens.get(at).map_or("", String::as_str);
        let mut at = 0;
        while at < tokens.len() {
            if token(at) == "use" && token(at + 1) != "<" {
                let public = at > 0 && matches!(token(at - 1), "pub" | ")");
                at = module.tree(&tokens, at + 1, &[], public);
                continue;
            }
            match token(at) {
                "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "union" => {
                    module.defines.insert(token(at + 1).to_owned());
                }
                "macro_rules" => _ = module.defines.insert(token(at + 2).to_owned()),
                first
                    if is_name(first) && token(at + 1) == "::" && !(at > 0 && matches!(token(at - 1), "::" | "in")) =>
                {
                    let mut path = vec![first.to_owned()];
                    while token(at + 1) == "::" && is_name(token(at + 2)) {
                        path.push(token(at + 2).to_owned());
                        at += 2;
                    }
                    module.paths.push(path);
                }
                _ => {}
            }
            at += 1;
        }
        module
    }

    /// One branch of a `use` from `at` on; gives the place after it.
    fn tree(&mut self, tokens: &[String], mut at: usize, prefix: &[String], public: bool) -> usize {
        let token = |at: usize| tokens.get(at).map_or("", String::as_str);
        let mut path = prefix.to_vec();
        loop {
            match token(at) {
                "{" => {
                    at += 1;
                    while !matches!(token(at), "}" | "") {
                        at = self.tree(tokens, at, &path, public);
                        if token(at) == "," {
                            at += 1;
                        }
                    }
                    return at + 1;
                }
                "*" => {
                    self.import(path, None, public);
                    return at + 1;
                }
                "::" => at += 1,
                "as" => {
                    let name = token(at + 1).to_owned();
                    self.import(path, Some(name), public);
                    return at + 2;
                }
                name if is_name(name) => {
                    // `a::{self}` is `a`.
                    if name != "self" || path.is_empty() {
                        path.push(name.to_owned());
                    }
                    at += 1;
                }
                _ => {
                    let name = path.last().cloned();
                    self.import(path, name, public);
                    return at;
                }
            }
        }
    }

    fn import(&mut self, path: Vec<String>, name: Option<String>, public: bool) {
        let own = !matches!(path.first().map(String::as_str), Some("crate" | "super"));
        self.uses.push(Use { path, name, reexport: public && own });
    }
}

fn graph(files: &[(&str, &str)]) -> BTreeMap<String, Vec<String>> {
    let texts = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    let graph = Graph::of(&texts);
    let owned = |files: &BTreeSet<&str>| files.iter().map(|file| (*file).to_owned()).collect();
    graph.edges().iter().map(|(file, used)| ((*file).to_owned(), owned(used))).collect()
}

#[test]
fn a_path_leads_to_the_file_that_defines_its_name() {
    let files = [
        ("lib.rs", "pub mod a;\npub mod b;"),
        ("a/mod.rs", "mod one;\nmod two;\npub use one::One;\npub use two::*;\npub struct Own;"),
        ("a/one.rs", "use super::Own;\npub struct One;"),
        ("a/two.rs", "use super::one::{self, One as First};\npub struct Two;"),
        ("b.rs", "use crate::{a::{One, Two}, a::Own as O};\nuse std::fs;"),
        ("c.rs", "fn f() { crate::a::Two::new() }\nfn g() { \"crate::b::x\" } // crate::a::one"),
        ("d.rs", "use crate::a::{self};\nfn f() -> impl Sized + use<> { super::b::f() }"),
    ];
    let found = graph(&files);
    let used = |file: &str| found[file].join(" ");
    assert_eq!(used("a/mod.rs"), "", "names for others");
    assert_eq!(used("a/one.rs"), "a/mod.rs");
    assert_eq!(used("a/two.rs"), "a/one.rs");
    assert_eq!(used("b.rs"), "a/mod.rs a/one.rs a/two.rs");
    assert_eq!(used("c.rs"), "a/two.rs");
    assert_eq!(used("d.rs"), "a/mod.rs b.rs");
}

#[test]
fn a_circle_is_found_through_any_number_of_files_and_what_leads_to_it_is_left_out() {
    let texts = [
        ("a.rs", "use crate::b;\nfn g() {}"),
        ("b.rs", "use super::c::f;"),
        ("c.rs", "fn f() { crate::a::g() }"),
        ("d.rs", "use crate::a;"),
        ("e.rs", "#[cfg(test)]\nmod tests {\n    use crate::f;\n}\n"),
        ("f.rs", "use crate::e;"),
        ("lib.rs", ""),
    ];
    let texts = texts.map(|(file, text)| (file.to_owned(), text.to_owned())).into();
    assert_eq!(Graph::of(&texts).circles(), BTreeSet::from([BTreeSet::from(["a.rs", "b.rs", "c.rs"])]));
}

#[test]
fn files_for_tests_alone_are_known_by_their_declaration() {
    let text =
        "mod a;\n#[cfg(test)]\nmod b;\n#[cfg(test)]\n#[path = \"c_tests.rs\"]\nmod tests;\n#[cfg(test)]\nmod d {\n}\n";
    assert_eq!(test_modules("x/mod.rs", text), ["x/b.rs", "x/b/mod.rs", "x/c_tests.rs"]);
    assert_eq!(test_modules("x.rs", text), ["x/b.rs", "x/b/mod.rs", "c_tests.rs"]);
}
