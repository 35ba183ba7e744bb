//! The names of files in a diff: quoted or not, with prefixes or without.

/// What `diff --git X Y` tells by itself.
pub(super) enum HeaderNames {
    /// The one name that both sides have, without the prefixes.
    Same(String),
    /// The sides differ (rename, copy, two unrelated files), or the line has several readings.
    Unclear,
}

impl HeaderNames {
    pub(super) fn parse(names: &str) -> HeaderNames {
        let pair = match names.starts_with('"') || names.ends_with('"') {
            true => quoted_pair(names),
            // Blanks are not quoted: the split is where both sides have the same name.
            false => names
                .match_indices(' ')
                .map(|(at, _)| (names[..at].to_owned(), names[at + 1..].to_owned()))
                .find(|(old, new)| same_name(old, new).is_some()),
        };
        match pair.and_then(|(old, new)| same_name(&old, &new)) {
            Some(name) => HeaderNames::Same(name),
            None => HeaderNames::Unclear,
        }
    }
}

/// The name of a file that is called `old` and `new` in a diff, with prefixes (`a/`, `b/`, or any
/// other) or (`--no-prefix`) without.
fn same_name(old: &str, new: &str) -> Option<String> {
    if old == new {
        return Some(old.to_owned());
    }
    let (_, old) = old.split_once('/')?;
    let (_, new) = new.split_once('/')?;
    (old == new && !old.is_empty()).then(|| old.to_owned())
}

fn quoted_pair(names: &str) -> Option<(String, String)> {
    let end = match names.strip_prefix('"') {
        Some(rest) => {
            let mut escaped = false;
            let close = rest.char_indices().find(|(_, c)| {
                let closes = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                closes
            })?;
            close.0 + 2
        }
        None => names.find(" \"")?,
    };
    let (old, new) = names.split_at(end);
    Some((unquoted(old), unquoted(new.strip_prefix(' ')?)))
}

/// The name on a `---` or `+++` line: a tab and a time may follow it.
pub(super) fn file_line(text: &str) -> String {
    match text.starts_with('"') {
        true => unquoted(text),
        false => text.split('\t').next().unwrap_or_default().to_owned(),
    }
}

/// Names of both sides of a diff without git's header. Prefixes are taken off where they are
/// prefixes: the sides differ in their first part alone, or it is one of git's own.
pub(super) fn plain_names(minus: &str, plus: &str) -> (String, String) {
    const PREFIXES: [&str; 8] = ["a/", "b/", "i/", "w/", "c/", "o/", "1/", "2/"];
    let without = |name: &str| {
        let rest = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
        rest.unwrap_or(name).to_owned()
    };
    match (minus, plus) {
        ("/dev/null", name) | (name, "/dev/null") => (without(name), without(name)),
        _ => match same_name(minus, plus) {
            Some(name) => (name.clone(), name),
            None => (without(minus), without(plus)),
        },
    }
}

/// One spelling for each path: `./a//b` is `a/b`. What could lead elsewhere stays, to be refused.
pub(super) fn tidy(path: &str) -> String {
    let last = path.matches('/').count();
    let parts = path.split('/').enumerate();
    let kept = parts.filter(|(at, part)| match *part {
        "." => false,
        "" => *at == 0 || *at == last,
        _ => true,
    });
    kept.map(|(_, part)| part).collect::<Vec<_>>().join("/")
}

/// Takes off git's C-style quotes.
pub(super) fn unquoted(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.bytes().peekable();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest.next() {
            Some(digit @ b'0'..=b'7') => {
                let mut value = u32::from(digit - b'0');
                for _ in 0..2 {
                    if let Some(next) = rest.next_if(|b| (b'0'..=b'7').contains(b)) {
                        value = value * 8 + u32::from(next - b'0');
                    }
                }
                bytes.push(value.to_le_bytes()[0]);
            }
            Some(b'n') => bytes.push(b'\n'),
            Some(b't') => bytes.push(b'\t'),
            Some(b'r') => bytes.push(b'\r'),
            Some(b'a') => bytes.push(7),
            Some(b'b') => bytes.push(8),
            Some(b'v') => bytes.push(11),
            Some(b'f') => bytes.push(12),
            Some(other) => bytes.push(other),
            None => {}
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
