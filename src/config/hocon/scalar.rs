//! Text, numbers, booleans and null, as the parser finds them.

use super::definition::Node;
use super::parse::{Parsed, Parser};

/// Characters that unquoted text cannot have.
pub(super) const RESERVED: &str = "^`+?!@*&\"[]{}#,=$\\";

impl Parser<'_> {
    /// `"…"`, on one line. Escapes that are none stay as they are: `"\d+"` is a pattern.
    pub(super) fn quoted(&mut self) -> Parsed<String> {
        let open = self.here();
        self.at += 1;
        let mut text = String::new();
        loop {
            let Some(c) = self.peek().filter(|c| *c != '\n') else {
                return Err(open
                    .error("a `\"` that is not closed", "another `\"` on the same line")
                    .into());
            };
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(text),
                '\\' => self.escape(&mut text),
                c => text.push(c),
            }
        }
    }

    /// What follows a backslash.
    fn escape(&mut self, text: &mut String) {
        let Some(c) = self.peek().filter(|c| *c != '\n') else {
            return text.push('\\');
        };
        self.at += c.len_utf8();
        match c {
            '\\' | '"' | '=' | '#' | '!' | '/' => text.push(c),
            'n' => text.push('\n'),
            'r' => text.push('\r'),
            't' => text.push('\t'),
            'u' => match self.rest().get(..4).map(|hex| u32::from_str_radix(hex, 16)) {
                Some(Ok(code)) if let Some(c) = char::from_u32(code) => {
                    self.at += 4;
                    text.push(c);
                }
                // A Windows path.
                _ => text.push_str("\\u"),
            },
            c => text.extend(['\\', c]),
        }
    }

    /// `"""…"""`, taken as it is; more than three quotes at the end belong to the text.
    pub(super) fn multiline(&mut self) -> Parsed<String> {
        let open = self.here();
        self.at += 3;
        let Some(length) = self.rest().find("\"\"\"") else {
            return Err(open
                .error(
                    "a `\"\"\"` that is not closed",
                    "another `\"\"\"` further on",
                )
                .into());
        };
        let more = self.rest()[length + 3..]
            .bytes()
            .take_while(|b| *b == b'"')
            .count();
        let text = self.rest()[..length + more].to_owned();
        self.at += length + more + 3;
        Ok(text)
    }

    /// A number, `true`, `false`, `null`, or text up to a blank or a reserved character.
    pub(super) fn unquoted(&mut self) -> Parsed<Node> {
        if let Some(length) = number_length(self.rest()) {
            let text = self.rest()[..length].to_owned();
            self.at += length;
            return Ok(Node::Number(text));
        }
        let mut text = String::new();
        let start = self.at;
        while let Some(c) = self.peek() {
            if c == '\\' {
                self.at += 1;
                self.escape(&mut text);
            } else if c.is_whitespace() || RESERVED.contains(c) {
                break;
            } else {
                text.push(c);
                self.at += c.len_utf8();
            }
        }
        match self.peek() {
            Some(c @ ('=' | '+' | '^' | '`' | '?' | '!' | '@' | '*' | '&')) => Err(self
                .expected(format!(
                    "the end of the value (text with `{c}` in it needs double quotes)"
                ))
                .into()),
            Some('$') if !self.looking_at("${") => Err(self
                .expected("`${`, or double quotes around a text with `$` in it")
                .into()),
            _ => Ok(
                match self.source.text[start..self.at].to_lowercase().as_str() {
                    "true" => Node::Bool(true),
                    "false" => Node::Bool(false),
                    "null" => Node::Null,
                    _ => Node::Text(text),
                },
            ),
        }
    }
}

/// The length of a number that is a whole value or the rest of one.
fn number_length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        bytes[from..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count()
    };
    let mut at = usize::from(text.starts_with(['+', '-']));
    let whole = digits(at);
    at += whole;
    let mut fraction = 0;
    if bytes.get(at) == Some(&b'.') {
        fraction = digits(at + 1);
        at += if fraction > 0 { 1 + fraction } else { 0 };
    }
    if whole + fraction == 0 {
        return None;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits((at + 1 + sign).min(bytes.len()));
        at += if exponent > 0 { 1 + sign + exponent } else { 0 };
    }
    let after = text[at..].trim_start_matches([' ', '\t', '\r']);
    let ends = after.is_empty()
        || after.starts_with(['$', '}', ']', ',', '#', '\n'])
        || after.starts_with("//");
    ends.then_some(at)
}
