//! Module parameters: how they are handed to the kernel, and whether the kernel holds what was asked for.

use std::collections::BTreeMap;

/// A parameter that the kernel's grammar cannot carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The value needs quotes and holds one.
    #[error(
        "parameter `{0}` holds both white space and a double quote, which the kernel cannot take; use one or the other"
    )]
    Quotes(String),
    /// A zero byte, an empty name, or one that the kernel would read as two.
    #[error("parameter `{0}` has no name that the kernel can read, or holds a zero byte; write `name=value`")]
    Malformed(String),
    /// It begins with a dash.
    #[error(
        "`{0}` is no parameter of a kernel module: what begins with a dash is an option of modprobe, or makes the kernel stop \
         reading; take it out, or write options into modprobe.args.load"
    )]
    Option(String),
}

/// Whether the text holds white space as the kernel's `isspace` has it: that of ASCII, and the byte 0xA0 inside of whatever
/// character. Source: `lib/ctype.c` of Linux.
pub(super) fn has_space(text: &str) -> bool {
    text.bytes().any(|byte| matches!(byte, b' ' | 0x09..=0x0d | 0xa0))
}

/// Words between the white space of ASCII that stands in no double quotes.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let words = text.split(move |character: char| {
        if character == '"' {
            quoted = !quoted;
        }
        matches!(character, ' ' | '\x09'..='\x0d') && !quoted
    });
    words.filter(|word| !word.is_empty())
}

/// One parameter in the kernel's grammar: a value with white space stands in double quotes.
pub(super) fn word(name: &str, value: Option<&str>) -> Option<String> {
    if name.is_empty() || has_space(name) {
        return None;
    }
    Some(match value {
        Some(value) if has_space(value) && !value.contains('"') => format!("{name}=\"{value}\""),
        Some(value) => format!("{name}={value}"),
        None => name.to_owned(),
    })
}

/// All parameters as one string for `finit_module`, as modprobe makes it from its arguments.
///
/// A value with white space is put into double quotes. Source: `next_arg` in `lib/cmdline.c` of Linux, which
/// knows quotes but no escapes, and `parse_args` in `kernel/params.c`, which reads nothing after a `--`.
pub fn encode(parameters: &[String]) -> Result<String, Error> {
    let mut parts = Vec::with_capacity(parameters.len());
    for parameter in parameters {
        for part in of_element(parameter)? {
            if part.trim_start_matches('"').starts_with('-') {
                return Err(Error::Option(part));
            }
            parts.push(part);
        }
    }
    Ok(parts.join(" "))
}

/// One element may hold several parameters, as it may on modprobe's command line.
fn of_element(parameter: &str) -> Result<Vec<String>, Error> {
    let trimmed = parameter.trim();
    if trimmed.is_empty() {
        return Ok(Vec::new());
    }
    let malformed = || Error::Malformed(parameter.to_owned());
    let (name, value) = name_and_value(trimmed);
    if name.is_empty() || parameter.contains('\0') {
        return Err(malformed());
    }
    match value {
        _ if is_quoted(trimmed) || !has_space(trimmed) => Ok(vec![trimmed.to_owned()]),
        Some(value) if value.contains('"') => Err(Error::Quotes(parameter.to_owned())),
        Some(value) if !has_space(name) => Ok(word(name, Some(value)).into_iter().collect()),
        _ => {
            let each = words(trimmed).map(name_and_value);
            each.map(|(name, value)| word(name, value).ok_or_else(malformed)).collect()
        }
    }
}

fn name_and_value(parameter: &str) -> (&str, Option<&str>) {
    parameter.split_once('=').map_or((parameter, None), |(name, value)| (name, Some(value)))
}

/// Values that `/sys/module/<m>/parameters` shows, as one string that gives them again at a load.
///
/// Left out is what cannot be given as it is shown: nothing, `(null)` of a text that was never set, several lines, quotes.
pub fn encode_shown(shown: &BTreeMap<String, String>) -> String {
    let parts = shown.iter().filter(|(name, value)| {
        let odd = |character: char| character.is_control() || character == '"';
        !name.is_empty() && !value.trim().is_empty() && *value != "(null)" && !value.contains(odd)
    });
    let parts: Vec<String> = parts.map(|(name, value)| format!("{name}={}", value.trim())).collect();
    encode(&parts).unwrap_or_default()
}

/// Whether all white space of the text stands inside closed double quotes.
fn is_quoted(text: &str) -> bool {
    let quotes = text.matches('"').count();
    quotes > 0 && quotes.is_multiple_of(2) && text.split('"').step_by(2).all(|outside| !has_space(outside))
}

/// Names and values of an encoded string; a parameter without `=` has no value. Of a name given twice the last counts.
pub fn decode(encoded: &str) -> Vec<(String, Option<String>)> {
    let mut parts: Vec<(String, Option<String>)> = Vec::new();
    for word in words(encoded) {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.trim_matches('"').to_owned())),
            None => (word.trim_matches('"'), None),
        };
        let name = super::kernel_name(name);
        parts.retain(|(known, _)| *known != name);
        parts.push((name, value));
    }
    parts
}

