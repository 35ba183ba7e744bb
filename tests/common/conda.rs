//! A conda installation with a stand-in for the program (`conda.py` says what it does): conda can't be
//! had from the package indexes that tests may use.

#![allow(dead_code, reason = "each test file uses its part")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

pub struct CondaStandIn {
    root: tempfile::TempDir,
    pub program: PathBuf,
}

impl CondaStandIn {
    /// `name`: `conda` or `micromamba`; `packages`: what its channels have, by name.
    pub fn new(name: &str, packages: Value) -> CondaStandIn {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("bin").join(name);
        std::fs::create_dir(root.path().join("bin")).unwrap();
        let text = include_str!("conda.py");
        let text = format!("#!{}\n{text}", python().display());
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(root.path().join("channel.json"), packages.to_string()).unwrap();
        CondaStandIn { root, program }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The variable that names it.
    pub fn variable(&self) -> (String, String) {
        let name = match self.program.ends_with("conda") {
            true => "CONDA_EXE",
            false => "MAMBA_EXE",
        };
        (name.into(), self.program.to_string_lossy().into_owned())
    }

    /// How it was called so far.
    pub fn calls(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.root.path().join("calls.jsonl"));
        let text = text.unwrap_or_default();
        let calls = text.lines().map(|line| serde_json::from_str(line).unwrap());
        calls.collect()
    }

    /// The packages that each call with a file asked for, beside the Python and pip.
    pub fn asked_for(&self) -> Vec<String> {
        let calls = self.calls();
        let files = calls.iter().filter_map(|call| call.get("file"));
        let asked = files.map(|file| {
            let specs = file["dependencies"].as_array().unwrap().iter();
            let specs = specs.filter_map(Value::as_str);
            let specs = specs.filter(|spec| !spec.starts_with("python=") && *spec != "pip");
            specs.collect::<Vec<_>>().join(" ")
        });
        asked.filter(|specs| !specs.is_empty()).collect()
    }

    /// An environment of its own, made as a user would make it.
    pub fn environment(&self, folder: &Path) {
        let output = Command::new(&self.program)
            .args(["create", "--yes", "--prefix"])
            .arg(folder)
            .args(["python=3", "pip"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

/// A Python of this machine by its own path.
pub fn python() -> PathBuf {
    let code =
        "import os, sys; print(os.path.realpath(getattr(sys, '_base_executable', sys.executable)))";
    let output = Command::new("python3").args(["-c", code]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// `3.11`
pub fn python_version() -> String {
    let code = "import sys; print('%d.%d' % sys.version_info[:2])";
    let output = Command::new(python()).args(["-c", code]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
