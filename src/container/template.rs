//! `${CLEARML_NAME:default}` in docker arguments, and `$NAME` of the environment.

use crate::config::Variables;

const PREFIX: &str = "CLEARML_";

/// Replaces each `${CLEARML_NAME}` and `$CLEARML_NAME` whose value is known, or which says what else
/// to take: `${CLEARML_TASK.hyperparams.properties.user.value:nobody}`. What follows a `|` is done to
/// the value: `strip`, `capitalize`, `lower`, `raw` (which keeps line ends; else they go). All else
/// stays.
pub fn substitute(text: &str, value_of: &dyn Fn(&str) -> Option<String>) -> String {
    replace(text, |name, written| {
        let name = name.strip_prefix(PREFIX)?;
        let mut parts = name.trim_start_matches('|').split('|');
        let name = parts.next().unwrap_or_default();
        let (name, default) = match name.split_once(':') {
            Some((name, default)) => (name, Some(default)),
            None => (name, None),
        };
        // Without braces a name ends where a word does.
        let value = value_of(name).or_else(|| match written {
            Written::Braced => default.map(str::to_owned),
            Written::Plain => None,
        })?;
        let steps: Vec<&str> = parts.collect();
        let mut value = match steps.contains(&"raw") {
            true => value,
            false => value.replace('\n', ""),
        };
        for step in steps {
            value = match step {
                "strip" => value.trim().to_owned(),
                "lower" => value.to_lowercase(),
                "capitalize" => capitalized(&value),
                _ => value,
            };
        }
        Some(value)
    })
}

/// Replaces each `$NAME` and `${NAME}` that is set.
pub fn expand(text: &str, env: &Variables) -> String {
    replace(text, |name, _| env.get(name).cloned())
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first
            .to_uppercase()
            .chain(chars.as_str().to_lowercase().chars())
            .collect(),
        None => String::new(),
    }
}

#[derive(Clone, Copy)]
enum Written {
    Braced,
    Plain,
}

fn replace(text: &str, value: impl Fn(&str, Written) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, end, written) = match after.strip_prefix('{').and_then(|a| a.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2, Written::Braced),
            None => {
                let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                let name = &after[..end.unwrap_or(after.len())];
                (name, name.len(), Written::Plain)
            }
        };
        match value(name, written).filter(|_| !name.is_empty()) {
            Some(value) => {
                out.push_str(&value);
                rest = &after[end..];
            }
            None => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates() {
        let values = |name: &str| match name {
            "QUEUE_NAME" => Some("gpu".to_owned()),
            "TASK.name" => Some("Two\nLines ".to_owned()),
            _ => None,
        };
        for (text, expected) in [
            ("queue=${CLEARML_QUEUE_NAME}", "queue=gpu"),
            ("$CLEARML_QUEUE_NAME/x", "gpu/x"),
            ("${CLEARML_TASK.name}", "TwoLines "),
            ("${CLEARML_TASK.name|lower|strip}", "twolines"),
            ("${CLEARML_|TASK.name|raw|capitalize}", "Two\nlines "),
            ("${CLEARML_TASK.user:nobody}", "nobody"),
            ("${CLEARML_TASK.user}", "${CLEARML_TASK.user}"),
            ("${HOME} $HOME $$ ${ $", "${HOME} $HOME $$ ${ $"),
            ("é${CLEARML_QUEUE_NAME}é", "égpué"),
        ] {
            assert_eq!(substitute(text, &values), expected, "{text}");
        }
    }

    #[test]
    fn variables() {
        let env = Variables::from([("A".to_owned(), "1".to_owned())]);
        for (text, expected) in [("$A${A}$B${B}", "11$B${B}"), ("$", "$"), ("${A", "${A")] {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }
}
