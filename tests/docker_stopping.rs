//! Runs in containers that are stopped, killed or left behind.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/docker.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod docker;
#[path = "common/in_container.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod in_container;

use common::{eventually, script};
use docker::docker;
use in_container::{PYTHON_IMAGE, containers_of, engine, start, world};
use serde_json::{Value, json};

/// Says when it is asked to end, and ends.
const POLITE: &str = "\
import signal, sys, time
def end(number, frame):
    print('asked by', number, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print('ready', flush=True)
time.sleep(600)
";
/// Does not end when it is asked to.
const STUBBORN: &str = "\
import signal, subprocess, time
signal.signal(signal.SIGTERM, lambda *_: print('no', flush=True))
subprocess.Popen(['sleep', '600'])
print('ready', flush=True)
while True:
    time.sleep(1)
";

#[test]
fn a_signal_stops_the_script_and_removes_the_container() {
    if !engine() {
        return;
    }
    let world = world();
    for (signal, code) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let id = world.api.create("signal", script(POLITE));
        let running = start(&world, &id, &[], "ready");
        running.signal(signal);
        running.wait().exits(code).prints("asked by 15");
        assert_eq!(world.api.status(&id), "stopped");
        assert!(containers_of(&id).is_empty());
        let log = world.api.log(&id);
        assert!(log.contains("asked by 15"), "{log}");
        assert_eq!(log.matches("Process stopped").count(), 1, "{log}");
    }
}

#[test]
fn a_notice_is_passed_on_to_the_script() {
    if !engine() {
        return;
    }
    let world = world();
    let text = "\
import signal, sys, time
def save(number, frame):
    print('saved on', number, flush=True)
    sys.exit(5)
signal.signal(signal.SIGUSR1, save)
print('ready', flush=True)
time.sleep(600)
";
    let id = world.api.create("notice", script(text));
    let running = start(&world, &id, &[], "ready");
    running.signal("USR1");
    running.wait().exits(5).prints("saved on 10");
}

#[test]
fn an_abort_on_the_server_stops_the_container() {
    if !engine() {
        return;
    }
    let world = world();
    let id = world.api.create("abort", script(POLITE));
    let running = start(&world, &id, &[], "ready");
    world.api.call("tasks.stop", json!({"task": id}));
    running.wait().exits(143).prints("asked by 15");
    assert_eq!(world.api.status(&id), "stopped");
    let reason = world.api.reason(&id);
    assert!(reason.starts_with("user abort"), "{reason}");
    assert!(containers_of(&id).is_empty());
}

#[test]
fn an_abort_callback_runs_inside() {
    if !engine() {
        return;
    }
    let mut world = world();
    world.env.insert(
        "CLEARML_AGENT_ABORT_CALLBACK_CMD".into(),
        "sh -c 'echo callback in $(test -e /.dockerenv && echo container)'".into(),
    );
    let id = world.api.create("callback", script(POLITE));
    let running = start(&world, &id, &[], "ready");
    world.api.call("tasks.stop", json!({"task": id}));
    running
        .wait()
        .exits(143)
        .prints("callback in container")
        .prints("asked by 15");
}

#[test]
fn one_that_does_not_end_is_killed_after_the_grace() {
    if !engine() {
        return;
    }
    let world = world();
    let id = world.api.create("grace", script(STUBBORN));
    let running = start(&world, &id, &["--grace", "1"], "ready");
    running.signal("TERM");
    running.wait().exits(143).prints("no");
    assert!(containers_of(&id).is_empty());
}

/// The batch system can be asked only outside, and only then: what it leaves is said with the order.
#[test]
fn the_time_that_slurm_leaves_holds_inside() {
    if !engine() {
        return;
    }
    let mut world = world();
    let bin = world.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let scontrol = "#!/bin/sh\n\
        case \"$*\" in\n\
        *config*) echo 'KillWait                = 30 sec';;\n\
        *) echo \"JobId=7 JobState=RUNNING Reason=None Restarts=0 EndTime=$(($(date +%s) + 1030))\";;\n\
        esac\n";
    std::fs::write(bin.join("scontrol"), scontrol).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bin.join("scontrol"), mode).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    world.env.insert("PATH".into(), path);
    world.env.insert("SLURM_JOB_ID".into(), "7".into());
    let id = world.api.create("told early", script(POLITE));
    let running = start(&world, &id, &[], "ready");
    running.signal("TERM");
    let ended = running.wait().exits(143).prints("asked by 15");
    let said = "and SIGKILL if it still runs after ";
    let (_, after) = ended.stdout.split_once(said).unwrap();
    let seconds: u32 = after.split(' ').next().unwrap().parse().unwrap();
    // Not the 24 of KillWait.
    assert!((900..=1000).contains(&seconds), "{}", ended.stdout);
}

