//! Why a script failed, as the user is told it: in the task's status, the last line, the result file.
#![allow(clippy::unwrap_used)]

#[path = "common/bare_image.rs"]
mod bare_image;
mod common;
#[path = "common/limits.rs"]
mod limits;

use std::process::{Command, Stdio};

use common::{Running, World, eventually, script};
use limits::{Limited, SMALL, Tmpfs};
use serde_json::{Value, json};

fn skip(why: &str) {
    eprintln!("not tested here: {why}");
}

fn result(world: &World) -> Value {
    serde_json::from_slice(&std::fs::read(world.path("result.json")).unwrap()).unwrap()
}

/// What the server, the log and the result file say must agree; the reason in words.
fn told(world: &World, id: &str, kind: &str) -> String {
    let result = result(world);
    assert_eq!(result["reason"], kind, "{result}");
    let reason = world.api.reason(id);
    assert_eq!(result["message"], json!(reason));
    assert_eq!(world.api.status(id), "failed");
    let (_, why) = reason
        .split_once(": ")
        .unwrap_or_else(|| panic!("{reason}"));
    let log = world.api.log(id);
    assert!(log.contains(why), "{log}");
    reason
}

/// Runs `text` to its end; the reason that is told.
fn run(text: &str, code: i32, kind: &str) -> String {
    let world = World::new();
    let id = world.api.create("fails", script(text));
    let file = world.path("result.json");
    world
        .execute(&id, &["--result", file.to_str().unwrap()])
        .exits(code);
    told(&world, &id, kind)
}

/// Takes memory until it is killed: far above the limit, far below what the machine has.
fn eater() -> String {
    format!(
        "eaten = []\nfor _ in range({}): eaten.append(b'x' * (1 << 20))\n",
        (8 * SMALL) >> 20
    )
}

#[test]
fn the_kernel_killed_it_at_a_groups_limit() {
    let group = match Limited::create() {
        Ok(group) => group,
        Err(why) => return skip(&format!("no group with a memory limit can be made: {why}")),
    };
    let launched = "import os, subprocess, sys\nif len(sys.argv) < 2:\n  sys.exit(abs(subprocess.run([sys.executable, __file__, 'eat']).returncode))\n";
    for (text, code, who) in [
        (eater(), 137, "killed by the kernel for want of memory"),
        (
            format!("{launched}{}", eater()),
            9,
            "a process of the job was killed by the kernel for want of memory",
        ),
    ] {
        let world = World::new();
        let id = world.api.create("eats", script(&text));
        let file = world.path("result.json");
        let agent = world.command(&["execute", "--id", &id, "--result", file.to_str().unwrap()]);
        // Its input ends when it is in the group.
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"cat >/dev/null; "$0" "$@"; echo "code $?""#])
            .arg(agent.get_program())
            .args(agent.get_args());
        for (name, value) in agent.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let output = group.run(command);
        assert!(output.ends_with(&format!("code {code}\n")), "{output}");
        let reason = told(&world, &id, "oom_killed");
        assert!(
            reason.contains(&format!(": {who}: the memory limit of the"))
                && reason.contains("was reached, 64 MiB"),
            "{reason}"
        );
        let peak = result(&world)["usage"]["peak_memory_bytes"].as_u64();
        assert!(
            peak.is_some_and(|peak| (SMALL / 2..=SMALL).contains(&peak)),
            "{peak:?}"
        );
    }
}

#[test]
fn it_got_no_memory() {
    let text = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))\nx = bytearray(1 << 40)\n";
    let reason = run(text, 1, "out_of_memory");
    assert!(
        reason.starts_with("worker execution exit code 1: out of memory (MemoryError)"),
        "{reason}"
    );
}

#[test]
fn a_disk_was_full() {
    let Some(disk) = Tmpfs::mount("size=1m") else {
        return skip("no file system can be mounted");
    };
    let file = disk.path().join("checkpoint");
    let text = format!("with open({file:?}, 'wb') as f: f.write(b'x' * (2 << 20))\n");
    let reason = run(&text, 1, "no_space");
    let folder = disk.path().display();
    assert!(
        reason.contains(&format!("no space left on the disk of {folder}, ")),
        "{reason}"
    );
}

#[test]
fn somebody_killed_it() {
    let reason = run("import os\nos.kill(os.getpid(), 9)\n", 137, "signalled");
    assert!(
        reason.starts_with("worker execution exit code -9: killed by SIGKILL, not by this agent"),
        "{reason}"
    );
}

