//! Runs in containers: images that a task can run in, and a home whose runs find them.

use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::common::{Ended, Running, World, script, shared_cache};
use crate::docker::{self, docker};

/// Debian with Python 3, nothing else. Made once per machine, by debootstrap, and kept.
pub const PYTHON_IMAGE: &str = "clearml-agent-test/debian-python:bookworm";

/// Whether this machine has an engine with both images; else the reason is said.
pub fn engine() -> bool {
    static READY: OnceLock<bool> = OnceLock::new();
    *READY.get_or_init(|| docker::engine().is_some() && python_image())
}

fn python_image() -> bool {
    if docker(&["image", "inspect", PYTHON_IMAGE]).is_ok() {
        return true;
    }
    let dir = tempfile::tempdir().unwrap();
    // One test program makes it; others wait for it here.
    let lock = std::fs::File::create(shared_cache().with_extension("image.lock")).unwrap();
    lock.lock().unwrap();
    if docker(&["image", "inspect", PYTHON_IMAGE]).is_ok() {
        return true;
    }
    let root = dir.path().join("root");
    let script = format!(
        "PATH=$PATH:/usr/sbin:/sbin; debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm {root} >&2 \
         && tar -C {root} -c . | docker import - {PYTHON_IMAGE} >/dev/null; status=$?; rm -rf {root}; exit $status",
        root = root.display()
    );
    let made = Command::new("sh").args(["-c", &script]).status().unwrap();
    if !made.success() {
        eprintln!("not tested here: debootstrap makes no Debian image (it needs root)");
    }
    made.success()
}

/// An image of one Dockerfile line more than `base`, gone when this is.
pub struct Image(pub String);

impl Image {
    /// From the files of a container of `base` in which `script` was run by the shell; `changes` are
    /// Dockerfile instructions.
    pub fn of(base: &str, name: &str, script: &str, changes: &[&str]) -> Image {
        let name = format!("clearml-agent-test-{}-{name}", std::process::id());
        let label = docker::label();
        let id = docker(&["create", "--label", &label, base, "/bin/sh", "-c", script]).unwrap();
        let id = id.trim();
        docker(&["start", "--attach", id]).unwrap();
        let mut words = vec!["commit"];
        for change in changes {
            words.extend(["--change", change]);
        }
        words.extend([id, &name]);
        docker(&words).unwrap();
        docker(&["rm", id]).unwrap();
        Image(name)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = docker(&["rmi", "--force", &self.0]);
    }
}

/// A world whose containers share the host's network, as a user behind a proxy would configure it, and
/// that fetches uv once for all tests.
pub fn world() -> World {
    world_with("")
}

/// uv is fetched once for all tests.
pub fn share_uv(world: &World) {
    let uv = shared_cache().join("uv");
    std::fs::create_dir_all(&uv).unwrap();
    std::fs::create_dir_all(world.path(".clearml")).unwrap();
    std::os::unix::fs::symlink(&uv, world.path(".clearml/uv")).unwrap();
}

/// The same with more of `clearml.conf`.
pub fn world_with(more: &str) -> World {
    let mut world = World::new();
    let cache = shared_cache();
    share_uv(&world);
    let mut arguments = vec![
        "--network=host".to_owned(),
        format!("--label={}", docker::label()),
    ];
    if let Ok(bundle) = std::env::var("SSL_CERT_FILE") {
        arguments.push(format!("--volume={bundle}:{bundle}:ro"));
        arguments.push(format!("--env=SSL_CERT_FILE={bundle}"));
    }
    world.configure(&format!(
        "agent {{ extra_docker_arguments: {arguments:?}, docker_cache: {:?} }}\n{more}",
        cache.join("docker").to_str().unwrap()
    ));
    // The machine's own GPUs and keys are none of the tests' business.
    for name in [
        "NVIDIA_VISIBLE_DEVICES",
        "CUDA_VISIBLE_DEVICES",
        "SSH_AUTH_SOCK",
    ] {
        world.env.insert(name.into(), String::new());
    }
    world
}

/// The containers that run `task`, running or not.
pub fn containers_of(task: &str) -> Vec<String> {
    let ids = docker(&[
        "ps",
        "--all",
        "--quiet",
        "--no-trunc",
        "--filter",
        "label=clearml-worker-id",
    ]);
    let ids = ids.unwrap();
    let of_task = |id: &&str| {
        let format = "{{range .Config.Env}}{{println .}}{{end}}";
        docker(&["inspect", "--format", format, id]).is_ok_and(|env| {
            env.lines()
                .any(|line| line == format!("CLEARML_TASK_ID={task}"))
        })
    };
    ids.lines().filter(of_task).map(str::to_owned).collect()
}

/// Starts `task` in the Python image and waits until its script has said `line`.
pub fn start(world: &World, task: &str, more: &[&str], line: &str) -> Running {
    let mut words = vec!["--docker", PYTHON_IMAGE];
    words.extend(more);
    let mut running = world.start_execute(task, &words);
    running.line_with(line);
    running
}

/// Runs a task with `--docker IMAGE` and expects it to fail so.
pub fn refused(world: &World, image: &str, code: i32, reason: &str) -> Ended {
    let id = world.api.create("refused", script("print('never')\n"));
    let result = world.path("result.json");
    let words = ["--docker", image, "--result", result.to_str().unwrap()];
    let ended = world.execute(&id, &words).exits(code);
    let result: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
    assert_eq!(result["reason"], reason, "{}", ended.stdout);
    assert_eq!(result["status"], "failed");
    assert_eq!(world.api.status(&id), "failed");
    assert!(!ended.stdout.contains("never"), "{}", ended.stdout);
    assert!(containers_of(&id).is_empty());
    ended
}

/// Refuses `--docker IMAGE` before the task is touched.
pub fn refused_before(world: &World, image: &str, code: i32, reason: &str) -> Ended {
    let id = world.api.create("untouched", script("print('never')\n"));
    let result = world.path("result.json");
    let words = ["--docker", image, "--result", result.to_str().unwrap()];
    let ended = world.execute(&id, &words).exits(code);
    let result: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
    assert_eq!(result["reason"], reason, "{}", ended.stdout);
    assert_eq!(result["status"], Value::Null);
    assert_eq!(world.api.status(&id), "created");
    ended
}
