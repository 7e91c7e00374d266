//! Shell-like substitution in image names and file names.
//!
//! Source of the rules: the relaxed mode of the substitution library that KMM uses, so that image names written for
//! KMM give the same result here.
//! One thing is defined here that is accidental there: a default value may mix text and `$NAME`, and all of it is
//! substituted.

use std::collections::BTreeMap;

/// The variables of a template: name and value. An absent name is "unset".
pub type Variables = BTreeMap<&'static str, String>;

/// A template that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `${` without `}` on the same line.
    #[error(
        "template {template:?}: \"${{\" at byte {at} has no \"}}\" before the end of the line; write \"$$\" for a plain \"$\""
    )]
    Unclosed {
        /// The whole template.
        template: String,
        /// Where the `${` stands, in bytes from 0.
        at: usize,
    },
    /// `${` inside `${…}`.
    #[error("template {template:?}: \"${{\" at byte {at} holds another \"${{\"; use the form $NAME inside")]
    Nested {
        /// The whole template.
        template: String,
        /// Where the `${` stands, in bytes from 0.
        at: usize,
    },
}

/// The text with every variable replaced by its value.
///
/// | Form | Result |
/// |---|---|
/// | `$NAME`, `${NAME}` | the value; empty if unset |
/// | `${NAME:-d}`, `${NAME:=d}` | the value, or `d` if it is unset or empty |
/// | `${NAME-d}`, `${NAME=d}` | the value, or `d` if it is unset |
/// | `${NAME:+a}`, `${NAME+a}` | `a` if it is set, else nothing |
/// | `$$` | one `$`, and what follows is plain text |
/// | `$` before any other character, `$_`, `${}`, `${` before anything but a name | stays as written |
///
/// A name is letters, digits and underscores.
/// `d` and `a` are text that may hold `$NAME`; an empty one counts as absent, so the plain value results.
/// Any other text between the name and `}` has no meaning and the plain value results.
///
/// # Errors
/// `${` without `}` on the same line, and `${` inside `${…}`; both with the template and the place (in bytes).
pub fn substitute(template: &str, variables: &Variables) -> Result<String, Error> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        let at = template.len() - rest.len() + dollar;
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(inner) = after.strip_prefix('{') {
            let body = braced_body(template, inner, at)?;
            out.push_str(&braced_value(body, variables));
            rest = &inner[body.len() + 1..];
        } else {
            let (value, tail) = plain_value(after, variables);
            out.push_str(&value);
            rest = tail;
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// What stands between `${` and its `}`.
fn braced_body<'a>(template: &str, inner: &'a str, at: usize) -> Result<&'a str, Error> {
    let end = match inner.find(['}', '\n', '\r']) {
        Some(end) if inner[end..].starts_with('}') => end,
        _ => {
            return Err(Error::Unclosed { template: template.to_owned(), at });
        }
    };
    let body = &inner[..end];
    if body.contains("${") {
        return Err(Error::Nested { template: template.to_owned(), at });
    }
    Ok(body)
}

fn braced_value(body: &str, variables: &Variables) -> String {
    let (name, rest) = split_name(body);
    if name.is_empty() || name == "_" {
        return format!("${{{body}}}");
    }
    let value = variables.get(name).map(String::as_str);
    let plain = || value.unwrap_or_default().to_owned();
    let (colon, operator) = match rest.strip_prefix(':') {
        Some(operator) => (true, operator),
        None => (false, rest),
    };
    let mut characters = operator.chars();
    let operator = characters.next();
    let argument = characters.as_str();
    if argument.is_empty() {
        return plain();
    }
    match operator {
        Some('-' | '=') => match value {
            Some(value) if !(colon && value.is_empty()) => value.to_owned(),
            _ => argument_value(argument, variables),
        },
        Some('+') if value.is_some() => argument_value(argument, variables),
        _ => plain(),
    }
}

/// A default or alternative value: text with `$NAME`.
fn argument_value(argument: &str, variables: &Variables) -> String {
    let mut out = String::new();
    let mut rest = argument;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let (value, tail) = plain_value(&rest[dollar + 1..], variables);
        out.push_str(&value);
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// The value of the name right after a `$`, and the text after the name.
fn plain_value<'a>(after: &'a str, variables: &Variables) -> (String, &'a str) {
    let (name, tail) = split_name(after);
    match name {
        "" | "_" => (format!("${name}"), tail),
        _ => (variables.get(name).cloned().unwrap_or_default(), tail),
    }
}

