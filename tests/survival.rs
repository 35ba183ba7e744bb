//! `kill -9`, of the agent and of the server: the log goes on where it was.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/figures.rs"]
mod figures;
#[path = "common/line.rs"]
mod line;
#[path = "common/server_process.rs"]
mod server_process;

use common::{World, eventually, script};
use figures::figures;
use line::Line;
use serde_json::json;
use server_process::ServerProcess;

/// Prints numbered lines, some at once and some one by one.
const COUNTER: &str = "\
import time
for n in range(100000):
    print('line', n, flush=n % 7 == 0)
    if n % 50 == 0:
        time.sleep(0.001)
";

fn journals(world: &World) -> usize {
    std::fs::read_dir(world.path(".clearml/journal"))
        .unwrap()
        .count()
}

#[test]
fn what_a_killed_agent_had_taken_is_sent_by_sync() {
    let world = World::new();
    let mut seed = 11_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    let (mut lost, mut duplicated, mut lines) = (0, 0, 0);
    for round in 0..50 {
        let id = world.api.create("to be killed", script(COUNTER));
        let mut running = world.start_execute(&id, &[]);
        let last = 10 + random(6_000);
        running.line_with(&format!("line {last}"));
        running.signal("KILL");
        let shown = running.wait().exits(1009).stdout;
        assert_eq!(world.api.status(&id), "in_progress");
        world
            .run(&["sync"])
            .exits(0)
            .prints(&format!("task {id}: log: "))
            .prints("its status is set to failed");
        assert_eq!(world.api.status(&id), "failed");
        assert!(world.api.reason(&id).starts_with("the agent was killed"));

        let log = world.api.log(&id);
        // The last line may be cut off, there as on the terminal.
        let (log, _) = log.trim_end().rsplit_once('\n').unwrap();
        let on_server = log
            .lines()
            .filter_map(|line| line.strip_prefix("line ")?.parse::<usize>().ok())
            .max()
            .unwrap();
        let whole = shown.lines().filter(|l| l.starts_with("line ")).count() - 1;
        assert!(on_server + 1 >= whole, "round {round}: {on_server} {whole}");
        let figures = figures(log, on_server + 1);
        assert!(figures.in_order, "round {round}");
        lost += figures.lost;
        duplicated += figures.duplicated;
        lines += on_server + 1;
        assert_eq!(journals(&world), 0);
    }
    println!("50 kills, {lines} lines: lost {lost}, duplicated {duplicated}");
    assert_eq!(lost, 0);
}

#[test]
fn the_next_run_on_the_machine_sends_what_a_killed_one_left() {
    let world = World::new();
    let killed = world.api.create("to be killed", script(COUNTER));
    let mut running = world.start_execute(&killed, &[]);
    running.line_with("line 500");
    running.signal("KILL");
    let _ = running.wait();
    assert_eq!(journals(&world), 1);

    // Runs until it is told that the other's log is there.
    let go = world.path("go");
    let next = world.api.create(
        "next",
        script(&format!(
            "import os, time\nwhile not os.path.exists({:?}): time.sleep(0.01)\n",
            go.to_str().unwrap()
        )),
    );
    let running = world.start_execute(&next, &[]);
    eventually("the killed run's log is sent", || {
        world.api.log(&killed).contains("line 500\n") && journals(&world) == 1
    });
    std::fs::write(go, "").unwrap();
    running.wait().exits(0);
    assert_eq!(journals(&world), 0);
    assert_eq!(world.api.status(&killed), "failed");
}

#[test]
fn what_sync_sends_of_a_killed_rank_has_its_mark() {
    let mut world = World::new();
    let id = world.api.create("of several", script(COUNTER));
    world.api.call("tasks.started", json!({"task": id}));
    world.env.insert("SLURM_PROCID".into(), "2".into());
    let shared = "CLEARML_MULTI_NODE_SINGLE_TASK";
    world.env.insert(shared.into(), "1".into());
    let mut running = world.start_execute(&id, &[]);
    running.line_with("line 500");
    running.signal("KILL");
    let _ = running.wait();
    let marks = || world.api.log(&id).matches("RANK 2:").count();
    let before = marks();
    world.run(&["sync"]).exits(0);
    assert!(marks() > before, "{}", world.api.log(&id));
    assert!(world.api.log(&id).contains("line 500\n"));
}

