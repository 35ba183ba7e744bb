//! What a pod of Kubernetes is to the agent: a container whose first process it is, with a read-only root,
//! a user that nobody knows, SIGTERM and then SIGKILL, and another pod in its place.
//!
//! Needs Docker: without it, it says so and passes.
#![allow(clippy::unwrap_used)]

#[path = "common/bare_image.rs"]
mod bare_image;
mod common;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use common::{Running, World, script};

/// The manifest of the README.
fn manifest() -> &'static str {
    let readme = include_str!("../README.md");
    let (_, block) = readme.split_once("```yaml\n").unwrap();
    block.split_once("```").unwrap().0
}

/// The words between brackets after `key` in the manifest's line that has `marked`.
fn list(marked: &str, key: &str) -> Vec<String> {
    let line = manifest()
        .lines()
        .find(|line| line.contains(marked))
        .unwrap();
    let (_, rest) = line.split_once(key).unwrap();
    let (words, _) = rest
        .trim_start()
        .trim_start_matches('[')
        .split_once(']')
        .unwrap();
    words
        .split(',')
        .map(|word| word.trim().to_owned())
        .collect()
}

struct Pod {
    name: String,
    running: Option<Running>,
}

impl Pod {
    fn start(world: &World, task: &str) -> Result<Pod, String> {
        let image = bare_image::image()?;
        let name = format!("clearml-agent-test-{}", uuid::Uuid::new_v4().simple());
        let api = &world.api;
        let command = list("execute, --id", "command:");
        let words = command[1..].iter().map(|word| match word.as_str() {
            "0123456789abcdef0123456789abcdef" => task,
            word => word,
        });
        let mut run = Command::new("docker");
        run.args(["run", "--rm", "--name", &name, "--network", "host"])
            .args(["--read-only", "--user", "12345", "--cap-drop", "ALL"])
            .args([
                "--tmpfs",
                "/home/task:mode=777,exec",
                "-e",
                "HOME=/home/task",
            ])
            .args(["-v", "/usr:/usr:ro"])
            .args([
                "-v",
                &format!("{}:{}:ro", env!("CARGO_BIN_EXE_clearml-agent"), command[0]),
            ])
            .args([
                "-e",
                "CLEARML_AGENT_CLAIM_ID=train",
                "-e",
                "CLEARML_AGENT_GRACE=45",
            ])
            .args(["-e", &format!("CLEARML_API_HOST={}", api.url)])
            .args(["-e", &format!("CLEARML_API_ACCESS_KEY={}", api.access_key)])
            .args(["-e", &format!("CLEARML_API_SECRET_KEY={}", api.secret_key)])
            .args([image, &command[0]])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let running = Running::new(run.spawn().unwrap());
        Ok(Pod {
            name,
            running: Some(running),
        })
    }

    fn kill(&self, signal: &str) {
        let status = Command::new("docker")
            .args(["kill", "--signal", signal, &self.name])
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }

    fn prints(&mut self, text: &str) {
        self.running.as_mut().unwrap().line_with(text);
    }

    fn end(mut self) -> common::Ended {
        self.running.take().unwrap().wait()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("docker")
            .args(["rm", "--force", "--volumes", &self.name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

const TRAINING: &str = "\
import os, signal, sys, time
def bye(*_):
    print('checkpoint written', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print('attempt', os.environ['CLEARML_AGENT_ATTEMPT'], 'as', os.getuid(), flush=True)
time.sleep(1000)
";

#[test]
fn a_pod_in_the_place_of_another_goes_on_with_its_task() {
    let world = World::new();
    let task = world.api.create("a pod's", script(TRAINING));
    world.api.enqueue(&task);
    let mut first = match Pod::start(&world, &task) {
        Ok(pod) => pod,
        Err(why) => {
            eprintln!("not tested here: {why}");
            return;
        }
    };
    first.prints("attempt 1 as 12345");
    // The node is gone.
    first.kill("KILL");
    let _ = first.end();
    assert_eq!(world.api.status(&task), "in_progress");

    let mut second = Pod::start(&world, &task).unwrap();
    second.prints("attempt 2 as 12345");
    // The pod is to end.
    second.kill("TERM");
    second.end().exits(143).prints("checkpoint written");
    assert_eq!(world.api.status(&task), "stopped");
    assert!(world.api.log(&task).contains("checkpoint written"));

    let third = Pod::start(&world, &task).unwrap();
    third.end().exits(67).complains("has ended already");
}

/// What the README says of exit codes is what its pod failure policy does.
#[test]
fn the_failure_policy_is_the_exit_code_table() {
    let readme = include_str!("../README.md");
    let (_, table) = readme.split_once("### Exit codes").unwrap();
    let (table, _) = table.split_once("\n###").unwrap();
    let pointless: BTreeSet<String> = table
        .lines()
        .filter(|line| line.starts_with('|'))
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let (code, again) = (cells[1], cells[3]);
            code.parse::<u8>().ok()?;
            // A place that cannot be written may be another node's to write.
            (again.starts_with("no") && code != "73").then(|| code.to_owned())
        })
        .collect();
    let policy: BTreeSet<String> = list("operator: In", "values:").into_iter().collect();
    assert_eq!(policy, pointless);
}
