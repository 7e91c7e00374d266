//! Which entries of a docker configuration are for a name.

/// Whether the pattern of an entry, `host[:port][/path]`, is for `registry/repository`.
///
/// **Source**: the rules of the kubelet (Kubernetes documentation, "Interpretation of config.json"): the number of
/// host parts and the port must be equal, each part may be a glob, the path must be a prefix.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let split = |value: &str| {
        let (authority, path) = value.split_once('/').unwrap_or((value, ""));
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an IPv6 address stand inside brackets.
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (authority, ""),
        };
        (host.to_owned(), port.to_owned(), path.to_owned())
    };
    let (pattern_host, pattern_port, pattern_path) = split(pattern);
    let (host, port, path) = split(name);
    if pattern_port != port || !path.starts_with(&pattern_path) {
        return false;
    }
    if pattern_host == host {
        return true;
    }
    let patterns: Vec<&str> = pattern_host.split('.').collect();
    let parts: Vec<&str> = host.split('.').collect();
    patterns.len() == parts.len() && patterns.iter().zip(&parts).all(|(glob, part)| is_glob_match(glob, part))
}

/// Shell-like match of one host part: `*`, `?` and `[a-z]`, `[^a-z]`. A malformed glob matches nothing.
fn is_glob_match(glob: &str, text: &str) -> bool {
    let glob: Vec<char> = glob.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut position) = (0, 0);
    // Where to go on after the last `*`, and how much of the text it has eaten.
    let mut star: Option<(usize, usize)> = None;
    while position < text.len() {
        match glob.get(at) {
            Some('*') => {
                star = Some((at + 1, position));
                at += 1;
                continue;
            }
            Some('?') => {
                at += 1;
                position += 1;
                continue;
            }
            Some('[') => match class_match(&glob[at..], text[position]) {
                None => return false,
                Some((true, length)) => {
                    at += length;
                    position += 1;
                    continue;
                }
                Some((false, _)) => {}
            },
            Some(character) if *character == text[position] => {
                at += 1;
                position += 1;
                continue;
            }
            _ => {}
        }
        match star {
            Some((after, eaten)) => {
                at = after;
                position = eaten + 1;
                star = Some((after, eaten + 1));
            }
            None => return false,
        }
    }
    glob[at..].iter().all(|character| *character == '*')
}

/// Whether a character is in the class at the start of the glob, and the length of that class; `None` when it never ends.
fn class_match(glob: &[char], character: char) -> Option<(bool, usize)> {
    let negated = glob.get(1) == Some(&'^');
    let first = if negated { 2 } else { 1 };
    let mut at = first;
    let mut found = false;
    while *glob.get(at)? != ']' || at == first {
        let low = glob[at];
        if glob.get(at + 1) == Some(&'-') && *glob.get(at + 2)? != ']' {
            found |= (low..=glob[at + 2]).contains(&character);
            at += 3;
        } else {
            found |= low == character;
            at += 1;
        }
    }
    Some((found != negated, at + 1))
}
