//! Getting the code as a part of a run: what is configured, and what stands in the task, reaches the
//! repository's server.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Repo, World, script};
use serde_json::{Value, json};

#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/ssh_server.rs"]
mod ssh_server;

use git_http::{GitServer, TestRepo};
use ssh_server::SshServer;

fn repository_task(world: &World, url: &str) -> String {
    world.api.create(
        "repository",
        json!({"repository": url, "branch": "main", "entry_point": "train.py", "working_dir": "."}),
    )
}

#[test]
fn each_repository_gets_the_login_that_is_configured_for_it() {
    let repo = TestRepo::new();
    let server = GitServer::start(repo.served_root(), Some(("bob", "s3cret-of-bob")));
    let world = World::new();
    world.configure(
        "agent {\n  git_user: somebody, git_pass: \"s3cret-of-another\"\n  git_host_match_prefix: true\n  \
         git.extra_credentials: [\n    { user: incomplete }\n    \
         { username: x, password: \"s3cret-of-x\", host: \"127.0.0.1/other\" }\n    \
         { user: bob, pass: \"s3cret-of-bob\", host: \"127.0.0.1/up\" }\n  ]\n}",
    );
    let id = repository_task(&world, &server.url("up/.git"));
    let ended = world
        .execute(&id, &["--full-monitoring"])
        .exits(0)
        .prints("training");
    for text in [&ended.stdout, &world.api.log(&id)] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    let logins = server.requests().into_iter().filter_map(|r| r.login);
    assert!(logins.into_iter().all(|(user, _)| user == "bob"));
}

#[test]
fn ssh_is_used_as_configured() {
    let repo = TestRepo::new();
    let server = SshServer::start();
    let mut world = World::new();
    let ssh = server.programs().join("ssh");
    world
        .env
        .insert("GIT_SSH".into(), ssh.display().to_string());
    world.configure(&format!(
        "agent {{ force_git_ssh_protocol: true, force_git_ssh_port: {}, force_git_ssh_user: {} }}",
        server.port, server.user
    ));
    let id = repository_task(&world, &format!("https://127.0.0.1{}", repo.url()));
    world.execute(&id, &[]).exits(0).prints("training");
    world.configure("agent { force_git_ssh_protocol: true, force_git_ssh_port: none }");
    let ended = world.execute(&id, &[]).exits(78);
    assert!(
        ended.stderr.contains("agent.force_git_ssh_port"),
        "{}",
        ended.stderr
    );
}

#[test]
fn gits_own_configuration_counts() {
    let repo = TestRepo::new();
    let server = GitServer::start(repo.served_root(), Some(("bob", "s3cret")));
    let world = World::new();
    let config = format!(
        "[url \"{}\"]\n\tinsteadOf = https://git.company.example/\n[credential]\n\thelper = store\n",
        server.url("")
    );
    std::fs::write(world.path(".gitconfig"), &config).unwrap();
    let stored = format!("{}\n", server.url_with("bob:s3cret", ""));
    std::fs::write(world.path(".git-credentials"), stored).unwrap();
    let id = repository_task(&world, "https://git.company.example/up/.git");
    world.execute(&id, &[]).exits(0).prints("training");
    // It is left as it was.
    let left = std::fs::read_to_string(world.path(".gitconfig")).unwrap();
    assert_eq!(left, config);
}

#[test]
fn a_mistake_in_gits_configuration_is_named() {
    let repo = TestRepo::new();
    let world = World::new();
    std::fs::write(world.path(".gitconfig"), "[url \"x\"]\n\tinsteadOf\n").unwrap();
    let id = repository_task(&world, &repo.url());
    world
        .execute(&id, &[])
        .complains("url.x.insteadof has no value");
}

