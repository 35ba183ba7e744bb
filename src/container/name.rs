//! `agent.docker_container_name_format`: the container's name from the task, in the form of Python's
//! `str.format`, as far as a name needs it. Pure.

use std::collections::BTreeMap;

/// Fills `{NAME}` and `{NAME:.N}` (the first N characters). The error says what is wrong with the
/// format, or with what comes out.
pub fn filled(format: &str, fields: &BTreeMap<String, String>) -> Result<String, String> {
    let mut name = String::new();
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        name.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let brace = &rest[at..=at];
        // Doubled, it stands for itself.
        if let Some(after) = after.strip_prefix(brace) {
            name.push_str(brace);
            rest = after;
            continue;
        }
        let (field, after) = match after.split_once('}') {
            Some(parts) if brace == "{" => parts,
            _ => return Err(format!("{format:?} has a single {brace}")),
        };
        let (field, width) = field.split_once(':').unwrap_or((field, ""));
        let value = fields
            .get(field)
            .ok_or_else(|| format!("{format:?} has the field {field:?}, which is unknown"))?;
        let cut = match width {
            "" => value.as_str(),
            width => {
                let width: Option<usize> = width.strip_prefix('.').and_then(|w| w.parse().ok());
                let width =
                    width.ok_or_else(|| format!("{format:?}: only {{name:.N}} can be cut"))?;
                let end = value
                    .char_indices()
                    .nth(width)
                    .map_or(value.len(), |(at, _)| at);
                &value[..end]
            }
        };
        name.push_str(cut);
        rest = after;
    }
    name.push_str(rest);
    match is_name(&name) {
        true => Ok(name),
        false => Err(format!(
            "{format:?} gives {name:?}, which is no name of a container"
        )),
    }
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && name.len() > 1
        && chars.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// A value that may stand in a name.
pub fn cleaned(value: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    value
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_filled_as_python_does() {
        let fields = BTreeMap::from([
            ("task_id".to_owned(), "0123456789".to_owned()),
            ("rand_string".to_owned(), "abcdefghij".to_owned()),
            ("bad".to_owned(), "a/b".to_owned()),
        ]);
        for (format, expected) in [
            (
                "clearml-id-{task_id}-{rand_string:.8}",
                Some("clearml-id-0123456789-abcdefgh"),
            ),
            ("x{task_id:.99}", Some("x0123456789")),
            ("fixed", Some("fixed")),
            ("{other}", None),
            ("{task_id", None),
            ("a}b", None),
            ("{{x}}", None),
            ("{bad}", None),
            ("-{task_id}", None),
            ("{task_id:>3}", None),
        ] {
            assert_eq!(
                filled(format, &fields).ok().as_deref(),
                expected,
                "{format}"
            );
        }
        assert_eq!(cleaned("host:1/x"), "host-1-x");
    }
}