#[test]
fn it_crashed() {
    let reason = run("import ctypes\nctypes.string_at(0)\n", 139, "signalled");
    assert!(
        reason.contains("ended by SIGSEGV: the program crashed"),
        "{reason}"
    );
}

#[test]
fn what_was_used_is_told() {
    let world = World::new();
    // Long enough to be looked at, and much more than Python has by itself.
    let text = "import time\nx = b'x' * (100 << 20)\nwhile time.process_time() < 0.6: pass\n";
    let id = world.api.create("uses", script(text));
    let file = world.path("result.json");
    world
        .execute(&id, &["--result", file.to_str().unwrap()])
        .exits(0);
    let result = result(&world);
    let usage = &result["usage"];
    assert!(usage["cpu_seconds"].as_f64().unwrap() >= 0.6, "{usage}");
    let peak = usage["peak_memory_bytes"].as_u64().unwrap();
    assert!((100 << 20..400 << 20).contains(&peak), "{usage}");
    let versions = &result["versions"];
    assert_eq!(versions["agent"], env!("CARGO_PKG_VERSION"));
    assert!(
        versions["python"].as_str().unwrap().starts_with("3."),
        "{versions}"
    );
}

// ---- the agent as a container's first process ----

/// The agent in a container of its own that is removed at the end.
struct Contained {
    name: String,
}

impl Contained {
    fn start(
        world: &World,
        arguments: &[&str],
        words: &[&str],
    ) -> Result<(Contained, Running), String> {
        let image = bare_image::image()?;
        let name = format!("clearml-agent-test-{}", uuid::Uuid::new_v4().simple());
        let home = world.home.path().display();
        let mut command = Command::new("docker");
        command
            .args(["run", "--rm", "--name", &name, "--network", "host"])
            .args(["-v", "/usr:/usr:ro", "-v", "/etc/ssl:/etc/ssl:ro"])
            .args([
                "-v",
                &format!("{}:/agent:ro", env!("CARGO_BIN_EXE_clearml-agent")),
            ])
            .args([
                "-v",
                &format!("{home}:{home}"),
                "-e",
                &format!("HOME={home}"),
            ])
            .args(arguments)
            .args([image, "/agent"])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let running = Running::new(command.spawn().unwrap());
        Ok((Contained { name }, running))
    }

    fn docker(&self, words: &[&str]) -> String {
        let output = Command::new("docker")
            .args(words)
            .arg(&self.name)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        self.docker(&["rm", "--force", "--volumes"]);
    }
}

#[test]
fn as_a_containers_first_process_it_stops_in_good_order() {
    let world = World::new();
    let text = "\
import os, signal, subprocess, sys, time
def bye(*_):
    print('checkpoint written', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
stray = subprocess.Popen(['sh', '-c', 'setsid sleep 1000 & exit'])
print('ready', flush=True)
time.sleep(1000)
";
    let id = world.api.create("in a container", script(text));
    let file = world.path("result.json");
    let words = ["execute", "--id", &id, "--result", file.to_str().unwrap()];
    let (container, mut running) = match Contained::start(&world, &[], &words) {
        Ok(started) => started,
        Err(why) => return skip(&why),
    };
    running.line_with("ready");
    container.docker(&["kill", "--signal", "TERM"]);
    running.wait().exits(143).prints("checkpoint written");
    assert_eq!(world.api.status(&id), "stopped");
    assert!(world.api.log(&id).contains("checkpoint written"));
    assert_eq!(result(&world)["reason"], "interrupted");
    // With --rm it goes when its first process has ended, and takes all others with it.
    eventually("the container is gone", || {
        container
            .docker(&["inspect", "--format", "{{.State.Status}}"])
            .trim()
            .is_empty()
    });
}

#[test]
fn the_kernel_killed_it_at_a_containers_limit() {
    let world = World::new();
    let id = world.api.create("eats", script(&eater()));
    let file = world.path("result.json");
    let words = ["execute", "--id", &id, "--result", file.to_str().unwrap()];
    let limits = ["--memory", "64m", "--memory-swap", "64m"];
    let (_container, running) = match Contained::start(&world, &limits, &words) {
        Ok(started) => started,
        Err(why) => return skip(&why),
    };
    running.wait().exits(137);
    let reason = told(&world, &id, "oom_killed");
    assert!(
        reason.contains("the memory limit of the container was reached, 64 MiB"),
        "{reason}"
    );
}
