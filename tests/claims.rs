//! `--require-queue` for jobs that are started again: whose task it is, which attempt, what comes after a
//! preemption.
#![allow(clippy::unwrap_used)]

#[path = "common/claiming.rs"]
mod claiming;
mod common;

use claiming::{SLEEPER, claimant, entries, queued, start};
use common::{Repo, Running, World, eventually, script};
use serde_json::{Value, json};

/// On another machine, as it were: one that does not see this one's journals.
fn move_elsewhere(world: &mut World, name: &str) {
    let journals = world.path(name).display().to_string();
    world
        .env
        .insert("CLEARML__AGENT__JOURNAL__PATH".into(), journals);
}

#[test]
fn the_same_job_goes_on_with_its_own_task_and_nobody_else_does() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let id = queued(&world, SLEEPER);
    let mut first = start(&world, &id, &[]);
    first.line_with("attempt 1 after None");
    // It runs still, so not even its own job may run it a second time.
    start(&world, &id, &[])
        .wait()
        .exits(76)
        .complains("an earlier agent of this job (job 7) still runs it");
    first.signal("KILL");
    let _ = first.wait();
    assert_eq!(world.api.status(&id), "in_progress");

    claimant(&mut world, "job 8");
    start(&world, &id, &[])
        .wait()
        .exits(76)
        .complains("is in_progress, and it is not this job that has it: job 7 has it");

    claimant(&mut world, "job 7");
    let file = world.path("result.json");
    start(&world, &id, &["--result", file.to_str().unwrap()])
        .wait()
        .exits(0)
        .prints("attempt 2 after the agent was killed");
    let result: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(result["attempt"], 2);
    assert_eq!(world.api.status(&id), "completed");

    // What is done is done.
    start(&world, &id, &[])
        .wait()
        .exits(67)
        .complains("has ended already (its status is completed)");
    start(&world, &id, &["--if-done", "ok"])
        .wait()
        .exits(0)
        .complains("has ended already");
}

#[test]
fn a_preempted_task_is_stopped_put_back_or_kept() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    for (then, status, in_queue) in [
        ("stop", "stopped", 0),
        ("requeue", "queued", 1),
        ("keep", "in_progress", 0),
    ] {
        let id = queued(&world, SLEEPER);
        let file = world.path("result.json");
        let words = ["--on-preempt", then, "--result", file.to_str().unwrap()];
        let mut running = start(&world, &id, &words);
        running.line_with("attempt 1 after None");
        running.signal("TERM");
        running.wait().exits(143).prints("checkpoint written");
        assert_eq!(world.api.status(&id), status, "{then}");
        assert_eq!(entries(&world), in_queue, "{then}");
        let result: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(result["reason"], "preempted");
        // Nothing is left that could set the status of the kept one.
        world
            .run(&["sync"])
            .exits(0)
            .prints("nothing is left to send");
        let next = start(&world, &id, &[]).wait();
        if then == "stop" {
            assert!(world.api.reason(&id).starts_with("preempted: "));
            next.exits(67);
        } else {
            next.exits(0)
                .prints("attempt 2 after preempted: the agent was asked to end");
            assert_eq!(world.api.status(&id), "completed");
        }
    }
}

/// A script that takes its time to end.
const SLOW_TO_END: &str = "\
import os, signal, sys, time
def bye(*_):
    print('ending', flush=True)
    while not os.path.exists(os.environ['HOME'] + '/end'): time.sleep(0.01)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print('awake', flush=True)
time.sleep(1000)
";

