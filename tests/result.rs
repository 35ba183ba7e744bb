//! How a run ended, told to programs: the exit code and the result file. Every row of the README's table
//! of exit codes is reached here, but for the sick GPU's (`monitor_run`).
#![allow(clippy::unwrap_used)]

mod common;

use common::{Api, World, script};
use serde_json::{Value, json};

/// Runs the task with a result file; checks what the file says against the exit code and the server.
fn run(world: &World, id: &str, words: &[&str], code: i32) -> Value {
    let file = world.path("result.json");
    let mut all = vec!["--result", file.to_str().unwrap()];
    all.extend(words);
    let ended = world.execute(id, &all).exits(code);
    let result: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(result["exit_code"], code, "{result}\n{}", ended.stderr);
    if !result["status"].is_null() {
        let task = world.api.task(result["task"].as_str().unwrap());
        assert_eq!(result["status"], task["status"]);
        assert_eq!(result["message"], task["status_reason"]);
    }
    result
}

#[test]
fn the_scripts_own_end_comes_out_unchanged() {
    let world = World::new();
    for (text, code, reason, exit_code, signal) in [
        ("print('done')", 0, "completed", json!(0), json!(null)),
        ("raise SystemExit(7)", 7, "failed", json!(7), json!(null)),
        (
            "raise SystemExit(255)",
            255,
            "failed",
            json!(255),
            json!(null),
        ),
        (
            "import os; os.kill(os.getpid(), 11)",
            139,
            "signalled",
            json!(null),
            json!(11),
        ),
    ] {
        for mode in [&[][..], &["--full-monitoring"], &["--disable-monitoring"]] {
            let id = world.api.create("ends", script(text));
            let result = run(&world, &id, mode, code);
            assert_eq!(result["task"], json!(id));
            assert_eq!(result["reason"], reason);
            assert_eq!(
                result["script"],
                json!({"exit_code": exit_code, "signal": signal})
            );
        }
    }
}

#[test]
fn the_python_agents_exit_code_can_be_had() {
    let mut world = World::new();
    world
        .env
        .insert("CLEARML_AGENT_PROPAGATE_EXITCODE".into(), "0".into());
    let id = world.api.create("fails", script("raise SystemExit(7)"));
    let result = run(&world, &id, &["--full-monitoring"], 0);
    assert_eq!(result["script"]["exit_code"], 7);
    assert_eq!(result["status"], "failed");
    // Its plain mode passes the code on.
    run(&world, &id, &[], 7);
}

#[test]
fn times_and_log_are_told() {
    let world = World::new();
    let id = world
        .api
        .create("prints", script("print('one')\nprint('two')"));
    let result = run(&world, &id, &[], 0);
    let times = result["times"].as_object().unwrap();
    let phases: Vec<&str> = times.keys().map(String::as_str).collect();
    assert_eq!(
        phases,
        [
            "started",
            "claimed",
            "code_ready",
            "environment_ready",
            "script_started",
            "script_ended",
            "log_sent",
            "finished"
        ]
    );
    let stamps: Vec<&str> = times.values().map(|v| v.as_str().unwrap()).collect();
    assert!(stamps.is_sorted(), "{stamps:?}");
    // The two lines and the agent's last word.
    assert_eq!(result["log"]["on_server"]["lines"], 3);
    assert_eq!(result["log"]["lost"], json!({"lines": 0, "bytes": 0}));
    assert_eq!(result["log"]["kept_in"], json!(null));
}

#[test]
fn what_keeps_a_script_from_starting_has_its_own_code() {
    let world = World::new();
    let with = |change: Value| {
        let mut task = script("print('x')");
        for (key, value) in change.as_object().unwrap() {
            task[key] = value.clone();
        }
        world.api.create("cannot run", task)
    };
    let missing = json!({"repository": "/no/such/repository", "branch": "main"});
    for (id, code, reason) in [
        (
            with(json!({"diff": "", "entry_point": ""})),
            65,
            "task_invalid",
        ),
        (with(missing), 66, "checkout_failed"),
        (
            with(json!({"requirements": {"pip": "no-such-package-at-all @ file:///no/such.whl"}})),
            72,
            "env_failed",
        ),
    ] {
        let result = run(&world, &id, &[], code);
        assert_eq!(result["reason"], reason);
        assert_eq!(result["status"], "failed");
    }
}

#[test]
fn what_is_not_taken_has_its_own_code() {
    let world = World::new();
    let id = world.api.create("waits", script("print('x')"));
    for (id, words, code, reason) in [
        ("0123456789abcdef0123456789abcdef", &[][..], 66, "not_found"),
        (&id, &["--require-queue"], 75, "not_queued"),
    ] {
        let result = run(&world, id, words, code);
        assert_eq!(result["reason"], reason);
        assert_eq!(result["status"], json!(null));
        assert_eq!(result["log"], json!(null));
    }
    assert_eq!(world.api.status(&id), "created");
}

#[test]
fn a_server_that_lets_nobody_in_has_its_own_code() {
    let world = World::new();
    let strangers = World::at(Api {
        secret_key: "wrong".into(),
        ..world.api.clone()
    });
    assert_eq!(run(&strangers, "t1", &[], 77)["reason"], "not_allowed");
    let away = World::at(Api {
        url: "http://127.0.0.1:1".into(),
        ..world.api.clone()
    });
    assert_eq!(run(&away, "t1", &[], 69)["reason"], "no_server");
    world.configure("agent {");
    assert_eq!(run(&world, "t1", &[], 78)["reason"], "config_invalid");
}

#[test]
fn files_that_cannot_be_written_are_told_before_anything_runs() {
    let world = World::new();
    let id = world.api.create("waits", script("print('x')"));
    world
        .execute(&id, &["--result", "/no/such/folder/result.json"])
        .exits(73)
        .complains("--result");
    let result = run(&world, &id, &["--log-file", "/no/such/folder/log"], 73);
    assert_eq!(result["reason"], "log_file_failed");
    // The agent's own folder: a file stands in its place.
    std::fs::write(world.path("runs"), "").unwrap();
    world.configure(&format!(
        "agent.venvs_dir: {:?}",
        world.path("runs").display().to_string()
    ));
    let result = run(&world, &id, &[], 70);
    assert_eq!(result["reason"], "agent_failed");
    world.run(&["execute", "--no-such-flag"]).exits(2);
}

#[test]
fn an_older_result_is_not_mistaken_for_this_ones() {
    let world = World::new();
    let file = world.path("result.json");
    std::fs::write(&file, "{\"reason\": \"completed\"}").unwrap();
    let id = world.api.create(
        "killed",
        script("print('ready', flush=True)\nimport time\ntime.sleep(1000)"),
    );
    let mut running = world.start_execute(&id, &["--result", file.to_str().unwrap()]);
    running.line_with("ready");
    running.signal("KILL");
    let _ = running.wait();
    assert!(!file.exists());
}
