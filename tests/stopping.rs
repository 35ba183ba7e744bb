//! A stop takes the job with it and is told truly.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Running, World, eventually, script};
use serde_json::json;

/// Says its process id and sleeps.
const SLEEPER: &str = "\
import os, time
print('sleeper', os.getpid(), flush=True)
time.sleep(1000)
";

fn start(world: &World, text: &str) -> (String, Running, String) {
    let id = world.api.create("to be stopped", script(text));
    let mut running = world.start_execute(&id, &[]);
    let line = running.line_with("sleeper");
    let pid = line
        .rsplit(' ')
        .next()
        .expect("split gives one part at least")
        .to_owned();
    (id, running, pid)
}

fn lives(pid: &str) -> bool {
    // A zombie that waits for its new parent is dead enough.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

#[test]
fn a_signal_stops_the_job_and_the_task() {
    let world = World::new();
    for (signal, code) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let (id, running, pid) = start(&world, SLEEPER);
        running.signal(signal);
        running.wait().exits(code);
        assert!(!lives(&pid));
        assert_eq!(world.api.status(&id), "stopped");
        assert!(world.api.reason(&id).contains(&format!("SIG{signal}")));
    }
}

#[test]
fn an_abort_on_the_server_stops_the_job() {
    let world = World::new();
    let (id, running, pid) = start(&world, SLEEPER);
    world.api.call("tasks.stop", json!({"task": id}));
    running.wait().exits(143).prints("aborted on the server");
    assert!(!lives(&pid));
    assert_eq!(world.api.status(&id), "stopped");
}

#[test]
fn a_task_deleted_under_the_job_stops_it() {
    let world = World::new();
    let (id, running, pid) = start(&world, SLEEPER);
    world
        .api
        .call("tasks.delete", json!({"task": id, "force": true}));
    running.wait().exits(143).prints("deleted on the server");
    assert!(!lives(&pid));
}

#[test]
fn a_status_that_somebody_sets_stands_with_its_reason() {
    let world = World::new();
    for (status, endpoint) in [("failed", "tasks.failed"), ("stopped", "tasks.stopped")] {
        let (id, running, _) = start(&world, SLEEPER);
        let note = json!({"task": id, "status_reason": "the loss is not a number"});
        world.api.call(endpoint, note);
        running
            .wait()
            .exits(143)
            .prints(&format!("its status was set to {status} on the server"));
        let task = world.api.task(&id);
        assert_eq!(task["status"], status);
        assert_eq!(task["status_reason"], "the loss is not a number");
    }
}