/// Kills the agent of a task that sleeps; gives the task.
fn killed(world: &World) -> String {
    let id = world.api.create(
        "to be killed",
        script("import time\nprint('awake', flush=True)\ntime.sleep(1000)\n"),
    );
    let mut running = world.start_execute(&id, &[]);
    running.line_with("awake");
    // What says that it was this run.
    eventually("the claim is on the server", || {
        !world.api.task(&id)["runtime"]["clearml_agent_claim"].is_null()
    });
    running.signal("KILL");
    let _ = running.wait();
    id
}

#[test]
fn a_task_that_somebody_else_runs_by_now_is_left_alone() {
    let world = World::new();
    // An agent of another make reports on it.
    let taken_over = killed(&world);
    world.api.call(
        "workers.status_report",
        json!({"worker": "another:1", "task": taken_over, "timestamp": 1_700_000_000_000_u64, "queues": []}),
    );
    // One of ours holds it.
    let run_again = killed(&world);
    let mut running = world.start_execute(&run_again, &[]);
    running.line_with("awake");
    eventually("the next run holds it", || {
        let log = world.api.log(&run_again);
        log.matches("awake\n").count() == 2 && journals(&world) == 1
    });
    for id in [&taken_over, &run_again] {
        assert_eq!(world.api.status(id), "in_progress");
    }
    running.signal("TERM");
    running.wait().exits(143);
    assert_eq!(world.api.status(&run_again), "stopped");
    assert_eq!(world.api.status(&taken_over), "in_progress");
}

#[test]
fn an_end_that_no_server_heard_of_is_told_later() {
    let data = tempfile::tempdir().unwrap();
    let first = ServerProcess::start("127.0.0.1:0", Some(data.path()));
    let address = first.api.url.split_once("//").unwrap().1.to_owned();
    let world = World::at(first.api.clone());
    let go = world.path("go");
    let waits = |code: i32| {
        let text = format!(
            "import os, sys, time\nprint('awake', flush=True)\n\
             while not os.path.exists({:?}): time.sleep(0.01)\nprint('the end')\nsys.exit({code})\n",
            go.to_str().unwrap()
        );
        world.api.create("ends unheard", script(&text))
    };
    let ids = [waits(0), waits(3)];
    let mut runs: Vec<_> = ids
        .iter()
        .map(|id| world.start_execute(id, &["--drain-timeout", "0"]))
        .collect();
    for (id, running) in ids.iter().zip(&mut runs) {
        running.line_with("awake");
        eventually("the claim is on the server", || {
            !world.api.task(id)["runtime"]["clearml_agent_claim"].is_null()
        });
    }
    let silent = world.api.create("not heard of", script("print(1)"));
    first.kill();
    std::fs::write(go, "").unwrap();
    for (running, code) in runs.into_iter().zip([0, 3]) {
        running
            .wait()
            .exits(code)
            .complains("the task's status could not be written")
            .complains("`clearml-agent sync`, or the next run on this machine, writes it");
    }
    assert_eq!(journals(&world), 2);
    let _second = ServerProcess::start(address.trim_end_matches('/'), Some(data.path()));
    world.run(&["sync"]).exits(0);
    assert_eq!(journals(&world), 0);
    for (id, status, reason) in [
        (&ids[0], "completed", "worker execution done"),
        (&ids[1], "failed", "worker execution exit code 3"),
        (&silent, "created", ""),
    ] {
        assert_eq!(
            (world.api.status(id).as_str(), world.api.reason(id).as_str()),
            (status, reason)
        );
    }
    assert!(world.api.log(&ids[1]).contains("the end"));
}