#[test]
fn an_abort_ends_a_task_that_is_just_being_preempted() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    for then in ["requeue", "keep"] {
        let _ = std::fs::remove_file(world.path("end"));
        let id = queued(&world, SLOW_TO_END);
        let mut running = start(&world, &id, &["--on-preempt", then, "--grace", "100"]);
        running.line_with("awake");
        eventually("the server knows of the worker", || {
            !world.api.task(&id)["last_worker"].is_null()
        });
        running.signal("TERM");
        running.line_with("ending");
        world.api.call("tasks.stop", json!({"task": id}));
        std::fs::write(world.path("end"), "").unwrap();
        running.wait().exits(143).prints("aborted on the server");
        assert_eq!(world.api.status(&id), "stopped", "{then}");
        assert_eq!(entries(&world), 0, "{then}");
        let reason = world.api.reason(&id);
        assert!(reason.starts_with("user abort"), "{reason}");
        start(&world, &id, &[]).wait().exits(67);
    }
}

/// The server asks the worker to stop it, and there is none.
#[test]
fn an_abort_of_a_kept_task_holds_for_the_jobs_next_start() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let id = queued(&world, SLEEPER);
    let mut running = start(&world, &id, &["--on-preempt", "keep"]);
    running.line_with("attempt 1");
    running.signal("TERM");
    running.wait().exits(143);
    world.api.call("tasks.stop", json!({"task": id}));
    assert_eq!(world.api.status(&id), "in_progress");
    start(&world, &id, &[])
        .wait()
        .exits(67)
        .complains("its status is stopped");
    assert!(world.api.reason(&id).starts_with("user abort"));
}

#[test]
fn another_job_goes_on_with_what_was_put_back() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let id = queued(&world, SLEEPER);
    let mut running = start(&world, &id, &["--on-preempt", "requeue"]);
    running.line_with("attempt 1");
    running.signal("TERM");
    running.wait().exits(143);
    claimant(&mut world, "job 8");
    start(&world, &id, &[])
        .wait()
        .exits(0)
        .prints("attempt 2 after preempted");
}

/// The glue of Kubernetes keeps it in a queue of its own.
#[test]
fn a_pods_task_goes_back_to_the_queue_that_it_came_from() {
    let mut world = World::new();
    world
        .env
        .insert("KUBERNETES_SERVICE_HOST".into(), "10.0.0.1".into());
    world.env.insert("HOSTNAME".into(), "clearml-id-1".into());
    let queue = |name: &str| {
        let made = world.api.call("queues.create", json!({"name": name}));
        made["id"].as_str().unwrap().to_owned()
    };
    let (came_from, of_the_glue) = (queue("gpus"), queue("k8s_scheduler"));
    let made = world.api.call(
        "tasks.create",
        json!({"name": "a pod's", "type": "training", "script": script(SLEEPER), "hyperparams": {
            "properties": {"k8s-queue": {"section": "properties", "name": "k8s-queue", "value": "gpus"}}}}),
    );
    let id = made["id"].as_str().unwrap();
    world
        .api
        .call("tasks.enqueue", json!({"task": id, "queue": of_the_glue}));
    let mut running = start(&world, id, &["--on-preempt", "requeue"]);
    running.line_with("attempt 1");
    running.signal("TERM");
    running.wait().exits(143);
    assert_eq!(world.api.status(id), "queued");
    let queue = world
        .api
        .call("queues.get_by_id", json!({"queue": came_from}));
    assert_eq!(queue["queue"]["entries"][0]["task"], id);
}

#[test]
fn a_notice_is_passed_on_as_it_is() {
    let world = World::new();
    let text = "\
import signal, sys, time
def save(number, _):
    print('saving at', number, flush=True)
    if number == signal.SIGUSR2: sys.exit(0)
signal.signal(signal.SIGUSR1, save)
signal.signal(signal.SIGUSR2, save)
print('ready', flush=True)
while True: time.sleep(1000)
";
    let id = queued(&world, text);
    let mut running = start(&world, &id, &[]);
    running.line_with("ready");
    running.signal("USR1");
    running.line_with("saving at 10");
    running.signal("USR2");
    running.wait().exits(0).prints("saving at 12");
    assert_eq!(world.api.status(&id), "completed");
}

