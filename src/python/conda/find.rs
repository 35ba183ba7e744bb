//! Where conda is on this machine, and which Pythons its environments have. A look at files; only
//! [`find`] starts a program, to ask its version.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::python::Variables;
use crate::python::interpreter::Version;
use crate::python::settings::Settings;
use crate::python::tool::{self, find_program, is_program};

/// conda is written in Python, and slow to start from a network disk.
const PATIENCE: Duration = Duration::from_secs(60);
/// The Python agent's own bound.
const OLDEST: (u32, u32, u32) = (4, 3, 30);

/// Whose arguments it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// conda, and mamba before 2.
    Conda,
    /// micromamba, and mamba from 2 on.
    Micromamba,
}

/// The program that makes environments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conda {
    pub program: PathBuf,
    /// `conda`, `mamba` or `micromamba`.
    pub name: &'static str,
    pub version: String,
    pub dialect: Dialect,
}

impl Conda {
    /// The prefix of the installation: `…/bin/conda` and `…/condabin/conda` are in it.
    pub fn base(&self, settings: &Settings) -> Option<PathBuf> {
        let real = self.program.canonicalize().ok();
        let of_program = real.iter().chain([&self.program]);
        let of_program = of_program.filter_map(|path| Some(path.parent()?.parent()?.to_owned()));
        let named = settings.variable("MAMBA_ROOT_PREFIX").map(PathBuf::from);
        of_program
            .chain(named)
            .find(|prefix| prefix.join("conda-meta").is_dir())
    }
}

/// The first one that works: conda, and where there is none mamba, then micromamba. The error says
/// what was found in its place.
pub async fn find(settings: &Settings) -> Result<Conda, String> {
    let mut passed_over = Vec::new();
    for (name, path) in candidates(settings) {
        match version_of(&path, &settings.environment).await {
            Ok((text, numbers)) if name == "conda" && numbers < OLDEST => {
                passed_over.push(format!("{} is version {text}: too old", path.display()));
            }
            Ok((version, numbers)) => {
                let dialect = match name {
                    "micromamba" => Dialect::Micromamba,
                    "mamba" if numbers.0 >= 2 => Dialect::Micromamba,
                    _ => Dialect::Conda,
                };
                return Ok(Conda {
                    program: path,
                    name,
                    version,
                    dialect,
                });
            }
            Err(why) => passed_over.push(format!("{}: {why}", path.display())),
        }
    }
    Err(match passed_over.is_empty() {
        true => {
            "no conda, mamba or micromamba is on PATH, named by CONDA_EXE, or in a usual folder"
                .into()
        }
        false => passed_over.join("; "),
    })
}

fn candidates(settings: &Settings) -> Vec<(&'static str, PathBuf)> {
    let mut found = Vec::new();
    for (name, variable) in [
        ("conda", "CONDA_EXE"),
        ("mamba", "MAMBA_EXE"),
        ("micromamba", "MAMBA_EXE"),
    ] {
        let named = settings.variable(variable).map(PathBuf::from);
        // MAMBA_EXE is micromamba's variable as well.
        let named = named.filter(|path| path.file_name().is_some_and(|file| file == name));
        let on_path = find_program(name, &settings.search_path());
        let usual = installations(settings)
            .into_iter()
            .flat_map(|root| ["condabin", "bin"].map(|folder| root.join(folder).join(name)));
        let of_user = settings
            .home
            .iter()
            .map(|home| home.join(".local/bin").join(name));
        let all = named.into_iter().chain(on_path).chain(usual).chain(of_user);
        let mut all: Vec<PathBuf> = all.filter(|path| is_program(path)).collect();
        all.dedup();
        found.extend(all.into_iter().map(|path| (name, path)));
    }
    found
}

/// Where conda is usually installed, and where variables say that it is.
fn installations(settings: &Settings) -> Vec<PathBuf> {
    const NAMES: [&str; 8] = [
        "miniforge3",
        "mambaforge",
        "miniconda3",
        "miniconda",
        "anaconda3",
        "anaconda",
        "micromamba",
        "conda",
    ];
    let mut roots = Vec::new();
    if let Some(program) = settings.variable("CONDA_EXE").map(Path::new) {
        roots.extend(program.parent().and_then(Path::parent).map(Path::to_owned));
    }
    for name in ["CONDA_ROOT", "MAMBA_ROOT_PREFIX"] {
        roots.extend(settings.variable(name).map(PathBuf::from));
    }
    let folders = settings.home.iter().map(PathBuf::as_path);
    for folder in folders.chain([Path::new("/opt")]) {
        roots.extend(NAMES.map(|name| folder.join(name)));
    }
    let mut unique = Vec::new();
    roots.retain(|root| {
        let new = !unique.contains(root) && root.is_dir();
        unique.push(root.clone());
        new
    });
    roots
}

