//! Parameters of modules on the kernel's command line: `module.parameter=value`.
//!
//! The kernel itself takes only those of modules that are part of it; for the others whoever loads them must.

use super::{kernel_name, params};

/// The parameters of one module (its name as the kernel has it) in the order of the line, in the kernel's grammar.
///
/// Source: `kmod_config_parse_kcmdline` in `libkmod/libkmod-config.c` of kmod: a word may stand in double quotes as a whole,
/// otherwise only its value may hold any.
pub fn parameters(line: &str, module: &str) -> Vec<String> {
    params::words(line).filter_map(|word| of_word(word, module)).collect()
}

fn of_word(word: &str, module: &str) -> Option<String> {
    let whole = word.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let (name, parameter) = whole.unwrap_or(word).split_once('.')?;
    if name.contains(['"', '=']) || kernel_name(name) != module {
        return None;
    }
    let (key, value) = parameter.split_once('=').map_or((parameter, None), |(key, value)| (key, Some(value)));
    // After a `--` the kernel would read nothing.
    if key.starts_with('-') || key.contains(['"', '.']) {
        return None;
    }
    params::word(key, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_of_the_module_are_found() {
        let line = "root=/dev/vda kmm-a.level=3 kmm_a.text=\"two words\" kmm_ab.x=1 \"kmm_a.more=a b\" kmm_a.flag kmm_a.=1 \
                    kmm_a.b.c=1 x.kmm_a=2 =kmm_a.y kmm_a.ip=1.2.3.4 kmm_a.-- kmm_a.word=voilà quiet";
        assert_eq!(
            parameters(line, "kmm_a"),
            ["level=3", "text=\"two words\"", "more=\"a b\"", "flag", "ip=1.2.3.4", "word=\"voilà\""]
        );
        for line in ["", "\"", ".", "kmm_a", "kmm_a. \"kmm_a", "\"kmm_a.x=\""] {
            assert!(parameters(line, "kmm_a").iter().all(|found| found == "x="), "{line}");
        }
    }
}