#[test]
fn several_ranks_run_one_task_and_the_first_tells_of_it() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let text = "\
import os, sys, time
rank = os.environ['SLURM_PROCID']
print('rank', rank, 'attempt', os.environ['CLEARML_AGENT_ATTEMPT'], flush=True)
if rank == '2': sys.exit(5)
time.sleep(1000)
";
    let id = queued(&world, text);
    world.env.insert("SLURM_NTASKS".into(), "3".into());
    let mut ranks = Vec::new();
    // The first comes last.
    for rank in (0..3).rev() {
        world.env.insert("SLURM_PROCID".into(), rank.to_string());
        let mut running = start(&world, &id, &[]);
        if rank > 0 {
            running.line_with("Waiting for task");
        }
        ranks.push(running);
    }
    let codes: Vec<i32> = ranks.into_iter().map(|rank| rank.wait().code).collect();
    assert_eq!(codes, [5, 143, 143]);
    eventually("the task has failed", || world.api.status(&id) == "failed");
    assert_eq!(
        world.api.reason(&id),
        "rank 2 failed: worker execution exit code 5"
    );
}

#[test]
fn a_rank_runs_though_the_first_was_through_before_it_looked() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let id = queued(
        &world,
        "import os\nprint('this is', os.environ['SLURM_PROCID'])\n",
    );
    world.env.insert("SLURM_NTASKS".into(), "2".into());
    world.env.insert("SLURM_STEP_ID".into(), "0".into());
    for rank in ["0", "1"] {
        world.env.insert("SLURM_PROCID".into(), rank.into());
        start(&world, &id, &[])
            .wait()
            .exits(0)
            .prints(&format!("this is {rank}"));
        assert_eq!(world.api.status(&id), "completed");
    }
    // Not with a later `srun`, whose first rank has nothing to run.
    world.env.insert("SLURM_STEP_ID".into(), "1".into());
    for rank in ["0", "1"] {
        world.env.insert("SLURM_PROCID".into(), rank.into());
        start(&world, &id, &[])
            .wait()
            .exits(67)
            .complains("has ended already");
    }
}

#[test]
fn all_ranks_run_the_commit_of_the_first_though_the_branch_moves() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let version = |number: u32| {
        format!(
            "import os, time\nprint('rank', os.environ['RANK'], 'runs version', {number}, flush=True)\n\
             while not os.path.exists(os.environ['HOME'] + '/go'): time.sleep(0.01)\n"
        )
    };
    let repo = Repo::new(&[("main.py", "print('warm')\n")]);
    let text = json!({"repository": repo.url(), "branch": "main", "entry_point": "main.py",
        "working_dir": ".", "binary": "python3"});
    // Each rank has a mirror, which is busy as long as the test holds its lock.
    const MIRRORS: &str = "CLEARML__AGENT__VCS_CACHE__PATH";
    let id = world.api.create("on two nodes", text.clone());
    let [first_lock, second_lock] = ["mirrors 0", "mirrors 1"].map(|name| {
        let mirrors = world.path(name);
        world
            .env
            .insert(MIRRORS.into(), mirrors.display().to_string());
        let warm = world.api.create("warm", text.clone());
        world.execute(&warm, &[]).exits(0).prints("warm");
        let lock = std::fs::read_dir(&mirrors)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|kind| kind == "lock"))
            .unwrap();
        let lock = std::fs::File::options().write(true).open(lock).unwrap();
        lock.lock().unwrap();
        lock
    });
    let first_commit = repo.commit(&[("main.py", &version(1))]);
    world.api.enqueue(&id);

    world.env.insert("WORLD_SIZE".into(), "2".into());
    world.env.insert("RANK".into(), "1".into());
    let mut second = start(&world, &id, &[]);
    second.line_with("Waiting for task");
    let mirrors = world.path("mirrors 0").display().to_string();
    world.env.insert(MIRRORS.into(), mirrors);
    world.env.insert("RANK".into(), "0".into());
    let mut first = start(&world, &id, &[]);
    second.line_with("Executing task id");
    drop(first_lock);
    first.line_with("rank 0 runs version 1");
    repo.commit(&[("main.py", &version(2))]);
    drop(second_lock);
    second.line_with("rank 1 runs version 1");
    std::fs::write(world.path("go"), "").unwrap();
    second
        .wait()
        .exits(0)
        .prints(&format!("Rank 0 runs commit {first_commit}"));
    first.wait().exits(0);
    assert_eq!(world.api.status(&id), "completed");
    assert_eq!(
        world.api.task(&id)["script"]["version_num"],
        first_commit.as_str()
    );
}

