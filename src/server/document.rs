//! Documents as the API gives them: JSON objects in which what is unset is absent. Dotted paths,
//! merging, projection to some fields, and the API's form of time.

use jiff::Timestamp;
use serde_json::{Map, Value};

pub type Document = Map<String, Value>;

/// `2026-11-23T22:25:58.886678+00:00`: always the same width, so that texts sort as times do.
pub fn iso(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

/// The time that a document's field holds.
pub fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

pub fn text<'d>(document: &'d Document, path: &str) -> Option<&'d str> {
    get_path(document, path)?.as_str()
}

/// The value under a dotted path; through a list, of none.
pub fn get_path<'d>(document: &'d Document, path: &str) -> Option<&'d Value> {
    let mut parts = path.split('.');
    let mut value = document.get(parts.next()?)?;
    for part in parts {
        value = value.as_object()?.get(part)?;
    }
    Some(value)
}

/// Puts `value` under a dotted path, making the objects on the way; null removes what is there.
pub fn set_path(document: &mut Document, path: &str, value: Value) {
    match path.split_once('.') {
        None if value.is_null() => {
            document.shift_remove(path);
        }
        None => {
            document.insert(path.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = document
                .entry(first)
                .or_insert_with(|| Value::Object(Map::new()));
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            if let Value::Object(inner) = inner {
                set_path(inner, rest, value);
            }
        }
    }
}

/// Writes every field of `fields`; names may be dotted, null removes.
pub fn set_fields(document: &mut Document, fields: &Document) {
    for (path, value) in fields {
        set_path(document, path, value.clone());
    }
}

/// `old` with the keys of `new` laid over it, one level deep; a null key is taken out.
pub fn merged(old: Option<&Value>, new: &Value) -> Value {
    match (old, new) {
        (Some(Value::Object(old)), Value::Object(new)) => {
            let mut result = old.clone();
            for (key, value) in new {
                if value.is_null() {
                    result.shift_remove(key);
                } else {
                    result.insert(key.clone(), value.clone());
                }
            }
            Value::Object(result)
        }
        (_, Value::Object(new)) => Value::Object(without_nulls(new)),
        _ => new.clone(),
    }
}

pub fn without_nulls(document: &Document) -> Document {
    document
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Only the fields under these dotted paths; in lists, of each element. No paths: all.
pub fn project(document: &Document, paths: &[&str]) -> Document {
    if paths.is_empty() {
        return document.clone();
    }
    let mut result = Document::new();
    // Without what a path that includes it gives already.
    for path in paths {
        let (first, rest) = match path.split_once('.') {
            Some((first, rest)) => (first, Some(rest)),
            None => (*path, None),
        };
        let Some(value) = document.get(first) else {
            continue;
        };
        let picked = match rest {
            None => value.clone(),
            Some(rest) => pick(value, rest),
        };
        match result.get_mut(first) {
            Some(there) => lay_over(there, picked),
            None => {
                result.insert(first.to_owned(), picked);
            }
        }
    }
    result
}

fn pick(value: &Value, path: &str) -> Value {
    match value {
        Value::Object(inner) => Value::Object(project(inner, &[path])),
        Value::Array(items) => items.iter().map(|item| pick(item, path)).collect(),
        // A plain id where the asked field is one of the document it names.
        other => other.clone(),
    }
}

fn lay_over(there: &mut Value, new: Value) {
    match (there, new) {
        (Value::Object(there), Value::Object(new)) => {
            for (key, value) in new {
                match there.get_mut(&key) {
                    Some(old) => lay_over(old, value),
                    None => {
                        there.insert(key, value);
                    }
                }
            }
        }
        (Value::Array(there), Value::Array(new)) => {
            for (old, new) in there.iter_mut().zip(new) {
                lay_over(old, new);
            }
        }
        (there, new) => *there = new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(value: Value) -> Document {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn paths_are_made_and_removed() {
        let mut task = document(json!({"execution": {"queue": "q"}, "name": "n"}));
        set_path(&mut task, "execution.queue", Value::Null);
        set_path(&mut task, "output.result", json!("ok"));
        assert_eq!(
            Value::Object(task),
            json!({"execution": {}, "name": "n", "output": {"result": "ok"}})
        );
    }

    #[test]
    fn merging_is_one_level_deep() {
        let old = json!({"branch": "main", "requirements": {"pip": "a", "conda": "b"}, "tag": "t"});
        let new = json!({"requirements": {"pip": "c"}, "version_num": "1", "tag": null});
        assert_eq!(
            merged(Some(&old), &new),
            json!({"branch": "main", "requirements": {"pip": "c"}, "version_num": "1"})
        );
        assert_eq!(merged(None, &json!({"a": 1, "b": null})), json!({"a": 1}));
    }

    #[test]
    fn projection() {
        let queue = document(json!({
            "id": "q", "name": "n",
            "entries": [{"task": "a", "added": "t"}, {"task": "b", "added": "t"}],
            "script": {"requirements": {"pip": "x"}, "diff": "d"},
        }));
        for (paths, expected) in [
            (&["id", "none"][..], json!({"id": "q"})),
            (
                &["entries.task"],
                json!({"entries": [{"task": "a"}, {"task": "b"}]}),
            ),
            (
                &["script.requirements", "script.diff"],
                json!({"script": {"requirements": {"pip": "x"}, "diff": "d"}}),
            ),
        ] {
            assert_eq!(Value::Object(project(&queue, paths)), expected);
        }
        assert_eq!(project(&queue, &[]), queue);
    }

    #[test]
    fn times_have_one_width() {
        for text in ["2026-11-23T22:25:58Z", "2026-11-23T22:25:58.886678123Z"] {
            assert_eq!(iso(text.parse().unwrap()).len(), 32);
        }
        let given = "2026-11-23T22:25:58.886678+00:00";
        assert_eq!(time(given).map(iso).as_deref(), Some(given));
    }
}
