//! A conda environment on disk: what is in it, and the variables that a program in it has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::console::Console;
use crate::python::requirements::normalise;
use crate::python::settings::{Manager, Settings};
use crate::python::tool::{self, Call};
use crate::python::{Environment, PythonError, Variables};

/// For the scripts that packages want to be run at activation.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn python(prefix: &Path) -> PathBuf {
    prefix.join("bin/python")
}

/// The prefix of an environment that conda made.
pub fn of(env: &Environment, settings: &Settings) -> Option<PathBuf> {
    let prefix = env.python.as_ref()?.parent()?.parent()?;
    let made = settings.manager == Manager::Conda && prefix.join("conda-meta").is_dir();
    made.then(|| prefix.to_owned())
}

/// One package that conda has installed, from its own record of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Record {
    pub name: String,
    #[serde(default)]
    pub version: String,
    /// Its file, and the hash of that.
    #[serde(default)]
    pub url: Option<String>,
    #[serde(default)]
    pub md5: Option<String>,
}

/// What conda has installed in a prefix, by name.
pub fn records(prefix: &Path) -> Vec<Record> {
    let Ok(entries) = std::fs::read_dir(prefix.join("conda-meta")) else {
        return Vec::new();
    };
    let mut records: Vec<Record> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok())
        .collect();
    records.sort();
    records
}

/// The Python packages in these folders that conda has installed, by their normalised names: they are
/// in its list and not in that of pip.
pub fn of_conda(site_packages: &[PathBuf]) -> Vec<String> {
    let entries = site_packages
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten());
    entries
        .filter_map(|entry| {
            let installer = std::fs::read_to_string(entry.path().join("INSTALLER")).ok()?;
            let name = entry.file_name().into_string().ok()?;
            let name = name
                .strip_suffix(".dist-info")?
                .split('-')
                .next()?
                .to_owned();
            (installer.trim() == "conda").then(|| normalise(&name))
        })
        .collect()
}

/// Unpacks what conda-pack has packed, and gives it its new place.
pub(super) async fn unpack(
    archive: &Path,
    prefix: &Path,
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Result<(), PythonError> {
    let failed = |cause: String| PythonError::CondaPackage {
        place: archive.display().to_string(),
        cause,
    };
    std::fs::create_dir_all(prefix).map_err(|e| failed(e.to_string()))?;
    let program = |name: &str| {
        let found = tool::find_program(name, &settings.search_path());
        found.ok_or_else(|| failed(format!("there is no {name} on PATH to unpack it with")))
    };
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    let place = shown(prefix);
    let calls = [
        (
            program("tar")?,
            vec!["-xf".into(), shown(archive), "-C".into(), place],
        ),
        // It is a script for the Python beside it, whose first line has the old place.
        (
            python(prefix),
            vec![shown(&prefix.join("bin/conda-unpack"))],
        ),
    ];
    for (program, args) in calls {
        let call = Call {
            program,
            args,
            env: tool::environment(&settings.environment, variables_of(prefix, settings)),
            dir: "/".into(),
        };
        let finished = tool::run(&call, console, stop).await?;
        if !finished.succeeded() {
            return Err(failed(format!(
                "it can't be unpacked: {}",
                finished.last_lines.join("; ")
            )));
        }
    }
    Ok(())
}

fn variables_of(prefix: &Path, settings: &Settings) -> Variables {
    let inherited = &settings.environment;
    let mut variables = activation(prefix, inherited, None);
    variables.retain(|name, value| inherited.get(name) != Some(value));
    variables
}

/// The variables of an activated environment, but for what its packages' scripts say.
pub fn activation(prefix: &Path, inherited: &Variables, conda: Option<&Path>) -> Variables {
    let mut env = inherited.clone();
    let shown = prefix.to_string_lossy().into_owned();
    // Of one environment in another, the inner one counts.
    let former = env
        .get("CONDA_PREFIX")
        .map(|prefix| Path::new(prefix).join("bin"));
    let path = env.get("PATH").cloned().unwrap_or_default();
    let bin = prefix.join("bin");
    let others = std::env::split_paths(&path)
        .filter(|folder| Some(folder) != former.as_ref() && *folder != bin);
    let all: Vec<PathBuf> = [bin.clone()].into_iter().chain(others).collect();
    // A folder of PATH has no colon in it, or it would not have come out of it.
    if let Ok(path) = std::env::join_paths(all) {
        env.insert("PATH".into(), path.to_string_lossy().into_owned());
    }
    for name in ["VIRTUAL_ENV", "PYTHONHOME"] {
        env.remove(name);
    }
    for (name, value) in [
        ("CONDA_PREFIX", shown.clone()),
        ("CONDA_DEFAULT_ENV", shown.clone()),
        ("CONDA_PROMPT_MODIFIER", format!("({shown}) ")),
        ("CONDA_SHLVL", "1".to_owned()),
    ] {
        env.insert(name.into(), value);
    }
    if let Some(conda) = conda {
        let conda = conda.to_string_lossy().into_owned();
        env.insert("CONDA_EXE".into(), conda);
    }
    env.extend(set_in(prefix));
    env
}

/// What `conda env config vars set` and packages have written down.
fn set_in(prefix: &Path) -> Variables {
    #[derive(Deserialize, Default)]
    struct State {
        #[serde(default)]
        env_vars: BTreeMap<String, String>,
    }
    let mut variables = Variables::new();
    let entries = std::fs::read_dir(prefix.join("etc/conda/env_vars.d"));
    let entries = entries.into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let text = std::fs::read(file).unwrap_or_default();
        let more: Variables = serde_json::from_slice(&text).unwrap_or_default();
        variables.extend(more);
    }
    let state = std::fs::read(prefix.join("conda-meta/state")).unwrap_or_default();
    let state: State = serde_json::from_slice(&state).unwrap_or_default();
    variables.extend(state.env_vars);
    // Its word for one that is to be unset.
    variables.retain(|_, value| value != "***unset***");
    variables
}

