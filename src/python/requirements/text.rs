//! A requirements file as pip reads it: from its bytes to lines, and from a line to its options.

use std::sync::LazyLock;

use regex::Regex;

use super::pattern;
use crate::python::Variables;

/// The text, in UTF-8, or in whatever Unicode its byte order mark says. The error says why there is
/// none.
pub(super) fn decode(bytes: Vec<u8>) -> Result<String, String> {
    let unit: fn([u8; 2]) -> u16 = match bytes.get(..2) {
        Some([0xff, 0xfe]) => u16::from_le_bytes,
        Some([0xfe, 0xff]) => u16::from_be_bytes,
        _ => {
            return String::from_utf8(bytes)
                .map_err(|_| "it is not in UTF-8; save it in that".to_owned());
        }
    };
    let (pairs, rest) = bytes[2..].as_chunks::<2>();
    let text = char::decode_utf16(pairs.iter().copied().map(unit)).collect::<Result<String, _>>();
    match (text, rest) {
        (Ok(text), []) => Ok(text),
        _ => Err("its byte order mark says UTF-16, and it is not in that; save it in UTF-8".into()),
    }
}

/// Lines with comments cut and continuations joined.
pub(super) fn logical_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut open = String::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        let comment = line.trim_start().starts_with('#');
        let line = match () {
            () if comment => "",
            () => match line.find(" #").or_else(|| line.find("\t#")) {
                Some(at) => &line[..at],
                None => line,
            },
        };
        match line.trim_end().strip_suffix('\\') {
            Some(start) => {
                open.push_str(start.trim());
                open.push(' ');
            }
            None => {
                open.push_str(line.trim());
                lines.push(std::mem::take(&mut open).trim().to_owned());
            }
        }
    }
    lines.push(open.trim().to_owned());
    lines.retain(|line| !line.is_empty());
    lines
}

/// `${NAME}` as pip expands it: only in this form, only what is set.
pub(super) fn expand(line: &str, env: &Variables) -> String {
    static NAME: LazyLock<Regex> = LazyLock::new(|| pattern(r"\$\{([A-Z0-9_]+)\}"));
    NAME.replace_all(line, |found: &regex::Captures<'_>| {
        env.get(&found[1])
            .cloned()
            .unwrap_or_else(|| found[0].to_owned())
    })
    .into_owned()
}

/// Options that have a value, which may be the next word.
const VALUED: [&str; 15] = [
    "-r",
    "--requirement",
    "-c",
    "--constraint",
    "-e",
    "--editable",
    "-i",
    "--index-url",
    "--pypi-url",
    "--extra-index-url",
    "-f",
    "--find-links",
    "--trusted-host",
    "--no-binary",
    "--only-binary",
];

/// The options of a line, each with its value; a word that belongs to none is there as a name.
/// `None`: a quote is not closed.
pub(super) fn options(line: &str) -> Option<Vec<(String, Option<String>)>> {
    let filled = |value: String| Some(value).filter(|value| !value.is_empty());
    if let (name @ ("-e" | "--editable"), value) = divided(line, &['=', ' ', '\t'])
        && !value.starts_with(['"', '\''])
    {
        // To the line's end: a marker may be there, with quotes of its own.
        return Some(vec![(name.to_owned(), filled(value.to_owned()))]);
    }
    let mut options = Vec::new();
    let mut words = shlex::split(line)?.into_iter();
    while let Some(word) = words.next() {
        let (name, value) = divided(&word, &['=']);
        let value = match VALUED.contains(&name) && name == word {
            true => words.next().and_then(filled),
            false => filled(value.to_owned()),
        };
        options.push((name.to_owned(), value));
    }
    Some(options)
}

/// `--name=value`, `-rvalue`; the value is empty where there is none.
fn divided<'a>(text: &'a str, by: &[char]) -> (&'a str, &'a str) {
    let (name, value) = match text.char_indices().nth(2) {
        _ if text.starts_with("--") => text.split_once(by).unwrap_or((text, "")),
        Some((at, _)) if text.starts_with('-') => text.split_at(at),
        _ => (text, ""),
    };
    (name, value.trim_start_matches('=').trim())
}

/// A value such that uv and pip read it as one.
pub(super) fn quoted(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !matches!(c, '"' | '\'' | '\\');
    match value {
        _ if value.chars().all(plain) => value.to_owned(),
        _ if !value.contains('\'') => format!("'{value}'"),
        _ => format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_unicode_a_file_is_in() {
        let utf16 = |text: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            let units = "\u{feff}".encode_utf16().chain(text.encode_utf16());
            units.flat_map(bytes).collect()
        };
        for (bytes, text) in [
            (b"six".to_vec(), Some("six")),
            (
                utf16("s\u{ed}x\u{1f40d}", u16::to_le_bytes),
                Some("s\u{ed}x\u{1f40d}"),
            ),
            (utf16("six", u16::to_be_bytes), Some("six")),
            (b"\xff\xfes".to_vec(), None),
            (b"\xff\xfe\x00\xd8".to_vec(), None),
            (b"s\xedx".to_vec(), None),
            (Vec::new(), Some("")),
        ] {
            assert_eq!(decode(bytes.clone()).ok().as_deref(), text, "{bytes:?}");
        }
    }

    #[test]
    fn options_and_their_values() {
        for (line, expected) in [
            ("--pre", "--pre"),
            ("--pre --no-index", "--pre|--no-index"),
            ("-i A --extra-index-url=B", "-i A|--extra-index-url B"),
            ("-iA  -f 'b c' --pre", "-i A|-f b c|--pre"),
            ("--find-links=\"b c\"", "--find-links b c"),
            ("-r=a.txt -c\tb.txt", "-r a.txt|-c b.txt"),
            ("--pre six", "--pre|six"),
            ("-r", "-r"),
            ("--index-url= x", "--index-url|x"),
            ("-e 'a b' --pre", "-e a b|--pre"),
            ("-e ./a ; x < \"3\"", "-e ./a ; x < \"3\""),
            ("--only-binary :all:", "--only-binary :all:"),
        ] {
            let found: Vec<String> = options(line)
                .unwrap()
                .into_iter()
                .map(|(name, value)| match value {
                    Some(value) => format!("{name} {value}"),
                    None => name,
                })
                .collect();
            assert_eq!(found.join("|"), expected, "{line}");
        }
        assert_eq!(options("-f 'b"), None);
    }

    #[test]
    fn what_is_quoted_is_read_as_it_was() {
        for value in ["a", "a b", "it's", "a \"b\"", "it's \"a\\b\"", "a\\b"] {
            let words = shlex::split(&quoted(value));
            assert_eq!(words, Some(vec![value.to_owned()]), "{value}");
        }
        assert_eq!(quoted("https://h/s"), "https://h/s");
    }
}
