//! Regular expressions as KMM's users write them: in the dialect of Go (RE2).
//!
//! Both dialects lack look-around and back-references, so an expression can be carried over token by token.
//! What differs, and is translated here:
//!
//! | Expression | Go | `regex` crate |
//! |---|---|---|
//! | `\d \w \s \b` and their negations | ASCII | Unicode |
//! | `\Q…\E` | literal text | unknown |
//! | `{` that begins no repetition | literal | error or another meaning |
//! | `\<`, `\>` | literal | borders of a word |
//! | `[`, `&&`, `--`, `~~` inside a class | literal | nested classes and set operations |
//!
//! Expressions that Go refuses may be accepted.

use regex::{Regex, RegexBuilder};
use std::iter::Peekable;
use std::str::Chars;

/// The longest expression that is accepted, in bytes.
pub const MAX_LENGTH: usize = 4096;
/// The largest compiled form, in bytes: a kernel version is short, and an expression must not fill the manager's memory.
const MAX_COMPILED: usize = 1 << 20;
const MAX_NESTING: u32 = 100;

/// Compiles an expression of Go's dialect. It matches anywhere in a text, in time linear in the text's length.
///
/// # Errors
/// Why the expression cannot be used, on one line, without the expression itself.
pub fn compile(expression: &str) -> Result<Regex, String> {
    if expression.len() > MAX_LENGTH {
        return Err(format!("it has {} bytes, more than {MAX_LENGTH}", expression.len()));
    }
    RegexBuilder::new(&translate(expression))
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .nest_limit(MAX_NESTING)
        .octal(true)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(limit) => format!("its compiled form has more than {limit} bytes"),
            // The crate draws the expression with a marker below it; the last line says what is wrong.
            other => {
                let text = other.to_string();
                text.lines().last().unwrap_or_default().trim_start_matches("error: ").trim().to_owned()
            }
        })
}

fn translate(expression: &str) -> String {
    let mut out = String::with_capacity(expression.len() + 16);
    let mut rest = expression.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => escape(&mut rest, &mut out, false),
            '[' => class(&mut rest, &mut out),
            '{' if !begins_repetition(rest.clone()) => out.push_str("\\{"),
            c => out.push(c),
        }
    }
    out
}

/// Whether `n}`, `n,}` or `n,m}` follows.
fn begins_repetition(rest: Peekable<Chars<'_>>) -> bool {
    let inside: String = rest.take_while(|c| *c != '}').take(16).collect();
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    match inside.split_once(',') {
        Some((least, most)) => !least.is_empty() && digits(least) && digits(most),
        None => !inside.is_empty() && digits(&inside),
    }
}

/// What follows a backslash. Returns through `out`; `\Q` takes everything up to `\E`.
fn escape(rest: &mut Peekable<Chars<'_>>, out: &mut String, in_class: bool) {
    let Some(c) = rest.next() else {
        // A backslash at the end is an error in both dialects.
        out.push('\\');
        return;
    };
    match (c, in_class) {
        ('d', false) => out.push_str("[0-9]"),
        ('d', true) => out.push_str("0-9"),
        ('D', _) => out.push_str("[^0-9]"),
        ('w', false) => out.push_str("[0-9A-Za-z_]"),
        ('w', true) => out.push_str("0-9A-Za-z_"),
        ('W', _) => out.push_str("[^0-9A-Za-z_]"),
        ('s', false) => out.push_str("[\\t\\n\\f\\r ]"),
        ('s', true) => out.push_str("\\t\\n\\f\\r\\x20"),
        ('S', _) => out.push_str("[^\\t\\n\\f\\r ]"),
        ('b', false) => out.push_str("(?-u:\\b)"),
        ('B', false) => out.push_str("(?-u:\\B)"),
        ('<' | '>', _) => out.push(c),
        ('Q', false) => quoted(rest, out),
        // The braces of these belong to the escape and begin no repetition.
        ('x' | 'p' | 'P', _) => {
            out.push('\\');
            out.push(c);
            if rest.peek() == Some(&'{') {
                for c in rest.by_ref() {
                    out.push(c);
                    if c == '}' {
                        break;
                    }
                }
            }
        }
        _ => {
            out.push('\\');
            out.push(c);
        }
    }
}

fn quoted(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    let mut text = String::new();
    while let Some(c) = rest.next() {
        if c == '\\' && rest.peek() == Some(&'E') {
            rest.next();
            break;
        }
        text.push(c);
    }
    out.push_str(&regex::escape(&text));
}

