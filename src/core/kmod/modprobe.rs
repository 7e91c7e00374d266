//! Command lines for modprobe, and what it answers to them.
//!
//! Source: `tools/modprobe.c` of kmod. Everything goes by argument vector; nothing here is ever read by a shell.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::kernel_name;
use crate::api::{ModprobeArgs, ModprobeSpec};

/// Where the files that modprobe is given stand in a generated folder.
pub const ROOT: &str = "root";
/// The folder of configuration beside [`ROOT`].
pub const CONFIG: &str = "modprobe.d";

/// Options with a value: letter, name, and the shortest beginning of the name that getopt takes for it.
const VALUED: [(char, &str, usize); 4] =
    [('C', "config", 3), ('d', "dirname", 2), ('S', "set-version", 2), ('w', "wait", 1)];

/// A part of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// An option without value, by its letter; long ones that have none by `?`.
    Flag(char),
    /// The value of an option: which argument holds it, and from which byte on.
    Value(char, usize, usize),
    /// The argument is a word: a module or a parameter.
    Word(usize),
}

/// Takes a command line apart as `getopt_long` does: options may stand anywhere before `--`.
fn parts(arguments: &[String]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(argument) = arguments.get(at) {
        if argument == "--" {
            parts.extend((at + 1..arguments.len()).map(Part::Word));
            break;
        }
        if let Some(long) = argument.strip_prefix("--") {
            let name = long.split('=').next().unwrap_or(long);
            let valued = VALUED.iter().find(|(_, full, least)| name.len() >= *least && full.starts_with(name));
            match valued {
                Some((letter, ..)) => parts.push(value(*letter, &mut at, long.find('=').map(|equals| equals + 3))),
                None => parts.push(Part::Flag(match name {
                    "all" => 'a',
                    "remove" | "remove-holders" | "remove-dependencies" => 'r',
                    _ if name.starts_with("force") => 'f',
                    _ => '?',
                })),
            }
        } else if let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            for (index, letter) in letters.char_indices() {
                if VALUED.iter().any(|(valued, ..)| *valued == letter) {
                    let from = index + 1 + letter.len_utf8();
                    parts.push(value(letter, &mut at, (from < argument.len()).then_some(from)));
                    break;
                }
                parts.push(Part::Flag(letter));
            }
        } else {
            parts.push(Part::Word(at));
        }
        at += 1;
    }
    parts
}

/// The value of an option: the rest of its own argument, or the argument after it.
fn value(letter: char, at: &mut usize, from: Option<usize>) -> Part {
    if from.is_none() {
        *at += 1;
    }
    Part::Value(letter, *at, from.unwrap_or(0))
}

/// What a command line is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aim {
    /// Modules, as the kernel has them, in the order of the line.
    pub modules: Vec<String>,
    /// Parameters of the module.
    pub parameters: Vec<String>,
    /// It removes.
    pub removes: bool,
    /// It overrides the kernel's check of versions.
    pub forces: bool,
}

/// What a whole command line is about.
pub fn aim(arguments: &[String]) -> Aim {
    let parts = parts(arguments);
    let flag = |letter| parts.contains(&Part::Flag(letter));
    let words: Vec<&String> = parts
        .iter()
        .filter_map(|part| match part {
            Part::Word(at) => arguments.get(*at),
            Part::Flag(_) | Part::Value(..) => None,
        })
        .collect();
    let removes = flag('r');
    let modules = if flag('a') || removes { words.len() } else { words.len().min(1) };
    Aim {
        modules: words[..modules].iter().map(|word| kernel_name(word)).collect(),
        parameters: words[modules..].iter().map(|word| (*word).clone()).collect(),
        removes,
        forces: flag('f'),
    }
}

/// Arguments, unless they say nothing.
pub fn given(args: Option<&ModprobeArgs>) -> Option<&ModprobeArgs> {
    args.filter(|args| !args.load.is_empty() || !args.unload.is_empty())
}

/// Arguments that are the whole command line, if the specification has them.
pub fn raw_args(spec: &ModprobeSpec) -> Option<&ModprobeArgs> {
    given(spec.raw_args.as_ref())
}

/// The command line for loading, `folder` being the generated one.
pub fn load_arguments(spec: &ModprobeSpec, folder: &Path) -> Vec<String> {
    if let Some(raw) = raw_args(spec) {
        return raw_arguments(&raw.load, &spec.dir_name, folder);
    }
    let mut arguments = own_options(&["-v"], folder);
    let own = spec.args.iter().flat_map(|args| &args.load).cloned().collect::<Vec<_>>();
    arguments.extend(in_root(&own, &spec.dir_name, folder));
    arguments.extend(spec.module_name.clone());
    arguments.extend(spec.parameters.iter().map(|parameter| parameter.trim().to_owned()).filter(|p| !p.is_empty()));
    arguments
}

