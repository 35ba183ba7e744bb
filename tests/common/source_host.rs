//! A machine on which tasks get their code, for the tests of the `source` module.

// Not every test file uses all of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use clearml_agent::console::Console;
use clearml_agent::secret::Secret;
use clearml_agent::source::{
    GitCredentials, Protocol, Request, Servers, SourceError, Sources, fetch,
};
use clearml_agent::task::Script;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A machine with a repository cache, on which runs get their code.
pub struct Host {
    pub folder: TempDir,
    /// Where the cache is, if not in `folder`.
    pub kept_in: Option<PathBuf>,
    pub said: Arc<Mutex<Vec<String>>>,
    pub clone_on_pull_fail: bool,
    pub shallow: bool,
    pub credentials: GitCredentials,
    pub protocol: Protocol,
    pub env: BTreeMap<String, String>,
    pub stop: CancellationToken,
}

impl Host {
    pub fn new() -> Host {
        Host {
            folder: TempDir::new().unwrap(),
            kept_in: None,
            said: Arc::default(),
            clone_on_pull_fail: false,
            shallow: true,
            credentials: GitCredentials::default(),
            protocol: Protocol::default(),
            env: machine_env(),
            stop: CancellationToken::new(),
        }
    }

    pub fn with_login(user: &str, password: &str) -> Host {
        let mut host = Host::new();
        host.credentials.user = Some(user.to_owned());
        host.credentials.password = Some(Secret::new(password));
        host
    }

    pub fn cache(&self) -> PathBuf {
        let kept_in = self.kept_in.clone();
        kept_in.unwrap_or_else(|| self.folder.path().join("cache"))
    }

    /// The one mirror in the cache that is in use.
    pub fn mirror(&self) -> PathBuf {
        let entries = fs::read_dir(self.cache()).unwrap();
        let mut folders = entries
            .map(|e| e.unwrap().path())
            .filter(|path| path.is_dir() && !path.join("out-of-use").exists());
        let only = folders.next().expect("no mirror");
        assert_eq!(folders.next(), None);
        only
    }

    pub fn request(&self, script: &Script) -> Request {
        let work_dir = tempfile::Builder::new()
            .prefix("run")
            .tempdir_in(self.folder.path())
            .unwrap();
        Request {
            script: script.clone(),
            code_dir: None,
            force_task_init: false,
            work_dir: work_dir.keep(),
            cache: Some(self.cache()),
            clone_on_pull_fail: self.clone_on_pull_fail,
            shallow: self.shallow,
            servers: Servers {
                credentials: self.credentials.clone(),
                protocol: self.protocol.clone(),
                ..Servers::default()
            },
            env: self.env.clone(),
            staged: None,
        }
    }

    pub fn fetch_request(&self, request: &Request) -> Result<Sources, SourceError> {
        let said = Arc::clone(&self.said);
        let console = Console::new(move |line| said.lock().unwrap().push(line.to_owned()));
        fetch(request, &console, &self.stop)
    }

    pub fn fetch(&self, script: &Script) -> Result<Sources, SourceError> {
        self.fetch_request(&self.request(script))
    }

    #[track_caller]
    pub fn refusal(&self, script: &Script) -> String {
        self.fetch(script).unwrap_err().to_string()
    }

    pub fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }
}

/// The programs of this machine, and nobody's settings.
pub fn machine_env() -> BTreeMap<String, String> {
    let path = std::env::var("PATH").unwrap();
    [("PATH", path.as_str()), ("HOME", "/nonexistent")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

pub fn script(repository: &str) -> Script {
    Script {
        repository: repository.to_owned(),
        entry_point: "train.py".to_owned(),
        ..Script::default()
    }
}

#[track_caller]
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// No file below `folder` holds `secret`, nor does any name.
pub fn assert_nowhere(folder: &Path, secret: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert!(
            !path.to_string_lossy().contains(secret),
            "{}",
            path.display()
        );
        if path.is_dir() {
            assert_nowhere(&path, secret);
        } else {
            let content = fs::read(&path).unwrap();
            let found = content
                .windows(secret.len())
                .any(|bytes| bytes == secret.as_bytes());
            assert!(!found, "in {}", path.display());
        }
    }
}
