//! The core of it with another engine: podman, through the socket that docker's clients use.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/docker.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod docker;
#[path = "common/in_container.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod in_container;

use std::process::{Child, Command, Stdio};

use common::{World, eventually, script};
use in_container::{PYTHON_IMAGE, engine, world};
use serde_json::json;

/// podman's service, for one test program.
struct Podman {
    service: Child,
    dir: tempfile::TempDir,
}

impl Podman {
    /// With the Python image in it; `None`, and the reason on stderr, where this machine has none.
    fn start() -> Option<Podman> {
        if !engine() {
            return None;
        }
        let works = Command::new("podman").arg("info").output();
        if !works.is_ok_and(|output| output.status.success()) {
            eprintln!("not tested here: podman does not work on this machine");
            return None;
        }
        let has = ["image", "exists", PYTHON_IMAGE];
        if !Command::new("podman").args(has).status().unwrap().success() {
            let copy = format!("docker save {PYTHON_IMAGE} | podman load --quiet");
            let loaded = Command::new("sh").args(["-c", &copy]).status().unwrap();
            assert!(loaded.success());
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = format!("unix://{}", dir.path().join("podman.sock").display());
        let service = Command::new("podman")
            .args(["system", "service", "--time=0", &socket])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let podman = Podman { service, dir };
        eventually("podman serves", || podman.socket().exists());
        Some(podman)
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("podman.sock")
    }

    fn world(&self) -> World {
        let mut world = world();
        let host = format!("unix://{}", self.socket().display());
        world.env.insert("DOCKER_HOST".into(), host);
        world
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.service.kill();
        let _ = self.service.wait();
    }
}

/// podman's own limits are more than some machines let it set.
fn image() -> String {
    format!("localhost/{PYTHON_IMAGE} --ulimit nofile=1024:1024 --ulimit nproc=1024:1024")
}

fn left_of(task: &str) -> String {
    let name = format!("name={task}");
    let list = Command::new("podman")
        .args(["ps", "--all", "--quiet", "--filter", &name])
        .output()
        .unwrap();
    String::from_utf8(list.stdout).unwrap()
}

#[test]
fn a_task_runs_and_stops_in_podman() {
    let Some(podman) = Podman::start() else {
        return;
    };
    let world = podman.world();
    let id = world.api.create(
        "podman",
        json!({"entry_point": "a.py", "working_dir": ".", "binary": "python3",
               "diff": "import six\nprint('with six', six.__version__)\nraise SystemExit(3)\n",
               "requirements": {"pip": "six==1.16.0\n"}}),
    );
    world
        .execute(&id, &["--docker", &format!("{} --name {id}", image())])
        .exits(3)
        .prints("with six 1.16.0");
    assert_eq!(world.api.reason(&id), "worker execution exit code 3");
    assert_eq!(left_of(&id), "");

    let text = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n";
    let id = world.api.create("podman stops", script(text));
    let named = format!("{} --name {id}", image());
    let mut running = world.start_execute(&id, &["--docker", &named]);
    running.line_with("ready");
    running.signal("TERM");
    let _ = running.wait().exits(143);
    assert_eq!(world.api.status(&id), "stopped");
    assert_eq!(left_of(&id), "");
}
