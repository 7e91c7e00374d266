//! Files of `modprobe.d`: what may stand in a Module's lines, and the one file that modprobe is given for a Module.
//!
//! Source: `kmod_config_parse` in `libkmod/libkmod-config.c` of kmod, and modprobe.d(5).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{kernel_name, modinfo, params};

/// What should be loaded before and after modules, by name as the kernel has it.
pub type Soft = BTreeMap<String, (Vec<String>, Vec<String>)>;

/// Lines as modprobe sees them, with their numbers: a backslash at the end joins the next one.
fn lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (index, line) in text.lines().enumerate() {
        let (part, continues) = line.strip_suffix('\\').map_or((line, false), |part| (part, true));
        match lines.last_mut().filter(|_| open) {
            Some((_, joined)) => joined.push_str(part),
            None => lines.push((index + 1, part.to_owned())),
        }
        open = continues;
    }
    lines.retain(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
}

/// Directive and the rest of each line.
fn directives(text: &str) -> Vec<(usize, String, String)> {
    let split = |(number, line): (usize, String)| {
        let line = line.trim();
        let (directive, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        (number, directive.to_owned(), rest.trim().to_owned())
    };
    lines(text).into_iter().map(split).collect()
}

/// Whether every line can be carried out.
///
/// # Errors
/// One sentence that names the first line that cannot, and the way out.
pub fn check(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        return Err("holds a zero byte".into());
    }
    for (number, directive, rest) in directives(text) {
        let words = rest.split_whitespace().count();
        let least = match directive.as_str() {
            "blacklist" => 1,
            "alias" | "options" | "softdep" | "weakdep" => 2,
            "install" | "remove" => {
                return Err(format!(
                    "line {number}: `{directive}` names a command for a shell, and there is none where modprobe runs; \
                     use softdep, options or modulesLoadingOrder"
                ));
            }
            _ => {
                return Err(format!(
                    "line {number}: modprobe knows no `{directive}`; alias, blacklist, options, softdep and weakdep may be used"
                ));
            }
        };
        if directive == "options"
            && let Some(option) = params::words(&rest).skip(1).find(|word| word.starts_with('-'))
        {
            return Err(format!(
                "line {number}: `{option}` is no parameter of a kernel module; what begins with a dash makes the kernel stop \
                 reading, or is an option of modprobe, for which modprobe.args is"
            ));
        }
        if words < least {
            return Err(format!("line {number}: `{directive}` needs {least} words or more after it"));
        }
    }
    Ok(())
}

/// The values of `options` lines for a module (its name as the kernel has it), in the order of the lines.
pub fn options(text: &str, module: &str) -> Vec<String> {
    let of = |(_, directive, rest): (usize, String, String)| {
        let (name, options) = rest.split_once([' ', '\t'])?;
        (directive == "options" && kernel_name(name) == module).then(|| options.trim().to_owned())
    };
    directives(text).into_iter().filter_map(of).collect()
}

/// All words of the lines, as the kernel would have them if they are names of modules.
pub fn words(text: &str) -> Vec<String> {
    directives(text)
        .into_iter()
        .flat_map(|(_, _, rest)| rest.split_whitespace().map(kernel_name).collect::<Vec<_>>())
        .collect()
}

/// The file for a Module: its order of loading and its lines.
///
/// modprobe takes the first `softdep` line of a module and no other, so the line for the order also holds what the Module's
/// own line says, or else what `soft` does, which modprobe would read from `modules.softdep`.
pub fn file(order: &[String], soft: &Soft, text: &str) -> String {
    let mut own = Soft::new();
    for (_, directive, rest) in directives(text) {
        if directive == "softdep"
            && let Some((name, rest)) = rest.split_once([' ', '\t'])
        {
            own.entry(kernel_name(name)).or_insert_with(|| modinfo::soft_dependencies(rest));
        }
    }
    let mut file = String::new();
    for (module, next) in order.iter().zip(order.iter().skip(1)) {
        let none = (Vec::new(), Vec::new());
        let (before, after) = own.get(module).or_else(|| soft.get(module)).unwrap_or(&none);
        let before: Vec<&str> =
            std::iter::once(next).chain(before.iter().filter(|name| *name != next)).map(String::as_str).collect();
        let _ = write!(file, "softdep {module} pre: {}", before.join(" "));
        if !after.is_empty() {
            let _ = write!(file, " post: {}", after.join(" "));
        }
        file.push('\n');
    }
    file.push_str(text.trim_end());
    if !text.is_empty() {
        file.push('\n');
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_cannot_be_carried_out_are_told_by_number() {
        for (text, expected) in [
            ("", Ok(())),
            ("# install x\n\noptions a b=1\nalias c d\nblacklist e\nsoftdep a pre: b\nweakdep a b\n", Ok(())),
            ("options a \\\n b=1\n", Ok(())),
            ("options a b\ninstall a /bin/true\n", Err("line 2: `install`")),
            ("blacklist a\\\n\nremove\ta modprobe -r b", Err("line 3: `remove`")),
            ("include x", Err("line 1: modprobe knows no `include`")),
            ("options a", Err("line 1: `options` needs 2 words")),
            ("blacklist", Err("line 1: `blacklist` needs 1 words")),
            ("options a b=-1 text=\"x -y\"\noptions a b=2 -- c=1", Err("line 2: `--` is no parameter")),
            ("alias a\0 b", Err("holds a zero byte")),
        ] {
            match (check(text), expected) {
                (Ok(()), Ok(())) => {}
                (Err(told), Err(begins)) => assert!(told.starts_with(begins), "{told}"),
                (told, expected) => panic!("{text:?}: {told:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn options_of_a_module_are_found_under_both_spellings() {
        let text = "options kmm-a x=1 y=\"a b\"\noptions kmm_b x=2\noptions kmm_a \\\n  x=3\n";
        assert_eq!(options(text, "kmm_a"), ["x=1 y=\"a b\"", "x=3"]);
        assert_eq!(words("softdep kmm-a pre: b\n# c\n"), ["kmm_a", "pre:", "b"]);
    }

    #[test]
    fn order_and_lines_stand_in_one_file_and_no_soft_dependency_is_lost() {
        let order: Vec<String> = ["a", "b", "c"].map(ToOwned::to_owned).to_vec();
        let soft = Soft::from([
            ("b".to_owned(), (vec!["c".to_owned(), "s".to_owned()], vec!["late".to_owned()])),
            ("a".to_owned(), (vec!["hidden".to_owned()], vec![])),
        ]);
        assert_eq!(
            file(&order, &soft, "options a x=1\nsoftdep a pre: mine"),
            "softdep a pre: b mine\nsoftdep b pre: c s post: late\noptions a x=1\nsoftdep a pre: mine\n"
        );
        assert_eq!(file(&order[..1], &soft, ""), "");
    }
}