/// The command line for unloading, if the specification has one.
pub fn unload_arguments(spec: &ModprobeSpec, folder: &Path) -> Option<Vec<String>> {
    if let Some(raw) = raw_args(spec) {
        return (!raw.unload.is_empty()).then(|| raw_arguments(&raw.unload, &spec.dir_name, folder));
    }
    let own = spec.args.as_ref().map(|args| args.unload.as_slice()).filter(|unload| !unload.is_empty())?;
    let mut arguments = own_options(&["-r", "-v"], folder);
    arguments.extend(in_root(own, &spec.dir_name, folder));
    match spec.modules_loading_order.as_deref() {
        Some(order) if !order.is_empty() => arguments.extend(order.iter().cloned()),
        _ => arguments.extend(spec.module_name.clone()),
    }
    Some(arguments)
}

/// The command line that shows what [`load_arguments`] would insert, loaded or not, and changes nothing.
pub fn dry_run(load_arguments: &[String]) -> Vec<String> {
    std::iter::once("-D".to_owned()).chain(load_arguments.iter().cloned()).collect()
}

fn path(folder: &Path, part: &str) -> String {
    folder.join(part).display().to_string()
}

fn own_options(first: &[&str], folder: &Path) -> Vec<String> {
    let own = ["-d".to_owned(), path(folder, ROOT), "-C".to_owned(), path(folder, CONFIG)];
    first.iter().map(|option| (*option).to_owned()).chain(own).collect()
}

/// As the user wrote it, with our configuration in front, and our root where he names none.
fn raw_arguments(raw: &[String], dir_name: &str, folder: &Path) -> Vec<String> {
    let names_one = parts(raw).iter().any(|part| matches!(part, Part::Value('d', ..)));
    let mut arguments = own_options(&[], folder);
    if names_one {
        arguments.drain(..2);
    }
    arguments.extend(in_root(raw, dir_name, folder));
    arguments
}

/// The arguments with our root in the place of the image's directory, which KMM's workers have below `/tmp`.
fn in_root(arguments: &[String], dir_name: &str, folder: &Path) -> Vec<String> {
    let clean = |text: &str| -> Vec<String> {
        let parts = text.split('/').filter(|part| !part.is_empty() && *part != ".");
        parts.map(ToOwned::to_owned).collect()
    };
    let ours = clean(dir_name);
    let mut mapped = arguments.to_vec();
    for part in parts(arguments) {
        let Part::Value('d', at, from) = part else { continue };
        let Some(argument) = mapped.get_mut(at) else { continue };
        let named = clean(&argument[from..]);
        if named == ours || (named.first().is_some_and(|first| first == "tmp") && named[1..] == ours) {
            argument.replace_range(from.., &path(folder, ROOT));
        }
    }
    mapped
}

/// A line of [`dry_run`]'s answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insertion {
    /// The module's file.
    pub path: PathBuf,
    /// Its parameters.
    pub parameters: String,
}

