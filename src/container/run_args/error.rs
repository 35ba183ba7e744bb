//! What can be wrong with `docker run` flags, in words for the person who wrote them: each names the
//! flag, and says what to write instead where that can be known.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum RunArgsError {
    #[error("docker arguments: unbalanced quotes in {text:?}; write them as in a shell")]
    Unbalanced { text: String },
    #[error("docker arguments: {flag} is no flag of docker run; `docker run --help` lists them")]
    UnknownFlag { flag: String },
    #[error(
        "docker arguments: {word:?} belongs to no flag (docker would take it for the image); \
         a value with blanks needs quotes, and a flag that is on or off takes its value as {}",
        after.as_deref().map_or("--flag=false".to_owned(), |flag| format!("{flag}=false"))
    )]
    NoFlag { word: String, after: Option<String> },
    #[error("docker arguments: {flag} needs a value")]
    NoValue { flag: String },
    /// The value is left out where it may be a secret.
    #[error(
        "docker arguments: {flag}{}: {why}",
        value.as_deref().map_or(String::new(), |value| format!(" {value:?}"))
    )]
    BadValue {
        flag: String,
        value: Option<String>,
        why: String,
    },
    #[error("docker arguments: {flag} can't be used: {why}")]
    Refused { flag: String, why: &'static str },
    #[error("docker arguments: {flag} and {other}: {why}")]
    Conflict {
        flag: &'static str,
        other: &'static str,
        why: &'static str,
    },
    #[error("docker arguments: {flag}: {}: {source}", path.display())]
    File {
        flag: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("docker arguments: {flag}: {}, line {line}: {why}", path.display())]
    BadLine {
        flag: &'static str,
        path: PathBuf,
        line: usize,
        why: String,
    },
    #[error(
        "docker arguments: {flag} needs a Docker Engine with API {}.{} or later; this one has {}.{}",
        needs.0, needs.1, has.0, has.1
    )]
    OldEngine {
        flag: &'static str,
        needs: ApiVersion,
        has: ApiVersion,
    },
}

/// A version of the Docker Engine's API: `1.41` is `(1, 41)`.
pub type ApiVersion = (usize, usize);

impl RunArgsError {
    /// A value that docker would refuse too.
    pub(super) fn bad(flag: &str, value: &str, why: impl Into<String>) -> RunArgsError {
        RunArgsError::BadValue {
            flag: flag.to_owned(),
            // `-e NAME=VALUE` and its like hold passwords.
            value: (flag != "--env").then(|| value.to_owned()),
            why: why.into(),
        }
    }
}
