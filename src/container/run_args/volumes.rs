//! `-v` and `--tmpfs`. `--mount` is in [`super::mount`].

use std::path::{Component, Path, PathBuf};

/// `-v`: a named volume or a folder of the host, with modes; or a path alone, for a new volume there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    /// A path on the host (it begins with `/` or `.`), or a volume's name.
    source: Option<String>,
    /// `TARGET[:MODES]`, or the path in the container alone.
    rest: String,
}

pub(super) fn volume(text: &str) -> Result<Volume, String> {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err("expected [SOURCE:]TARGET[:MODES]".into());
    }
    match parts.as_slice() {
        [_] => Ok(Volume {
            source: None,
            rest: text.to_owned(),
        }),
        [_, _] | [_, _, _] => {
            let (source, rest) = text.split_once(':').unwrap_or((text, ""));
            if !parts[1].starts_with('/') {
                return Err(format!("{:?} is no absolute path", parts[1]));
            }
            if source.starts_with('~') {
                return Err("no shell replaces ~ here; write the whole path".into());
            }
            if source.len() == 1 && source != "/" && source != "." {
                return Err("the name of a volume has two letters or more".into());
            }
            Ok(Volume {
                source: Some(source.to_owned()),
                rest: rest.to_owned(),
            })
        }
        _ => Err("too many colons; expected [SOURCE:]TARGET[:MODES]".into()),
    }
}

impl Volume {
    /// For the engine's `Binds`; `None` for a new volume without a name.
    pub fn bind(&self, cwd: &Path) -> Option<String> {
        let source = self.source.as_deref()?;
        let source = match source.starts_with('.') {
            true => absolute(source, cwd),
            false => source.to_owned(),
        };
        Some(format!("{source}:{}", self.rest))
    }

    /// The path in the container of a new volume without a name.
    pub fn anonymous(&self) -> Option<&str> {
        match self.source {
            None => Some(&self.rest),
            Some(_) => None,
        }
    }
}

pub(super) fn tmpfs(text: &str) -> Result<String, String> {
    match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err("expected an absolute path, with options after a colon".into()),
    }
}

/// `path` from `cwd` on, with no `.` or `..` left in it.
pub(super) fn absolute(path: &str, cwd: &Path) -> String {
    let mut clean = PathBuf::from("/");
    for part in cwd.join(path).components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    clean.to_string_lossy().into_owned()
}
