//! Which room of `src` may use which (docs/architecture.md).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::graph::Graph;

const ROOMS: [(&str, &[&str]); 10] = [
    ("admission", &["api", "core", "runtime"]),
    ("api", &[]),
    ("core", &["api"]),
    ("oci", &["api", "core"]),
    ("images", &["api", "core", "oci", "runtime"]),
    ("hub", &["api", "core", "oci", "images", "runtime"]),
    ("spoke", &["api", "core", "oci", "images", "runtime"]),
    ("worker", &["api", "core", "oci", "runtime"]),
    ("runtime", &["api"]),
    ("cli", &["api", "core", "oci", "images", "hub", "spoke", "worker", "admission", "runtime"]),
];

/// The parts of rooms, from the top to the ground: each uses only parts of lines below its own.
const LINES: [(&str, &[&[&str]]); 4] = [
    ("oci", &[&["mod"], &["pull"], &["http", "unpack"], &["route"], &["auth"], &["error"], &["limits", "progress"]]),
    (
        "hub",
        &[
            &["mod"],
            &["works", "images", "status"],
            &["watches"],
            &["fleet", "events"],
            &["standing"],
            &["view"],
            &["target", "intern"],
        ],
    ),
    (
        "spoke",
        &[
            &["mod"],
            &["watches"],
            &["node", "module", "namespace", "worker"],
            &["claims", "reports"],
            &["stores"],
            &["consumers", "tally"],
            &["outcome"],
            &["view"],
            &["settings"],
        ],
    ),
    (
        "worker",
        &[
            &["mod"],
            &["agent", "once"],
            &["start"],
            &["observe", "apply"],
            &["node"],
            &["host"],
            &["report", "image"],
            &["plan"],
            &["store"],
            &["kernel"],
            &["record"],
            &["facts", "settings", "module_file"],
        ],
    ),
];

/// Paths that a room's code may not name, with the reason; what counts for the core counts for every plan.
const FORBIDDEN: [(&str, &str, &str); 8] = [
    ("core", "kube::Client", "core has no client"),
    ("core", "tokio::", "core does not wait"),
    ("core", "std::fs", "core reads no files"),
    ("core", "std::env", "core reads no environment"),
    ("core", "Timestamp::now", "core has no clock"),
    ("core", "SystemTime", "core has no clock"),
    ("api", "kube::Client", "api holds types only"),
    ("api", "tokio::", "api holds types only"),
];

pub(crate) fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Code of a file without comments and without its tests, which may use more.
pub(crate) fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    without_tests(&text).lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// The text without the items that are only there in tests: each ends with its line, or with the brace that closes it at
/// the indentation of its attribute.
pub(crate) fn without_tests(text: &str) -> String {
    let (mut kept, mut lines) = (String::new(), text.lines());
    while let Some(line) = lines.next() {
        let Some(indentation) = line.strip_suffix("#[cfg(test)]") else {
            kept += line;
            kept.push('\n');
            continue;
        };
        let end = format!("{indentation}}}");
        let first = lines.by_ref().find(|line| !line.trim_start().starts_with("#["));
        if first.is_some_and(|first| !first.ends_with(';') && !first.ends_with(',') && !first.ends_with('}')) {
            lines.by_ref().find(|line| line.starts_with(&end));
        }
    }
    kept
}

#[test]
fn only_what_is_there_in_tests_alone_is_left_out_of_the_check() {
    let text = "#[cfg(test)]\nmod a;\nuse crate::b;\nimpl C {\n    #[cfg(test)]\n    #[must_use]\n    fn d() {\n        e();\n    }\n\
                \n    fn f() {}\n}\n#[cfg(test)]\nmod tests {\n    use crate::g;\n}\n";
    assert_eq!(without_tests(text), "use crate::b;\nimpl C {\n\n    fn f() {}\n}\n");
}

/// First path segments after `crate::`, also inside `use crate::{a, b::c}`.
fn used_rooms(code: &str) -> BTreeSet<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut start) = (0, true);
            for (at, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if depth == 0 && start && !c.is_whitespace() => {
                        rooms.insert(name(&group[at..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            rooms.insert(name(rest));
        }
    }
    rooms
}

#[test]
fn rooms_import_only_what_the_architecture_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for entry in fs::read_dir(&src).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        let room = entry.file_name().into_string().unwrap();
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            wrong.push(format!("src/{room} is no room of the architecture"));
            continue;
        };
        for file in rust_files(&entry.path()) {
            let code = code(&file);
            let shown = file.strip_prefix(&src).unwrap().display().to_string();
            for used in used_rooms(&code) {
                if used != room && !allowed.contains(&used.as_str()) {
                    wrong.push(format!("{shown} uses crate::{used}; {room} may use {allowed:?}"));
                }
            }
            // A plan is as pure as the core, in whichever room it is made.
            let pure = if shown.contains("/plan") { "core" } else { room.as_str() };
            for (_, path, why) in FORBIDDEN.iter().filter(|(name, ..)| *name == room || *name == pure) {
                if code.contains(path) {
                    wrong.push(format!("{shown} names {path}: {why}"));
                }
            }
            if room != "cli" && code.contains("env::var") {
                wrong.push(format!("{shown} reads the environment: only cli may"));
            }
            // Creating an object as a question, which stores nothing, needs parameters of its own.
            for uncounted in ["PatchParams", "DeleteParams"] {
                if room != "runtime" && code.contains(uncounted) {
                    wrong.push(format!(
                        "{shown} names {uncounted}: writes go through runtime::client, which counts them"
                    ));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn imports_are_found_in_single_and_grouped_paths() {
    let code =
        "use crate::api::names;\nuse crate::{core::kernel, oci::{self, pull}, runtime};\nlet x = crate::hub::y();";
    let rooms: Vec<_> = used_rooms(code).into_iter().collect();
    assert_eq!(rooms, ["api", "core", "hub", "oci", "runtime"]);
}

#[test]
fn parts_of_a_room_use_only_what_stands_below_them() {
    let graph = Graph::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let mut wrong = Vec::new();
    for (room, lines) in LINES {
        let part = |file: &'_ str| {
            let inside = file.strip_prefix(room)?.strip_prefix('/')?.split('/').next()?;
            Some(inside.trim_end_matches(".rs").to_owned())
        };
        let line = |part: &str| lines.iter().position(|line| line.contains(&part));
        for (file, used) in graph.edges() {
            let Some(from) = part(file) else { continue };
            if line(&from).is_none() {
                wrong.push(format!("{file} has no place in {room}"));
            }
            for (to, used) in used.iter().filter_map(|used| Some((part(used)?, used))) {
                if from != to && line(&from) >= line(&to) {
                    wrong.push(format!("{file} uses {used}, which does not stand below it"));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let graph = Graph::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert_eq!(graph.circles(), BTreeSet::new());
}
