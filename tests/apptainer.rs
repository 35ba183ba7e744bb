//! Runs in Apptainer's containers. Where the machine has no Apptainer, a stand-in takes its place that really
//! runs the command in the image's folder.
//!
//! Needs root for the image: without it, it says so and passes.
#![allow(clippy::unwrap_used)]

#[path = "common/apptainer.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod apptainer;
mod common;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;

use apptainer::{configure, give_home_to, image, world};
use common::{Ended, Repo, Running, World, eventually, script};
use serde_json::{Value, json};

const CALLER: u32 = 12345;

/// `execute` as a user who is nobody special.
fn start_as_caller(world: &World, id: &str, words: &[&str]) -> Running {
    give_home_to(world, CALLER);
    let mut all = vec!["execute", "--id", id];
    all.extend(words);
    let child = world
        .command(&all)
        .env("USER", "nobody-special")
        .env_remove("UV_CACHE_DIR")
        .uid(CALLER)
        .gid(CALLER)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Running::new(child)
}

fn execute(world: &World, id: &str, words: &[&str]) -> Ended {
    start_as_caller(world, id, words).wait()
}

/// A folder that others may look into.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    open_up(folder.path());
    folder
}

fn open_up(folder: &Path) {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Command lines and environments of all processes but this one and `agent`, which has the secrets of its
/// configuration's environment from its caller.
fn seen_by_others(agent: u32) -> String {
    let own = std::process::id();
    let mut seen = String::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid: Option<u32> = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|pid| ![own, agent].contains(pid)) else {
            continue;
        };
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            seen.push_str(&String::from_utf8_lossy(&text));
            seen.push('\n');
        }
    }
    seen
}

/// Whether a process has `word` among its words.
fn runs(word: &str) -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.into_iter().any(|entry| {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        words
            .split(|byte| *byte == 0)
            .any(|one| one == word.as_bytes())
    })
}