async fn version_of(
    program: &Path,
    inherited: &Variables,
) -> Result<(String, (u32, u32, u32)), String> {
    let mut command = tokio::process::Command::new(program);
    command
        .arg("--version")
        .env_clear()
        .envs(tool::environment(inherited, Variables::new()))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => return Err(format!("no answer within {} s", PATIENCE.as_secs())),
        Ok(output) => output.map_err(|e| e.to_string())?,
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // Old ones say it there.
    let also = String::from_utf8_lossy(&output.stderr).into_owned();
    version_in(&said)
        .or_else(|| version_in(&also))
        .filter(|_| output.status.success())
        .ok_or_else(|| format!("`--version` says no version ({})", output.status))
}

/// The first version in a text: `conda 24.1.2`, `1.5.8`.
fn version_in(text: &str) -> Option<(String, (u32, u32, u32))> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.split('.').map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u32>().ok()
        });
        let (major, minor) = (parts.next()??, parts.next()??);
        let patch = parts.next().flatten().unwrap_or_default();
        Some((word.to_owned(), (major, minor, patch)))
    })
}

/// The Pythons of conda's environments, by what the environments say of themselves.
pub fn pythons(settings: &Settings) -> Vec<(PathBuf, Version)> {
    let mut prefixes = Vec::new();
    for root in installations(settings) {
        prefixes.extend(folders_in(&root.join("envs")));
        prefixes.push(root);
    }
    for name in ["CONDA_ENVS_PATH", "CONDA_ENVS_DIRS"] {
        let folders = settings.variable(name).map(std::env::split_paths);
        prefixes.extend(folders.into_iter().flatten().flat_map(|f| folders_in(&f)));
    }
    if let Some(home) = &settings.home {
        prefixes.extend(folders_in(&home.join(".conda/envs")));
        // conda writes down each environment that it makes, wherever that is.
        let known = std::fs::read_to_string(home.join(".conda/environments.txt"));
        let known = known.unwrap_or_default();
        let lines = known.lines().map(str::trim);
        prefixes.extend(lines.filter(|line| !line.is_empty()).map(PathBuf::from));
    }
    let mut unique = Vec::new();
    let found = |prefix: PathBuf| {
        if unique.contains(&prefix) {
            return None;
        }
        unique.push(prefix.clone());
        let version = python_of(&prefix)?;
        let path = prefix.join(format!("bin/python{version}"));
        is_program(&path).then_some((path, version))
    };
    prefixes.into_iter().filter_map(found).collect()
}

/// From the record of the package: `conda-meta/python-3.11.7-h955ad1f_0.json`.
fn python_of(prefix: &Path) -> Option<Version> {
    let entries = std::fs::read_dir(prefix.join("conda-meta")).ok()?;
    entries.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let rest = name.strip_suffix(".json")?.strip_prefix("python-")?;
        let version = Version::parse(rest.split('-').next()?)?;
        version.minor.is_some().then_some(version)
    })
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_the_programs() {
        for (said, expected) in [
            ("conda 24.1.2\n", Some((24, 1, 2))),
            ("conda 4.3.9.post1", Some((4, 3, 9))),
            ("1.5.8\n", Some((1, 5, 8))),
            ("mamba 1.5.8\nconda 23.11.0\n", Some((1, 5, 8))),
            ("2.0.5", Some((2, 0, 5))),
            ("usage: conda", None),
        ] {
            let found = version_in(said).map(|(_, numbers)| numbers);
            assert_eq!(found, expected, "{said}");
        }
    }

    #[test]
    fn an_environment_says_which_python_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let meta = dir.path().join("conda-meta");
        std::fs::create_dir(&meta).unwrap();
        for name in [
            "python-dateutil-2.8.2-pyhd8ed1ab_0.json",
            "python_abi-3.12-2_cp312.json",
            "history",
        ] {
            std::fs::write(meta.join(name), "").unwrap();
        }
        assert_eq!(python_of(dir.path()), None);
        std::fs::write(meta.join("python-3.11.7-h955ad1f_0.json"), "").unwrap();
        assert_eq!(python_of(dir.path()), Version::parse("3.11.7"));
    }
}
