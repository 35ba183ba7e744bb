//! The harness of the end-to-end tests: a server, a home folder of its own, tasks, and the real
//! `clearml-agent` binary as its own process.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use base64::Engine as _;
use clearml_agent::server::{RunningServer, ServerOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a step of a test may take at most: only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A ClearML API server that tests can look into over the API itself.
#[derive(Clone, Debug)]
pub struct Api {
    pub url: String,
    pub access_key: String,
    pub secret_key: String,
}

impl Api {
    /// One call; the HTTP status and the whole answer.
    pub fn try_call(&self, endpoint: &str, body: &Value) -> (u16, Value) {
        self.send(endpoint, "application/json", body.to_string())
    }

    pub fn send(&self, endpoint: &str, content_type: &str, body: String) -> (u16, Value) {
        let client = reqwest_blocking();
        let basic = base64::engine::general_purpose::STANDARD
            .encode(format!("{}:{}", self.access_key, self.secret_key));
        let url = self.url.trim_end_matches('/');
        let url = format!("{url}/{}", endpoint.trim_start_matches('/'));
        client.block_on(async {
            let answer = http()
                .post(url)
                .header("authorization", format!("Basic {basic}"))
                .header("content-type", content_type)
                .body(body)
                .send()
                .await
                .unwrap();
            let status = answer.status().as_u16();
            let text = answer.text().await.unwrap();
            (
                status,
                serde_json::from_str(&text).unwrap_or_else(|_| panic!("{endpoint}: {text}")),
            )
        })
    }

    /// One call that must succeed; its `data`.
    pub fn call(&self, endpoint: &str, body: Value) -> Value {
        let (status, answer) = self.try_call(endpoint, &body);
        assert_eq!(status, 200, "{endpoint} {body}: {answer}");
        answer["data"].clone()
    }

    pub fn task(&self, id: &str) -> Value {
        self.call("tasks.get_by_id", json!({"task": id}))["task"].clone()
    }

    pub fn status(&self, id: &str) -> String {
        self.task(id)["status"].as_str().unwrap().to_owned()
    }

    pub fn reason(&self, id: &str) -> String {
        let task = self.task(id);
        task["status_reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// The task's console text.
    pub fn log(&self, id: &str) -> String {
        let answer = self.call(
            "events.get_task_log",
            json!({"task": id, "batch_size": 10_000, "order": "asc", "navigate_earlier": false}),
        );
        let events = answer["events"].as_array().cloned().unwrap_or_default();
        let lines = events.iter().map(|e| e["msg"].as_str().unwrap_or_default());
        lines
            .map(|msg| format!("{}\n", msg.trim_end_matches('\n')))
            .collect()
    }

    pub fn create(&self, name: &str, script: Value) -> String {
        let request = json!({"name": name, "type": "training", "script": script});
        self.call("tasks.create", request)["id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    pub fn enqueue(&self, id: &str) {
        self.call(
            "tasks.enqueue",
            json!({"task": id, "queue_name": "default"}),
        );
    }
}

fn reqwest_blocking() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap())
}

fn http() -> reqwest::Client {
    clearml_agent::api::client_builder(&clearml_agent::api::Trust::Anything)
        .unwrap()
        .build()
        .unwrap()
}

/// A home folder with a `clearml.conf`, and the server it names.
pub struct World {
    pub api: Api,
    pub home: TempDir,
    pub env: BTreeMap<String, String>,
    server: Option<RunningServer>,
}

impl World {
    /// With the embedded server.
    pub fn new() -> World {
        let options = ServerOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            data: None,
            credentials: None,
        };
        let server = reqwest_blocking()
            .block_on(clearml_agent::server::start(options))
            .unwrap();
        let api = Api {
            url: server.url().to_string(),
            access_key: server.credentials().access_key.clone(),
            secret_key: server.credentials().secret_key.expose().to_owned(),
        };
        World {
            server: Some(server),
            ..World::at(api)
        }
    }

    /// With another server.
    pub fn at(api: Api) -> World {
        let home = tempfile::tempdir().unwrap();
        let world = World {
            env: BTreeMap::new(),
            api,
            home,
            server: None,
        };
        world.configure("");
        world
    }

    /// Writes `clearml.conf`: the server, and `more`.
    pub fn configure(&self, more: &str) {
        let Api {
            url,
            access_key,
            secret_key,
        } = &self.api;
        let text = format!(
            "api {{\n  api_server: {url}\n  web_server: {url}\n  files_server: {url}\n  \
             credentials {{ access_key: \"{access_key}\", secret_key: \"{secret_key}\" }}\n}}\n{more}\n"
        );
        std::fs::write(self.home.path().join("clearml.conf"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// `clearml-agent` with this home and nothing of this machine's ClearML settings.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clearml-agent"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CLEARML_") || name.starts_with("TRAINS_") {
                command.env_remove(name);
            }
        }
        if let Some(uv) = uv_of_the_tests() {
            command.env("CLEARML_BOOTSTRAP_UV_EXEC", uv);
        }
        command
            .args(words)
            .env("HOME", self.home.path())
            .env("UV_CACHE_DIR", shared_cache().join("uv-cache"))
            .envs(&self.env)
            .stdin(Stdio::null());
        command
    }

    #[must_use]
    pub fn run(&self, words: &[&str]) -> Ended {
        self.start(words).wait()
    }

    /// `execute --id ID` and more words.
    #[must_use]
    pub fn execute(&self, id: &str, words: &[&str]) -> Ended {
        self.start_execute(id, words).wait()
    }

    pub fn start_execute(&self, id: &str, words: &[&str]) -> Running {
        let mut all = vec!["execute", "--id", id];
        all.extend(words);
        self.start(&all)
    }

    pub fn start(&self, words: &[&str]) -> Running {
        let child = self
            .command(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Running::new(child)
    }
}

/// The uv that stands beside `CLEARML_TEST_PYTHON`: a test that is not about fetching one need not
/// fetch one.
pub fn uv_of_the_tests() -> Option<PathBuf> {
    let python = std::env::var_os("CLEARML_TEST_PYTHON")?;
    let uv = Path::new(&python).with_file_name("uv");
    uv.is_file().then_some(uv)
}

/// A folder that all tests share for downloads.
pub fn shared_cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("downloads")
}

/// An agent at work.
pub struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    seen: String,
    stderr: std::thread::JoinHandle<String>,
}