#[test]
fn a_task_runs_as_the_caller() {
    let Some(mut world) = world() else { return };
    let secret = "hunter2-of-git";
    world
        .env
        .insert("CLEARML_AGENT_GIT_USER".into(), "someone".into());
    world
        .env
        .insert("CLEARML_AGENT_GIT_PASS".into(), secret.into());
    world.env.insert("OF_THE_MACHINE".into(), "1".into());
    std::fs::create_dir(world.path(".ssh")).unwrap();
    std::fs::write(world.path(".ssh/id_ed25519"), "the key\n").unwrap();
    std::os::unix::fs::chown(world.path(".ssh"), Some(CALLER), Some(CALLER)).unwrap();
    let repo = Repo::new(&[(
        "jobs/train.py",
        "import os, sys, six, stat, tempfile, time
print('inside', os.path.exists('/etc/debian_version'), six.__version__, sys.argv[1:], os.getuid())
print('home', os.environ['HOME'], sorted(os.listdir(os.environ['HOME'])))
print('key', open(os.path.expanduser('~/.ssh/id_ed25519')).read().strip())
print('variables', os.environ.get('OF_THE_MACHINE'), os.environ['WORDS'])
print('private', oct(stat.S_IMODE(os.stat('/.clearml-agent/private').st_mode)), os.path.exists('/.clearml-agent/private/handover.json'))
open('/out/by-the-script', 'w').write('x')
open(os.path.join(tempfile.gettempdir(), 'x'), 'w')
print('fresh', os.listdir('/fresh'), oct(stat.S_IMODE(os.stat('/fresh').st_mode)))
print('hosts', [line for line in open('/etc/hosts') if 'database' in line])
print('limit', __import__('resource').getrlimit(__import__('resource').RLIMIT_NOFILE))
print('first word of all', open('/proc/1/cmdline').read()[:8] != '', flush=True)
print('ready', flush=True)
while not os.path.exists('/out/open'):
    time.sleep(0.01)
",
    )]);
    let out = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(out.path(), Some(CALLER), Some(CALLER)).unwrap();
    open_up(repo.path());
    let id = world.api.create(
        "in a container",
        json!({"repository": "/code.git", "branch": "main", "working_dir": "jobs",
               "entry_point": "train.py --epochs 3", "binary": "python3",
               "requirements": {"pip": "six==1.16.0\n"}}),
    );
    let result = world.path("result.json");
    let words = format!(
        "{} -v {}:/code.git:ro -v {}:/out -v /fresh --tmpfs /run/mine:mode=700 -e WORDS='$(id) $HOME \"x\"' \
         --add-host database:10.9.8.7 --ulimit nofile=512:1024 --ipc=host --name x",
        image().unwrap().display(),
        repo.path().join(".git").display(),
        out.path().display()
    );
    let mut running = start_as_caller(
        &world,
        &id,
        &["--apptainer", &words, "--result", result.to_str().unwrap()],
    );
    running.line_with("ready");
    let seen = seen_by_others(running.pid());
    assert!(seen.contains("--inside"), "{seen}");
    for secret in [secret, world.api.secret_key.as_str()] {
        assert!(!seen.contains(secret));
    }
    std::fs::write(out.path().join("open"), "").unwrap();
    let ended = running
        .wait()
        .exits(0)
        .prints(&format!("inside True 1.16.0 ['--epochs', '3'] {CALLER}"))
        .prints(&format!(
            "home {} ['.cache', '.clearml'",
            world.home.path().display()
        ))
        .prints("key the key")
        .prints("variables None $(id) $HOME \"x\"")
        .prints("private 0o700 False")
        .prints("fresh [] 0o755")
        .prints("hosts ['10.9.8.7\\tdatabase\\n']")
        .prints("limit (512, 1024)")
        .prints("without effect in an Apptainer container: --name")
        .prints("Process completed successfully");
    assert!(!ended.stdout.contains(secret));
    let owner = std::fs::metadata(out.path().join("by-the-script"))
        .unwrap()
        .uid();
    assert_eq!(owner, CALLER);

    let task = world.api.task(&id);
    assert_eq!(task["status"], "completed");
    let image = image().unwrap();
    assert_eq!(task["container"]["image"], image.to_str().unwrap());
    let commit = repo.git(&["rev-parse", "HEAD"]);
    assert_eq!(task["script"]["version_num"], commit.trim());
    let log = world.api.log(&id);
    for line in [
        "apptainer: ",
        "Environment setup completed successfully",
        "inside True",
    ] {
        assert!(log.contains(line), "no {line:?} in:\n{log}");
    }
    assert!(log.ends_with("Process completed successfully\n"), "{log}");
    let result: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
    assert_eq!(result["reason"], "completed");
    assert!(
        result["versions"]["python"]
            .as_str()
            .unwrap()
            .starts_with("3.11")
    );
    assert!(result["usage"]["cpu_seconds"].is_number(), "{result}");
    // Nothing stays but the caches.
    let left = std::fs::read_dir(world.path(".clearml/venvs-builds")).unwrap();
    let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_scripts_end_comes_out_unchanged() {
    let Some(world) = world() else { return };
    let image = image().unwrap();
    let address = match apptainer::stand_in() {
        // What a bare name means, and that the task's own container comes first.
        Some(_) => "python:3.12-slim".to_owned(),
        None => image.display().to_string(),
    };
    let killed = "import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n";
    for (text, code, reason) in [
        ("raise SystemExit(7)\n", 7, "worker execution exit code 7"),
        (
            "raise SystemExit(125)\n",
            125,
            "worker execution exit code 125",
        ),
        (killed, 137, "worker execution exit code -9"),
    ] {
        let id = world.api.create("ends", script(text));
        world.api.call(
            "tasks.edit",
            json!({"task": id, "force": true, "container": {"image": address, "arguments": "-e A=b", "setup_shell_script": "export B=c; echo set up $A $CUDA_VISIBLE_DEVICES"}}),
        );
        execute(&world, &id, &["--apptainer", "--cpu-only"])
            .exits(code)
            .prints("set up b none");
        assert_eq!(world.api.status(&id), "failed");
        let said = world.api.reason(&id);
        assert!(said.starts_with(reason), "{said}");
    }
}

#[test]
fn what_cannot_be_is_refused_before_the_task_is_touched() {
    let Some(mut world) = world() else { return };
    let id = world.api.create("never runs", script("print('never')\n"));
    for (words, code, says) in [
        (
            &["--apptainer", "x.sif", "--docker", "x"][..],
            2,
            "cannot be used with",
        ),
        (
            &["--apptainer", "x.sif --privileged"],
            2,
            "--privileged can't be used",
        ),
        (&["--apptainer", "x.sif --sysctl a=b"], 2, "--sysctl"),
        (&["--apptainer", "x.sif --user 77"], 2, "as who starts them"),
        (&["--apptainer", "--nv x.sif"], 2, "unexpected argument"),
        (
            &["--apptainer", "x.sif --nv"],
            2,
            "--nv is no flag of docker run",
        ),
    ] {
        execute(&world, &id, words).exits(code).complains(says);
    }
    let path = tempfile::tempdir().unwrap();
    world
        .env
        .insert("PATH".into(), path.path().display().to_string());
    execute(&world, &id, &["--apptainer", "x.sif"])
        .exits(74)
        .complains("neither apptainer nor singularity is on PATH");
    assert_eq!(world.api.status(&id), "created");
}

#[test]
fn what_does_not_start_has_its_own_reason() {
    let Some(world) = world() else { return };
    let folder = open_folder();
    let image = image().unwrap();
    let there = image.display();
    let make = |name: &str, shell: Option<&str>| {
        let root = folder.path().join(name);
        for part in [
            "bin", "usr/bin", "etc", "dev", "proc", "sys", "tmp", "var/tmp", "lib64",
        ] {
            std::fs::create_dir_all(root.join(part)).unwrap();
        }
        if let Some(shell) = shell {
            std::fs::copy(shell, root.join("bin/sh")).unwrap();
            for tool in ["usr/bin/env", "bin/mkdir"] {
                std::os::unix::fs::symlink("/bin/sh", root.join(tool)).unwrap();
            }
        }
        root.display().to_string()
    };
    let bare = make("bare", None);
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    let mut cases = vec![
        (
            "/nowhere.sif".to_owned(),
            66,
            "no_such_image",
            "could not open image",
        ),
        (bare, 65, "image_unsuitable", "no shell (/bin/sh)"),
        (
            format!("{there} --gpus 1 -v /nowhere/at-all:/x"),
            74,
            "no_gpu",
            "neither NVIDIA's driver",
        ),
        (
            format!("{there} --memory 1g"),
            65,
            "container_arguments_invalid",
            "control groups",
        ),
        (
            "docker://x --pull=never".to_owned(),
            66,
            "no_such_image",
            "--pull=never",
        ),
    ];
    match busybox {
        Some(busybox) => cases.push((
            make("busybox", Some(busybox)),
            65,
            "image_unsuitable",
            "it has no glibc",
        )),
        None => eprintln!("no busybox here: an image without glibc is not tested"),
    }
    for (words, code, reason, says) in cases {
        let id = world
            .api
            .create("does not start", script("print('never')\n"));
        let result = world.path("result.json");
        execute(
            &world,
            &id,
            &["--apptainer", &words, "--result", result.to_str().unwrap()],
        )
        .exits(code)
        .prints(says);
        assert_eq!(world.api.status(&id), "failed");
        let result: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
        assert_eq!(result["reason"], reason, "{words}");
        // A container that cannot run is not recorded.
    }
}

/// How long children of these scripts sleep: by this they are found.
fn sleeps() -> String {
    format!("86399.{}", std::process::id())
}

/// Says `ready`; what it does at SIGTERM is `then`.
fn waiting(then: &str) -> Value {
    let sleeps = sleeps();
    script(&format!(
        "import signal, subprocess, sys, time
def end(*_):
    {then}
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, lambda *_: print('noticed', flush=True))
subprocess.Popen(['sleep', '{sleeps}'], preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
print('ready', flush=True)
while True:
    time.sleep(0.05)
"
    ))
}

#[test]
fn stops_reach_the_script_and_leave_nothing() {
    let Some(world) = world() else { return };
    configure(&world, "");
    let image = image().unwrap();
    let image = image.to_str().unwrap();

    let id = world
        .api
        .create("stops", waiting("print('saved', flush=True); sys.exit(3)"));
    let mut running = start_as_caller(&world, &id, &["--apptainer", image, "--grace", "60"]);
    running.line_with("ready");
    running.signal("USR1");
    running.line_with("noticed");
    running.signal("TERM");
    let ended = running.wait().exits(143).prints("saved");
    assert_eq!(ended.stdout.matches("noticed").count(), 1);
    assert_eq!(ended.stdout.matches("saved").count(), 1);
    assert_eq!(world.api.status(&id), "stopped");
    assert!(!runs(&sleeps()));

    let id = world
        .api
        .create("does not stop", waiting("print('no', flush=True)"));
    let mut running = start_as_caller(&world, &id, &["--apptainer", image, "--grace", "1"]);
    running.line_with("ready");
    world
        .api
        .call("tasks.stop", json!({"task": id, "force": true}));
    running.wait().exits(143).prints("no");
    assert_eq!(world.api.status(&id), "stopped");
    assert!(!runs(&sleeps()));

    let id = world.api.create("its agent is killed", waiting("pass"));
    let mut running = start_as_caller(&world, &id, &["--apptainer", image]);
    running.line_with("ready");
    assert!(runs(&sleeps()));
    running.signal("KILL");
    let _ = running.wait();
    eventually("nothing of the run is left", || {
        !runs(&sleeps()) && !runs(&id)
    });
}
