//! A stop takes the job with it and is told truly.

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
    let (_, running, pid) = start(&world, SLEEPER);
    running.signal("KILL");
    let _ = running.wait();
    eventually("the job is gone", || !lives(&pid));
}

/// A package whose build ends with the tool that runs it.
struct Endless(tempfile::TempDir);

impl Endless {
    fn new() -> Endless {
        let package = tempfile::tempdir().expect("a folder for the package");
        let build = "import os, time\ntool = os.getppid()\nopen('new', 'w').write(str(tool))\n\
                     os.rename('new', 'tool')\nwhile os.getppid() == tool: time.sleep(0.05)\n";
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

#[test]
fn kill_9_of_the_agent_ends_the_installation() {
    let world = World::new();
    let package = Endless::new();
    let id = world.api.create("killed set-up", package.task());
    let running = world.start_execute(&id, &[]);
    let tool = package.tool();
    assert!(lives(&tool));
    running.signal("KILL");
    let _ = running.wait();
    eventually("the installation is over", || !lives(&tool));
}
