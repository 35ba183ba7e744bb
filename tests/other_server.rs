//! The whole way against a server that is not the embedded one: an independent program that answers
//! in the shapes recorded from a real ClearML server.

mod common;
#[path = "common/recorded.rs"]
mod recorded;

use common::{Api, Repo, World, script};
use recorded::Recorded;
use serde_json::json;

fn world(server: &Recorded) -> World {
    World::at(Api {
        url: server.url().to_owned(),
        access_key: server.access_key().to_owned(),
        secret_key: server.secret_key().to_owned(),
    })
}

#[test]
fn a_commit_a_diff_and_two_packages() {
    let server = Recorded::start();
    let world = world(&server);
    let repo = Repo::new(&[("train.py", "import six, tabulate\nprint('loss', 1)\n")]);
    let commit = repo.git(&["rev-parse", "HEAD"]).trim().to_owned();
    let diff = repo.diff(&[("train.py", "import six, tabulate\nprint('loss', 0.5)\n")]);
    repo.commit(&[("train.py", "raise SystemExit('not this commit')\n")]);
    let id = server.create_task(json!({"name": "recorded", "script": {
        "repository": repo.url(), "branch": "main", "version_num": commit, "diff": diff,
        "working_dir": ".", "entry_point": "train.py", "binary": "python3",
        "requirements": {"pip": "six==1.16.0\ntabulate\n"},
    }}));

    world.execute(&id, &[]).exits(0).prints("loss 0.5");

    let task = server.task(&id);
    assert_eq!(task["status"], "completed", "{task}");
    assert_eq!(task["status_reason"], "worker execution done");
    let log = server.log(&id).join("\n");
    assert!(log.contains("loss 0.5"), "{log}");

    // The last line is on the server before the status is.
    let calls = server.calls();
    let last = |endpoint: &str| {
        calls
            .iter()
            .rposition(|call| call["endpoint"] == endpoint)
            .unwrap_or_else(|| panic!("no {endpoint}"))
    };
    assert!(last("events.add_batch") < last("tasks.completed"));
    assert!(last("tasks.completed") < last("workers.unregister"));
    // A second `started` would wipe out a request to stop.
    assert_eq!(server.calls_of("tasks.started").len(), 1);
}

#[test]
fn no_line_is_lost_while_the_server_fails() {
    let server = Recorded::start();
    let world = world(&server);
    let id = server.create_task(json!({"name": "failing server", "script": script(
        "import time\nfor i in range(30):\n    print('line', i, flush=True)\n    time.sleep(0.1)\n")}));
    server.inject(
        json!({"endpoint": "events.add_batch", "times": 3, "what": "status", "status": 503}),
    );
    world.execute(&id, &[]).exits(0);
    let log = server.log(&id).join("\n");
    for i in 0..30 {
        let line = format!("line {i}\n");
        assert_eq!(
            format!("{log}\n").matches(&line).count(),
            1,
            "{line:?} in\n{log}"
        );
    }
    assert_eq!(server.task(&id)["status"], "completed");
}

#[test]
fn who_waits_for_a_task_bears_a_server_that_is_away() {
    let server = Recorded::start();
    let world = world(&server);
    let id = server.create_task(json!({"name": "waited for", "script": script("print('ran')")}));
    server.enqueue(&id, &server.create_queue("q"));
    // Longer than one call is patient.
    let away = |endpoint: &str, what: &str| {
        server
            .inject(json!({"endpoint": endpoint, "what": what, "status": 503, "retry_after": 60}));
    };
    away("tasks.get_by_id", "status");
    world
        .execute(&id, &["--require-queue"])
        .exits(69)
        .complains("no answer from the ClearML API server");
    away("auth.login", "status");
    away("tasks.get_by_id", "status");
    away("tasks.get_by_id", "web_page");
    world
        .execute(&id, &["--require-queue", "--wait", "100"])
        .exits(0)
        .prints("The server is away: no answer from")
        .prints("ran");
    assert_eq!(server.task(&id)["status"], "completed");
}
