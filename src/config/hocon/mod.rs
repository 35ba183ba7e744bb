//! HOCON, the language of `clearml.conf`, as users' files have it. Answers are those of the parser
//! that the ClearML SDK uses, so that one file means the same to the agent and to the job; where that
//! parser fails or guesses (`+=` on a list, a key without a value), the HOCON specification or an
//! error takes its place. Errors name file, line and column, and show the line.

mod definition;
mod parse;
mod resolve;
mod scalar;
mod source;
mod value;

use std::collections::BTreeMap;
use std::path::Path;

pub use source::SyntaxError;
pub use value::{Object, Value};

use source::Source;

/// Why a file could not be made into values.
#[derive(Debug, thiserror::Error)]
pub enum HoconError {
    #[error(transparent)]
    Syntax(#[from] Box<SyntaxError>),
    #[error("cannot read {path}: {cause}")]
    Unreadable { path: String, cause: String },
}

/// Reads a file with all that it includes; `${NAME}` that is no key is looked up in `env`.
pub fn parse_file(path: &Path, env: &BTreeMap<String, String>) -> Result<Object, HoconError> {
    let text = source::read(path)?;
    let source = Source::new(path.display().to_string(), text);
    let fields = parse::parse(source, path.parent())?;
    Ok(resolve::resolve(fields, env)?)
}

/// Reads a text that is not in a file; `name` stands for it in errors.
pub fn parse_text(
    name: &str,
    text: &str,
    env: &BTreeMap<String, String>,
) -> Result<Object, HoconError> {
    let fields = parse::parse(Source::new(name.to_owned(), text.to_owned()), None)?;
    Ok(resolve::resolve(fields, env)?)
}

#[cfg(test)]
mod tests;
