//! The Python side of a run alone, from the task to what it installed, with real Pythons, uv, pip
//! and the configured package index.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use clearml_agent::console::Console;
use clearml_agent::python::install::Code;
use clearml_agent::python::{
    Environment, Installed, PythonError, Settings, Variables, create, find_tools, install,
};
use clearml_agent::task::Script;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// One run's Python side, from the task to what it installed.
pub struct Bench {
    pub dir: Arc<tempfile::TempDir>,
    pub settings: Settings,
    /// The address of the task's repository.
    pub repository_url: String,
    pub said: Arc<Mutex<Vec<String>>>,
    pub stop: CancellationToken,
}

#[must_use]
#[derive(Debug)]
pub struct Done {
    /// Keeps the files until the test is over.
    _bench: Arc<tempfile::TempDir>,
    pub env: Environment,
    pub installed: Installed,
}

impl Bench {
    /// As a user's machine is, but with a home and caches of its own, and no kept environments.
    pub fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut env: Variables = std::env::vars().collect();
        for name in ["UV_CACHE_DIR", "CLEARML_BOOTSTRAP_UV_EXEC", "VIRTUAL_ENV"] {
            env.remove(name);
        }
        let mut settings = Settings::from_lookup(&|_| None, &env).unwrap();
        settings.cache = shared_cache();
        settings.uv_program = uv_of_this_machine();
        Bench {
            dir: Arc::new(dir),
            settings,
            repository_url: "https://h/r.git".to_owned(),
            said: Arc::default(),
            stop: CancellationToken::new(),
        }
    }

    pub fn console(&self) -> Console {
        let said = self.said.clone();
        Console::new(move |line| said.lock().unwrap().push(line.to_owned()))
    }

    pub fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    pub fn repository(&self) -> PathBuf {
        let path = self.dir.path().join("repository");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn file(&self, path: &str, text: &str) {
        let path = self.repository().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub async fn run(&self, binary: &str, requirements: Value) -> Result<Done, PythonError> {
        let script: Script = serde_json::from_value(json!({
            "binary": binary, "entry_point": "main.py", "repository": self.repository_url,
            "requirements": requirements,
        }))
        .unwrap();
        let (console, stop) = (self.console(), &self.stop);
        let root = self.repository();
        let tools = find_tools(&script, &self.settings, &console, stop).await?;
        let folder = self.dir.path().join("venv");
        let env = create(&tools, &script, &folder, &self.settings, &console, stop).await?;
        let code = Code {
            repository: Some(&root),
            working_dir: &root,
            entry_point: &script.entry_point,
        };
        let installed =
            install(&env, &tools, &script, &code, &self.settings, &console, stop).await?;
        Ok(Done {
            _bench: self.dir.clone(),
            env,
            installed,
        })
    }

    pub async fn runs(&self, binary: &str, requirements: Value) -> Done {
        match self.run(binary, requirements).await {
            Ok(done) => done,
            Err(error) => panic!("{error}\n--- said:\n{}", self.said()),
        }
    }

    pub async fn fails(&self, requirements: Value) -> PythonError {
        match self.run("", requirements).await {
            Ok(done) => panic!("{done:?}\n--- said:\n{}", self.said()),
            Err(error) => error,
        }
    }
}

impl Done {
    /// What the environment's Python prints.
    pub fn python(&self, code: &str) -> String {
        let python = self.env.python.as_ref().unwrap();
        let output = Command::new(python)
            .args(["-c", code])
            .env_remove("PYTHONPATH")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(
            output.status.success(),
            "{code}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    pub fn recorded(&self) -> Value {
        serde_json::to_value(self.installed.requirements_to_record.as_ref().unwrap()).unwrap()
    }
}

/// uv's cache and a fetched uv are kept between the tests, as between the runs of an agent.
pub fn shared_cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-cache")
}

/// `CLEARML_BOOTSTRAP_UV_EXEC` where the tests are told of a uv; else it is found or fetched.
pub fn uv_of_this_machine() -> Option<PathBuf> {
    let named = std::env::var_os("CLEARML_BOOTSTRAP_UV_EXEC").map(PathBuf::from);
    let beside = std::env::var_os("CLEARML_TEST_PYTHON")
        .map(|python| Path::new(&python).with_file_name("uv"))
        .filter(|uv| uv.is_file());
    named.or(beside)
}

/// PATH with nothing but the system's folders: no uv, no pyenv.
pub const SYSTEM_PATH: &str = "/usr/bin:/bin";

pub fn path_without_uv(env: &Variables) -> String {
    let folders = std::env::split_paths(&env["PATH"]).filter(|folder| !folder.join("uv").exists());
    std::env::join_paths(folders)
        .unwrap()
        .into_string()
        .unwrap()
}