#[test]
fn another_run_on_the_machine_leaves_a_killed_jobs_task_to_the_job() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let id = queued(&world, SLEEPER);
    let mut first = start(&world, &id, &[]);
    first.line_with("attempt 1");
    first.signal("KILL");
    let _ = first.wait();

    // It sends the log, and waits until that is there.
    let go = world.path("go");
    let text = format!(
        "import os, time\nwhile not os.path.exists({:?}): time.sleep(0.01)\n",
        go.to_str().unwrap()
    );
    let neighbour = world.api.create("a neighbour", script(&text));
    let running = world.start_execute(&neighbour, &[]);
    eventually("the killed run's log is sent", || {
        world.api.log(&id).contains("attempt 1")
    });
    std::fs::write(go, "").unwrap();
    running.wait().exits(0);
    assert_eq!(world.api.status(&id), "in_progress");
    start(&world, &id, &[])
        .wait()
        .exits(0)
        .prints("attempt 2 after the agent was killed");
    assert_eq!(world.api.status(&id), "completed");
}

#[test]
fn an_agent_whose_task_was_taken_over_stops_and_tells_nothing() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let text = "\
import os, time
print('attempt', os.environ['CLEARML_AGENT_ATTEMPT'], flush=True)
if os.environ['CLEARML_AGENT_ATTEMPT'] == '1': time.sleep(1000)
while not os.path.exists(os.environ['GO']): time.sleep(0.01)
";
    let go = world.path("go").display().to_string();
    world.env.insert("GO".into(), go.clone());
    let id = queued(&world, text);
    let file = world.path("result.json");
    let mut first = start(&world, &id, &["--result", file.to_str().unwrap()]);
    first.line_with("attempt 1");
    // The batch system has started the job again, somewhere else.
    move_elsewhere(&mut world, "elsewhere");
    world.env.insert("SLURM_RESTART_COUNT".into(), "1".into());
    let mut second = start(&world, &id, &[]);
    second.line_with("attempt 2");
    first
        .wait()
        .exits(76)
        .prints("another agent has taken the task over");
    assert_eq!(world.api.status(&id), "in_progress");
    let result: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(result["reason"], "taken_by_another");
    assert_eq!(result["status"], Value::Null);
    std::fs::write(go, "").unwrap();
    second.wait().exits(0);
    assert_eq!(world.api.status(&id), "completed");
}

/// Before it has seen that at a look at the task.
#[test]
fn the_end_of_an_attempt_is_not_written_over_a_later_one() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let text = "\
import os, sys, time
attempt = os.environ['CLEARML_AGENT_ATTEMPT']
print('attempt', attempt, flush=True)
while not os.path.exists(os.environ['HOME'] + '/end' + attempt): time.sleep(0.01)
if attempt == '1': sys.exit(3)
";
    let id = queued(&world, text);
    let mut first = start(&world, &id, &[]);
    first.line_with("attempt 1");
    move_elsewhere(&mut world, "elsewhere");
    world.env.insert("SLURM_RESTART_COUNT".into(), "1".into());
    let mut second = start(&world, &id, &[]);
    second.line_with("Starting Task Execution");
    std::fs::write(world.path("end1"), "").unwrap();
    first
        .wait()
        .exits(76)
        .complains("another agent has taken the task over");
    assert_eq!(world.api.status(&id), "in_progress");
    std::fs::write(world.path("end2"), "").unwrap();
    second.wait().exits(0).prints("attempt 2");
    assert_eq!(world.api.status(&id), "completed");
}

