//! The text being read, places in it, and the error that shows a place to a person.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::HoconError;

/// One file, or one text with a name.
#[derive(Debug)]
pub(super) struct Source {
    pub name: String,
    pub text: String,
}

impl Source {
    pub fn new(name: String, text: String) -> Arc<Self> {
        Arc::new(Self { name, text })
    }
}

/// The text of a file; a byte order mark is no part of it.
pub(super) fn read(path: &Path) -> Result<String, HoconError> {
    let unreadable = |cause: String| HoconError::Unreadable {
        path: path.display().to_string(),
        cause,
    };
    let bytes = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let good = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..good].iter().filter(|b| **b == b'\n').count();
        unreadable(format!("line {line} is not UTF-8 text"))
    })?;
    Ok(text
        .strip_prefix('\u{feff}')
        .map_or(text.clone(), str::to_owned))
}

/// A place in a source.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub source: Arc<Source>,
    pub offset: usize,
}

impl Place {
    /// Line and column, both counted from 1, the column in characters.
    pub fn line_and_column(&self) -> (usize, usize) {
        let before = &self.source.text[..self.offset];
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        (line, before[start..].chars().count() + 1)
    }

    fn line_text(&self) -> &str {
        let text = &self.source.text;
        let start = text[..self.offset].rfind('\n').map_or(0, |at| at + 1);
        let end = text[self.offset..]
            .find('\n')
            .map_or(text.len(), |at| self.offset + at);
        text[start..end].trim_end_matches('\r')
    }

    pub fn error(&self, found: impl Into<String>, expected: impl Into<String>) -> Box<SyntaxError> {
        let (line, column) = self.line_and_column();
        Box::new(SyntaxError {
            file: self.source.name.clone(),
            line,
            column,
            found: found.into(),
            expected: expected.into(),
            line_text: without_secret(self.line_text()),
        })
    }
}

/// What is wrong in a file, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct SyntaxError {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub found: String,
    pub expected: String,
    /// The line; the value of a secret is masked.
    pub line_text: String,
}

impl std::error::Error for SyntaxError {}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SyntaxError {
            file,
            line,
            column,
            found,
            expected,
            line_text,
        } = self;
        writeln!(
            f,
            "{file}, line {line}, column {column}: found {found}, expected {expected}"
        )?;
        // Tabs are kept in the second line, so that the caret stands under its character.
        let indent: String = line_text
            .chars()
            .take(column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let number = line.to_string();
        writeln!(f, "  {number} | {line_text}")?;
        write!(f, "  {:width$} | {indent}^", "", width = number.len())
    }
}

/// A line that sets a secret, without the secret: errors end up in build logs.
fn without_secret(line: &str) -> String {
    let Some(separator) = line.find([':', '=']) else {
        return line.to_owned();
    };
    let (key, value) = line.split_at(separator + 1);
    let lower = line.to_lowercase();
    // The whole line is looked at: `credentials {"access_key": "…", "secret_key": "…"}`.
    let is_secret = ["secret", "pass", "token", "_key"]
        .iter()
        .any(|word| lower.contains(word))
        // An address may hold a password.
        || (lower.contains("://") && lower.contains('@'));
    if is_secret && !value.trim().is_empty() {
        format!("{key} ****")
    } else {
        line.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_shown_with_a_caret() {
        let source = Source::new("/h/clearml.conf".into(), "a = 1\n\tbé = }\n".into());
        let place = Place { offset: 13, source };
        assert_eq!(
            place.error("`}`", "a value").to_string(),
            "/h/clearml.conf, line 2, column 7: found `}`, expected a value\n  2 | \tbé = }\n    | \t     ^"
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        for (line, shown) in [
            ("  git_pass = hun@ter2", "  git_pass = ****"),
            (
                "credentials {\"access_key\": \"x\" \"secret_key\"",
                "credentials {\"access_key\": ****",
            ),
            ("web_server: http://h ! x", "web_server: http://h ! x"),
            ("token:", "token:"),
            ("  \"https://u:p@h/simple\" ]]", "  \"https: ****"),
        ] {
            assert_eq!(without_secret(line), shown);
        }
    }
}