/// Whether `/sys/module/<m>/parameters/<p>` shows the value that was asked for.
///
/// The kernel prints numbers in decimal and booleans as `Y` and `N` however they were written, so values are
/// compared by meaning; arrays element by element.
pub fn shows(asked: Option<&str>, shown: &str) -> bool {
    let shown = shown.trim_end_matches('\n');
    let Some(asked) = asked else { return truth(shown) == Some(true) };
    asked == shown
        || same(asked, shown)
        || (asked.contains(',')
            && asked.split(',').count() == shown.split(',').count()
            && asked.split(',').zip(shown.split(',')).all(|(asked, shown)| same(asked, shown)))
}

fn same(asked: &str, shown: &str) -> bool {
    let (asked, shown) = (asked.trim(), shown.trim());
    asked == shown
        || matches!((number(asked), number(shown)), (Some(a), Some(b)) if a == b)
        // Only a shown Y or N is a boolean; a shown `1` may be a number.
        || (matches!(shown, "Y" | "N") && truth(asked) == truth(shown))
}

/// Source: `kstrtobool` in `lib/kstrtox.c` of Linux: the first character counts, of `o…` the second.
fn truth(text: &str) -> Option<bool> {
    let mut letters = text.chars().map(|letter| letter.to_ascii_lowercase());
    match (letters.next()?, letters.next()) {
        ('y' | 't' | '1', _) | ('o', Some('n')) => Some(true),
        ('n' | 'f' | '0', _) | ('o', Some('f')) => Some(false),
        _ => None,
    }
}

/// Source: `_parse_integer_fixup_radix` in `lib/kstrtox.c` of Linux.
fn number(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let value = if let Some(hex) = lower.strip_prefix("0x") {
        i128::from_str_radix(hex, 16)
    } else if lower.len() > 1 && lower.starts_with('0') {
        i128::from_str_radix(&lower[1..], 8)
    } else {
        lower.parse()
    }
    .ok()?;
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn what_the_kernel_shows_can_be_given_again() {
        let shown = [
            ("number", "42"),
            ("flag", "Y"),
            ("list", "1,2,3"),
            ("text", "two words"),
            ("unset", "(null)"),
            ("empty", ""),
            ("quoted", "a \"b\""),
            ("lines", "a\nb"),
        ];
        let shown = shown.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(encode_shown(&shown), "flag=Y list=1,2,3 number=42 text=\"two words\"");
        assert_eq!(encode_shown(&BTreeMap::new()), "");
    }

    #[test]
    fn parameters_become_one_string_of_the_kernels_grammar() {
        let table: [(&[&str], Result<&str, Error>); 23] = [
            (&[], Ok("")),
            (&["a=1", "b"], Ok("a=1 b")),
            (&["name=two words"], Ok("name=\"two words\"")),
            (&["name=\"two words\""], Ok("name=\"two words\"")),
            (&["\"name=two words\""], Ok("\"name=two words\"")),
            (&["  a=1  ", "", " "], Ok("a=1")),
            (&["n=\"x"], Ok("n=\"x")),
            (&["n=a \"b"], Err(Error::Quotes("n=a \"b".into()))),
            (&["=5"], Err(Error::Malformed("=5".into()))),
            (&["a=\0"], Err(Error::Malformed("a=\0".into()))),
            (&["a b=2"], Ok("a b=2")),
            // `à` holds the byte 0xA0, which is white space for the kernel.
            (&["name=voilà"], Ok("name=\"voilà\"")),
            (&["name=\"voilà\""], Ok("name=\"voilà\"")),
            (&["flag name=voilà"], Ok("flag name=\"voilà\"")),
            (&["à=1"], Err(Error::Malformed("à=1".into()))),
            (&["name=\u{2003}x"], Ok("name=\u{2003}x")),
            (&["--first-time"], Err(Error::Option("--first-time".into()))),
            (&["a=1", "--", "b=2"], Err(Error::Option("--".into()))),
            (&["\"--\""], Err(Error::Option("\"--\"".into()))),
            (&["flag -- b=2"], Err(Error::Option("--".into()))),
            (&["-x=1"], Err(Error::Option("-x=1".into()))),
            (&["-"], Err(Error::Option("-".into()))),
            (&["a=-1 --"], Ok("a=\"-1 --\"")),
        ];
        for (parameters, expected) in table {
            assert_eq!(encode(&strings(parameters)), expected.map(ToOwned::to_owned), "{parameters:?}");
        }
    }

    #[test]
    fn an_encoded_string_is_taken_apart_again() {
        assert_eq!(
            decode("a-b=1 c name=\"two words\" a_b=2"),
            vec![("c".into(), None), ("name".into(), Some("two words".into())), ("a_b".into(), Some("2".into())),]
        );
    }

    #[test]
    fn values_are_compared_by_meaning() {
        for (asked, shown, expected) in [
            (Some("5"), "5\n", true),
            (Some("0x10"), "16\n", true),
            (Some("010"), "8", true),
            (Some("-3"), "-3", true),
            (Some("on"), "Y", true),
            (Some("1"), "Y", true),
            (Some("0"), "N", true),
            (Some("off"), "N", true),
            (None, "Y", true),
            (None, "N", false),
            (Some("1,0x2,3"), "1,2,3\n", true),
            (Some("1,2"), "1,2,0", false),
            (Some("text"), "text\n", true),
            (Some("text"), "other", false),
            (Some("5"), "6", false),
            (Some("maybe"), "Y", false),
            (Some(""), "(null)", false),
            (Some("99999999999999999999999999999999999999999999"), "1", false),
        ] {
            assert_eq!(shows(asked, shown), expected, "{asked:?} {shown:?}");
        }
    }
}
