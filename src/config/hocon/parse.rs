//! Text to definitions: keys, sections, lists, includes. Nothing is looked up here; substitutions stay
//! as they are, for [`super::resolve`].

use std::path::Path;
use std::sync::Arc;

use super::HoconError;
use super::definition::{Fields, Node, Part, cannot_follow, simplest};
use super::scalar::RESERVED;
use super::source::{self, Place, Source, SyntaxError};

/// Sections and lists in one another, and files that include files, end somewhere.
const DEEPEST: usize = 100;

pub(super) type Parsed<T> = Result<T, HoconError>;

pub(super) fn parse(source: Arc<Source>, folder: Option<&Path>) -> Parsed<Fields> {
    parse_nested(source, folder, 0)
}

fn parse_nested(source: Arc<Source>, folder: Option<&Path>, depth: usize) -> Parsed<Fields> {
    let mut parser = Parser {
        source,
        at: 0,
        folder,
        depth,
    };
    parser.root()
}

pub(super) struct Parser<'a> {
    pub source: Arc<Source>,
    /// How far it is read, in bytes.
    pub at: usize,
    /// Where included files are looked for.
    folder: Option<&'a Path>,
    depth: usize,
}

impl Parser<'_> {
    pub fn rest(&self) -> &str {
        &self.source.text[self.at..]
    }

    pub fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub fn looking_at(&self, text: &str) -> bool {
        self.rest().starts_with(text)
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.looking_at(text);
        if found {
            self.at += text.len();
        }
        found
    }

    pub fn here(&self) -> Place {
        self.place(self.at)
    }

    fn place(&self, offset: usize) -> Place {
        Place {
            source: Arc::clone(&self.source),
            offset,
        }
    }

    /// What stands here, for an error.
    fn found(&self) -> String {
        match self.peek() {
            None => "the end of the file".to_owned(),
            Some('\n' | '\r') => "the end of the line".to_owned(),
            Some(c) => format!("`{c}`"),
        }
    }

    pub fn expected(&self, expected: impl Into<String>) -> Box<SyntaxError> {
        self.here().error(self.found(), expected)
    }

    /// White space within a line.
    fn skip_blanks(&mut self) -> &str {
        let start = self.at;
        while let Some(c) = self.peek() {
            if c == '\n' || !(c.is_whitespace() || c == '\u{feff}') {
                break;
            }
            self.at += c.len_utf8();
        }
        &self.source.text[start..self.at]
    }

    fn at_comment(&self) -> bool {
        self.looking_at("#") || self.looking_at("//")
    }

    /// White space, line ends and comments; true if a line ended.
    fn skip_lines(&mut self) -> bool {
        let mut line_ended = false;
        loop {
            self.skip_blanks();
            if self.at_comment() {
                self.at += self.rest().find('\n').unwrap_or(self.rest().len());
            } else if self.eat("\n") {
                line_ended = true;
            } else {
                return line_ended;
            }
        }
    }

    fn skip_lines_and_commas(&mut self) {
        loop {
            self.skip_lines();
            if !self.eat(",") {
                return;
            }
        }
    }

    fn root(&mut self) -> Parsed<Fields> {
        self.skip_lines();
        if self.looking_at("[") {
            return Err(self.expected("a section or a key, not a list").into());
        }
        let fields = if self.looking_at("{") {
            self.object()?
        } else {
            self.fields()?
        };
        self.skip_lines_and_commas();
        match self.peek() {
            None => Ok(fields),
            Some(_) => Err(self.expected("a key or the end of the file").into()),
        }
    }

    /// `{ … }`
    fn object(&mut self) -> Parsed<Fields> {
        let open = self.at;
        self.enter(1)?;
        self.at += 1;
        let fields = self.fields()?;
        if !self.eat("}") {
            let (line, _) = self.place(open).line_and_column();
            return Err(self
                .expected(format!("a key, or `}}` for the `{{` of line {line}"))
                .into());
        }
        self.depth -= 1;
        Ok(fields)
    }

    fn enter(&mut self, levels: usize) -> Parsed<()> {
        self.depth += levels;
        if self.depth > DEEPEST {
            return Err(self
                .expected(format!("at most {DEEPEST} levels of nesting"))
                .into());
        }
        Ok(())
    }

    /// Keys and values up to something that cannot begin a key.
    fn fields(&mut self) -> Parsed<Fields> {
        let mut fields = Fields::default();
        loop {
            self.skip_lines_and_commas();
            match self.peek() {
                None | Some('}' | ']' | '[') => return Ok(fields),
                Some(_) if self.at_include() => {
                    let included = self.include()?;
                    fields.extend(included);
                }
                Some(_) => {
                    let (path, node) = self.field()?;
                    fields.push_path(path, node);
                }
            }
        }
    }

    fn field(&mut self) -> Parsed<(Vec<String>, Node)> {
        let key_start = self.at;
        let path = self.key()?;
        // Each part of `a.b.c` but the last is a section.
        let levels = path.len() - 1;
        self.enter(levels)?;
        let node = self.field_value(key_start)?;
        self.depth -= levels;
        Ok((path, node))
    }

    /// What follows the key that begins at `key_start`.
    fn field_value(&mut self, key_start: usize) -> Parsed<Node> {
        let key_end = key_start + self.source.text[key_start..self.at].trim_end().len();
        let name = self.source.text[key_start..key_end].to_owned();
        let line_ended = self.skip_lines();
        let no_value = |parser: &Self, offset: usize| {
            parser.place(offset).error(
                "the end of the line",
                format!("a value for `{name}` (an empty one is written \"\")"),
            )
        };
        let separator = self.here();
        let append = if self.looking_at("{") {
            return self.value();
        } else if self.eat("+=") {
            true
        } else if self.eat(":") || self.eat("=") {
            false
        } else if line_ended || self.peek().is_none() {
            return Err(no_value(self, key_end).into());
        } else {
            return Err(self
                .expected(format!("`=`, `:` or `{{` after the key `{name}`"))
                .into());
        };
        let value_start = self.at;
        // A value may stand on the next line; the next key there is none.
        if self.skip_lines() && self.at_next_key() {
            return Err(no_value(self, value_start).into());
        }
        let node = self.value()?;
        Ok(match append {
            true => Node::Append(Box::new(node), separator),
            false => node,
        })
    }

    /// Whether the line begins `name:` or `name =`. `C:\dir` and `http://…` do not.
    fn at_next_key(&self) -> bool {
        let line = self.rest().lines().next().unwrap_or_default();
        let name_end = line
            .find(|c: char| !(c.is_alphanumeric() || "._-".contains(c)))
            .unwrap_or(line.len());
        let after = &line[name_end..];
        let after_colon = after.trim_start().strip_prefix(':');
        name_end > 0
            && (after.trim_start().starts_with('=')
                || after_colon.is_some_and(|v| v.is_empty() || v.starts_with([' ', '\t', '"'])))
    }

    fn key(&mut self) -> Parsed<Vec<String>> {
        let mut path = vec![];
        // The segment being read; none right after a dot, so that `a..b` has two.
        let mut segment: Option<String> = None;
        // What of it was in quotes: blanks there are meant.
        let mut quoted = 0;
        loop {
            match self.peek() {
                Some('"') => {
                    let text = self.quoted()?;
                    let segment = segment.get_or_insert_default();
                    segment.push_str(&text);
                    quoted = segment.len();
                }
                Some('.') => {
                    quoted = 0;
                    self.at += 1;
                    path.extend(segment.take());
                }
                Some(c) if c != '\n' && c != ':' && !RESERVED.contains(c) => {
                    self.at += c.len_utf8();
                    if segment.is_some() || !c.is_whitespace() {
                        segment.get_or_insert_default().push(c);
                    }
                }
                _ => break,
            }
        }
        path.extend(segment.map(|mut segment| {
            segment.truncate(segment.trim_end().len().max(quoted));
            segment
        }));
        match path.is_empty() {
            true => Err(self.expected("a key").into()),
            false => Ok(path),
        }
    }

    fn at_include(&self) -> bool {
        self.rest().strip_prefix("include").is_some_and(|rest| {
            let target = rest.trim_start_matches([' ', '\t']);
            rest.starts_with([' ', '\t', '"'])
                && ["\"", "file", "required", "url", "classpath", "package"]
                    .iter()
                    .any(|word| target.starts_with(word))
                && !target
                    .trim_start_matches(char::is_alphanumeric)
                    .trim_start()
                    .starts_with(['=', ':'])
        })
    }

    /// `include "x"`, `include file("x")`, `include required(…)`
    fn include(&mut self) -> Parsed<Fields> {
        let place = self.here();
        self.at += "include".len();
        self.skip_blanks();
        let mut parentheses = 0;
        let mut required = false;
        loop {
            let wrapper = ["required", "file"]
                .into_iter()
                .find(|w| self.looking_at(&format!("{w}(")));
            let Some(wrapper) = wrapper else { break };
            required |= wrapper == "required";
            self.at += wrapper.len() + 1;
            self.skip_blanks();
            parentheses += 1;
        }
        if !self.looking_at("\"") {
            return Err(self
                .expected("the path of a file in double quotes, `file(\"…\")` or `required(…)`")
                .into());
        }
        let path_place = self.here();
        let path = self.quoted()?;
        for _ in 0..parentheses {
            self.skip_blanks();
            if !self.eat(")") {
                return Err(self.expected("`)`").into());
            }
        }
        if path.starts_with("http://") || path.starts_with("https://") {
            return Err(path_place
                .error("an address", "the path of a file on this machine")
                .into());
        }
        let path = path.strip_prefix("file://").unwrap_or(&path);
        let path = self.folder.unwrap_or(Path::new("")).join(path);
        if self.depth >= DEEPEST {
            return Err(place
                .error("an include", "no file that includes itself")
                .into());
        }
        if !required && !path.exists() {
            return Ok(Fields::default());
        }
        let text = source::read(&path).map_err(|e| match e {
            HoconError::Unreadable { path, cause } => path_place
                .error(format!("{path}, which cannot be read ({cause})"), "a file")
                .into(),
            other => other,
        })?;
        let source = Source::new(path.display().to_string(), text);
        parse_nested(source, path.parent(), self.depth + 10)
    }

    /// Everything up to the end of the value: a comma, a line end, a comment, a closing bracket.
    fn value(&mut self) -> Parsed<Node> {
        let start = self.here();
        let mut parts: Vec<Part> = vec![];
        loop {
            let blank = self.skip_blanks().to_owned();
            let next = match self.peek() {
                None | Some('\n' | ',' | '}' | ']') => break,
                Some(_) if self.at_comment() => break,
                Some(c) if cannot_follow(c, &parts) => {
                    return Err(self
                        .expected(
                            "the end of the value (is a closing bracket missing before this?)",
                        )
                        .into());
                }
                Some('\\') if self.rest()[1..].trim_start_matches('\r').starts_with('\n') => {
                    // A backslash at its end continues the line.
                    self.at += 1;
                    self.skip_blanks();
                    self.at += 1;
                    if !parts.is_empty() {
                        parts.push(Part::Blank(blank));
                    }
                    self.skip_blanks();
                    continue;
                }
                Some('"') if self.looking_at("\"\"\"") => Part::Node(Node::Text(self.multiline()?)),
                Some('"') => Part::Node(Node::Text(self.quoted()?)),
                Some('{') => Part::Node(Node::Object(self.object()?)),
                Some('[') => Part::Node(Node::Array(self.array()?)),
                Some('$') if self.looking_at("${") => self.substitution()?,
                Some(_) => Part::Node(self.unquoted()?),
            };
            if !blank.is_empty() && !parts.is_empty() {
                parts.push(Part::Blank(blank));
            }
            parts.push(next);
        }
        Ok(simplest(parts, start))
    }

    fn array(&mut self) -> Parsed<Vec<Node>> {
        let open = self.at;
        self.enter(1)?;
        self.at += 1;
        let mut items = vec![];
        loop {
            self.skip_lines_and_commas();
            match self.peek() {
                Some(']') => {
                    self.at += 1;
                    self.depth -= 1;
                    return Ok(items);
                }
                None | Some('}' | ':') => {
                    let (line, _) = self.place(open).line_and_column();
                    return Err(self
                        .expected(format!("a value, or `]` for the `[` of line {line}"))
                        .into());
                }
                Some(_) => items.push(self.value()?),
            }
        }
    }

    fn substitution(&mut self) -> Parsed<Part> {
        let place = self.here();
        self.at += 2;
        let optional = self.eat("?");
        let closed = self
            .rest()
            .find(['}', '\n'])
            .filter(|end| self.rest()[*end..].starts_with('}'));
        let Some(length) = closed else {
            return Err(place
                .error("a `${` that is not closed", "`}` on the same line")
                .into());
        };
        let end = self.at + length;
        let name = self.source.text[self.at..end].trim().to_owned();
        self.skip_blanks();
        let path = self.key()?;
        if self.at != end {
            return Err(self.expected("`}`").into());
        }
        self.at += 1;
        Ok(Part::Substitution {
            path,
            name,
            optional,
            place,
        })
    }
}
