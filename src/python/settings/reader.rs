//! Values of the configuration and the environment as types; what is wrong with one is said with its
//! key.

use serde_json::Value;

use super::Lookup;
use crate::python::Variables;

pub(super) struct Reader<'a> {
    pub(super) config: Lookup<'a>,
    pub(super) prefix: &'static str,
}

impl Reader<'_> {
    pub(super) fn value(&self, key: &str) -> Option<Value> {
        (self.config)(&format!("{}{key}", self.prefix)).filter(|value| !value.is_null())
    }

    pub(super) fn wrong<T>(&self, key: &str, expected: &str, value: &Value) -> Result<T, String> {
        Err(format!(
            "{}{key}: expected {expected}, found {value}",
            self.prefix
        ))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>, String> {
        Ok(match self.value(key) {
            None => None,
            Some(value) => match scalar(&value) {
                Some(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
                None => return self.wrong(key, "a text", &value),
            },
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match scalar(&value).as_deref().map(str::trim) {
            Some("") => Ok(None),
            Some(text) if parse_flag(text).is_some() => Ok(parse_flag(text)),
            _ => self.wrong(key, "true or false", &value),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, String> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match scalar(&value).as_deref().map(str::trim) {
            Some("") => Ok(None),
            Some(text) => match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Some(number)),
                _ => self.wrong(key, "a number", &value),
            },
            None => self.wrong(key, "a number", &value),
        }
    }

    pub(super) fn is_on(&self, key: &str) -> Result<bool, String> {
        Ok(self.flag(key)?.unwrap_or(false))
    }

    /// A list of texts; one text is a list of one.
    pub(super) fn list(&self, key: &str) -> Result<Vec<String>, String> {
        let Some(value) = self.value(key) else {
            return Ok(Vec::new());
        };
        let items: Option<Vec<String>> = match &value {
            Value::Array(items) => items
                .iter()
                .filter(|item| !item.is_null())
                .map(scalar)
                .collect(),
            other => scalar(other).map(|text| vec![text]),
        };
        match items {
            Some(items) => Ok(items
                .into_iter()
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect()),
            None => self.wrong(key, "a text or a list of texts", &value),
        }
    }
}

pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

pub(super) fn text_of<'a>(env: &'a Variables, name: &str) -> Option<&'a str> {
    env.get(name)
        .map(String::as_str)
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

pub(super) fn flag_of(env: &Variables, name: &str) -> Result<Option<bool>, String> {
    match text_of(env, name) {
        None => Ok(None),
        Some(text) => match parse_flag(text) {
            Some(flag) => Ok(Some(flag)),
            None => Err(format!("{name}={text}: expected true or false")),
        },
    }
}

pub(super) fn parse_flag(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => Some(true),
        "0" | "false" | "f" | "no" | "n" | "off" => Some(false),
        _ => None,
    }
}