#[test]
fn of_two_of_one_name_only_one_runs_the_task() {
    let mut world = World::new();
    // Two legs of a matrix.
    for (name, value) in [
        ("GITHUB_REPOSITORY", "o/r"),
        ("GITHUB_RUN_ID", "7"),
        ("GITHUB_JOB", "train"),
    ] {
        world.env.insert(name.into(), value.into());
    }
    let go = world.path("go").display().to_string();
    world.env.insert("GO".into(), go.clone());
    let text = "\
import os, time
print('attempt', os.environ['CLEARML_AGENT_ATTEMPT'], flush=True)
while not os.path.exists(os.environ['GO']): time.sleep(0.01)
";
    let id = queued(&world, text);
    let mut first = start(&world, &id, &[]);
    first.line_with("attempt 1");
    move_elsewhere(&mut world, "elsewhere");
    start(&world, &id, &[])
        .wait()
        .exits(76)
        .prints("asking whether it runs still")
        .complains("an earlier agent of this job (github:o/r:7:train) still runs it");
    assert_eq!(world.api.status(&id), "in_progress");
    std::fs::write(go, "").unwrap();
    first.wait().exits(0);
    assert_eq!(world.api.status(&id), "completed");
    assert_eq!(world.api.log(&id).matches("attempt").count(), 1);
}

#[test]
fn of_many_that_would_go_on_with_a_killed_one_exactly_one_does() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let text = "\
import os, time
print('attempt', os.environ['CLEARML_AGENT_ATTEMPT'], flush=True)
if os.environ['CLEARML_AGENT_ATTEMPT'] == '1': time.sleep(1000)
";
    for told_by_sync in [false, true] {
        let id = queued(&world, text);
        let mut first = start(&world, &id, &[]);
        first.line_with("attempt 1");
        first.signal("KILL");
        let _ = first.wait();
        if told_by_sync {
            world.run(&["sync"]).exits(0);
            assert_eq!(world.api.status(&id), "failed");
            let reason = world.api.reason(&id);
            assert!(reason.starts_with("the agent was killed"), "{reason}");
            // Nobody else's.
            claimant(&mut world, "job 8");
            start(&world, &id, &[]).wait().exits(67);
            claimant(&mut world, "job 7");
        }
        let racers: Vec<Running> = (0..6).map(|_| start(&world, &id, &[])).collect();
        let mut codes: Vec<i32> = racers.into_iter().map(|racer| racer.wait().code).collect();
        codes.sort_unstable();
        assert_eq!(codes.remove(0), 0, "{codes:?}");
        assert!(
            codes.iter().all(|code| [67, 76].contains(code)),
            "{codes:?}"
        );
        assert_eq!(world.api.status(&id), "completed");
        let log = world.api.log(&id);
        assert_eq!(log.matches("attempt 2\n").count(), 1, "{log}");
    }
}

#[test]
fn a_script_that_failed_by_itself_is_not_run_again() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let id = queued(&world, "raise SystemExit(3)");
    start(&world, &id, &[]).wait().exits(3);
    world.run(&["sync"]).exits(0);
    start(&world, &id, &[]).wait().exits(67);
    assert_eq!(world.api.status(&id), "failed");
}

#[test]
fn a_task_is_kept_only_for_a_job_that_can_come_back() {
    let world = World::new();
    let id = queued(&world, SLEEPER);
    start(&world, &id, &["--on-preempt", "keep"])
        .wait()
        .exits(2)
        .complains("CLEARML_AGENT_CLAIM_ID");
    assert_eq!(world.api.status(&id), "queued");
}
