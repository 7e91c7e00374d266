//! The part of kubectl's `JSONPath` that feedback rules use: `.a.b`, `['a']`, `[n]`, `[*]`, `.*` and
//! `[?(@.a=="x")]`.
//!
//! As the agent has it, a missing key gives nothing, an index behind the end of a list is an error, and
//! of several hits the first counts.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// One step of a path.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    Index(i64),
    All,
    Filter { path: Vec<Step>, equal: bool, literal: Value },
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses a path, with or without the braces around it.
    ///
    /// # Errors
    /// Says which part is not understood; an operator that this evaluator lacks is an error, never ignored.
    pub fn parse(text: &str) -> Result<Self> {
        let inner = text.trim();
        let inner = inner.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(inner);
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        if inner.is_empty() {
            bail!("json path {text:?} is empty");
        }
        Ok(Self(steps(inner).with_context(|| format!("json path {text:?} is not understood"))?))
    }

    /// The first hit, `None` if there is none or it is null.
    ///
    /// # Errors
    /// A list that is shorter than an index in the path.
    pub fn first<'a>(&self, root: &'a Value) -> Result<Option<&'a Value>> {
        Ok(hits(&self.0, root)?.into_iter().next().filter(|value| !value.is_null()))
    }
}

fn steps(mut rest: &str) -> Result<Vec<Step>> {
    let mut out = Vec::new();
    while !rest.is_empty() {
        if rest.starts_with("..") {
            bail!("recursive descent at {rest:?} is not supported");
        }
        if let Some(after) = rest.strip_prefix('[') {
            let end = bracket_end(after).with_context(|| format!("no closing bracket in {rest:?}"))?;
            out.push(bracket(&after[..end])?);
            rest = &after[end + 1..];
            continue;
        }
        let Some(after) = rest.strip_prefix('.') else { bail!("expected '.' or '[' at {rest:?}") };
        let mut key = String::new();
        let mut end = after.len();
        let mut chars = after.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => key.extend(chars.next().map(|(_, escaped)| escaped)),
                '.' | '[' => {
                    end = at;
                    break;
                }
                c => key.push(c),
            }
        }
        match key.as_str() {
            "" => bail!("empty name at {rest:?}"),
            "*" => out.push(Step::All),
            _ => out.push(Step::Key(key)),
        }
        rest = &after[end..];
    }
    Ok(out)
}

/// Offset of the bracket that closes, outside of quotes.
fn bracket_end(text: &str) -> Option<usize> {
    let (mut quote, mut depth) = (None, 0_usize);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            (Some(_) | None, _) => {}
        }
    }
    None
}

fn bracket(text: &str) -> Result<Step> {
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(key) = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        return Ok(Step::Key(key.to_owned()));
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let (left, equal, right) = match (filter.split_once("=="), filter.split_once("!=")) {
            (Some((left, right)), _) => (left, true, right),
            (None, Some((left, right))) => (left, false, right),
            (None, None) => bail!("filter {filter:?} has neither == nor !="),
        };
        let path = left.trim().strip_prefix('@').with_context(|| format!("filter {filter:?} does not start with @"))?;
        let right = right.trim();
        let literal = match right.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
            Some(text) => Value::String(text.to_owned()),
            None => serde_json::from_str(right).with_context(|| format!("{right:?} is no literal"))?,
        };
        return Ok(Step::Filter { path: steps(path)?, equal, literal });
    }
    Ok(Step::Index(text.parse().with_context(|| format!("[{text}] is neither index, name nor filter"))?))
}

fn hits<'a>(steps: &[Step], root: &'a Value) -> Result<Vec<&'a Value>> {
    let mut now = vec![root];
    for step in steps {
        let mut next = Vec::new();
        for value in now {
            match (step, value) {
                (Step::Key(key), Value::Object(map)) => next.extend(map.get(key)),
                (Step::All, Value::Object(map)) => next.extend(map.values()),
                (Step::All, Value::Array(list)) => next.extend(list),
                (Step::Index(index), Value::Array(list)) => next.push(element(list, *index)?),
                (Step::Filter { path, equal, literal }, Value::Array(list)) => {
                    for item in list {
                        if let Some(found) = hits(path, item)?.first()
                            && (*found == literal) == *equal
                        {
                            next.push(item);
                        }
                    }
                }
                _ => {}
            }
        }
        now = next;
    }
    Ok(now)
}

fn element(list: &[Value], index: i64) -> Result<&Value> {
    let length = i64::try_from(list.len())?;
    let at = if index < 0 { index + length } else { index };
    usize::try_from(at)
        .ok()
        .and_then(|at| list.get(at))
        .with_context(|| format!("array index out of bounds: index {index}, length {length}"))
}
