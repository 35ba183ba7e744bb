//! What a run needs before anything is installed: the interpreter, and uv where packages are
//! listed. Runs while the sources are fetched.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::PythonError;
use super::choice;
use super::conda::{self, Conda};
use super::cuda;
use super::fetched;
use super::inherited;
use super::interpreter::{Interpreter, Version, probe};
use super::settings::{Installer, Manager, Settings, SkipVenv};
use super::tool::{find_program, is_program};
use super::uv::{self, Uv};
use crate::console::Console;
use crate::task::Script;

/// What the task is run by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Python,
    /// `bash`, `zsh` or `sh`.
    Shell,
}

impl Language {
    /// From `script.binary`. Anything unknown is taken for Python.
    pub fn of(binary: &str) -> Language {
        match binary.rsplit('/').next() {
            Some("bash" | "zsh" | "sh") => Language::Shell,
            _ => Language::Python,
        }
    }
}

/// What kind of environment the task gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// None: a shell script with no repository and no packages.
    Nothing,
    /// The interpreter as it is, nothing is installed: `CLEARML_AGENT_SKIP_PYTHON_ENV_INSTALL`.
    AsItIs,
    /// Packages go into the interpreter that is there: `CLEARML_AGENT_SKIP_PIP_VENV_INSTALL`.
    Shared,
    /// A virtual environment of its own.
    Own,
}

/// Which kind this task gets.
pub fn kind(script: &Script, settings: &Settings) -> Kind {
    let nothing_listed = ["pip", "conda"]
        .iter()
        .all(|key| script.requirements.text(key).unwrap_or_default().is_empty());
    if Language::of(&script.binary) == Language::Shell
        && script.repository.is_empty()
        && nothing_listed
    {
        return Kind::Nothing;
    }
    if settings.skip_python_env || prepared(settings).is_some() {
        return Kind::AsItIs;
    }
    if settings.skip_venv != SkipVenv::No || takes_over_activated_venv(settings) {
        return Kind::Shared;
    }
    Kind::Own
}

/// The interpreter of an environment that was built beforehand for `--standalone-mode`: that of the
/// newest Python, where there are several.
fn prepared(settings: &Settings) -> Option<PathBuf> {
    let mut found: Vec<((u32, u32), PathBuf)> = std::fs::read_dir(settings.standalone.as_ref()?)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (major, minor) = name.split_once('.')?;
            let python = entry.path().join("bin/python");
            let version = (major.parse().ok()?, minor.parse().ok()?);
            is_program(&python).then_some((version, python))
        })
        .collect();
    found.sort();
    found.pop().map(|(_, python)| python)
}

/// In a container whose image has an activated environment, an environment of its own could
/// inherit only from the base interpreter and would not see the image's packages.
fn takes_over_activated_venv(settings: &Settings) -> bool {
    settings.use_activated_venv
        && settings.system_site_packages
        && settings.variable("VIRTUAL_ENV").is_some()
        && settings.variable("CLEARML_DOCKER_IMAGE").is_some()
}

/// The tools found for one task.
#[derive(Debug, Clone)]
pub struct Tools {
    pub kind: Kind,
    /// `None` where no Python is needed at all, or conda brings it.
    pub interpreter: Option<Interpreter>,
    /// `None`: not looked for yet or not found; then the reason.
    pub uv: Option<Uv>,
    pub(super) uv_missing: Option<String>,
    /// The CUDA that packages are for.
    pub cuda: Option<cuda::Version>,
    /// What makes the environment, and its interpreter with it.
    pub conda: Option<Conda>,
}