#[test]
fn a_second_signal_does_not_wait() {
    if !engine() {
        return;
    }
    let world = world();
    let id = world.api.create("hurry", script(STUBBORN));
    let mut running = start(&world, &id, &["--grace", "3600"], "ready");
    running.signal("TERM");
    running.line_with("no");
    // Signals in the same moment are one, so this is said until it is heard.
    eventually("the agent has ended", || {
        running.signal("TERM");
        running.has_ended()
    });
    running.wait().exits(143).prints("SIGKILL at once");
    assert_eq!(world.api.status(&id), "stopped");
    assert!(containers_of(&id).is_empty());
}

#[test]
fn a_timeout_holds_for_the_container() {
    if !engine() {
        return;
    }
    let world = world();
    let id = world.api.create("timeout", script(POLITE));
    let words = ["--docker", PYTHON_IMAGE, "--timeout", "20"];
    world.execute(&id, &words).exits(124).prints("asked by 15");
    assert_eq!(world.api.status(&id), "failed");
    assert!(containers_of(&id).is_empty());
}

#[test]
fn a_set_up_script_is_stopped_like_a_script() {
    if !engine() {
        return;
    }
    let world = world();
    let id = world.api.create("set-up", script("print('never')\n"));
    let section = json!({"image": PYTHON_IMAGE, "arguments": "", "setup_shell_script": "echo setting up; sleep 600"});
    world.api.call(
        "tasks.edit",
        json!({"task": id, "force": true, "container": section}),
    );
    let mut running = world.start_execute(&id, &["--docker"]);
    running.line_with("custom_setup_bash_script");
    running.line_with("Running the container's set-up script");
    running.line_with("setting up");
    running.signal("TERM");
    let ended = running.wait().exits(143);
    assert!(!ended.stdout.contains("never"), "{}", ended.stdout);
    assert!(containers_of(&id).is_empty());
}

#[test]
fn the_agents_death_ends_the_script_and_the_next_run_removes_the_container() {
    if !engine() {
        return;
    }
    let world = world();
    let id = world.api.create("left alone", script(POLITE));
    let running = start(&world, &id, &[], "ready");
    let [container] = containers_of(&id).try_into().unwrap();
    // From now on: agents of other tests may remove what is left.
    let followed = container.clone();
    let log = std::thread::spawn(move || docker(&["logs", "--follow", &followed]));
    running.signal("KILL");
    let _ = running.wait().exits(1009);
    // Nobody is left to stop it: it stops itself.
    let running = |id: &str| docker(&["inspect", "--format", "{{.State.Running}}", id]);
    eventually("the container has ended", || {
        running(&container).map_or(true, |running| running.trim() == "false")
    });
    let said = log.join().unwrap().unwrap();
    assert!(said.contains("asked by 15"), "{said}");

    let other = world.api.create("another", script(POLITE));
    let alive = start(&world, &other, &[], "ready");
    eventually("the container is removed", || running(&container).is_err());
    // A third run leaves the second one's container alone.
    let third = world.api.create("third", script("print('done')\n"));
    world.execute(&third, &["--docker", PYTHON_IMAGE]).exits(0);
    assert_eq!(containers_of(&other).len(), 1);
    alive.signal("TERM");
    let _ = alive.wait().exits(143);
}

#[test]
fn a_container_out_of_memory_is_told_from_a_kill() {
    if !engine() {
        return;
    }
    let world = world();
    let hungry = "\
data = []
print('ready', flush=True)
while True:
    data.append(bytearray(16 << 20))
";
    let id = world.api.create("memory", script(hungry));
    let result = world.path("result.json");
    let image = format!("{PYTHON_IMAGE} --memory 256m --memory-swap 256m");
    world
        .execute(
            &id,
            &["--docker", &image, "--result", result.to_str().unwrap()],
        )
        .exits(137);
    let reason = world.api.reason(&id);
    assert!(reason.contains("memory"), "{reason}");
    let result: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
    assert_eq!(result["reason"], "oom_killed", "{result}");
    assert_eq!(result["script"]["signal"], 9);

    let id = world.api.create("killed", script(POLITE));
    let running = start(&world, &id, &[], "ready");
    let [container] = containers_of(&id).try_into().unwrap();
    docker(&["kill", container.as_str()]).unwrap();
    let _ = running.wait().exits(70).complains("ended from outside");
    assert_eq!(world.api.status(&id), "failed");
    assert!(containers_of(&id).is_empty());
}

#[test]
fn somebodys_docker_stop_is_a_stop() {
    if !engine() {
        return;
    }
    let world = world();
    let id = world.api.create("docker stop", script(POLITE));
    let running = start(&world, &id, &[], "ready");
    let [container] = containers_of(&id).try_into().unwrap();
    docker(&["stop", container.as_str()]).unwrap();
    running.wait().exits(143).prints("asked by 15");
    assert_eq!(world.api.status(&id), "stopped");
}
