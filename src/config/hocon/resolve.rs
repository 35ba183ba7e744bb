//! Definitions to values: substitutions are looked up, objects merged, things side by side put
//! together. A substitution in the definition of a key sees the definitions before it, so
//! `path = ${path}/bin` builds on what was there.

use std::collections::BTreeMap;

use super::definition::{Fields, Node, Part};
use super::source::{Place, SyntaxError};
use super::value::{Object, Value};

/// Substitutions within substitutions, and the sections around them, end somewhere.
const DEEPEST: usize = 200;

/// So many values and bytes of text are looked at. A few lines with `${a}${a}` would make
/// more than any memory holds.
const MOST_WORK: usize = 1_000_000;

type Resolved<T> = Result<T, Box<SyntaxError>>;

pub(super) fn resolve(
    fields: Fields,
    env: &BTreeMap<String, String>,
) -> Result<Object, Box<SyntaxError>> {
    let root = Node::Object(fields);
    let mut resolver = Resolver {
        root: &root,
        env,
        in_work: vec![],
        led_back: false,
        depth: 0,
        work: 0,
    };
    match resolver.node(&root)? {
        Some(Value::Object(object)) => Ok(object),
        _ => Ok(Object::default()),
    }
}

struct Resolver<'a> {
    root: &'a Node,
    env: &'a BTreeMap<String, String>,
    /// Definitions being resolved, the innermost last. One of these is not there for itself: that
    /// gives self-reference its meaning and ends every cycle.
    in_work: Vec<&'a Node>,
    /// A look-up has come upon a definition in work.
    led_back: bool,
    depth: usize,
    work: usize,
}

impl<'a> Resolver<'a> {
    fn is_in_work(&self, node: &Node) -> bool {
        self.in_work.iter().any(|n| std::ptr::eq(*n, node))
    }