#[test]
fn the_script_and_its_folder_may_be_put_in_the_tasks_place() {
    let mut world = World::new();
    let code = world.path("code");
    std::fs::create_dir_all(code.join("src")).unwrap();
    std::fs::write(
        code.join("src/mine.py"),
        "import os\nprint('mine in', os.getcwd())\n",
    )
    .unwrap();
    let id = world.api.create(
        "forced",
        json!({"repository": "https://no-such-host.invalid/a.git", "entry_point": "gone.py", "working_dir": "x"}),
    );
    let code_text = code.display().to_string();
    world
        .env
        .insert("CLEARML_AGENT_FORCE_CODE_DIR".into(), code_text.clone());
    world.env.insert(
        "CLEARML_AGENT_FORCE_EXEC_SCRIPT".into(),
        "src:mine.py".into(),
    );
    world
        .execute(&id, &[])
        .exits(0)
        .prints(&format!("mine in {code_text}/src"));
    assert_eq!(world.api.task(&id)["script"]["version_num"], Value::Null);
    // The script alone: the repository is the task's.
    world.env.remove("CLEARML_AGENT_FORCE_CODE_DIR");
    let repo = Repo::new(&[
        ("train.py", "print('theirs')\n"),
        ("src/mine.py", "print('mine')\n"),
    ]);
    let id = repository_task(&world, &repo.url());
    world.execute(&id, &[]).exits(0).prints("mine\n");
}

#[test]
fn changes_that_are_too_large_for_the_task_are_taken_from_its_artifact() {
    let world = World::new();
    let repo = Repo::new(&[("train.py", "print('committed')\n")]);
    let diff = repo.diff(&[("train.py", "print('changed')\n")]);
    let file = world.path("auxiliary_git_diff.txt");
    std::fs::write(&file, &diff).unwrap();
    let note = "# WARNING! git diff too large to store, clear this section to execute without it.\n\
                # full git diff available in Artifacts/auxiliary_git_diff\n\
                # clear the section before enqueueing Task!\n";
    let id = world.api.create(
        "large diff",
        json!({"repository": repo.url(), "branch": "main", "entry_point": "train.py", "diff": note}),
    );
    let refused = world.execute(&id, &[]);
    assert!(
        refused.stderr.contains("no artifact auxiliary_git_diff")
            || refused.stdout.contains("no artifact auxiliary_git_diff")
    );
    let url = upload(&world, &diff);
    for uri in [
        format!("file://{}", file.display()),
        url,
        "s3://bucket/diff.txt".into(),
    ] {
        let task = world.api.create(
            "large diff",
            json!({"repository": repo.url(), "branch": "main", "entry_point": "train.py", "diff": note}),
        );
        let artifact =
            json!({"key": "auxiliary_git_diff", "type": "string", "mode": "output", "uri": uri});
        world.api.call(
            "tasks.edit",
            json!({"task": task, "force": true, "execution": {"artifacts": [artifact]}}),
        );
        let ended = world.execute(&task, &[]);
        // A clone has no artifacts of its own.
        if uri.starts_with("file") {
            let request = json!({
                "name": "clone", "type": "training", "parent": task,
                "script": {"repository": repo.url(), "branch": "main", "entry_point": "train.py", "diff": note},
            });
            let clone = world.api.call("tasks.create", request)["id"]
                .as_str()
                .unwrap()
                .to_owned();
            world.execute(&clone, &[]).exits(0).prints("changed");
        }
        match uri.starts_with("s3") {
            false => drop(ended.exits(0).prints("changed")),
            true => assert!(format!("{}{}", ended.stdout, ended.stderr).contains("no s3 storage")),
        }
    }
}