/// What would be inserted, in order and once. Other lines, those of built-in modules among them, are skipped.
pub fn insertions(answer: &str) -> Vec<Insertion> {
    let mut known = BTreeSet::new();
    let mut found = Vec::new();
    for line in answer.lines() {
        let Some(rest) = line.strip_prefix("insmod ") else { continue };
        // The path may hold spaces: it ends with the module's ending.
        let (path, parameters) = match rest.find(".ko ") {
            Some(end) => rest.split_at(end + 3),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        if known.insert(path.to_owned()) {
            found.push(Insertion { path: path.trim().into(), parameters: parameters.trim().to_owned() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ModprobeArgs;

    fn strings(text: &str) -> Vec<String> {
        text.split(' ').filter(|word| !word.is_empty()).map(ToOwned::to_owned).collect()
    }

    fn spec(change: impl FnOnce(&mut ModprobeSpec)) -> ModprobeSpec {
        let mut spec = ModprobeSpec { module_name: Some("kmm-a".into()), ..ModprobeSpec::default() };
        change(&mut spec);
        spec
    }

    #[allow(clippy::unnecessary_wraps)] // the field's type
    fn args(load: &str, unload: &str) -> Option<ModprobeArgs> {
        Some(ModprobeArgs { load: strings(load), unload: strings(unload) })
    }

    const FOLDER: &str = "/s/x";

    #[test]
    fn command_lines_are_those_of_kmm_with_the_generated_folder() {
        let own = "-d /s/x/root -C /s/x/modprobe.d";
        let table: Vec<(ModprobeSpec, String, Option<String>)> = vec![
            (spec(|s| s.modprobe_config = Some("# x".into())), format!("-v {own} kmm-a"), None),
            (spec(|s| s.parameters = strings("p=1 q=2")), format!("-v {own} kmm-a p=1 q=2"), None),
            (
                spec(|s| {
                    s.args = args("--first-time -b", "--first-time");
                    s.parameters = strings("p=1");
                }),
                format!("-v {own} --first-time -b kmm-a p=1"),
                Some(format!("-r -v {own} --first-time kmm-a")),
            ),
            (
                spec(|s| {
                    s.args = args("", "-q");
                    s.modules_loading_order = Some(strings("kmm-a b c"));
                }),
                format!("-v {own} kmm-a"),
                Some(format!("-r -v {own} -q kmm-a b c")),
            ),
            (
                spec(|s| s.raw_args = args("-vd /opt b x=1", "-rd/tmp/opt/ b")),
                "-C /s/x/modprobe.d -vd /s/x/root b x=1".into(),
                Some("-C /s/x/modprobe.d -rd/s/x/root b".into()),
            ),
            (
                spec(|s| {
                    s.raw_args = args("--dirname=/drivers/ b", "--dirname /tmp/drivers -r b");
                    s.dir_name = "/drivers".into();
                }),
                "-C /s/x/modprobe.d --dirname=/s/x/root b".into(),
                Some("-C /s/x/modprobe.d --dirname /s/x/root -r b".into()),
            ),
            (spec(|s| s.raw_args = args("-a b c", "")), format!("{own} -a b c"), None),
            (
                spec(|s| s.raw_args = args("-d /elsewhere -S 1.0 b", "")),
                "-C /s/x/modprobe.d -d /elsewhere -S 1.0 b".into(),
                None,
            ),
            // After `--` everything is a word, and a value is no option.
            (spec(|s| s.raw_args = args("-S -d -- b -d /opt", "")), format!("{own} -S -d -- b -d /opt"), None),
        ];
        for (spec, load, unload) in table {
            let folder = Path::new(FOLDER);
            assert_eq!(load_arguments(&spec, folder).join(" "), load);
            assert_eq!(unload_arguments(&spec, folder).map(|arguments| arguments.join(" ")), unload, "{load}");
        }
        assert_eq!(dry_run(&strings("-a b"))[..], strings("-D -a b")[..]);
    }

    #[test]
    fn a_command_line_tells_which_modules_it_is_about() {
        let aim_of = |modules: &str, parameters: &str, removes, forces| Aim {
            modules: strings(modules),
            parameters: strings(parameters),
            removes,
            forces,
        };
        for (line, expected) in [
            ("kmm-a x=1 y", aim_of("kmm_a", "x=1 y", false, false)),
            ("-d /opt -C conf -S 1 -w 5 kmm-a x=1", aim_of("kmm_a", "x=1", false, false)),
            ("-va kmm-a b", aim_of("kmm_a b", "", false, false)),
            ("kmm-a --all b --force-vermagic", aim_of("kmm_a b", "", false, true)),
            ("-rf a b", aim_of("a b", "", true, true)),
            ("--dir /opt --wa=3 a", aim_of("a", "", false, false)),
            ("-- -a", aim_of("_a", "", false, false)),
            ("-d", aim_of("", "", false, false)),
            ("", aim_of("", "", false, false)),
        ] {
            assert_eq!(aim(&strings(line)), expected, "{line}");
        }
    }

    #[test]
    fn an_answer_is_read_into_files_and_parameters() {
        let answer = "insmod /s/x/root/b.ko \nbuiltin crc32\ninsmod /s/a b/c.ko text=\"two words\" n=1\n\
                      insmod /s/x/root/b.ko x=1\ninstall /bin/true\ninsmod /other/d.ko.xz p=1\n";
        let of = |path: &str, parameters: &str| Insertion { path: path.into(), parameters: parameters.into() };
        assert_eq!(
            insertions(answer),
            [of("/s/x/root/b.ko", ""), of("/s/a b/c.ko", "text=\"two words\" n=1"), of("/other/d.ko.xz", "p=1")]
        );
    }
}
