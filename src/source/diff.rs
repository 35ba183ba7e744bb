//! Reads a task's uncommitted changes: what `git diff` writes in any of its shapes, and plain
//! unified diffs. Only text is looked at here; `apply` meets the files.

use std::borrow::Cow;

use super::binary::{self, Payload};
use super::diff_names::{HeaderNames, file_line, plain_names, tidy, unquoted};
use super::patch::{Body, FilePatch, Hunk, Kind, Line, Mode};

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ParseError {
    pub(super) line: usize,
    pub(super) problem: String,
}

/// The text as it would be without `color.ui = always`. Only where the very first line is coloured:
/// a changed file may hold colours of its own.
pub(super) fn without_colours(text: &str) -> Cow<'_, str> {
    if !text.trim_start().starts_with("\x1b[") {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, sequence)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        let parameters = sequence.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        rest = match parameters.strip_prefix(['m', 'K']) {
            Some(rest) => rest,
            None => {
                plain.push_str("\x1b[");
                sequence
            }
        };
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

/// The files that `text` changes, in its order.
pub(super) fn parse(text: &str) -> Result<Vec<FilePatch>, ParseError> {
    let text = without_colours(text);
    let mut lines: Vec<&str> = text.split('\n').collect();
    // The newline at the end makes one empty piece after it.
    if lines.last() == Some(&"") {
        lines.pop();
    }
    let mut reader = Reader { lines, at: 0 };
    let mut files = Vec::new();
    while let Some(line) = reader.peek() {
        let header = line.trim_end_matches('\r');
        if let Some(names) = header.strip_prefix("diff --git ") {
            files.push(reader.git_file(names)?);
        } else if header.starts_with("diff --cc ") || header.starts_with("diff --combined ") {
            return Err(reader.error("a diff of an unfinished merge cannot be applied"));
        } else if header.starts_with("--- ") && reader.next_starts_with("+++ ") {
            files.push(reader.plain_file()?);
        } else if header.starts_with("@@ -") {
            return Err(reader.error("a hunk that belongs to no file"));
        } else {
            // Section headers of submodules, `Only in …`, remarks.
            reader.at += 1;
        }
    }
    match files.is_empty() {
        true => Err(ParseError {
            line: 1,
            problem: "no file's changes are in it".to_owned(),
        }),
        false => Ok(files),
    }
}

/// So many lines of context a hunk may have lost at its end; git writes three if it isn't told otherwise.
const MOST_CONTEXT: usize = 100;

/// How git abbreviates the id of the empty blob at its shortest.
const EMPTY_BLOB: &str = "e69de29";

struct Reader<'t> {
    lines: Vec<&'t str>,
    at: usize,
}