impl Running {
    pub fn new(mut child: Child) -> Running {
        let stdout = child.stdout.take().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Running {
            child,
            lines,
            seen: String::new(),
            stderr,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of the agent's output that contains `text`; gives the line.
    pub fn line_with(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(_) => panic!("no line with {text:?} in:\n{}", self.seen),
            }
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Once it has ended, nothing happens.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([format!("-{signal}"), self.pid().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    #[must_use]
    pub fn wait(mut self) -> Ended {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > until {
                let _ = self.child.kill();
                panic!("the agent hangs; so far:\n{}", self.seen);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.seen.extend(self.lines.iter().map(|line| line + "\n"));
        use std::os::unix::process::ExitStatusExt as _;
        Ended {
            code: status
                .code()
                .unwrap_or_else(|| 1000 + status.signal().unwrap_or_default()),
            stdout: self.seen,
            stderr: self.stderr.join().unwrap(),
        }
    }
}

/// How the agent ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; 1000 + the signal where one killed it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn exits(self, code: i32) -> Ended {
        assert_eq!(
            self.code, code,
            "stdout:\n{}\nstderr:\n{}",
            self.stdout, self.stderr
        );
        for bad in ["panicked at", "Traceback (most recent call last)"] {
            assert!(!self.stderr.contains(bad), "{}", self.stderr);
        }
        self
    }

    pub fn prints(self, text: &str) -> Ended {
        assert!(
            self.stdout.contains(text),
            "no {text:?} in:\n{}\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    pub fn complains(self, text: &str) -> Ended {
        let all = format!("{}\n{}", self.stdout, self.stderr);
        assert!(all.contains(text), "no {text:?} in:\n{all}");
        self
    }
}

/// Waits until `what` holds.
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    eventually_or(what, holds, String::new);
}

/// The same; `found` says what is there in its place.
pub fn eventually_or(what: &str, mut holds: impl FnMut() -> bool, found: impl Fn() -> String) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "not so: {what}\n{}", found());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A task whose Python script is stored in it.
pub fn script(text: &str) -> Value {
    json!({"entry_point": "main.py", "working_dir": ".", "diff": text, "binary": "python3"})
}

/// A git repository in a folder of its own, made with the git program.
pub struct Repo {
    pub dir: TempDir,
}

impl Repo {
    /// With these files committed.
    pub fn new(files: &[(&str, &str)]) -> Repo {
        let repo = Repo {
            dir: tempfile::tempdir().unwrap(),
        };
        repo.git(&["init", "-q", "-b", "main"]);
        repo.commit(files);
        repo
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn url(&self) -> String {
        self.path().to_string_lossy().into_owned()
    }

    pub fn write(&self, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = self.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    /// Writes and commits; gives the commit's id.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        self.write(files);
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", "a commit"]);
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// What `git diff` says of these changes, which are then taken back.
    pub fn diff(&self, files: &[(&str, &str)]) -> String {
        self.write(files);
        self.git(&["add", "-AN"]);
        let diff = self.git(&["diff"]);
        self.git(&["reset", "-q", "--hard"]);
        diff
    }

    pub fn git(&self, words: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(words)
            .current_dir(self.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "git {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}