#[test]
fn a_script_may_end_in_its_own_way_when_asked_to_stop() {
    let world = World::new();
    let text = "\
import os, signal, sys, time
def bye(*_):
    print('checkpoint written', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print('sleeper', os.getpid(), flush=True)
time.sleep(1000)
";
    let (id, running, _) = start(&world, text);
    running.signal("TERM");
    running.wait().exits(143).prints("checkpoint written");
    assert_eq!(world.api.status(&id), "stopped");
    assert!(world.api.log(&id).contains("checkpoint written"));
}

#[test]
fn kill_9_of_the_agent_takes_the_job_with_it() {
    let world = World::new();
    let (_, running, pids) = start_with(&world, DEAF, &[]);
    running.signal("KILL");
    let _ = running.wait();
    for pid in pids {
        eventually("the job is gone", || !lives(&pid));
    }
}

#[test]
fn kill_9_of_the_agent_takes_a_build_with_it() {
    let world = World::new();
    let package = Endless::new();
    let id = world.api.create("slow set-up", package.task());
    let running = world.start_execute(&id, &[]);
    let tool = package.tool();
    running.signal("KILL");
    let _ = running.wait();
    eventually("uv is gone", || !lives(&tool));
    let build = package.build();
    eventually("the build is gone", || !lives(&build));
}

/// Processes of any run, guards among them.
fn of_a_run(run: &str) -> Vec<String> {
    let mark = format!("CLEARML_AGENT_RUN={run}");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let has = |path: &std::path::Path, file: &str| {
        std::fs::read(path.join(file)).is_ok_and(|bytes| {
            String::from_utf8_lossy(&bytes)
                .split('\0')
                .any(|one| one == mark || one == run)
        })
    };
    processes
        .map(|entry| entry.path())
        .filter(|path| has(path, "environ") || has(path, "cmdline"))
        .map(|path| path.display().to_string())
        .collect()
}

#[test]
fn nothing_is_left_however_the_run_ends() {
    let world = World::new();
    for signal in ["", "TERM", "KILL"] {
        let text = "\
import os, subprocess, time
subprocess.Popen(['setsid', 'sleep', '1000'])
print('ready', os.environ['CLEARML_AGENT_RUN'], flush=True)
";
        let text = if signal.is_empty() {
            text.to_owned()
        } else {
            format!("{text}time.sleep(1000)\n")
        };
        let (_, running, run) = start_with(&world, &text, &[]);
        if !signal.is_empty() {
            running.signal(signal);
        }
        let _ = running.wait();
        eventually("all of the run is gone", || of_a_run(&run[0]).is_empty());
    }
}

/// A package whose build ends with the tool that runs it.
struct Endless(tempfile::TempDir);

impl Endless {
    fn new() -> Endless {
        let package = tempfile::tempdir().expect("a folder for the package");
        let build = "import os, time\ntool = os.getppid()\nopen('build', 'w').write(str(os.getpid()))\n\
                     open('new', 'w').write(str(tool))\nos.rename('new', 'tool')\nwhile os.getppid() == tool: time.sleep(0.05)\n";
        let build = format!(
            "import os\nos.chdir('{}')\n{build}",
            package.path().display()
        );
        std::fs::write(package.path().join("setup.py"), build).expect("its setup.py");
        Endless(package)
    }

    fn task(&self) -> serde_json::Value {
        let mut task = script("print('never')\n");
        let package = format!("endless @ file://{}", self.0.path().display());
        task["requirements"] = json!({ "pip": package });
        task
    }

    /// The process id of the build itself, once it is there.
    fn build(&self) -> String {
        std::fs::read_to_string(self.0.path().join("build")).expect("what the build wrote")
    }

    /// Waits for the build; the process id of the tool that runs it.
    fn tool(&self) -> String {
        let tool = self.0.path().join("tool");
        eventually("the package is being built", || tool.exists());
        std::fs::read_to_string(tool).expect("what the build wrote")
    }
}

#[test]
fn a_stop_during_the_set_up_leaves_nothing_in_progress() {
    let world = World::new();
    let package = Endless::new();
    let id = world.api.create("slow set-up", package.task());
    let running = world.start_execute(&id, &[]);
    let tool = package.tool();
    running.signal("TERM");
    let ended = running.wait().exits(143);
    assert!(!ended.stdout.contains("never"));
    assert!(!lives(&tool));
    assert_eq!(world.api.status(&id), "stopped");
}

/// Starts `text`, waits for its line with "ready", gives the process ids that the line ends with.
fn start_with(world: &World, text: &str, words: &[&str]) -> (String, Running, Vec<String>) {
    let id = world.api.create("to be stopped", script(text));
    let mut running = world.start_execute(&id, words);
    let line = running.line_with("ready");
    let pids = line.split(' ').skip(1).map(str::to_owned).collect();
    (id, running, pids)
}

/// Hears no TERM, and has a child, a daemon in a session of its own and a pipeline that hear none either.
const DEAF: &str = "\
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])
pipeline = subprocess.Popen('trap \"\" TERM; sleep 1000 | sleep 1000 | cat', shell=True)
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(writer, str(os.getpid()).encode())
        time.sleep(1000)
    os._exit(0)
daemon = os.read(reader, 20).decode()
print('ready', os.getpid(), child.pid, pipeline.pid, daemon, flush=True)
time.sleep(1000)
";

#[test]
fn what_does_not_hear_the_signal_is_killed_with_all_that_it_started() {
    let world = World::new();
    let (id, running, pids) = start_with(&world, DEAF, &["--grace", "1"]);
    assert_eq!(pids.len(), 4);
    running.signal("TERM");
    running
        .wait()
        .exits(143)
        .prints("SIGTERM, and SIGKILL if it still runs after 1 s");
    for pid in pids {
        assert!(!lives(&pid), "{pid}");
    }
    assert_eq!(world.api.status(&id), "stopped");
}

#[test]
fn a_second_signal_leaves_the_grace_out() {
    let world = World::new();
    let (id, mut running, pids) = start_with(&world, DEAF, &["--grace", "100000"]);
    running.signal("TERM");
    running.line_with("Stopping the script");
    // Signals in the same moment are one, so this is said until it is heard.
    eventually("the agent has ended", || {
        running.signal("INT");
        running.has_ended()
    });
    running.wait().exits(143).prints("a second time");
    for pid in pids {
        assert!(!lives(&pid), "{pid}");
    }
    assert_eq!(world.api.reason(&id), "the agent received SIGTERM");
}

#[test]
fn the_stop_signal_is_the_configured_one() {
    let world = World::new();
    world.configure("agent.stop_signal: SIGUSR1");
    let text = "\
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: (print('saved on USR1', flush=True), sys.exit(0)))
print('ready', os.getpid(), flush=True)
time.sleep(1000)
";
    let (_, running, _) = start_with(&world, text, &[]);
    running.signal("TERM");
    running.wait().exits(143).prints("saved on USR1");

    world.configure("agent.stop_signal: SOON");
    let refused = world.execute("t1", &[]);
    refused.exits(78).complains("agent.stop_signal");
}

#[test]
fn a_run_that_takes_too_long_has_failed() {
    let world = World::new();
    let id = world.api.create("endless", script(SLEEPER));
    let ended = world.execute(&id, &["--timeout", "4"]).exits(124);
    let line = ended.stdout.lines().find(|l| l.starts_with("sleeper "));
    assert!(!lives(line.unwrap().rsplit(' ').next().unwrap()));
    assert_eq!(world.api.status(&id), "failed");
    assert_eq!(
        world.api.reason(&id),
        "timeout: the run took longer than its --timeout of 4 s"
    );
}

#[test]
fn the_abort_callback_command_runs_before_the_script_is_stopped() {
    let mut world = World::new();
    let saved = world.path("saved");
    world.env.insert(
        "CLEARML_AGENT_ABORT_CALLBACK_CMD".into(),
        format!(
            "sh -c 'echo saving in $CLEARML_TASK_ID; touch {}'",
            saved.display()
        ),
    );
    let (id, running, pids) = start_with(
        &world,
        "import os, time\nprint('ready', os.getpid(), os.environ.get('CLEARML_AGENT_ABORT_CALLBACK_CMD'), flush=True)\ntime.sleep(1000)\n",
        &[],
    );
    assert_eq!(pids[1], "None");
    eventually("the callback is registered", || {
        world.api.task(&id)["runtime"]["_abort_callback_timeout"] == "180"
    });
    world.api.call("tasks.stop", json!({"task": id}));
    running
        .wait()
        .exits(143)
        .prints(&format!("saving in {id}"))
        .prints("### Task abort callback completed in");
    assert!(saved.exists() && !lives(&pids[0]));
    assert_eq!(world.api.status(&id), "stopped");
    assert!(
        world
            .api
            .reason(&id)
            .starts_with("user abort: aborted on the server")
    );
    let runtime = &world.api.task(&id)["runtime"];
    assert_eq!(runtime["_abort_callback_completed"], "1");
}

#[test]
fn a_callback_that_the_script_registered_is_waited_for() {
    let world = World::new();
    // As the SDK does: it says how long it may take, watches the task, and says when it is done.
    let text = "\
import base64, json, os, time, urllib.request
def call(endpoint, body):
    key = base64.b64encode((KEY + ':' + SECRET).encode()).decode()
    request = urllib.request.Request(URL + '/' + endpoint, json.dumps(body).encode(),
        {'Content-Type': 'application/json', 'Authorization': 'Basic ' + key})
    return json.load(urllib.request.urlopen(request))['data']
task = os.environ['CLEARML_TASK_ID']
call('tasks.edit', {'task': task, 'force': True, 'runtime': {'_abort_callback_timeout': 600, 'mine': 'x'}})
print('ready', os.getpid(), flush=True)
while call('tasks.get_by_id', {'task': task})['task'].get('status_message') != 'stopping':
    time.sleep(0.1)
print('saving', flush=True)
while not os.path.exists(GO): time.sleep(0.01)
call('tasks.edit', {'task': task, 'force': True, 'runtime': {'_abort_callback_timeout': 600, '_abort_callback_completed': 1, 'mine': 'x'}})
time.sleep(1000)
";
    let api = &world.api;
    let text = text
        .replace("GO", &format!("{:?}", world.path("go").to_str().unwrap()))
        .replace("KEY", &format!("{:?}", api.access_key))
        .replace("SECRET", &format!("{:?}", api.secret_key))
        .replace("URL", &format!("{:?}", api.url.trim_end_matches('/')));
    let (id, mut running, _) = start_with(&world, &text, &[]);
    world.api.call("tasks.stop", json!({"task": id}));
    running.line_with("### Task abort callback timeout set, waiting for max 600 sec ###");
    std::fs::write(world.path("go"), "").unwrap();
    let ended = running.wait().exits(143);
    let at = |text: &str| {
        ended
            .stdout
            .find(text)
            .unwrap_or_else(|| panic!("{}", ended.stdout))
    };
    assert!(at("saving") < at("callback completed"));
    assert!(at("callback completed") < at("Stopping the script"));
    assert_eq!(world.api.status(&id), "stopped");
}

#[test]
fn an_agent_that_was_held_goes_on() {
    let world = World::new();
    let (id, mut running, pids) = start_with(
        &world,
        "import os\nprint('ready', os.getpid(), flush=True)\nfor n in range(200000): print('line', n)\n",
        &[],
    );
    running.signal("STOP");
    // Its pipe is full, and it waits.
    eventually("the script waits", || {
        let state = std::fs::read_to_string(format!("/proc/{}/wchan", pids[0]));
        state.is_ok_and(|wchan| wchan.contains("pipe")) || !lives(&pids[0])
    });
    running.signal("CONT");
    running.line_with("line 199999");
    running.wait().exits(0);
    assert!(world.api.log(&id).contains("line 199999\n"));
}

#[test]
fn a_stop_while_the_code_is_fetched_ends_at_once() {
    let world = World::new();
    // Takes connections, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let task = json!({
        "repository": format!("http://{}/r.git", silent.local_addr().unwrap()),
        "branch": "main", "entry_point": "main.py", "binary": "python3",
    });
    for (by_signal, reason) in [
        (true, "the agent received SIGTERM"),
        (false, "aborted on the server"),
    ] {
        let id = world.api.create("slow clone", task.clone());
        let running = world.start_execute(&id, &[]);
        let _connection = silent.accept().unwrap();
        match by_signal {
            true => running.signal("TERM"),
            false => drop(world.api.call("tasks.stop", json!({"task": id}))),
        }
        // The server would be waited for much longer than a test is.
        let ended = running.wait().exits(143);
        assert_eq!(world.api.status(&id), "stopped");
        let told = format!("{}{}", ended.stdout, world.api.reason(&id));
        assert!(told.contains(reason), "{told}");
    }
}