fn split_name(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c == '_' || c.is_alphanumeric())).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        BTreeMap::from([
            ("KERNEL_XYZ", "6.3.5".to_owned()),
            ("MOD_NAME", "acx".to_owned()),
            ("EMPTY", String::new()),
            ("A1_b", "under".to_owned()),
        ])
    }

    #[test]
    fn every_form_of_substitution_gives_what_it_says() {
        let table = [
            ("", ""),
            ("plain", "plain"),
            ("quay.io/m/$MOD_NAME:$KERNEL_XYZ", "quay.io/m/acx:6.3.5"),
            ("quay.io/m/${MOD_NAME}:v${KERNEL_XYZ}-1", "quay.io/m/acx:v6.3.5-1"),
            ("$MOD_NAME$KERNEL_XYZ", "acx6.3.5"),
            ("${MOD_NAME}${KERNEL_XYZ}", "acx6.3.5"),
            ("$A1_b-x", "under-x"),
            // Unknown names.
            ("a$UNKNOWN/b", "a/b"),
            ("a${UNKNOWN}b", "ab"),
            ("$MOD_NAMEX", ""),
            // Default if unset or empty.
            ("${UNKNOWN:-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${MOD_NAME:-d}", "acx"),
            ("${UNKNOWN:=d}", "d"),
            ("${EMPTY:=d}", "d"),
            ("${MOD_NAME:=d}", "acx"),
            ("${UNKNOWN:-}", ""),
            ("${MOD_NAME:-}", "acx"),
            // Default if unset.
            ("${UNKNOWN-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${MOD_NAME-d}", "acx"),
            ("${UNKNOWN=d}", "d"),
            ("${EMPTY=d}", ""),
            // Alternative if set.
            ("${MOD_NAME+a}", "a"),
            ("${MOD_NAME:+a}", "a"),
            ("${EMPTY+a}", "a"),
            ("${EMPTY:+a}", "a"),
            ("${UNKNOWN+a}", ""),
            ("${UNKNOWN:+a}", ""),
            ("${MOD_NAME+}", "acx"),
            // Another variable as default or alternative.
            ("${UNKNOWN:-$KERNEL_XYZ}", "6.3.5"),
            ("${UNKNOWN-$UNKNOWN}", ""),
            ("${MOD_NAME:+$KERNEL_XYZ}", "6.3.5"),
            ("${UNKNOWN:-v$KERNEL_XYZ-x}", "v6.3.5-x"),
            ("${UNKNOWN:-reg:5000/m}", "reg:5000/m"),
            // Escapes and dollars that mean nothing.
            ("$$MOD_NAME", "$MOD_NAME"),
            ("$${MOD_NAME}", "${MOD_NAME}"),
            ("$$$MOD_NAME", "$acx"),
            ("$$$$", "$$"),
            ("a$/b", "a$/b"),
            ("a$", "a$"),
            ("a$-$MOD_NAME", "a$-acx"),
            ("${}", "${}"),
            ("$_ ${_}", "$_ ${_}"),
            ("${-x}$MOD_NAME", "${-x}acx"),
            // Text after the name that is no operator.
            ("${MOD_NAME?x}", "acx"),
            ("${MOD_NAME:x}", "acx"),
            ("${UNKNOWN/./-}", ""),
            // Lines.
            ("a\n$MOD_NAME\nb", "a\nacx\nb"),
            ("ü$MOD_NAME", "üacx"),
        ];
        for (template, expected) in table {
            assert_eq!(substitute(template, &variables()).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn a_brace_that_is_never_closed_is_an_error_with_its_place() {
        for (template, at) in [
            ("${", 0),
            ("a${MOD_NAME", 1),
            ("$MOD_NAME${KERNEL_XYZ:-d", 9),
            ("${MOD_NAME\n}", 0),
            ("${MOD_NAME\r}", 0),
            ("$$${", 2),
        ] {
            assert_eq!(substitute(template, &variables()), Err(Error::Unclosed { template: template.to_owned(), at }));
        }
        assert_eq!(
            substitute("x:${KERNEL_XYZ", &variables()).unwrap_err().to_string(),
            r#"template "x:${KERNEL_XYZ": "${" at byte 2 has no "}" before the end of the line; write "$$" for a plain "$""#
        );
    }

    #[test]
    fn braces_inside_braces_are_an_error() {
        assert_eq!(
            substitute("m:${UNKNOWN:-${KERNEL_XYZ}}", &variables()),
            Err(Error::Nested { template: "m:${UNKNOWN:-${KERNEL_XYZ}}".to_owned(), at: 2 })
        );
    }
}