impl<'t> Reader<'t> {
    fn peek(&self) -> Option<&'t str> {
        self.lines.get(self.at).copied()
    }

    /// The line at hand without the carriage return that a CRLF diff has.
    fn header(&self) -> Option<&'t str> {
        self.peek().map(|line| line.trim_end_matches('\r'))
    }

    fn next_starts_with(&self, prefix: &str) -> bool {
        self.lines
            .get(self.at + 1)
            .is_some_and(|line| line.starts_with(prefix))
    }

    fn error(&self, problem: impl Into<String>) -> ParseError {
        ParseError {
            line: self.at + 1,
            problem: problem.into(),
        }
    }

    /// From `diff --git` to the last line of the file's part.
    fn git_file(&mut self, names: &str) -> Result<FilePatch, ParseError> {
        let line = self.at + 1;
        let names = HeaderNames::parse(names);
        let (mut old, mut new) = (None, None);
        let (mut old_mode, mut new_mode) = (None, None);
        let (mut old_empty, mut new_empty, mut old_blob) = (false, false, None);
        let (mut created, mut deleted, mut copied) = (false, false, false);
        let mut body = Body::Hunks(Vec::new());
        // `---` and `+++` lines: only needed where the names above leave a doubt.
        let (mut minus, mut plus) = (None, None);
        self.at += 1;
        while let Some(header) = self.header() {
            let mode_after = |prefix| header.strip_prefix(prefix).map(mode);
            if let Some(found) = mode_after("old mode ") {
                old_mode = found;
            } else if let Some(found) = mode_after("new mode ") {
                new_mode = found;
            } else if let Some(found) = mode_after("new file mode ") {
                (created, new_mode) = (true, found);
            } else if let Some(found) = mode_after("deleted file mode ") {
                (deleted, old_mode) = (true, found);
            } else if let Some(path) = header.strip_prefix("rename from ") {
                old = Some(unquoted(path));
            } else if let Some(path) = header.strip_prefix("rename to ") {
                new = Some(unquoted(path));
            } else if let Some(path) = header.strip_prefix("copy from ") {
                (copied, old) = (true, Some(unquoted(path)));
            } else if let Some(path) = header.strip_prefix("copy to ") {
                new = Some(unquoted(path));
            } else if let Some(rest) = header.strip_prefix("index ") {
                let (before, after) = rest.split_once("..").unwrap_or((rest, ""));
                old_empty = before.starts_with(EMPTY_BLOB);
                let is_id = before.len() >= 4 && before.bytes().all(|b| b.is_ascii_hexdigit());
                old_blob =
                    Some(before.to_owned()).filter(|id| is_id && id.bytes().any(|b| b != b'0'));
                new_empty = after.starts_with(EMPTY_BLOB);
                // `index a..b 100644`: the mode of both sides.
                if let Some(found) = rest.split(' ').nth(1).map(mode) {
                    old_mode = old_mode.or(found);
                    new_mode = new_mode.or(found);
                }
            } else if header.starts_with("Binary files ") && header.ends_with(" differ") {
                body = Body::BinaryWithoutContent;
            } else if header == "GIT binary patch" {
                self.at += 1;
                body = self.binary()?;
                break;
            } else if let Some(path) = header.strip_prefix("--- ") {
                minus = Some(file_line(path));
            } else if let Some(path) = header.strip_prefix("+++ ") {
                plus = Some(file_line(path));
            } else if header.starts_with("@@ -") {
                body = Body::Hunks(self.hunks()?);
                break;
            } else if !header.starts_with("similarity index ")
                && !header.starts_with("dissimilarity index ")
            {
                break;
            }
            self.at += 1;
        }
        created |= minus.as_deref() == Some("/dev/null");
        deleted |= plus.as_deref() == Some("/dev/null");
        if old.is_none() && new.is_none() {
            let (before, after) = match names {
                HeaderNames::Same(name) => (name.clone(), name),
                HeaderNames::Unclear => match (minus.as_deref(), plus.as_deref()) {
                    (Some(minus), Some(plus)) => plain_names(minus, plus),
                    _ => {
                        return Err(ParseError {
                            line,
                            problem: "the names of the changed file cannot be told apart".into(),
                        });
                    }
                },
            };
            old = Some(before);
            new = Some(after);
        }
        // A submodule at its own commit but with edited files has no line that tells the mode.
        if old_mode.is_none() && new_mode.is_none() && is_pointer(&body) {
            old_mode = Some(Mode::Submodule);
        }
        Ok(FilePatch {
            old: old.filter(|_| !created).map(|name| tidy(&name)),
            new: new.filter(|_| !deleted).map(|name| tidy(&name)),
            copied,
            old_mode,
            new_mode,
            old_empty,
            new_empty,
            old_blob,
            body,
            line,
        })
    }

    /// A unified diff without git's header.
    fn plain_file(&mut self) -> Result<FilePatch, ParseError> {
        let line = self.at + 1;
        let name = |header: Option<&str>| {
            file_line(header.unwrap_or_default().get(4..).unwrap_or_default())
        };
        let minus = name(self.header());
        self.at += 1;
        let plus = name(self.header());
        self.at += 1;
        let (old, new) = plain_names(&minus, &plus);
        let (old, new) = (tidy(&old), tidy(&new));
        let body = Body::Hunks(self.hunks()?);
        Ok(FilePatch {
            old: (minus != "/dev/null").then(|| match plus == "/dev/null" {
                true => old,
                // `--- f.orig`, `+++ f`: the file to change is the one that is named last.
                false => new.clone(),
            }),
            new: (plus != "/dev/null").then_some(new),
            copied: false,
            old_mode: None,
            new_mode: None,
            old_empty: false,
            new_empty: false,
            old_blob: None,
            body,
            line,
        })
    }

    fn hunks(&mut self) -> Result<Vec<Hunk>, ParseError> {
        let mut hunks = Vec::new();
        while let Some(header) = self.header().filter(|line| line.starts_with("@@ -")) {
            let Some((old_start, mut old_left, new_start, mut new_left)) = ranges(header) else {
                return Err(self.error(format!("not a hunk header: {header}")));
            };
            let at = self.at + 1;
            self.at += 1;
            let mut lines: Vec<Line> = Vec::new();
            while old_left > 0 || new_left > 0 {
                let Some(line) = self.peek() else {
                    // A text field that was stripped at its end lost its blank context lines.
                    if old_left == new_left && old_left <= MOST_CONTEXT {
                        lines.extend(std::iter::repeat_n(
                            Line {
                                kind: Kind::Context,
                                text: "\n".to_owned(),
                            },
                            old_left,
                        ));
                        break;
                    }
                    return Err(self.error(format!("the hunk of line {at} is cut off")));
                };
                let kind = match line.as_bytes().first() {
                    Some(b' ') => Kind::Context,
                    Some(b'-') => Kind::Removed,
                    Some(b'+') => Kind::Added,
                    // Editors and forms strip the blank of an empty context line.
                    None | Some(b'\r') => Kind::Context,
                    Some(b'\\') => {
                        no_newline(&mut lines);
                        self.at += 1;
                        continue;
                    }
                    Some(_) => {
                        return Err(self.error(format!(
                            "the hunk of line {at} is shorter than its header says"
                        )));
                    }
                };
                let (needs_old, needs_new) = (kind != Kind::Added, kind != Kind::Removed);
                if (needs_old && old_left == 0) || (needs_new && new_left == 0) {
                    return Err(self.error(format!(
                        "the hunk of line {at} has other lines than its header says"
                    )));
                }
                old_left -= usize::from(needs_old);
                new_left -= usize::from(needs_new);
                let content = match line.as_bytes().first() {
                    None | Some(b'\r') => line,
                    Some(_) => &line[1..],
                };
                lines.push(Line {
                    kind,
                    text: format!("{content}\n"),
                });
                self.at += 1;
            }
            if self.peek().is_some_and(|line| line.starts_with('\\')) {
                no_newline(&mut lines);
                self.at += 1;
            }
            hunks.push(Hunk {
                old_start,
                new_start,
                lines,
                at,
            });
        }
        match hunks.is_empty() {
            true => Err(self.error("a hunk is missing here")),
            false => Ok(hunks),
        }
    }

    fn binary(&mut self) -> Result<Body, ParseError> {
        let forward = self.payload()?;
        let backward = match self.header() {
            Some(line) if line.starts_with("literal ") || line.starts_with("delta ") => {
                Some(self.payload()?)
            }
            _ => None,
        };
        Ok(Body::Binary(forward, backward))
    }

    fn payload(&mut self) -> Result<Payload, ParseError> {
        let header = self.header().unwrap_or_default();
        let size_line = self.at;
        self.at += 1;
        let mut encoded = Vec::new();
        while let Some(line) = self.header().filter(|line| !line.is_empty()) {
            encoded.push(line);
            self.at += 1;
        }
        self.at += 1;
        binary::decode(header, &encoded).map_err(|problem| ParseError {
            line: size_line + 1,
            problem: problem.to_owned(),
        })
    }
}

