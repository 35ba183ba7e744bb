//! What an environment that sees the system's packages inherits: where those are, and which of the
//! list's pins they satisfy already.
//!
//! uv does not look there: it would install everything anew, and what needs such a package in whatever
//! version is newest. pip looks, and would install a newer one over it where another package asks for
//! that. So the versions that are used as they are bind whatever is installed beside them.

use std::path::PathBuf;

use super::freeze::Package;
use super::interpreter::{Interpreter, probe};
use super::requirements::{Line, List, normalise};
use super::settings::Settings;

/// The folders that an environment made from this interpreter inherits from, the first that has a
/// package counting.
pub(super) async fn folders(interpreter: &Interpreter, settings: &Settings) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let of_user = settings.variable("PYTHONNOUSERSITE").is_none();
    let base = match settings.variable("PYTHONUSERBASE") {
        Some(base) => Some(PathBuf::from(base)),
        None => settings.home.as_ref().map(|home| home.join(".local")),
    };
    if let Some(base) = base.filter(|_| of_user) {
        folders.push(
            base.join(interpreter.library_folder())
                .join("site-packages"),
        );
    }
    // Nothing is inherited from a virtual environment, but from what it was made from.
    let program = &interpreter.base_executable;
    let base = match interpreter.in_venv {
        true => probe(program, &settings.environment, &settings.cache)
            .await
            .ok(),
        false => None,
    };
    let of_system = base.as_ref().unwrap_or(interpreter).site_packages.iter();
    folders.extend(of_system.cloned());
    folders
}

/// Takes out of the list what is there in the very version, which need not be on any index. Gives
/// those pins.
pub(super) fn take_out(list: &mut List, there: &[Package]) -> Vec<(String, String)> {
    let mut held = Vec::new();
    list.lines.retain(|line| {
        let Line::Package {
            name,
            pin: Some(pin),
            ..
        } = line
        else {
            return true;
        };
        let same = there
            .iter()
            .any(|package| normalise(&package.name) == *name && package.version == *pin);
        if same {
            held.push((name.clone(), pin.clone()));
        }
        !same
    });
    held
}

/// What is installed must fit these versions: a file of constraints.
pub(super) fn constraints(held: &[(String, String)]) -> String {
    let line = |(name, version): &(String, String)| format!("{name}=={version}\n");
    held.iter().map(line).collect()
}

/// These packages are wanted by nobody: a file of overrides for uv.
pub(super) fn passed_over(held: &[(String, String)]) -> String {
    let line = |(name, _): &(String, String)| format!("{name} ; sys_platform == 'never'\n");
    held.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::Variables;
    use crate::python::freeze::Source;
    use crate::python::requirements::{Reading, parse};
    use std::path::Path;

    #[test]
    fn what_is_there_in_the_very_version_is_held() {
        let there = [("Six", "1.15.0"), ("torch", "2.1.0a0+nv")].map(|(name, version)| Package {
            name: name.into(),
            version: version.into(),
            source: Source::Index,
        });
        let reading = Reading {
            origin: "test",
            folder: Path::new("/c"),
            root: Path::new("/c"),
            env: &Variables::new(),
            original: None,
        };
        for (text, left, held) in [
            ("six==1.15.0\nother", "other\n", "six==1.15.0\n"),
            ("six==1.16.0", "six==1.16.0\n", ""),
            ("six>=1.15.0", "six>=1.15.0\n", ""),
        ] {
            let mut list = parse(text, &reading).unwrap();
            let found = take_out(&mut list, &there);
            assert_eq!(
                (&*list.file(), &*constraints(&found)),
                (left, held),
                "{text}"
            );
        }
    }
}
