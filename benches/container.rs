//! What a container costs: a task with one package, to its script's first line, beside `docker run`
//! doing the same by hand with uv mounted. `cargo bench --bench container`
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/docker.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod docker;
#[path = "../tests/common/in_container.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod in_container;

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{World, shared_cache};
use in_container::{PYTHON_IMAGE, engine, world};
use serde_json::json;

const ROUNDS: usize = 9;
const SCRIPT: &str = "import six\nprint('the first line', flush=True)\n";

/// From the start to the first line, and to the exit.
fn time(mut command: Command) -> (Duration, Duration) {
    let started = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if line.unwrap() == "the first line" {
            first.get_or_insert(started.elapsed());
        }
    }
    assert!(child.wait().unwrap().success());
    (first.unwrap(), started.elapsed())
}

/// The uv that the agent takes: beside the tests' Python, else the one it has fetched.
fn uv() -> PathBuf {
    let beside = std::env::var_os("CLEARML_TEST_PYTHON")
        .map(|python| PathBuf::from(python).with_file_name("uv"));
    let fetched = std::fs::read_dir(shared_cache().join("uv"));
    let fetched = fetched.into_iter().flatten().flatten();
    beside
        .into_iter()
        .chain(fetched.map(|entry| entry.path().join("uv")))
        .find(|path| path.is_file())
        .unwrap()
}

fn by_hand(world: &World) -> Command {
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "--network=host"]);
    if let Ok(bundle) = std::env::var("SSL_CERT_FILE") {
        command.args([
            "-v",
            &format!("{bundle}:{bundle}:ro"),
            "-e",
            &format!("SSL_CERT_FILE={bundle}"),
        ]);
    }
    let cache = shared_cache().join("by-hand");
    std::fs::create_dir_all(&cache).unwrap();
    std::fs::write(world.path("main.py"), SCRIPT).unwrap();
    command
        .args(["-v", &format!("{}:/usr/local/bin/uv:ro", uv().display())])
        .args(["-v", &format!("{}:/cache", cache.display()), "-e", "UV_CACHE_DIR=/cache"])
        .args(["-v", &format!("{}:/main.py:ro", world.path("main.py").display())])
        .args([PYTHON_IMAGE, "sh", "-c"])
        .arg("uv venv -q /venv && uv pip install -q --python /venv/bin/python six==1.16.0 && /venv/bin/python -u /main.py");
    command
}

fn ours(world: &World) -> Command {
    let id = world.api.create(
        "bench",
        json!({"entry_point": "main.py", "working_dir": ".", "binary": "python3", "diff": SCRIPT,
               "requirements": {"pip": "six==1.16.0\n"}}),
    );
    world.command(&["execute", "--id", &id, "--docker", PYTHON_IMAGE])
}

fn main() {
    if !engine() {
        return;
    }
    let world = world();
    // Warms all caches, and fetches uv.
    time(ours(&world));
    time(by_hand(&world));
    let (mut of_ours, mut of_hand) = (Vec::new(), Vec::new());
    // In turn, so that whatever else the machine does meets both.
    for _ in 0..ROUNDS {
        of_ours.push(time(ours(&world)));
        of_hand.push(time(by_hand(&world)));
    }
    let median = |times: &mut Vec<(Duration, Duration)>,
                  of: fn(&(Duration, Duration)) -> Duration| {
        times.sort_by_key(of);
        of(&times[times.len() / 2]).as_secs_f64()
    };
    let mut first = [0.0; 2];
    for (row, (name, times)) in [("ours", &mut of_ours), ("docker run by hand", &mut of_hand)]
        .into_iter()
        .enumerate()
    {
        first[row] = median(times, |t| t.0);
        println!(
            "{name:<20} first line {:>6.3} s   exit {:>6.3} s",
            first[row],
            median(times, |t| t.1)
        );
    }
    println!(
        "to the first line: {:.2} times by hand",
        first[0] / first[1]
    );
}
