//! Command lines for modprobe, and what it answers to them.
//!
//! Source: `tools/modprobe.c` of kmod. Everything goes by argument vector; nothing here is ever read by a shell.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::kernel_name;
use crate::api::ModprobeSpec;

/// Where the files that modprobe is given stand in a generated folder.
pub const ROOT: &str = "root";
/// The folder of configuration beside [`ROOT`].
pub const CONFIG: &str = "modprobe.d";

/// What an option means for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// Every word is a module.
    All,
    /// It removes.
    Remove,
    /// It overrides the kernel's check of versions.
    Force,
    /// It shows something and loads nothing.
    Look,
    /// It makes no difference to what a worker loads: more or fewer words, no complaint about what is loaded, commands
    /// of modprobe.d that are never run, a file of a vendor's list of supported modules that is not asked.
    Nothing,
    /// A value belongs to it.
    Value,
    /// Something else, or it is unknown.
    Other,
}

/// Options by name and letter.
const OPTIONS: [(&str, Option<char>, Means); 29] = [
    ("all", Some('a'), Means::All),
    ("remove", Some('r'), Means::Remove),
    ("remove-dependencies", None, Means::Remove),
    ("remove-holders", None, Means::Remove),
    ("wait", Some('w'), Means::Value),
    ("resolve-alias", Some('R'), Means::Look),
    ("first-time", None, Means::Nothing),
    ("ignore-install", Some('i'), Means::Nothing),
    ("ignore-remove", None, Means::Nothing),
    ("use-blacklist", Some('b'), Means::Other),
    ("force", Some('f'), Means::Force),
    ("force-modversion", None, Means::Force),
    ("force-vermagic", None, Means::Force),
    ("show-depends", Some('D'), Means::Look),
    ("showconfig", Some('c'), Means::Look),
    ("show-config", None, Means::Look),
    ("show-modversions", None, Means::Look),
    ("dump-modversions", None, Means::Look),
    ("show-exports", None, Means::Look),
    ("dry-run", Some('n'), Means::Look),
    ("show", None, Means::Look),
    ("config", Some('C'), Means::Value),
    ("dirname", Some('d'), Means::Value),
    ("set-version", Some('S'), Means::Value),
    ("syslog", Some('s'), Means::Nothing),
    ("quiet", Some('q'), Means::Nothing),
    ("verbose", Some('v'), Means::Nothing),
    ("version", Some('V'), Means::Look),
    ("help", Some('h'), Means::Look),
];
/// Of SUSE's modprobe alone.
const ALLOW_UNSUPPORTED: &str = "allow-unsupported-modules";

/// A part of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// An option without value.
    Flag(Means),
    /// The value of an option: which argument holds it, and from which byte on.
    Value(char, usize, usize),
    /// The argument is a word: a module or a parameter.
    Word(usize),
    /// Only words come from here on.
    End,
}

/// The option that a long name means: as `getopt_long` has it, a beginning is enough where it is that of one alone.
fn long_option(name: &str) -> (Means, char) {
    let exact = OPTIONS.iter().find(|(full, ..)| *full == name);
    let mut found = OPTIONS.iter().filter(|(full, ..)| full.starts_with(name));
    let first = exact.or_else(|| found.next());
    let is_one = |(_, letter, means): &(&str, Option<char>, Means)| {
        first.is_some_and(|first| first.2 == *means && (*means != Means::Value || first.1 == *letter))
    };
    match first {
        Some((_, letter, means)) if exact.is_some() || found.all(is_one) => (*means, letter.unwrap_or_default()),
        _ => (Means::Other, char::default()),
    }
}

