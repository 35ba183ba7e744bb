//! Secrets do not leave the agent: not by the terminal, the log file, the server, the journal, the result
//! file, the task's reason, or the command lines of what it starts.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ended, World, script};
use serde_json::json;

const API_TOKEN: &str = "qJ8x-Zr41.vvB0+k2/tE=";
const GIT_PASS: &str = "p@ss w0rd/%41'quoted";
const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n-----END PRIVATE KEY-----\n";

/// A world with secrets in its environment and configuration.
fn world() -> World {
    let mut world = World::new();
    world.configure(&format!(
        "agent {{\n  git_user: bot\n  git_pass: {GIT_PASS:?}\n  extra_docker_arguments: [\"-e\", \"WANDB_API_KEY=0123456789abcdef-wandb\"]\n}}"
    ));
    for (name, value) in [
        ("MY_API_TOKEN", API_TOKEN),
        ("SSH_PRIVATE_KEY", PEM),
        (
            "PIP_TEST_INDEX",
            "https://reader:index-pa55word@index.example/simple",
        ),
        ("SHORT_TOKEN", "abc"),
    ] {
        world.env.insert(name.into(), value.into());
    }
    world
}

/// What must not be seen anywhere.
fn secrets(world: &World) -> Vec<String> {
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD.encode(format!("bot:{GIT_PASS}"));
    let mut secrets = vec![
        API_TOKEN.to_owned(),
        GIT_PASS.to_owned(),
        "qJ8x-Zr41.vvB0%2Bk2%2FtE%3D".to_owned(),
        "p%40ss%20w0rd%2F%2541%27quoted".to_owned(),
        "0123456789abcdef-wandb".to_owned(),
        "index-pa55word".to_owned(),
        "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC".to_owned(),
        "ghp_0123456789abcdefghijABCDEFGHIJ012345".to_owned(),
        world.api.secret_key.clone(),
    ];
    // The part of the header that the password alone decides on.
    secrets.push(base64[8..base64.len() - 4].to_owned());
    secrets
}

fn assert_clean(what: &str, text: &str, world: &World) {
    for secret in secrets(world) {
        assert!(!text.contains(&secret), "{secret} in {what}:\n{text}");
    }
}

/// Prints every secret, in one piece and byte by byte, on both streams; dies with one in its last word.
const LEAK: &str = r#"
import base64, os, sys, time, urllib.parse
git = "p@ss w0rd/%41'quoted"
token = os.environ['MY_API_TOKEN']
things = [token, git, urllib.parse.quote(token, safe=''), urllib.parse.quote(git, safe=''),
    'Authorization: Basic ' + base64.b64encode(('bot:' + git).encode()).decode(),
    '0123456789abcdef-wandb', 'https://reader:index-pa55word@index.example/simple', 'index-pa55word',
    os.environ['SSH_PRIVATE_KEY'], 'ghp_0123456789abcdefghijABCDEFGHIJ012345',
    open(os.environ['CLEARML_CONFIG_FILE']).read()]
for thing in things:
    print('whole:', thing, flush=True)
    for byte in thing.encode():
        os.write(2, bytes([byte]))
    os.write(2, b'\n')
print('short values stay: abc', flush=True)
print('done', flush=True)
sys.exit(token)
"#;

fn check(world: &World, id: &str, ended: &Ended) {
    assert_clean("standard output", &ended.stdout, world);
    assert_clean("standard error", &ended.stderr, world);
    assert_clean("the server's log", &world.api.log(id), world);
    assert_clean(
        "the task",
        &world.api.task(id)["status_reason"].to_string(),
        world,
    );
    for file in ["log.txt", "result.json"] {
        if let Ok(text) = std::fs::read_to_string(world.path(file)) {
            assert_clean(file, &text, world);
        }
    }
}

#[test]
fn what_a_script_prints_is_hidden_everywhere() {
    let world = world();
    let id = world.api.create("leaks", script(LEAK));
    let (log, result) = (world.path("log.txt"), world.path("result.json"));
    let words = [
        "--log-file",
        log.to_str().unwrap(),
        "--result",
        result.to_str().unwrap(),
        "--full-monitoring",
    ];
    let ended = world.execute(&id, &words).exits(1);
    check(&world, &id, &ended);
    for text in [&ended.stdout, &world.api.log(&id)] {
        assert!(text.contains("whole: ****\n"), "{text}");
        assert!(
            text.contains("https://reader:****@index.example/simple"),
            "{text}"
        );
        assert!(text.contains("short values stay: abc"), "{text}");
    }
    // Said to the user, not to the server's readers.
    assert!(
        ended
            .stdout
            .contains("to be hidden in the log: SHORT_TOKEN"),
        "{}",
        ended.stdout
    );
}

#[test]
fn what_a_killed_agent_leaves_is_clean_and_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = world();
    let id = world.api.create(
        "killed",
        script(&format!("{LEAK}\n").replace("sys.exit(token)", "time.sleep(1000)")),
    );
    // A server that takes nothing would be as good: the journal is looked at while it is there.
    let mut running = world.start_execute(&id, &[]);
    running.line_with("done");
    let folder = world.path(".clearml/journal");
    let journal = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap();
    assert_eq!(journal.metadata().unwrap().permissions().mode() & 0o077, 0);
    let text = std::fs::read(journal.path()).unwrap();
    assert_clean("the journal", &String::from_utf8_lossy(&text), &world);
    running.signal("KILL");
    check(&world, &id, &running.wait());
    let sent = world.run(&["sync"]).exits(0);
    check(&world, &id, &sent);
}

#[test]
fn errors_of_the_agents_own_are_clean() {
    let world = world();
    let repository = format!("https://bot:{}@127.0.0.1:1/r.git", "index-pa55word");
    for task in [
        json!({"repository": repository, "branch": "main", "entry_point": "main.py", "binary": "python3"}),
        {
            let mut task = script("print('x')");
            task["requirements"] =
                json!({"pip": "x @ git+https://bot:index-pa55word@127.0.0.1:1/x.git\n"});
            task
        },
    ] {
        let id = world.api.create("fails", task);
        let ended = world.execute(&id, &["--debug"]);
        assert_ne!(ended.code, 0);
        check(&world, &id, &ended);
        assert!(ended.stdout.contains("127.0.0.1:1"), "{}", ended.stdout);
    }
}

#[test]
fn no_command_line_has_a_secret() {
    let world = world();
    let id = world.api.create(
        "looks around",
        script("import subprocess, time\nprint('ready', flush=True)\ntime.sleep(1000)\n"),
    );
    let mut running = world.start_execute(&id, &[]);
    running.line_with("ready");
    let mut all = String::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(line) = std::fs::read(entry.path().join("cmdline")) {
            all.push_str(&String::from_utf8_lossy(&line));
            all.push('\n');
        }
    }
    assert!(all.contains(&id), "the agent itself is there");
    assert_clean("command lines", &all, &world);
    running.signal("KILL");
    let _ = running.wait();
}