/// Whether the lines are those that stand for a submodule.
fn is_pointer(body: &Body) -> bool {
    let Body::Hunks(hunks) = body else {
        return false;
    };
    let mut lines = hunks.iter().flat_map(|hunk| &hunk.lines).peekable();
    lines.peek().is_some() && lines.all(|line| line.text.starts_with("Subproject commit "))
}

/// `\ No newline at end of file` speaks of the line before it.
fn no_newline(lines: &mut [Line]) {
    if let Some(last) = lines.last_mut()
        && last.text.ends_with('\n')
    {
        last.text.pop();
    }
}

/// `@@ -1,2 +3,4 @@`: start and length of both sides.
fn ranges(header: &str) -> Option<(usize, usize, usize, usize)> {
    // No file has more lines than 32 bits count, and sums of these do not overflow.
    let number = |text: &str| text.parse::<u32>().ok().map(|number| number as usize);
    let range = |text: &str| -> Option<(usize, usize)> {
        match text.split_once(',') {
            Some((start, length)) => Some((number(start)?, number(length)?)),
            None => Some((number(text)?, 1)),
        }
    };
    let (ranges, _) = header.strip_prefix("@@ -")?.split_once(" @@")?;
    let (old, new) = ranges.split_once(" +")?;
    let ((old_start, old_length), (new_start, new_length)) = (range(old)?, range(new)?);
    Some((old_start, old_length, new_start, new_length))
}