#[test]
fn a_job_that_is_started_again_does_not_run_what_had_ended_unheard() {
    let data = tempfile::tempdir().unwrap();
    let first = ServerProcess::start("127.0.0.1:0", Some(data.path()));
    let address = first.api.url.split_once("//").unwrap().1.to_owned();
    let mut world = World::at(first.api.clone());
    world
        .env
        .insert("CLEARML_AGENT_CLAIM_ID".into(), "job 7".into());
    let go = world.path("go");
    let text = format!(
        "import os, time\nprint('awake', flush=True)\nwhile not os.path.exists({:?}): time.sleep(0.01)\n",
        go.to_str().unwrap()
    );
    let id = world.api.create("ends unheard", script(&text));
    world.api.enqueue(&id);
    let mut running = world.start_execute(&id, &["--require-queue", "--drain-timeout", "0"]);
    running.line_with("awake");
    first.kill();
    std::fs::write(go, "").unwrap();
    running
        .wait()
        .exits(0)
        .complains("the task's status could not be written");
    let _second = ServerProcess::start(address.trim_end_matches('/'), Some(data.path()));
    assert_eq!(world.api.status(&id), "in_progress");
    world
        .execute(&id, &["--require-queue"])
        .exits(67)
        .complains("its status is completed");
    assert_eq!(world.api.log(&id).matches("awake\n").count(), 1);
    assert_eq!(journals(&world), 0);
}

#[test]
fn a_server_killed_in_mid_run_misses_nothing() {
    let data = tempfile::tempdir().unwrap();
    let first = ServerProcess::start("127.0.0.1:0", Some(data.path()));
    let url = first.api.url.clone();
    let world = World::at(first.api.clone());
    let go = world.path("go");
    let id = world.api.create(
        "outlives its server",
        script(&format!(
            "import os, time\nfor n in range(1000): print('line', n)\n\
             while not os.path.exists({:?}): time.sleep(0.01)\n\
             for n in range(1000, 2000): print('line', n)\n",
            go.to_str().unwrap()
        )),
    );
    let mut running = world.start_execute(&id, &[]);
    running.line_with("line 999");
    first.kill();
    std::fs::write(go, "").unwrap();
    running.line_with("line 1999");
    let address = url.split_once("//").unwrap().1.trim_end_matches('/');
    let _second = ServerProcess::start(address, Some(data.path()));
    running.wait().exits(0);
    let figures = figures(&world.api.log(&id), 2000);
    assert_eq!((figures.lost, figures.in_order), (0, true));
    assert_eq!(world.api.status(&id), "completed");
}

#[test]
fn a_server_that_goes_away_during_an_abort_hears_of_its_end_later() {
    let data = tempfile::tempdir().unwrap();
    let first = ServerProcess::start("127.0.0.1:0", Some(data.path()));
    let address = first.api.url.split_once("//").unwrap().1.to_owned();
    let world = World::at(first.api.clone());
    let go = world.path("go");
    let text = format!(
        "import os, signal, sys, time\n\
         def bye(*_):\n\
         \x20   while not os.path.exists({:?}): time.sleep(0.01)\n\
         \x20   print('checkpoint written', flush=True)\n\
         \x20   sys.exit(0)\n\
         signal.signal(signal.SIGTERM, bye)\n\
         print('awake', flush=True)\n\
         while True: time.sleep(1000)\n",
        go.to_str().unwrap()
    );
    let id = world.api.create("to be aborted", script(&text));
    let mut running = world.start_execute(&id, &["--drain-timeout", "0", "--grace", "100"]);
    running.line_with("awake");
    eventually("the claim is on the server", || {
        !world.api.task(&id)["runtime"]["clearml_agent_claim"].is_null()
    });
    world.api.call("tasks.stop", json!({"task": id}));
    running.line_with("Stopping the script");
    first.kill();
    std::fs::write(go, "").unwrap();
    running
        .wait()
        .exits(143)
        .prints("checkpoint written")
        .complains("the task's status could not be written");
    let _second = ServerProcess::start(address.trim_end_matches('/'), Some(data.path()));
    world.run(&["sync"]).exits(0);
    assert_eq!(world.api.status(&id), "stopped");
    let reason = world.api.reason(&id);
    assert!(
        reason.starts_with("user abort: aborted on the server"),
        "{reason}"
    );
    assert!(world.api.log(&id).contains("checkpoint written"));
}

