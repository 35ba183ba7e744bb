//! Runs with the Python that is there, and runs that need nothing but this machine.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/server_process.rs"]
mod server_process;

use std::path::Path;
use std::process::Command;

use common::{Repo, World, script, shared_cache, uv_of_the_tests};
use serde_json::json;
use server_process::ServerProcess;

fn has(program: &str) -> bool {
    let found = Command::new("sh")
        .arg("-c")
        .arg(format!("command -v {program}"))
        .output();
    found.is_ok_and(|output| output.status.success())
}

/// Whether this machine lets a user make a network of its own, and programs be traced in it.
fn can_be_cut_off() -> bool {
    let tried = Command::new("unshare")
        .args([
            "-rn",
            "sh",
            "-c",
            "ip link set lo up && strace -o /dev/null true",
        ])
        .output();
    has("strace") && tried.is_ok_and(|output| output.status.success())
}

#[test]
fn nothing_but_the_api_server_is_talked_to() {
    if !can_be_cut_off() {
        eprintln!("skipped: this machine has no `unshare -rn`, `ip` or `strace`");
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let server = ServerProcess::start("127.0.0.1:0", Some(data.path()));
    let world = World::at(server.api.clone());
    let repo = Repo::new(&[
        ("train.py", "import six\nprint('six', six.__version__)\n"),
        ("requirements.txt", "six==1.16.0\n"),
    ]);
    let diff = repo.diff(&[(
        "train.py",
        "import six\nprint('changed six', six.__version__)\n",
    )]);
    let id = world.api.create(
        "offline",
        json!({
            "repository": repo.url(), "branch": "main", "entry_point": "train.py", "diff": diff,
            "binary": "python3", "requirements": {"pip": "six==1.16.0\n"},
        }),
    );
    // Once with the network: the mirror and the environment are kept from there.
    world
        .execute(&id, &[])
        .exits(0)
        .prints("changed six 1.16.0");
    let before = world.api.task(&id)["script"]["requirements"].clone();

    let address = server
        .api
        .url
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    server.kill();
    let trace = data.path().join("trace");
    let inner = format!(
        "ip link set lo up\n\
         {agent} server --listen {address} --data {data} >/dev/null & server=$!\n\
         while ! python3 -c \"import socket; socket.create_connection('{address}'.split(':'))\" 2>/dev/null; \
         do :; done\n\
         strace -f -qq -e trace=connect,sendto -o {trace} {agent} execute --id {id} --standalone-mode\n\
         code=$?; kill $server; wait $server 2>/dev/null; exit $code",
        agent = env!("CARGO_BIN_EXE_clearml-agent"),
        data = data.path().display(),
        trace = trace.display(),
    );
    let mut command = Command::new("unshare");
    command.args(["-rn", "sh", "-c", &inner]);
    for (name, value) in world.command(&[]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let all = format!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{all}");
    assert!(said.contains("changed six 1.16.0"), "{all}");
    assert!(said.contains("from the cached mirror"), "{all}");
    assert!(said.contains("Environment: from the cache ("), "{all}");

    let port = address.rsplit_once(':').unwrap().1;
    let text = std::fs::read_to_string(&trace).unwrap();
    let calls: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("AF_INET"))
        .collect();
    assert!(!calls.is_empty(), "{text}");
    for call in calls {
        assert!(call.contains(&format!("htons({port})")), "{call}");
    }
    // Nothing was recorded anew.
    let server = ServerProcess::start(&address, Some(data.path()));
    assert_eq!(server.api.task(&id)["script"]["requirements"], before);
    assert_eq!(server.api.status(&id), "completed");
}

#[test]
fn what_is_not_on_the_machine_is_named() {
    let world = World::new();
    let id = world.api.create(
        "away",
        json!({
            "repository": "https://127.0.0.1:9/never/fetched.git", "branch": "main",
            "entry_point": "train.py", "binary": "python3",
        }),
    );
    let ended = world
        .execute(&id, &["--standalone-mode"])
        .exits(66)
        .complains("--standalone-mode fetches nothing");
    assert!(!ended.stdout.contains("Fetching"), "{}", ended.stdout);
    assert_eq!(world.api.status(&id), "failed");
}

#[test]
fn what_was_put_there_beforehand_is_used_and_stays_as_it_is() {
    let world = World::new();
    let repo = Repo::new(&[("train.py", "import sys\nprint('committed', sys.prefix)\n")]);
    let diff = repo.diff(&[("train.py", "import sys\nprint('changed', sys.prefix)\n")]);
    let url = "https://127.0.0.1:9/never/fetched.git";
    let builds = world.path(".clearml/venvs-builds/3.11");
    let staged = builds.join("task_repository/fetched.git");
    std::fs::create_dir_all(staged.parent().unwrap()).unwrap();
    let copied = Command::new("cp")
        .arg("-a")
        .arg(repo.path())
        .arg(&staged)
        .status();
    assert!(copied.unwrap().success());
    let made = Command::new("python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(&builds)
        .status();
    assert!(made.unwrap().success());
    let id = world.api.create(
        "staged",
        json!({
            "repository": url, "branch": "main", "entry_point": "train.py", "diff": diff,
            "binary": "python3", "requirements": {"pip": "no-such-package-for-clearml-agent-tests"},
        }),
    );
    // Again and again: the changes are applied to a copy.
    for _ in 0..2 {
        world
            .execute(&id, &["--standalone-mode"])
            .exits(0)
            .prints(&format!("changed {}", builds.display()));
    }
    let text = std::fs::read_to_string(staged.join("train.py")).unwrap();
    assert!(text.contains("committed"));
    let requirements = world.api.task(&id)["script"]["requirements"].clone();
    assert_eq!(
        requirements["pip"],
        "no-such-package-for-clearml-agent-tests"
    );
}

/// An environment with a package that no index has.
fn image(folder: &Path) -> String {
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(folder));
    let sources = folder.join("src");
    std::fs::create_dir(&sources).unwrap();
    let setup = "from setuptools import setup\nsetup(name='of-the-image', version='7', py_modules=['of_the_image'])\n";
    std::fs::write(sources.join("setup.py"), setup).unwrap();
    std::fs::write(sources.join("of_the_image.py"), "").unwrap();
    let python = folder.join("bin/python");
    match uv_of_the_tests() {
        Some(uv) => run(Command::new(uv)
            .args(["pip", "install", "--quiet", "--python"])
            .args([&python, &sources])
            .env("UV_CACHE_DIR", shared_cache().join("uv-cache"))),
        None => run(Command::new(&python)
            .args(["-m", "pip", "install", "-q"])
            .arg(&sources)),
    }
    // As if it had come from an index that is not there any more.
    let site = std::fs::read_dir(folder.join("lib"))
        .unwrap()
        .flatten()
        .next()
        .unwrap();
    let info = site
        .path()
        .join("site-packages/of_the_image-7.dist-info/direct_url.json");
    let _ = std::fs::remove_file(info);
    python.to_string_lossy().into_owned()
}

#[test]
fn the_python_that_is_there_is_used_the_first_time_and_on_a_rerun() {
    let mut world = World::new();
    let folder = world.path("image");
    let python = image(&folder);
    let text = "import sys, six, of_the_image\nprint('in', sys.prefix, six.__version__)\n";
    let mut task = script(text);
    task["requirements"] = json!({"pip": "six==1.16.0\n"});
    let id = world.api.create("in the image", task);
    world
        .env
        .insert("CLEARML_AGENT_SKIP_PIP_VENV_INSTALL".into(), python.clone());
    for _ in 0..2 {
        world
            .execute(&id, &[])
            .exits(0)
            .prints(&format!("in {} 1.16.0", folder.display()));
        // The whole environment is recorded, and with it what the next run cannot install.
        let recorded = world.api.task(&id)["script"]["requirements"]["pip"].to_string();
        assert!(recorded.contains("of-the-image==7"), "{recorded}");
        world
            .api
            .call("tasks.reset", json!({"task": id, "force": true}));
    }

    // Nothing is installed and nothing is recorded.
    let mut task = script("import sys\nprint('as it is', sys.prefix)\n");
    task["requirements"] = json!({"pip": "no-such-package-for-clearml-agent-tests"});
    let id = world.api.create("as it is", task);
    world
        .env
        .insert("CLEARML_AGENT_SKIP_PYTHON_ENV_INSTALL".into(), "1".into());
    world
        .execute(&id, &[])
        .exits(0)
        .prints(&format!("as it is {}", folder.display()));
    let requirements = world.api.task(&id)["script"]["requirements"].clone();
    assert_eq!(
        requirements["pip"],
        "no-such-package-for-clearml-agent-tests"
    );
}

#[test]
fn packages_of_the_system_are_seen_where_that_is_wanted() {
    let mut world = World::new();
    let folder = world.path("image");
    let python = image(&folder);
    world.configure("agent.package_manager.system_site_packages: true\nagent.ignore_requested_python_version: true");
    world
        .env
        .insert("CLEARML__AGENT__PYTHON_BINARY".into(), python);
    let mut task = script("import six\nprint('ran', six.__version__)\n");
    task["requirements"] = json!({"pip": "six==1.16.0\n"});
    let id = world.api.create("with the system's", task);
    world.execute(&id, &[]).exits(0).prints("ran 1.16.0");
}
