//! What is written back to the task after an installation.

use std::path::Path;

use serde_json::Value;

use super::freeze::{self, Package, Source};
use super::requirements::{Line, List, normalise};
use crate::task::Requirements;

/// The list to record: what is installed, local folders as the task names them.
pub fn lines_to_record(
    packages: &[Package],
    list: &List,
    python: (u32, u32, u32),
    requested: &[String],
    root: &Path,
) -> Vec<String> {
    packages
        .iter()
        .filter(|package| !freeze::left_out(&package.name, python, requested))
        .map(|package| {
            let path = match &package.source {
                Source::Url(url) | Source::Editable(url) => url
                    .starts_with("file:")
                    .then(|| url::Url::parse(url).ok()?.to_file_path().ok())
                    .flatten(),
                Source::Index => None,
            };
            let original = path.as_deref().and_then(|path| {
                list.lines.iter().find_map(|line| match line {
                    Line::Reference {
                        local: Some(local),
                        original,
                        name,
                        ..
                    } if local == path
                        && name
                            .as_deref()
                            .is_none_or(|n| normalise(n) == normalise(&package.name)) =>
                    {
                        Some(original.clone())
                    }
                    _ => None,
                })
            });
            original
                .or_else(|| within(path.as_deref()?, root, &package.source))
                .unwrap_or_else(|| package.line())
        })
        .collect()
}

/// A folder of the checkout, as a list in the repository names it: the checkout's own path is
/// another one in the next run.
fn within(path: &Path, root: &Path, source: &Source) -> Option<String> {
    let inside = path.strip_prefix(root).ok()?;
    let place = match inside.as_os_str().is_empty() {
        true => ".".to_owned(),
        false => format!("./{}", inside.display()),
    };
    Some(match source {
        Source::Editable(_) => format!("-e {place}"),
        _ => place,
    })
}

/// The task's requirements with the installed list as `pip`, and what was asked for first kept as
/// `org_pip`. All other keys stay.
pub fn recorded(before: &Requirements, installed: &[String]) -> Requirements {
    let mut map = before.0.clone();
    for (key, original) in [("pip", "org_pip"), ("conda", "org_conda")] {
        let Some(value) = map.get(key).filter(|value| !is_empty(value)).cloned() else {
            continue;
        };
        if map.get(original).is_none_or(is_empty) {
            map.insert(original.into(), value);
        }
        map.shift_remove(key);
    }
    let lines = installed.iter().cloned().map(Value::String).collect();
    map.insert("pip".into(), Value::Array(lines));
    Requirements(map)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_recorded() {
        let frozen = ["six==1.17.0".to_owned()];
        for (before, after) in [
            (json!({}), json!({"pip": ["six==1.17.0"]})),
            (json!({"pip": ""}), json!({"pip": ["six==1.17.0"]})),
            (
                json!({"pip": "six", "other": 1}),
                json!({"pip": ["six==1.17.0"], "org_pip": "six", "other": 1}),
            ),
            (
                json!({"pip": ["six"], "org_pip": "six>=1"}),
                json!({"pip": ["six==1.17.0"], "org_pip": "six>=1"}),
            ),
            (
                json!({"pip": "six", "org_pip": "", "conda": "", "conda_env_json": null}),
                json!({"pip": ["six==1.17.0"], "org_pip": "six", "conda": "", "conda_env_json": null}),
            ),
            (
                json!({"pip": "", "conda": "numpy"}),
                json!({"pip": ["six==1.17.0"], "org_conda": "numpy"}),
            ),
        ] {
            let before: Requirements = serde_json::from_value(before).unwrap();
            let found = serde_json::to_value(recorded(&before, &frozen)).unwrap();
            assert_eq!(found, after);
        }
    }
}