/// Whoever is first: status, reason and exit code say the same.
#[test]
fn an_abort_and_the_scripts_own_end_in_the_same_moment() {
    let world = World::new();
    for abort_first in [true, false, true] {
        let go = world.path("go");
        let text = format!(
            "import os, time\nprint('awake', flush=True)\n\
             while not os.path.exists({:?}): time.sleep(0.001)\n",
            go.to_str().unwrap()
        );
        let id = world.api.create("ends both ways", script(&text));
        let mut running = world.start_execute(&id, &[]);
        running.line_with("awake");
        eventually("the server knows of the worker", || {
            !world.api.task(&id)["last_worker"].is_null()
        });
        let abort = || {
            world.api.try_call("tasks.stop", &json!({"task": id}));
        };
        if abort_first {
            abort();
        }
        std::fs::write(&go, "").unwrap();
        if !abort_first {
            abort();
        }
        let code = running.wait().code;
        let (status, reason) = (world.api.status(&id), world.api.reason(&id));
        match code {
            0 => assert_eq!(
                (status.as_str(), reason.as_str()),
                ("completed", "worker execution done")
            ),
            143 => assert!(
                status == "stopped" && reason.starts_with("user abort"),
                "{reason}"
            ),
            code => panic!("{code}: {status}, {reason}"),
        }
        std::fs::remove_file(&go).unwrap();
    }
}

/// A world whose server takes no more of the log when that is asked of the line.
fn far_away() -> (World, Line) {
    let mut world = World::new();
    let line = Line::to(&world.api.url);
    world
        .env
        .insert("CLEARML_API_HOST".into(), line.url.clone());
    (world, line)
}

/// Whoever sends SIGTERM sends SIGKILL next, whatever the log waits for.
#[test]
fn a_status_does_not_wait_for_the_log_when_a_signal_has_ended_the_run() {
    let (world, line) = far_away();
    let text = "\
import signal, sys, time
def bye(*_):
    print('good bye', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print('awake', flush=True)
time.sleep(1000)
";
    let id = world.api.create("to be ended", script(text));
    let mut running = world.start_execute(&id, &["--drain-timeout", "600"]);
    running.line_with("awake");
    eventually("the log is on its way", || {
        world.api.log(&id).contains("awake")
    });
    line.hold("events.add_batch");
    running.signal("TERM");
    eventually("its status is set", || world.api.status(&id) == "stopped");
    assert!(!world.api.log(&id).contains("good bye"));
    running.signal("KILL");
    let _ = running.wait();
    line.let_through();
    assert_eq!(world.api.reason(&id), "the agent received SIGTERM");
    world.run(&["sync"]).exits(0);
    assert_eq!(world.api.status(&id), "stopped");
    assert!(world.api.log(&id).contains("good bye"));
}

/// A hurry is for the log alone.
#[test]
fn a_signal_while_the_log_is_sent_leaves_the_status_its_time() {
    let (world, line) = far_away();
    let go = world.path("go");
    let text = format!(
        "import os, time\nprint('awake', flush=True)\n\
         while not os.path.exists({:?}): time.sleep(0.01)\nprint('the end')\nraise SystemExit(3)\n",
        go.to_str().unwrap()
    );
    let id = world.api.create("ends in a hurry", script(&text));
    let mut running = world.start_execute(&id, &[]);
    running.line_with("awake");
    eventually("the log is on its way", || {
        world.api.log(&id).contains("awake")
    });
    line.hold("events.add_batch");
    std::fs::write(go, "").unwrap();
    running.line_with("Process failed, exit code 3");
    running.signal("TERM");
    running.wait().exits(3).complains("kept in");
    assert_eq!(world.api.status(&id), "failed");
    assert_eq!(world.api.reason(&id), "worker execution exit code 3");
}
