//! What a user waits for: from the start to the script's first line, and from its last line to the
//! exit. Beside it, in the same run: the same script by hand, and (where CLEARML_REFERENCE_AGENT
//! names its program) the Python agent. `cargo bench --bench first_line`
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Repo, World, script};
use serde_json::{Value, json};

const ROUNDS: usize = 7;
const FIRST: &str = "the first line";
const LAST: &str = "the last line";
const SCRIPT: &str =
    "import sys\nprint('the first line', flush=True)\nprint('the last line', flush=True)\n";

struct Times {
    to_first: Duration,
    from_last: Duration,
}

fn time(mut command: Command) -> Times {
    let started = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut first, mut last) = (None, None);
    for line in BufReader::new(child.stdout.take().unwrap()).split(b'\n') {
        let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
        if line.contains(FIRST) {
            first.get_or_insert_with(Instant::now);
        }
        if line.contains(LAST) {
            last = Some(Instant::now());
        }
    }
    assert!(child.wait().unwrap().success());
    Times {
        to_first: first.unwrap() - started,
        from_last: last.unwrap().elapsed(),
    }
}

/// Medians over the rounds, after one that warms the caches.
fn median(name: &str, mut command: impl FnMut() -> Command, rounds: usize) -> Times {
    time(command());
    let times: Vec<Times> = (0..rounds).map(|_| time(command())).collect();
    let middle = |of: fn(&Times) -> Duration| {
        let mut all: Vec<Duration> = times.iter().map(of).collect();
        all.sort();
        all[all.len() / 2]
    };
    let times = Times {
        to_first: middle(|t| t.to_first),
        from_last: middle(|t| t.from_last),
    };
    println!(
        "{name:<44} first line {:>8.3} s   last line to exit {:>8.3} s",
        times.to_first.as_secs_f64(),
        times.from_last.as_secs_f64()
    );
    times
}

fn main() {
    let world = World::new();
    let repo = Repo::new(&[("main.py", SCRIPT)]);
    let commit = repo.git(&["rev-parse", "HEAD"]).trim().to_owned();
    let checkout = json!({"repository": repo.url(), "branch": "main", "version_num": commit,
        "entry_point": "main.py", "working_dir": ".", "binary": "python3"});
    let mut packages = checkout.clone();
    packages["requirements"] = json!({"pip": "six == 1.16.0\ntabulate == 0.9.0\n"});
    std::fs::write(world.path("main.py"), SCRIPT).unwrap();

    let by_hand = median(
        "by hand: python3 -u main.py",
        || {
            let mut command = Command::new("python3");
            command.arg("-u").arg(world.path("main.py"));
            command
        },
        ROUNDS,
    );
    let cases: [(&str, Value); 3] = [
        ("script in the task, no packages", script(SCRIPT)),
        ("repository, no packages", checkout),
        ("repository, two packages, warm", packages),
    ];
    for (name, script) in cases {
        let ours = median(
            &format!("ours: {name}"),
            || {
                let id = world.api.create("bench", script.clone());
                world.command(&["execute", "--id", &id])
            },
            ROUNDS,
        );
        println!(
            "{:<44} {:.1} times by hand",
            "",
            ours.to_first.as_secs_f64() / by_hand.to_first.as_secs_f64()
        );
        if let Some(reference) = std::env::var_os("CLEARML_REFERENCE_AGENT") {
            let theirs = median(
                &format!("Python agent: {name}"),
                || {
                    let id = world.api.create("bench", script.clone());
                    let mut command = Command::new(&reference);
                    command
                        .args(["execute", "--id", &id])
                        .env("HOME", world.home.path())
                        .stdin(Stdio::null());
                    command
                },
                2,
            );
            println!(
                "{:<44} ours is {:.0} times as fast to the first line, {:.0} times at the end",
                "",
                theirs.to_first.as_secs_f64() / ours.to_first.as_secs_f64(),
                theirs.from_last.as_secs_f64() / ours.from_last.as_secs_f64()
            );
        }
    }
}