    /// The definitions that count for one that is being resolved: those before it.
    fn before_work<'d>(&mut self, definitions: &'d [&'a Node]) -> &'d [&'a Node] {
        let end = definitions.iter().position(|d| self.is_in_work(d));
        self.led_back |= end.is_some();
        &definitions[..end.unwrap_or(definitions.len())]
    }

    /// What several definitions of one key come to. None: not defined.
    fn definitions(&mut self, definitions: &[&'a Node]) -> Resolved<Option<Value>> {
        // The last one counts; sections and `+=` lie upon what is before them.
        let mut layers = vec![];
        let mut result = None;
        for definition in self.before_work(definitions).iter().rev() {
            if let Node::Append(added, place) = definition {
                self.in_work.push(definition);
                let added = self.node(added);
                self.in_work.pop();
                layers.push(Layer::Append(added?, place));
                continue;
            }
            match self.node(definition)? {
                None => {}
                Some(Value::Object(object)) => layers.push(Layer::Object(object)),
                value => {
                    result = value;
                    break;
                }
            }
        }
        for layer in layers.into_iter().rev() {
            result = Some(match (layer, result) {
                (Layer::Append(added, place), before) => append(before, added, place)?,
                (Layer::Object(above), Some(Value::Object(mut below))) => {
                    below.merge(above);
                    Value::Object(below)
                }
                (Layer::Object(above), _) => Value::Object(above),
            });
        }
        Ok(result)
    }

    fn node(&mut self, node: &'a Node) -> Resolved<Option<Value>> {
        self.depth += 1;
        self.work += match node {
            Node::Text(text) | Node::Number(text) => 1 + text.len(),
            _ => 1,
        };
        let value = self.value(node);
        self.depth -= 1;
        value
    }

    fn value(&mut self, node: &'a Node) -> Resolved<Option<Value>> {
        Ok(Some(match node {
            Node::Null => Value::Null,
            Node::Bool(b) => Value::Bool(*b),
            Node::Number(text) => Value::Number(text.clone()),
            Node::Text(text) => Value::Text(text.clone()),
            Node::Array(items) => {
                let mut values = vec![];
                for item in items {
                    values.extend(self.node(item)?);
                }
                Value::Array(values)
            }
            Node::Object(fields) => {
                let mut object = Object::default();
                for (key, definitions) in fields.iter() {
                    let definitions: Vec<&Node> = definitions.iter().collect();
                    if let Some(value) = self.definitions(&definitions)? {
                        object.set(key, value);
                    }
                }
                Value::Object(object)
            }
            Node::Concat(parts, place) => {
                self.in_work.push(node);
                let value = self.concat(parts, place);
                self.in_work.pop();
                return value;
            }
            Node::Append(..) => return self.definitions(&[node]),
        }))
    }

    fn concat(&mut self, parts: &'a [Part], place: &Place) -> Resolved<Option<Value>> {
        let mut pieces: Vec<Piece<'a>> = vec![];
        for part in parts {
            match part {
                Part::Blank(blank) => {
                    self.work += blank.len();
                    pieces.push(Piece::Blank(blank));
                }
                Part::Node(node) => pieces.extend(self.node(node)?.map(Piece::Value)),
                Part::Substitution {
                    path,
                    name,
                    optional,
                    place,
                } => {
                    let value = self.substitution(path, name, *optional, place)?;
                    pieces.extend(value.map(Piece::Value));
                }
            }
        }
        joined(pieces, place)
    }

    fn substitution(
        &mut self,
        path: &[String],
        name: &str,
        optional: bool,
        place: &Place,
    ) -> Resolved<Option<Value>> {
        self.check_bounds(name, place)?;
        self.led_back = false;
        let definitions = self.lookup(path)?;
        if let Some(value) = self.definitions(&definitions)? {
            return Ok(Some(value));
        }
        match self.env.get(name) {
            Some(value) => Ok(Some(Value::Text(value.clone()))),
            None if optional => Ok(None),
            None => {
                let expected = match self.led_back {
                    false => {
                        "the name of a key or of an environment variable (`${?…}` if it may be missing)"
                    }
                    true => "something that does not lead back to itself",
                };
                Err(place.error(format!("`${{{name}}}`"), expected))
            }
        }
    }

    fn check_bounds(&self, name: &str, place: &Place) -> Resolved<()> {
        let expected = if self.depth > DEEPEST {
            "fewer substitutions that lead to substitutions"
        } else if self.work > MOST_WORK {
            "substitutions that come to less text"
        } else {
            return Ok(());
        };
        Err(place.error(format!("`${{{name}}}`"), expected))
    }

    fn lookup(&mut self, path: &[String]) -> Resolved<Vec<&'a Node>> {
        self.depth += 1;
        let found = self.descend(&[self.root], path);
        self.depth -= 1;
        found
    }

    /// The definitions of `path` within something that has these definitions. Only what lies on the
    /// path is looked at: its neighbours may well refer to what is being resolved.
    fn descend(&mut self, definitions: &[&'a Node], path: &[String]) -> Resolved<Vec<&'a Node>> {
        let Some((key, rest)) = path.split_first() else {
            return Ok(definitions.to_vec());
        };
        let mut found = vec![];
        self.work += definitions.len();
        for definition in self.before_work(definitions).to_vec() {
            match definition {
                Node::Object(fields) => {
                    let inner: Vec<&Node> = fields.get(key).unwrap_or_default().iter().collect();
                    found.extend(self.descend(&inner, rest)?);
                }
                Node::Concat(parts, _) => {
                    self.in_work.push(definition);
                    for part in parts {
                        match part {
                            Part::Blank(_) => {}
                            Part::Node(node) => found.extend(self.descend(&[node], path)?),
                            Part::Substitution {
                                path: other,
                                name,
                                place,
                                ..
                            } => {
                                self.check_bounds(name, place)?;
                                let there = self.lookup(other)?;
                                found.extend(self.descend(&there, path)?);
                            }
                        }
                    }
                    self.in_work.pop();
                }
                _ => found.clear(),
            }
        }
        Ok(found)
    }
}

/// A definition that does not stand alone.
enum Layer<'a> {
    Append(Option<Value>, &'a Place),
    Object(Object),
}

enum Piece<'a> {
    Blank(&'a str),
    Value(Value),
}

/// Objects merge, lists follow one another, anything else is text.
fn joined(mut pieces: Vec<Piece<'_>>, place: &Place) -> Resolved<Option<Value>> {
    let mut values = pieces.iter().filter_map(|piece| match piece {
        Piece::Value(value) => Some(value),
        Piece::Blank(_) => None,
    });
    let Some(first) = values.next() else {
        return Ok(None);
    };
    let of_kind = |value: &Value| match value {
        Value::Object(_) => Some("a section"),
        Value::Array(_) => Some("a list"),
        _ => None,
    };
    let kind = of_kind(first);
    let mut count = 1;
    for other in values {
        count += 1;
        if of_kind(other) != kind {
            return Err(place.error(
                format!("{} next to {}", first.kind(), other.kind()),
                "values of one kind side by side",
            ));
        }
    }
    if kind.is_none() && count > 1 {
        let mut text = String::new();
        for piece in &pieces {
            match piece {
                Piece::Blank(blank) => text.push_str(blank),
                Piece::Value(value) => text.push_str(&plain_text(value)),
            }
        }
        return Ok(Some(Value::Text(text)));
    }
    let mut result: Option<Value> = None;
    for piece in pieces.drain(..) {
        let Piece::Value(value) = piece else { continue };
        result = Some(match (result, value) {
            (Some(Value::Object(mut below)), Value::Object(above)) => {
                below.merge(above);
                Value::Object(below)
            }
            (Some(Value::Array(mut before)), Value::Array(after)) => {
                before.extend(after);
                Value::Array(before)
            }
            (_, value) => value,
        });
    }
    Ok(result)
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::Text(text) | Value::Number(text) => text.clone(),
        Value::Bool(b) => b.to_string(),
        _ => "null".to_owned(),
    }
}

/// `+=`: a list grows by the value (or the values of a list), text by a further word.
fn append(before: Option<Value>, added: Option<Value>, place: &Place) -> Resolved<Value> {
    Ok(match (before, added) {
        (None, None) => Value::Array(vec![]),
        (Some(before), None) => before,
        (None | Some(Value::Null), Some(Value::Array(added))) => Value::Array(added),
        (None | Some(Value::Null), Some(added)) => Value::Array(vec![added]),
        (Some(Value::Array(mut before)), Some(Value::Array(added))) => {
            before.extend(added);
            Value::Array(before)
        }
        (Some(Value::Array(mut before)), Some(added)) => {
            before.push(added);
            Value::Array(before)
        }
        (Some(Value::Text(before)), Some(Value::Text(added))) => {
            Value::Text(format!("{before} {added}"))
        }
        (Some(before), Some(_)) => {
            return Err(place.error(
                format!("`+=` for a key that is {}", before.kind()),
                "`+=` for a list",
            ));
        }
    })
}