/// A class, after its `[`. Whatever has a meaning only in the crate is escaped.
fn class(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    out.push('[');
    if rest.peek() == Some(&'^') {
        rest.next();
        out.push('^');
    }
    let mut first = true;
    // Whether a range can begin at what was written last, and whether its end is awaited.
    let (mut can_begin, mut awaited) = (false, false);
    while let Some(c) = rest.next() {
        let mut single = true;
        match c {
            ']' if !first => {
                out.push(']');
                return;
            }
            '-' if can_begin && rest.peek().is_some_and(|next| *next != ']') => {
                out.push('-');
                (can_begin, awaited) = (false, true);
                continue;
            }
            '[' if rest.peek() == Some(&':') && named_class(rest, out) => single = false,
            '\\' => {
                single = !rest.peek().is_some_and(|next| "dDwWsSpP".contains(*next));
                escape(rest, out, true);
            }
            ']' | '[' | '&' | '~' | '-' | '^' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
        can_begin = single && !awaited;
        (first, awaited) = (false, false);
    }
}

/// Takes `:name:]` if that is what follows.
fn named_class(rest: &mut Peekable<Chars<'_>>, out: &mut String) -> bool {
    let text: String = rest.clone().take(12).collect();
    let Some(end) = text.find(":]").filter(|end| *end > 0) else { return false };
    let name = &text[..end + 2];
    if !name[1..end].bytes().all(|b| b.is_ascii_lowercase() || b == b'^') {
        return false;
    }
    out.push('[');
    out.push_str(name);
    for _ in 0..name.len() {
        rest.next();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_match_what_they_match_in_go() {
        // Expression, a text that matches, a text that does not.
        let table = [
            (r"^.+$", "6.1.0", ""),
            (r"fc38", "6.3.5-200.fc38.x86_64", "6.3.5-200.fc39.x86_64"),
            (r"^6\.1\.\d+-\w+$", "6.1.0-cloud", "6.1.٣-cloud"),
            (r"^\w+$", "abc_1", "abü"),
            (r"^\W$", "ü", "a"),
            (r"^a\sb$", "a b", "a\u{a0}b"),
            (r"\bel9\b", "x-el9.y", "x-el9_2"),
            (r"a\Bb", "ab", "a b"),
            (r"\bü", "aü", "ü"),
            (r"^\Q6.1+deb\E-.+$", "6.1+deb-x", "6x1+deb-x"),
            (r"^\Qa.b", "a.b", "axb"),
            (r"^[[:digit:]]+[^[:alpha:]]$", "61.", "6a"),
            (r"^[]a]+$", "]a", "b"),
            (r"^[^]a]+$", "b", "]"),
            (r"^[a[b]+$", "a[b", "c"),
            (r"^[a&&b]+$", "a&b", "c"),
            (r"^[a~~b]+$", "~", "c"),
            (r"^[+--]+$", "+,-", "."),
            (r"^[a\-z]+$", "a-z", "b"),
            (r"^[\d.-]+$", "6.1-2", "a"),
            (r"^[\w-]+$", "a-b_1", "a.b"),
            (r"^[^\d\s]$", "a", "1"),
            (r"^[\W]$", "-", "a"),
            (r"^[a-c-e]+$", "abc-e", "d"),
            (r"^x{2,3}$", "xx", "x"),
            (r"^x{2}$", "xx", "xxx"),
            (r"^x{,2}$", "x{,2}", "x"),
            (r"^a{b$", "a{b", "ab"),
            (r"^a{$", "a{", "a"),
            (r"^a\<b\>$", "a<b>", "ab"),
            (r"^\x{41}\pL\p{Greek}$", "Aäα", "Aäa"),
            (r"^(?i:DEB)12$", "deb12", "dEb13"),
            (r"^(?P<a>x)(?:y|z)$", "xz", "x"),
            (r"^\101$", "A", "B"),
            ("ü", "aüb", "u"),
            (r"^[\[\]\\/]+$", r"[]\/", "a"),
            (r"^\{x\}$", "{x}", "x"),
        ];
        for (expression, matching, other) in table {
            let regex = compile(expression).unwrap_or_else(|e| panic!("{expression}: {e}"));
            assert!(regex.is_match(matching), "{expression} does not match {matching}");
            assert!(!regex.is_match(other), "{expression} matches {other}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_told_on_one_line() {
        let table = [
            ("(", "unclosed group"),
            ("a)", "unopened group"),
            ("[a", "unclosed character class"),
            ("[z-a]", "invalid character class range, the start must be <= the end"),
            ("*", "repetition operator missing expression"),
            (r"(?=a)", "look-around, including look-ahead and look-behind, is not supported"),
            ("a\\", "incomplete escape sequence, reached end of pattern prematurely"),
            (r"\p{Klingon}", "Unicode property not found"),
            ("(((a{100}){100}){100}){100}", "its compiled form has more than 1048576 bytes"),
        ];
        for (expression, why) in table {
            assert_eq!(compile(expression).map(|_| ()), Err(why.to_owned()), "{expression}");
        }
        assert_eq!(
            compile(&"a".repeat(MAX_LENGTH + 1)).map(|_| ()),
            Err("it has 4097 bytes, more than 4096".to_owned())
        );
        assert!(compile(&"(".repeat(2000)).is_err());
    }

    #[test]
    fn no_beginning_of_an_expression_panics() {
        let wild = r"\Q\E[[:x:]^]-\d{2,3}\x{41}\pL[&&--~~](?P<n>a|b)*?+ü\";
        let ends: Vec<usize> = wild.char_indices().map(|(i, _)| i).chain([wild.len()]).collect();
        for from in &ends {
            for to in ends.iter().filter(|to| *to >= from) {
                let _ = compile(&wild[*from..*to]);
            }
        }
    }
}