fn mode(text: &str) -> Option<Mode> {
    match text.trim() {
        "120000" => Some(Mode::Symlink),
        "160000" => Some(Mode::Submodule),
        text => {
            let bits = u32::from_str_radix(text, 8).ok()?;
            Some(if bits & 0o111 != 0 {
                Mode::Executable
            } else {
                Mode::File
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (old, new) of each file.
    fn names(text: &str) -> Vec<(Option<String>, Option<String>)> {
        let files = parse(text).unwrap();
        files.into_iter().map(|file| (file.old, file.new)).collect()
    }

    #[test]
    fn names_in_every_form() {
        let hunk = "@@ -1 +1 @@\n-a\n+b\n";
        for (header, old, new) in [
            (
                "diff --git a/x b/x\n--- a/x\n+++ b/x\n",
                Some("x"),
                Some("x"),
            ),
            (
                "diff --git i/d/x w/d/x\n--- i/d/x\n+++ w/d/x\n",
                Some("d/x"),
                Some("d/x"),
            ),
            (
                "diff --git d/x d/x\n--- d/x\n+++ d/x\n",
                Some("d/x"),
                Some("d/x"),
            ),
            (
                "diff --git a/a b/c b/a b/c\n--- a/a b/c\t\n+++ b/a b/c\t\n",
                Some("a b/c"),
                Some("a b/c"),
            ),
            (
                "diff --git \"a/\\303\\251\" \"b/\\303\\251\"\n--- \"a/\\303\\251\"\n+++ \"b/\\303\\251\"\n",
                Some("é"),
                Some("é"),
            ),
            (
                "diff --git a/x b/y\nrename from x\nrename to y\n--- a/x\n+++ b/y\n",
                Some("x"),
                Some("y"),
            ),
            (
                "diff --git a/n b/n\nnew file mode 100644\n--- /dev/null\n+++ b/n\n",
                None,
                Some("n"),
            ),
            (
                "diff --git a/n b/n\ndeleted file mode 100644\n--- a/n\n+++ /dev/null\n",
                Some("n"),
                None,
            ),
            ("--- a/x\n+++ b/x\n", Some("x"), Some("x")),
            (
                "--- src/x.py\n+++ src/x.py\n",
                Some("src/x.py"),
                Some("src/x.py"),
            ),
            (
                "--- x.py.orig\t2020-01-01\n+++ x.py\t2020-01-02\n",
                Some("x.py"),
                Some("x.py"),
            ),
            ("--- /dev/null\n+++ b/x\n", None, Some("x")),
            (
                "Submodule sub contains modified content\ndiff --git a/sub/x b/sub/x\n--- a/sub/x\n+++ b/sub/x\n",
                Some("sub/x"),
                Some("sub/x"),
            ),
        ] {
            let found = names(&format!("{header}{hunk}"));
            let expected = (old.map(str::to_owned), new.map(str::to_owned));
            assert_eq!(found, [expected], "{header}");
        }
    }

    #[test]
    fn hunks_that_lost_blank_context_at_the_end_are_whole_again() {
        let files = parse("--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n-a\n+b\n c").unwrap();
        let Body::Hunks(hunks) = &files[0].body else {
            panic!("no hunks")
        };
        assert_eq!(hunks[0].lines.len(), 4);
        assert_eq!(hunks[0].lines[3].text, "\n");
    }

    #[test]
    fn one_file_has_one_spelling() {
        let hunk = "@@ -1 +1 @@\n-a\n+b\n";
        for (path, expected) in [
            ("./x", "x"),
            (".//x", "x"),
            ("d/.//x", "d/x"),
            ("d/..x/.y", "d/..x/.y"),
            // These are refused where they are to be applied.
            ("../x", "../x"),
            ("d/./../x", "d/../x"),
        ] {
            for header in [
                format!("--- a/{path}\n+++ b/{path}\n"),
                format!("diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n"),
            ] {
                let name = Some(expected.to_owned());
                let found = names(&format!("{header}{hunk}"));
                assert_eq!(found, [(name.clone(), name)], "{header}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, said) in [
            ("hello\n", "line 1: no file's changes"),
            (
                "@@ -1 +1 @@\n-a\n+b\n",
                "line 1: a hunk that belongs to no file",
            ),
            (
                "--- a/x\n+++ b/x\n@@ -1,2 +1 @@\n-a\n+b",
                "the hunk of line 3 is cut off",
            ),
            (
                "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\nwhat\n",
                "line 5: the hunk of line 3 is shorter",
            ),
            ("diff --cc x\n", "unfinished merge"),
            // More lines than could have been lost, and than a file has.
            (
                "--- a/x\n+++ b/x\n@@ -1,400000 +1,400000 @@\n",
                "the hunk of line 3 is cut off",
            ),
            (
                "--- a/x\n+++ b/x\n@@ -1,3 +18446744073709551615,3 @@\n 1\n",
                "line 3: not a hunk header",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text:?}: {error}");
        }
    }
}
