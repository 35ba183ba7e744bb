//! The entry point and working directory as a person or the SDK wrote them, made into what is run.

use std::path::Path;

/// Kinds of files that an interpreter is given by name; for one of these "not there" is certain.
const SCRIPT_KINDS: [&str; 4] = [".py", ".sh", ".bash", ".ipynb"];

/// `working_dir` and `entry_point`, variables expanded and paths made plain. The legacy form
/// `entry:dir` is taken apart. Of an entry point only the script's path is touched: `//` or `..`
/// in its arguments are none of our business.
pub(super) fn normalise(
    entry_point: &str,
    working_dir: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> (String, String) {
    let expanded = |text: &str| expand(text.trim(), variable);
    let mut entry_point = expanded(entry_point);
    let mut working_dir = expanded(working_dir);
    if working_dir.is_empty()
        && !entry_point.contains(char::is_whitespace)
        && !entry_point.contains("://")
        && let Some((entry, dir)) = entry_point.split_once(':')
    {
        (entry_point, working_dir) = (entry.to_owned(), dir.to_owned());
    }
    let working_dir = plain_path(&working_dir);
    // The first word is the script, unless it is an option (`-m module`) or in quotes.
    let end = entry_point
        .find(char::is_whitespace)
        .unwrap_or(entry_point.len());
    let (script, arguments) = entry_point.split_at(end);
    if !script.is_empty() && !script.starts_with(['-', '"', '\'']) && !script.contains("://") {
        entry_point = format!("{}{arguments}", plain_path(script));
    }
    (entry_point, working_dir)
}

/// `~` at the start, `$NAME` and `${NAME}`; unknown names stay as they are.
fn expand(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    if let Some(tail) = text.strip_prefix('~')
        && (tail.is_empty() || tail.starts_with('/'))
        && let Some(home) = variable("HOME")
    {
        result.push_str(home.trim_end_matches('/'));
        rest = tail;
    }
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, length) = match after.strip_prefix('{').and_then(|t| t.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let length = after.find(|c| !is_name(c)).unwrap_or(after.len());
                (&after[..length], length)
            }
        };
        match variable(name).filter(|_| !name.is_empty()) {
            Some(value) => result.push_str(&value),
            None => result.push_str(&rest[at..at + 1 + length]),
        }
        rest = &after[length..];
    }
    result.push_str(rest);
    result
}

/// The path without `.`, `//` and `x/..`; empty for the empty path and `.`.
fn plain_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let absolute = path.starts_with('/');
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if absolute => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if absolute {
        format!("/{joined}")
    } else {
        joined
    }
}

/// The first word as a shell reads it, and the rest as it was written.
pub(super) fn first_word(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let mut quote = None;
    let mut escaped = false;
    let mut end = text.len();
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (None | Some('"'), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, c) if c.is_whitespace() => {
                end = at;
                break;
            }
            _ => {}
        }
    }
    let (word, rest) = text.split_at(end);
    let word = shlex::split(word)?.into_iter().next()?;
    Some((word, rest))
}

pub(super) fn is_script(name: &str) -> bool {
    SCRIPT_KINDS.iter().any(|kind| name.ends_with(kind))
}

/// The script file that is clearly meant and clearly not there.
pub(super) fn missing_script(entry_point: &str, working_dir: &Path) -> Option<String> {
    if working_dir.join(entry_point).is_file() {
        return None;
    }
    let (script, _) = first_word(entry_point)?;
    let missing = !script.starts_with('-')
        && is_script(&script)
        && !script.contains('$')
        && !working_dir.join(&script).is_file();
    missing.then_some(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_scripts_path_is_made_plain() {
        let variable = |name: &str| match name {
            "HOME" => Some("/home/u".to_owned()),
            "D" => Some("data".to_owned()),
            _ => None,
        };
        for (entry, dir, expected_entry, expected_dir) in [
            ("train.py", "", "train.py", ""),
            (
                "./a//b/../c.py --u http://h//x",
                ".",
                "a/c.py --u http://h//x",
                "",
            ),
            ("-m mod --p a/../b", "src/./x", "-m mod --p a/../b", "src/x"),
            (
                "train.py --d $D/${D} $NO",
                "",
                "train.py --d data/data $NO",
                "",
            ),
            ("~/x.py", "~", "/home/u/x.py", "/home/u"),
            ("train.py:src", "", "train.py", "src"),
            ("train.py --u http://h/x", "", "train.py --u http://h/x", ""),
            ("train.py:src", "w", "train.py:src", "w"),
            ("my script.py", "", "my script.py", ""),
            ("'my dir/x.py' --a", "", "'my dir/x.py' --a", ""),
            ("../x.py", "../..", "../x.py", "../.."),
            ("cost$", "", "cost$", ""),
        ] {
            let found = normalise(entry, dir, &variable);
            assert_eq!(
                found,
                (expected_entry.into(), expected_dir.into()),
                "{entry} {dir}"
            );
        }
    }

    #[test]
    fn first_words() {
        for (text, word, rest) in [
            ("a.py --x 1", "a.py", " --x 1"),
            ("'a b.py' c", "a b.py", " c"),
            ("a\\ b.py c", "a b.py", " c"),
            ("a.py", "a.py", ""),
        ] {
            assert_eq!(first_word(text), Some((word.to_owned(), rest)));
        }
        assert_eq!(first_word(""), None);
        assert_eq!(first_word("'open"), None);
    }
}