/// Finds the interpreter, and uv (fetched if need be) where the task lists packages.
pub async fn find_tools(
    script: &Script,
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Tools, PythonError> {
    let kind = kind(script, settings);
    let mut tools = Tools {
        kind,
        interpreter: None,
        uv: None,
        uv_missing: None,
        cuda: None,
        conda: None,
    };
    if kind == Kind::Nothing {
        return Ok(tools);
    }
    let known = script.binary.is_empty()
        || Language::of(&script.binary) == Language::Shell
        || script.binary.contains("python");
    if !known {
        console.say(format!(
            "Note: the task's binary is {:?}, which is no Python and no shell: running it with \
             Python.",
            script.binary
        ));
    }
    for note in &settings.notes {
        console.say(format!("Note: {note}"));
    }
    let lists_packages = kind != Kind::AsItIs
        && script
            .requirements
            .text("pip")
            .is_some_and(|text| has_lines(&text));
    let look_for_uv = async {
        let offline = settings.standalone.is_some();
        if !lists_packages || offline || settings.installer == Installer::Pip {
            return None;
        }
        Some(uv::find_or_fetch(settings, console, stop).await)
    };
    let look_for_cuda = async {
        match kind {
            Kind::AsItIs | Kind::Nothing => None,
            Kind::Own | Kind::Shared => cuda::version(settings.cuda).await,
        }
    };
    let by_conda =
        settings.manager == Manager::Conda && kind == Kind::Own && settings.standalone.is_none();
    let look_for_python = async {
        match by_conda {
            true => {
                let conda = conda::find(settings).await.map_err(PythonError::NoConda)?;
                Ok(Choice::Conda(conda))
            }
            false => interpreter(script, kind, settings, console).await,
        }
    };
    let (interpreter, uv, cuda) = tokio::select! {
        found = async { tokio::join!(look_for_python, look_for_uv, look_for_cuda) } => found,
        () = stop.cancelled() => return Err(PythonError::Stopped),
    };
    tools.cuda = cuda;
    match uv {
        None => {}
        Some(Ok(uv)) => tools.uv = Some(uv),
        Some(Err(reason)) => tools.uv_missing = Some(reason),
    }
    tools.interpreter = Some(match interpreter? {
        Choice::Conda(conda) => {
            tools.conda = Some(conda);
            return Ok(tools);
        }
        Choice::Found(found) => found,
        Choice::Missing {
            wish,
            version,
            instead,
        } => match fetched::fetch(version, &tools, settings, console, stop).await? {
            Ok(found) => {
                if let Some(note) = choice::other_patch(&wish, &found) {
                    console.say(note);
                }
                found
            }
            Err(why) => stand_in(instead, &why, console)?,
        },
    });
    if kind == Kind::Own
        && settings.system_site_packages
        && let Some(found) = &mut tools.interpreter
    {
        found.site_packages = inherited::folders(found, settings).await;
    }
    Ok(tools)
}

/// What came of looking for an interpreter.
enum Choice {
    /// It comes with the environment.
    Conda(Conda),
    Found(Interpreter),
    /// The version that is asked for is not here; what could be used in its place.
    Missing {
        wish: choice::Wish,
        version: Version,
        instead: Result<(Interpreter, Option<String>), PythonError>,
    },
}

/// The one that is used where the right one can't be had; `why` it can't.
fn stand_in(
    instead: Result<(Interpreter, Option<String>), PythonError>,
    why: &str,
    console: &Console,
) -> Result<Interpreter, PythonError> {
    match instead {
        Ok((found, note)) => {
            let note = note.unwrap_or_default();
            console.say(format!("{note} uv can't get it: {why}."));
            Ok(found)
        }
        Err(PythonError::NoInterpreter { wanted, tried }) => Err(PythonError::NoInterpreter {
            wanted,
            tried: format!("{tried} uv can't get one: {why}."),
        }),
        Err(other) => Err(other),
    }
}

/// Whether a list is more than remarks.
fn has_lines(list: &str) -> bool {
    let mut lines = list.lines().map(str::trim);
    lines.any(|line| !line.is_empty() && !line.starts_with('#'))
}

async fn interpreter(
    script: &Script,
    kind: Kind,
    settings: &Settings,
    console: &Console,
) -> Result<Choice, PythonError> {
    let named: Option<String> = match (&settings.skip_venv, kind) {
        (SkipVenv::Into(program), _) => Some(program.clone()),
        (SkipVenv::No, Kind::Shared) => Some("python".into()),
        _ => None,
    };
    if let Some(python) = prepared(settings)
        && let Ok(found) = probe(&python, &settings.environment, &settings.cache).await
    {
        console.say(format!(
            "Environment: {}, which was built beforehand",
            python.display()
        ));
        return Ok(Choice::Found(found));
    }
    if let Some(program) = named {
        let path = match program.contains('/') {
            true => Some(PathBuf::from(&program)),
            false => find_program(&program, &settings.search_path()),
        };
        let found = match path {
            Some(path) => probe(&path, &settings.environment, &settings.cache).await,
            None => Err("not on PATH".into()),
        };
        match found {
            Ok(found) => return Ok(Choice::Found(found)),
            Err(reason) => console.say(format!(
                "Note: {program} (CLEARML_AGENT_SKIP_PIP_VENV_INSTALL) can't be used: {reason}. \
                 Looking for another Python."
            )),
        }
    }
    let wish = choice::wish(&script.binary, settings);
    let instead = choice::choose(&script.binary, settings).await;
    if kind == Kind::Own
        && let Some(version) = choice::missing(&wish, &instead)
    {
        return Ok(Choice::Missing {
            wish,
            version,
            instead,
        });
    }
    let (found, note) = instead?;
    if let Some(note) = note {
        console.say(note);
    }
    Ok(Choice::Found(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn script(binary: &str, repository: &str, packages: &str) -> Script {
        serde_json::from_value(json!({
            "binary": binary, "repository": repository, "requirements": {"pip": packages},
        }))
        .unwrap()
    }

    #[test]
    fn a_list_of_remarks_needs_no_installer() {
        for (list, expected) in [
            ("", false),
            ("# Python 3.11\n\n  # clearml\n", false),
            ("# Python 3.11\nsix == 1.16.0\n", true),
        ] {
            assert_eq!(has_lines(list), expected, "{list}");
        }
    }

    #[test]
    fn which_environment_a_task_gets() {
        let plain = Settings::default();
        let skip_venv = Settings {
            skip_venv: SkipVenv::Yes,
            ..Settings::default()
        };
        let skip_all = Settings {
            skip_python_env: true,
            ..skip_venv.clone()
        };
        let mut activated = Settings {
            system_site_packages: true,
            ..Settings::default()
        };
        for name in ["VIRTUAL_ENV", "CLEARML_DOCKER_IMAGE"] {
            activated.environment.insert(name.into(), "x".into());
        }
        for (binary, repository, packages, settings, expected) in [
            ("python3.11", "", "", &plain, Kind::Own),
            ("", "https://h/r", "six", &plain, Kind::Own),
            ("/bin/bash", "", "", &plain, Kind::Nothing),
            ("bash", "https://h/r", "", &plain, Kind::Own),
            ("bash", "", "six", &plain, Kind::Own),
            ("bash", "", "", &skip_all, Kind::Nothing),
            ("python3", "", "six", &skip_venv, Kind::Shared),
            ("python3", "", "six", &skip_all, Kind::AsItIs),
            ("python3", "", "six", &activated, Kind::Shared),
        ] {
            let script = script(binary, repository, packages);
            assert_eq!(
                kind(&script, settings),
                expected,
                "{binary} {repository} {packages}"
            );
        }
    }
}