/// Puts a file where the SDK puts artifacts.
fn upload(world: &World, text: &str) -> String {
    let python = std::env::var("CLEARML_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let url = format!(
        "{}/project/task/artifacts/auxiliary_git_diff/auxiliary_git_diff.txt",
        world.api.url.trim_end_matches('/')
    );
    let script = "import base64, json, sys, urllib.request\n\
        api, key, secret, url, text = sys.argv[1:]\n\
        login = 'Basic ' + base64.b64encode((key + ':' + secret).encode()).decode()\n\
        answer = urllib.request.urlopen(urllib.request.Request(api + '/auth.login', b'{}', {'Authorization': login, 'Content-Type': 'application/json'}))\n\
        token = json.load(answer)['data']['token']\n\
        body = ('--x\\r\\nContent-Disposition: form-data; name=\"' + url.split('/', 3)[3] + '\"; filename=\"d.txt\"\\r\\n\\r\\n' + text + '\\r\\n--x--\\r\\n').encode()\n\
        urllib.request.urlopen(urllib.request.Request(url, body, {'Authorization': 'Bearer ' + token, 'Content-Type': 'multipart/form-data; boundary=x'}))\n";
    let output = std::process::Command::new(python)
        .args(["-c", script, world.api.url.trim_end_matches('/')])
        .args([&world.api.access_key, &world.api.secret_key, &url, text])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    url
}

#[test]
fn a_demanded_call_of_task_init_is_there() {
    let mut world = World::new();
    world
        .env
        .insert("CLEARML_AGENT_FORCE_TASK_INIT".into(), "1".into());
    world
        .env
        .insert("CLEARML_AGENT_SKIP_PYTHON_ENV_INSTALL".into(), "1".into());
    let text = "from __future__ import annotations\nprint(open(__file__).read())\n";
    let id = world.api.create("init", script(text));
    let ended = world.execute(&id, &[]);
    assert!(
        ended.stdout.contains("A call of Task.init was added to"),
        "{}",
        ended.stdout
    );
}

#[test]
fn entry_points_of_every_kind_run_from_a_checkout() {
    let mut world = World::new();
    for (name, value) in [
        ("CLEARML_AGENT_SKIP_PYTHON_ENV_INSTALL", "1"),
        ("DATA_DIR", "/data"),
    ] {
        world.env.insert(name.into(), value.into());
    }
    let show = "import sys\nprint('ran', __file__.rsplit('/', 1)[1], sys.argv[1:])\n";
    let repo = Repo::new(&[
        ("train.py", show),
        ("my tool.py", show),
        ("pkg/__init__.py", ""),
        ("pkg/mod.py", show),
        ("job.sh", "echo \"ran job.sh [$1] [$2]\"\n"),
        ("tool", "#!/bin/sh\necho ran tool\n"),
        (
            "calls.py",
            "import subprocess\nsubprocess.run(['./tool'], check=True)\n",
        ),
    ]);
    std::os::unix::fs::symlink("pkg/mod.py", repo.path().join("link.py")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(repo.path().join("tool"), mode).unwrap();
    repo.commit(&[]);
    let task_id = "ran mod.py ['--id', 'ID', '--data', '/data/x']";
    for (binary, entry_point, diff, printed) in [
        (
            "python3",
            "train.py --x 'two words' $DATA_DIR http://h//x",
            "",
            "ran train.py ['--x', 'two words', '/data', 'http://h//x']",
        ),
        (
            "python3",
            "-m pkg.mod --id $CLEARML_TASK_ID --data ${DATA_DIR}/x",
            "",
            task_id,
        ),
        ("python3", "my tool.py", "", "ran my tool.py []"),
        ("python3", "'my tool.py' 1", "", "ran my tool.py ['1']"),
        ("python3", "link.py", "", "ran link.py []"),
        ("python3", "calls.py", "", "ran tool"),
        (
            "bash",
            "job.sh one 'two words'",
            "",
            "ran job.sh [one] [two words]",
        ),
        (
            "/bin/bash",
            "-c 'echo ran in $DATA_DIR'",
            "",
            "ran in /data",
        ),
        // A notebook as the SDK records it: its code, in place of a file.
        ("python3", "pkg/book.ipynb", show, "ran book.py []"),
    ] {
        let id = world.api.create(
            entry_point,
            json!({"repository": repo.url(), "branch": "main", "entry_point": entry_point,
                   "working_dir": ".", "binary": binary, "diff": diff}),
        );
        world
            .execute(&id, &[])
            .exits(0)
            .prints(&printed.replace("ID", &id));
    }
}
