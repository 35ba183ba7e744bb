//! Bad input: a clear message with the cause and what to do, a non-zero exit, and the task `failed`
//! with that reason where it was already taken.

mod common;

use common::{Api, Ended, Repo, World, script};
use serde_json::{Value, json};

/// Runs a task with this script; it must fail with `code`, saying `words` on the terminal, and the
/// first of them in the task's reason.
fn fails(world: &World, script: Value, code: i32, words: &[&str]) -> Ended {
    let id = world.api.create("bad input", script);
    let mut ended = world.execute(&id, &[]).exits(code);
    for word in words {
        ended = ended.complains(word);
    }
    let task = world.api.task(&id);
    assert_eq!(task["status"], "failed", "{task}");
    let reason = task["status_reason"].as_str().expect("a reason");
    assert!(reason.contains(words[0]), "{reason}");
    let log = world.api.log(&id);
    assert!(
        log.contains(words[0]),
        "the log has no {:?}:\n{log}",
        words[0]
    );
    ended
}

#[test]
fn an_unknown_task() {
    let world = World::new();
    world
        .execute("0123456789abcdef0123456789abcdef", &[])
        .exits(66)
        .complains("has no task 0123456789abcdef0123456789abcdef")
        .complains(world.api.url.trim_end_matches('/'));
}

#[test]
fn wrong_credentials() {
    let world = World::new();
    let wrong = World::at(Api {
        secret_key: "wrong".into(),
        ..world.api.clone()
    });
    let ended = wrong
        .execute("t1", &[])
        .exits(77)
        .complains("does not accept the credentials");
    assert!(!ended.stderr.contains("wrong\""), "{}", ended.stderr);
}

#[test]
fn no_server() {
    let nobody = World::at(Api {
        url: "http://127.0.0.1:9/".into(),
        access_key: "a".into(),
        secret_key: "b".into(),
    });
    nobody
        .execute("t1", &[])
        .exits(69)
        .complains("http://127.0.0.1:9")
        .complains("refused")
        .complains("CLEARML_API_HOST");
}

#[test]
fn https_where_the_server_speaks_http_is_told_at_once() {
    let world = World::new();
    let https = World::at(Api {
        url: world.api.url.replace("http://", "https://"),
        ..world.api.clone()
    });
    https
        .execute("t1", &[])
        .exits(78)
        .complains("https://127.0.0.1")
        .complains("CLEARML_API_HOST may need http://");
}

#[test]
fn no_credentials_at_all() {
    let world = World::new();
    std::fs::remove_file(world.path("clearml.conf")).unwrap();
    world
        .execute("t1", &[])
        .exits(78)
        .complains("clearml.conf")
        .complains("CLEARML_API_ACCESS_KEY");
}

#[test]
fn a_broken_configuration() {
    let world = World::new();
    world.configure("agent {\n  git_user: [a, b\n}\n");
    world
        .execute("t1", &[])
        .exits(78)
        .complains("clearml.conf")
        .complains("line");
    world
        .run(&["--config-file", "/no/such/file", "execute", "--id", "t1"])
        .exits(78)
        .complains("/no/such/file");
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let world = World::new();
    let id = world.api.create("untouched", script("print(1)\n"));
    let _ = world.execute(&id, &["--no-such-option"]).exits(2);
    world
        .execute(&id, &["--gpus", "0,abc"])
        .exits(2)
        .complains("--gpus: \"abc\" names no GPU");
    assert_eq!(world.api.status(&id), "created");
}

#[test]
fn a_log_file_that_cannot_be_written() {
    let world = World::new();
    let id = world.api.create("untouched", script("print(1)\n"));
    world
        .execute(&id, &["--log-file", "/no/such/folder/x.log"])
        .exits(73)
        .complains("/no/such/folder/x.log");
    assert_eq!(world.api.status(&id), "created");
}

#[test]
fn a_missing_repository() {
    let world = World::new();
    let task = json!({"repository": "/no/such/repository", "branch": "main", "entry_point": "a.py", "working_dir": "."});
    fails(&world, task, 66, &["/no/such/repository"]);
}

#[test]
fn a_missing_branch_or_commit() {
    let world = World::new();
    let repo = Repo::new(&[("a.py", "print(1)\n")]);
    let task = json!({"repository": repo.url(), "branch": "nain", "entry_point": "a.py", "working_dir": "."});
    fails(&world, task, 66, &["nain", "main"]);
    let commit = "0123456789012345678901234567890123456789";
    let task = json!({"repository": repo.url(), "branch": "main", "version_num": commit, "entry_point": "a.py", "working_dir": "."});
    fails(&world, task, 66, &[commit, "push"]);
}

#[test]
fn a_missing_entry_point_or_working_directory() {
    let world = World::new();
    let repo = Repo::new(&[("a.py", "print(1)\n")]);
    let task = json!({"repository": repo.url(), "branch": "main", "entry_point": "b.py", "working_dir": "."});
    fails(&world, task, 66, &["b.py"]);
    let task = json!({"repository": repo.url(), "branch": "main", "entry_point": "a.py", "working_dir": "nowhere"});
    fails(&world, task, 66, &["nowhere"]);
}

#[test]
fn a_diff_that_does_not_apply() {
    let world = World::new();
    let repo = Repo::new(&[("a.py", "one\ntwo\nthree\n")]);
    let diff = repo.diff(&[("a.py", "one\n2\nthree\n")]);
    repo.commit(&[("a.py", "quite\nother\ntext\n")]);
    let task = json!({"repository": repo.url(), "branch": "main", "entry_point": "a.py", "working_dir": ".", "diff": diff});
    fails(&world, task, 66, &["a.py", "hunk"]);
}

#[test]
fn a_package_that_does_not_exist() {
    let world = World::new();
    let mut task = script("print(1)\n");
    task["requirements"] = json!({"pip": "no-such-package-of-anybody==1.2.3\n"});
    fails(&world, task, 72, &["no-such-package-of-anybody"]);
}

#[test]
fn a_task_with_no_script() {
    let world = World::new();
    fails(&world, json!({}), 65, &["script"]);
}
