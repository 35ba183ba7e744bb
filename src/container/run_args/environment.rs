//! Variables and labels: on the command line, and in files of one a line.

use std::path::{Path, PathBuf};

use super::Host;
use super::error::RunArgsError;

const BLANKS: [char; 2] = [' ', '\t'];

/// `NAME=VALUE`, or `NAME` alone for the agent's own value.
pub(super) fn variable(text: &str) -> Result<String, String> {
    match text.is_empty() || text.starts_with('=') {
        true => Err("a variable has a name: NAME=VALUE, or NAME for the agent's own value".into()),
        false => Ok(text.to_owned()),
    }
}

pub(super) fn label(text: &str) -> Result<String, String> {
    let (name, _) = text.split_once('=').unwrap_or((text, ""));
    let name = name.trim_start_matches(BLANKS);
    match name.is_empty() || name.contains(BLANKS) {
        true => Err("a label has a name without blanks: NAME=VALUE".into()),
        false => Ok(text.to_owned()),
    }
}

/// The files' variables, then those of the command line, of these of a name the last; of all the
/// engine takes the last of a name.
pub(super) fn variables(
    files: &[PathBuf],
    given: &[String],
    host: &Host<'_>,
) -> Result<Vec<String>, RunArgsError> {
    let mut all = Vec::new();
    for file in files {
        for line in lines("--env-file", file, host.cwd)? {
            match (line.contains('='), host.env.get(&line)) {
                (true, _) => all.push(line),
                (false, Some(value)) => all.push(format!("{line}={value}")),
                (false, None) => {}
            }
        }
    }
    let name = |variable: &String| pair(variable).0;
    for (place, variable) in given.iter().enumerate() {
        if given[place + 1..]
            .iter()
            .any(|later| name(later) == name(variable))
        {
            continue;
        }
        all.push(match (variable.contains('='), host.env.get(variable)) {
            (false, Some(value)) => format!("{variable}={value}"),
            // A name alone that is not set here takes the image's variable of that name away.
            _ => variable.clone(),
        });
    }
    Ok(all)
}

/// Names and values; of a name twice the last.
pub(super) fn labels(
    files: &[PathBuf],
    given: &[String],
    host: &Host<'_>,
) -> Result<Vec<(String, String)>, RunArgsError> {
    let mut all = Vec::new();
    for file in files {
        // A name alone is left out there, and has an empty value on the command line.
        let lines = lines("--label-file", file, host.cwd)?;
        all.extend(lines.into_iter().filter(|line| line.contains('=')));
    }
    all.extend_from_slice(given);
    Ok(all.iter().map(|label| pair(label)).collect())
}

pub(super) fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// The lines that are neither empty nor comments.
fn lines(flag: &'static str, file: &Path, cwd: &Path) -> Result<Vec<String>, RunArgsError> {
    let path = cwd.join(file);
    let bytes = super::file::read(flag, &path)?;
    let bad = |line: usize, why: &str| RunArgsError::BadLine {
        flag,
        path: path.clone(),
        line,
        why: why.to_owned(),
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        bad(line, "it is no UTF-8 text")
    })?;
    let mut lines = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim_start_matches(BLANKS);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, _) = line.split_once('=').unwrap_or((line, ""));
        if name.is_empty() {
            return Err(bad(number + 1, "no name before ="));
        }
        if name.contains(BLANKS) {
            return Err(bad(number + 1, "the name has a blank in it"));
        }
        lines.push(line.to_owned());
    }
    Ok(lines)
}