/// Takes a command line apart as `getopt_long` does: options may stand anywhere before `--`.
fn parts(arguments: &[String]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(argument) = arguments.get(at) {
        if argument == "--" {
            parts.push(Part::End);
            parts.extend((at + 1..arguments.len()).map(Part::Word));
            break;
        }
        if let Some(long) = argument.strip_prefix("--") {
            let name = long.split('=').next().unwrap_or(long);
            parts.push(match long_option(name) {
                (Means::Value, letter) => value(letter, &mut at, long.find('=').map(|equals| equals + 3)),
                (means, _) => Part::Flag(means),
            });
        } else if let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            for (index, letter) in letters.char_indices() {
                let known = OPTIONS.iter().find(|(_, known, _)| *known == Some(letter));
                let means = known.map_or(Means::Other, |(.., means)| *means);
                if means == Means::Value {
                    let from = index + 1 + letter.len_utf8();
                    parts.push(value(letter, &mut at, (from < argument.len()).then_some(from)));
                    break;
                }
                parts.push(Part::Flag(means));
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
    /// It shows something and loads nothing.
    pub looks: bool,
}

/// What a whole command line is about.
pub fn aim(arguments: &[String]) -> Aim {
    let parts = parts(arguments);
    let flag = |means| parts.contains(&Part::Flag(means));
    let words: Vec<&String> = parts
        .iter()
        .filter_map(|part| match part {
            Part::Word(at) => arguments.get(*at),
            Part::Flag(_) | Part::Value(..) | Part::End => None,
        })
        .collect();
    let removes = flag(Means::Remove);
    let modules = if flag(Means::All) || removes { words.len() } else { words.len().min(1) };
    Aim {
        modules: words[..modules].iter().map(|word| kernel_name(word)).collect(),
        parameters: words[modules..].iter().map(|word| (*word).clone()).collect(),
        removes,
        forces: flag(Means::Force),
        looks: flag(Means::Look),
    }
}

/// The parameters among what a Module writes behind its name. KMM's workers hand all of it to modprobe, for which what begins
/// with a dash is an option; those that make no difference are left out, and so is the `--` that ends options.
///
/// The rest of them stays in, for [`params::encode`](super::params::encode) to refuse.
pub fn own_parameters(elements: &[String]) -> Vec<String> {
    let makes_no_difference = |element: &str| {
        let suse = element.strip_prefix("--").is_some_and(|name| ALLOW_UNSUPPORTED.starts_with(name) && name.len() > 1);
        suse || parts(&[element.to_owned()]).iter().all(|part| matches!(part, Part::Flag(Means::Nothing) | Part::End))
    };
    elements.iter().filter(|element| !makes_no_difference(element.trim())).cloned().collect()
}

/// The command line for loading, `folder` being the generated one.
pub fn load_arguments(spec: &ModprobeSpec, folder: &Path) -> Vec<String> {
    if let Some(raw) = &spec.raw_args {
        return raw_arguments(&raw.load, &spec.dir_name, folder);
    }
    let own = spec.args.as_ref().map(|args| args.load.as_slice()).unwrap_or_default();
    let parameters = own_parameters(&spec.parameters);
    let parameters = parameters.iter().map(|parameter| parameter.trim().to_owned()).filter(|p| !p.is_empty());
    with_words(own_options(&["-v"], folder), own, spec, folder, spec.module_name.clone().into_iter().chain(parameters))
}

/// The command line for unloading, if the specification has one.
pub fn unload_arguments(spec: &ModprobeSpec, folder: &Path) -> Option<Vec<String>> {
    if let Some(raw) = &spec.raw_args {
        return (!raw.unload.is_empty()).then(|| raw_arguments(&raw.unload, &spec.dir_name, folder));
    }
    let own = spec.args.as_ref().map(|args| args.unload.as_slice()).filter(|unload| !unload.is_empty())?;
    let order = spec.modules_loading_order.as_deref().filter(|order| !order.is_empty());
    let modules = order.map_or_else(|| spec.module_name.clone().into_iter().collect(), <[String]>::to_vec);
    Some(with_words(own_options(&["-r", "-v"], folder), own, spec, folder, modules.into_iter()))
}

/// Our options, the Module's own, and words, which are no options whatever they begin with.
fn with_words(
    mut arguments: Vec<String>,
    own: &[String],
    spec: &ModprobeSpec,
    folder: &Path,
    words: impl Iterator<Item = String>,
) -> Vec<String> {
    arguments.extend(in_root(own, &spec.dir_name, folder));
    if !parts(own).contains(&Part::End) {
        arguments.push("--".to_owned());
    }
    arguments.extend(words);
    arguments
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
            (spec(|s| s.modprobe_config = Some("# x".into())), format!("-v {own} -- kmm-a"), None),
            (spec(|s| s.parameters = strings("p=1 --first-time q=2")), format!("-v {own} -- kmm-a p=1 q=2"), None),
            (
                spec(|s| s.args = args("-b --", "-q --")),
                format!("-v {own} -b -- kmm-a"),
                Some(format!("-r -v {own} -q -- kmm-a")),
            ),
            (spec(|s| s.module_name = Some("-a".into())), format!("-v {own} -- -a"), None),
            (
                spec(|s| {
                    s.args = args("--first-time -b", "--first-time");
                    s.parameters = strings("p=1");
                }),
                format!("-v {own} --first-time -b -- kmm-a p=1"),
                Some(format!("-r -v {own} --first-time -- kmm-a")),
            ),
            (
                spec(|s| {
                    s.args = args("", "-q");
                    s.modules_loading_order = Some(strings("kmm-a b c"));
                }),
                format!("-v {own} -- kmm-a"),
                Some(format!("-r -v {own} -q -- kmm-a b c")),
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
            looks: false,
        };
        for (line, expected) in [
            ("kmm-a x=1 y", aim_of("kmm_a", "x=1 y", false, false)),
            ("-d /opt -C conf -S 1 -w 5 kmm-a x=1", aim_of("kmm_a", "x=1", false, false)),
            ("-va kmm-a b", aim_of("kmm_a b", "", false, false)),
            ("kmm-a --all b --force-vermagic", aim_of("kmm_a b", "", false, true)),
            ("-rf a b", aim_of("a b", "", true, true)),
            ("--di /opt --w=3 --c x --se 1 a", aim_of("a", "", false, false)),
            ("--remove-d a b", aim_of("a b", "", true, false)),
            ("--remove-h --al a", aim_of("a", "", true, false)),
            ("--force-m a", aim_of("a", "", false, true)),
            // Ambiguous: modprobe says so.
            ("--d a b", aim_of("a", "b", false, false)),
            ("-- -a", aim_of("_a", "", false, false)),
            ("-d", aim_of("", "", false, false)),
            ("", aim_of("", "", false, false)),
        ] {
            assert_eq!(aim(&strings(line)), expected, "{line}");
        }
    }

    #[test]
    fn a_command_line_that_only_shows_something_is_known() {
        for line in ["-n a", "--dry a", "--show a", "-vc", "--show-d a", "--dump a.ko", "-R a", "-V", "--h"] {
            assert!(aim(&strings(line)).looks, "{line}");
        }
        assert!(!aim(&strings("-v --first --sy a -- -n")).looks);
    }

    #[test]
    fn options_among_parameters_go_where_they_make_no_difference() {
        let table = [
            ("--first-time a=1 --fi", "a=1"),
            ("-v a -qsi --verbose --syslog -- b=-1 --ignore-i", "a b=-1"),
            ("--allow-unsupported --allow-unsupported-modules a", "a"),
            ("-f --force -b - --allow -vf -d /x -C --unknown --f", "-f --force -b - -vf -d /x -C --unknown --f"),
            ("a-b=1 c=--first-time", "a-b=1 c=--first-time"),
        ];
        for (elements, expected) in table {
            assert_eq!(own_parameters(&strings(elements)), strings(expected), "{elements}");
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
