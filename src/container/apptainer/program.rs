//! The program that runs containers: `apptainer`, else `singularity`, on the agent's `PATH`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::Variables;
use crate::container::error::ContainerError;

/// One that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    pub brand: Brand,
    /// As it says it: `apptainer version 1.4.5`.
    pub version: String,
}

/// By whose name its variables are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brand {
    Apptainer,
    Singularity,
}

impl Brand {
    /// Before the name of a variable that is for the container.
    pub fn inside_prefix(self) -> &'static str {
        match self {
            Brand::Apptainer => "APPTAINERENV_",
            Brand::Singularity => "SINGULARITYENV_",
        }
    }

    /// `singularity` may be Apptainer's own link of that name.
    fn of_version(version: &str) -> Brand {
        match version.to_lowercase().starts_with("apptainer") {
            true => Brand::Apptainer,
            false => Brand::Singularity,
        }
    }
}

/// Finds it and asks for its version.
pub async fn find(env: &Variables) -> Result<Program, ContainerError> {
    let path = env.get("PATH").map(String::as_str).unwrap_or_default();
    let found = ["apptainer", "singularity"]
        .into_iter()
        .find_map(|name| on_path(name, path));
    let path = found.ok_or(ContainerError::NoApptainer)?;
    let broken = |cause: String| ContainerError::ApptainerBroken {
        program: path.display().to_string(),
        cause,
    };
    let answer = tokio::process::Command::new(&path)
        .arg("--version")
        .env_clear()
        .envs(env)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let answer = answer.await.map_err(|error| broken(error.to_string()))?;
    if !answer.status.success() {
        let said = String::from_utf8_lossy(&answer.stderr);
        let last = said.lines().next_back().unwrap_or_default().trim();
        return Err(broken(format!(
            "--version ended with {}: {last}",
            answer.status
        )));
    }
    let version = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    Ok(Program {
        brand: Brand::of_version(&version),
        path,
        version,
    })
}

fn on_path(name: &str, path: &str) -> Option<PathBuf> {
    let runs = |file: &PathBuf| {
        std::fs::metadata(file)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    path.split(':')
        .filter(|folder| !folder.is_empty())
        .map(|folder| Path::new(folder).join(name))
        .find(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_variables_are_called_by_its_own_name() {
        for (version, brand) in [
            ("apptainer version 1.4.5", Brand::Apptainer),
            ("singularity-ce version 3.11.4", Brand::Singularity),
            ("singularity version 3.8.7", Brand::Singularity),
        ] {
            assert_eq!(Brand::of_version(version), brand, "{version}");
        }
    }

    #[test]
    fn apptainer_comes_before_singularity_and_must_be_a_program() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, mode| {
            let file = dir.path().join(name);
            std::fs::write(&file, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            file
        };
        let path = format!("/nowhere::{}", dir.path().display());
        make("apptainer", 0o644);
        assert_eq!(on_path("apptainer", &path), None);
        let program = make("apptainer", 0o755);
        assert_eq!(on_path("apptainer", &path), Some(program));
    }
}
