//! Resolved values. Numbers keep the text they were written with: `default_python: 3.10` is not 3.1.

use serde_json::{Map, Number};

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// As written in the file.
    Number(String),
    Text(String),
    Array(Vec<Value>),
    Object(Object),
}

/// Keys in the order in which they first appear.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Object(Vec<(String, Value)>);

impl Object {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.0.iter_mut().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Replaces the value of `key`, whatever it was.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.get_mut(key) {
            Some(old) => *old = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    /// Lays `over` on this one: objects merge key by key, anything else replaces.
    pub fn merge(&mut self, over: Object) {
        for (key, value) in over.0 {
            match (self.get_mut(&key), value) {
                (Some(Value::Object(below)), Value::Object(above)) => below.merge(above),
                (Some(below), value) => *below = value,
                (None, value) => self.0.push((key, value)),
            }
        }
    }

    /// The value at a dotted key.
    pub fn at(&self, key: &str) -> Option<&Value> {
        let mut segments = key.split('.');
        let mut value = self.get(segments.next()?)?;
        for segment in segments {
            let Value::Object(object) = value else {
                return None;
            };
            value = object.get(segment)?;
        }
        Some(value)
    }

    /// Sets the value at a dotted key; what stands in the way and is no object gives way.
    pub fn set_at(&mut self, key: &str, value: Value) {
        match key.split_once('.') {
            None => self.set(key, value),
            Some((first, rest)) => {
                let mut inner = match self.get(first) {
                    Some(Value::Object(object)) => object.clone(),
                    _ => Object::default(),
                };
                inner.set_at(rest, value);
                self.set(first, Value::Object(inner));
            }
        }
    }

    /// Removes the value at a dotted key, if there is one.
    pub fn remove_at(&mut self, key: &str) {
        match key.split_once('.') {
            None => self.0.retain(|(k, _)| k != key),
            Some((first, rest)) => {
                if let Some(Value::Object(object)) = self.get_mut(first) {
                    object.remove_at(rest);
                }
            }
        }
    }

    pub fn to_json(&self) -> serde_json::Value {
        let entries = self.iter().map(|(k, v)| (k.to_owned(), v.to_json()));
        serde_json::Value::Object(entries.collect::<Map<_, _>>())
    }
}

impl Value {
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Number(text) => number(text).unwrap_or_else(|| text.as_str().into()),
            Value::Text(text) => text.as_str().into(),
            Value::Array(items) => items.iter().map(Value::to_json).collect(),
            Value::Object(object) => object.to_json(),
        }
    }

    /// What the value is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::Array(_) => "a list",
            Value::Object(_) => "a section",
        }
    }
}

fn number(text: &str) -> Option<serde_json::Value> {
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Some(whole.into());
    }
    Number::from_f64(text.parse().ok()?).map(serde_json::Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_merge_and_the_rest_replaces() {
        let mut below = Object::default();
        below.set_at("a.x", Value::Number("1".into()));
        below.set_at("a.y", Value::Array(vec![Value::Bool(true)]));
        let mut above = Object::default();
        above.set_at("a.y", Value::Array(vec![]));
        above.set_at("b", Value::Null);
        below.merge(above);
        assert_eq!(
            below.to_json().to_string(),
            r#"{"a":{"x":1,"y":[]},"b":null}"#
        );
        below.remove_at("a.x");
        below.remove_at("c.x");
        assert_eq!(below.to_json().to_string(), r#"{"a":{"y":[]},"b":null}"#);
        assert_eq!(below.at("a.y"), Some(&Value::Array(vec![])));
        assert_eq!(below.at("a.y.z"), None);
    }

    #[test]
    fn numbers_become_json_numbers() {
        for (text, json) in [
            ("5", "5"),
            ("+5", "5"),
            ("-5", "-5"),
            ("010", "10"),
            (".5", "0.5"),
            ("3.10", "3.1"),
            ("18446744073709551615", "18446744073709551615"),
            ("1e999", "\"1e999\""),
        ] {
            assert_eq!(
                Value::Number(text.into()).to_json().to_string(),
                json,
                "{text}"
            );
        }
    }
}