/// Runs what packages want to be run at activation, and prints the environment that comes of it.
const SCRIPTS: &str = r#"for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
    [ -r "$script" ] && . "$script" >&2
done
exec env -0"#;

/// `inherited` as `conda run` changes it for a program in this environment.
pub async fn activated(
    prefix: &Path,
    inherited: &Variables,
    conda: Option<&Path>,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Variables, PythonError> {
    let plain = activation(prefix, inherited, conda);
    let scripts = std::fs::read_dir(prefix.join("etc/conda/activate.d"));
    if scripts.map_or(0, Iterator::count) == 0 {
        return Ok(plain);
    }
    let shells = ["/bin/bash", "/usr/bin/bash", "/bin/sh"].map(Path::new);
    let shell = shells.into_iter().find(|shell| tool::is_program(shell));
    let mut command = tokio::process::Command::new(shell.unwrap_or(Path::new("/bin/sh")));
    command
        .args(["-c", SCRIPTS])
        .env_clear()
        .envs(&plain)
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::select! {
        output = tokio::time::timeout(PATIENCE, command.output()) => output,
        () = stop.cancelled() => return Err(PythonError::Stopped),
    };
    let why = match output {
        Err(_) => format!("they did not end within {} s", PATIENCE.as_secs()),
        Ok(Err(error)) => error.to_string(),
        Ok(Ok(output)) if output.status.success() => return Ok(after(&plain, &output.stdout)),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            tool::mask(said.lines().last().unwrap_or("they fail"))
        }
    };
    console.say(format!(
        "Note: the scripts in {}/etc/conda/activate.d can't be run ({why}): going on without the \
         variables that they set.",
        prefix.display()
    ));
    Ok(plain)
}

/// What `env -0` printed, without what the shell itself adds.
fn after(before: &Variables, printed: &[u8]) -> Variables {
    const OF_THE_SHELL: [&str; 4] = ["_", "SHLVL", "PWD", "OLDPWD"];
    let text = String::from_utf8_lossy(printed);
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    let mut env: Variables = pairs
        .filter(|(name, _)| !OF_THE_SHELL.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for name in OF_THE_SHELL {
        if let Some(value) = before.get(name) {
            env.insert(name.into(), value.clone());
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Variables {
        let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn an_environment_takes_the_place_of_the_one_that_was_active() {
        for (inherited, path) in [
            (vars(&[("PATH", "/usr/bin:/bin")]), "/p/bin:/usr/bin:/bin"),
            (
                vars(&[
                    ("PATH", "/opt/conda/bin:/usr/bin"),
                    ("CONDA_PREFIX", "/opt/conda"),
                ]),
                "/p/bin:/usr/bin",
            ),
            (vars(&[]), "/p/bin"),
        ] {
            let env = activation(Path::new("/p"), &inherited, Some(Path::new("/c/bin/conda")));
            assert_eq!(env["PATH"].trim_end_matches(':'), path);
            assert_eq!(env["CONDA_PREFIX"], "/p");
            assert_eq!(env["CONDA_DEFAULT_ENV"], "/p");
            assert_eq!(env["CONDA_EXE"], "/c/bin/conda");
        }
    }

    #[tokio::test]
    async fn scripts_and_variables_of_the_environment_count() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path();
        for folder in ["conda-meta", "etc/conda/activate.d"] {
            std::fs::create_dir_all(prefix.join(folder)).unwrap();
        }
        let state = r#"{"env_vars": {"SET": "1", "GONE": "***unset***"}}"#;
        std::fs::write(prefix.join("conda-meta/state"), state).unwrap();
        let script = "echo noise\nexport DATA=\"$CONDA_PREFIX/share\nx\"\nunset OLD\n";
        std::fs::write(prefix.join("etc/conda/activate.d/a.sh"), script).unwrap();
        let inherited = vars(&[("PATH", "/usr/bin:/bin"), ("OLD", "1"), ("PWD", "/here")]);
        let (console, stop) = (Console::new(|_| ()), CancellationToken::new());
        let env = activated(prefix, &inherited, None, &console, &stop)
            .await
            .unwrap();
        assert_eq!(env["SET"], "1");
        assert_eq!(env["DATA"], format!("{}/share\nx", prefix.display()));
        assert_eq!(env["PWD"], "/here");
        for name in ["OLD", "GONE", "SHLVL", "_"] {
            assert!(!env.contains_key(name), "{name}");
        }
    }
}
