//! Jobs, with real programs.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::future::ready;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clearml_agent::process::job_group::JobGroup;
use clearml_agent::process::{self, Command, Ended, Job, OutputPipe, SpawnError};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

const TERM: i32 = 15;
const LONG: Duration = Duration::from_secs(60);

fn shell(script: &str) -> Command {
    Command {
        program: "sh".into(),
        args: vec!["-c".into(), script.into()],
        working_dir: "/".into(),
        env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
    }
}

fn start(script: &str) -> (Job, OutputPipe) {
    process::spawn(shell(script)).unwrap()
}

/// Runs `script` to its end; how it ended and all that it printed.
async fn run(script: &str) -> (Ended, String) {
    finish(start(script)).await
}

async fn finish((mut job, mut output): (Job, OutputPipe)) -> (Ended, String) {
    let mut text = String::new();
    let (ended, read) = tokio::join!(job.wait(), output.read_to_string(&mut text));
    read.unwrap();
    (ended, text)
}

async fn line(output: &mut BufReader<OutputPipe>) -> String {
    let mut text = String::new();
    output.read_line(&mut text).await.unwrap();
    text.trim_end().to_owned()
}

/// Whether the process is there and has not ended (whoever has to reap it).
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn both_streams_keep_their_order() {
    let (_, text) = run("for i in 1 2 3 4 5 6 7 8 9; do echo out$i; echo err$i >&2; done").await;
    let expected: String = (1..=9).map(|i| format!("out{i}\nerr{i}\n")).collect();
    assert_eq!(text, expected);
}

#[tokio::test]
async fn exit_codes_and_signals_are_told() {
    for (script, ended) in [
        ("true", Ended::Exited { code: 0 }),
        ("exit 3", Ended::Exited { code: 3 }),
        ("exit 255", Ended::Exited { code: 255 }),
        ("kill -9 $$", Ended::Signalled { signal: 9 }),
        ("kill -TERM $$", Ended::Signalled { signal: 15 }),
    ] {
        assert_eq!(run(script).await.0, ended, "{script}");
    }
}

#[tokio::test]
async fn the_job_has_its_environment_no_input_and_its_own_session() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let mut command = shell(
        "env | grep -v -e ^_= -e ^SHLVL= | sort; cat; read -r p c s pp g sid x < /proc/$$/stat; echo $((p - g)) $((p - sid))",
    );
    command.working_dir.clone_from(&dir);
    command.env.insert("NAME".into(), "a b".into());
    let (ended, text) = finish(process::spawn(command).unwrap()).await;
    assert_eq!(ended, Ended::Exited { code: 0 });
    let expected = format!("NAME=a b\nPATH=/usr/bin:/bin\nPWD={}\n0 0\n", dir.display());
    assert_eq!(text, expected);
}

#[tokio::test]
async fn what_is_printed_can_be_read_at_once() {
    let (mut job, output) = start("printf partial; exec sleep 1000");
    let mut output = BufReader::new(output);
    let mut bytes = [0; 7];
    output.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"partial");
    job.stop(TERM, ready(LONG)).await;
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let failure = |program: &Path, working_dir: &Path| {
        let command = Command {
            program: program.into(),
            working_dir: working_dir.into(),
            ..shell("")
        };
        process::spawn(command).map(|_| ()).unwrap_err()
    };
    let root = Path::new("/");

    let error = failure(Path::new("no-such-program"), root);
    assert!(matches!(error, SpawnError::NotFound { .. }));
    assert_eq!(
        error.to_string(),
        "cannot run no-such-program: there is no such program on PATH"
    );
    let error = failure(Path::new("/no/such/program"), root);
    assert_eq!(
        error.to_string(),
        "cannot run /no/such/program: there is no such program"
    );
    let error = failure(&file("script", "#!/no/such/python\n", 0o755), root);
    assert!(matches!(error, SpawnError::NoInterpreter { .. }), "{error}");
    let error = failure(&file("plain", "#!/bin/sh\n", 0o644), root);
    assert!(matches!(error, SpawnError::NotRunnable { .. }), "{error}");
    let error = failure(Path::new("sh"), Path::new("/no/such/folder"));
    assert!(matches!(error, SpawnError::WorkingDir { .. }), "{error}");
    let error = failure(Path::new("sh"), &file("a-file", "", 0o755));
    assert!(error.to_string().contains("not a folder"), "{error}");
}

#[tokio::test]
async fn a_stop_asks_first() {
    let (mut job, output) =
        start("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done");
    let mut output = BufReader::new(output);
    assert_eq!(line(&mut output).await, "ready");
    assert_eq!(job.stop(TERM, ready(LONG)).await, Ended::Exited { code: 7 });
    let mut rest = String::new();
    output.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("bye\n"), "{rest}");
}

#[tokio::test]
async fn the_whole_group_is_asked_and_may_use_the_grace() {
    // The leader ends at once; its child needs a moment more.
    let (mut job, output) = start(
        "sh -c 'trap \"sleep 0.3; echo saved; exit\" TERM; echo ready; while :; do sleep 0.05; done' &
         wait",
    );
    let mut output = BufReader::new(output);
    assert_eq!(line(&mut output).await, "ready");
    assert_eq!(
        job.stop(TERM, ready(LONG)).await,
        Ended::Signalled { signal: TERM }
    );
    let mut rest = String::new();
    output.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("saved\n"), "{rest}");
}

#[tokio::test]
async fn the_rest_may_use_the_grace_of_a_leader_that_has_ended() {
    let (mut job, output) = start(
        "sh -c 'trap \"sleep 0.3; echo saved; exit\" TERM; echo ready; while :; do sleep 0.05; done' &",
    );
    let mut output = BufReader::new(output);
    assert_eq!(line(&mut output).await, "ready");
    let leader = job.pid().to_string();
    while runs(&leader) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(job.stop(TERM, ready(LONG)).await, Ended::Exited { code: 0 });
    let mut rest = String::new();
    output.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("saved\n"), "{rest}");
}

#[tokio::test]
async fn who_does_not_listen_is_killed() {
    let (mut job, output) = start("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let mut output = BufReader::new(output);
    assert_eq!(line(&mut output).await, "ready");
    let ended = job.stop(TERM, ready(Duration::from_millis(200))).await;
    assert_eq!(ended, Ended::Signalled { signal: 9 });
    assert_eq!(line(&mut output).await, "");
}

#[tokio::test]
async fn a_suspended_job_can_be_stopped() {
    let (mut job, output) = start("echo ready; kill -STOP $$; echo on");
    let mut output = BufReader::new(output);
    assert_eq!(line(&mut output).await, "ready");
    assert_eq!(
        job.stop(TERM, ready(LONG)).await,
        Ended::Signalled { signal: TERM }
    );
}

#[tokio::test]
async fn waiting_can_be_abandoned_for_a_stop() {
    let (mut job, _output) = start("exec sleep 1000");
    tokio::select! {
        biased;
        _ = job.wait() => panic!("the job ended"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(
        job.stop(TERM, ready(LONG)).await,
        Ended::Signalled { signal: TERM }
    );
    // And what is over stays over.
    assert_eq!(job.wait().await, Ended::Signalled { signal: TERM });
    assert_eq!(
        job.stop(TERM, ready(LONG)).await,
        Ended::Signalled { signal: TERM }
    );
}

#[tokio::test]
async fn a_background_process_that_holds_the_output_does_not_hang_the_run() {
    let (ended, text) = run("sleep 1000 & echo $!; exit 4").await;
    assert_eq!(ended, Ended::Exited { code: 4 });
    assert!(!runs(&text));
}

#[tokio::test]
async fn a_daemon_that_left_everything_does_not_hang_the_run() {
    // This process is no subreaper: of what left the process group and lost its parent, only a control
    // group of the job's own knows.
    let (mut job, output) = start("setsid sh -c 'echo $$; exec sleep 1000' & exec sleep 1000");
    let mut output = BufReader::new(output);
    let daemon = line(&mut output).await;
    assert_eq!(
        job.stop(TERM, ready(LONG)).await,
        Ended::Signalled { signal: TERM }
    );
    let mut rest = String::new();
    output.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "");
    if JobGroup::create().is_some() {
        assert!(!runs(&daemon));
        return;
    }
    assert!(runs(&daemon));
    let daemon = rustix::process::Pid::from_raw(daemon.parse().unwrap()).unwrap();
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn what_a_background_process_prints_soon_after_the_end_is_kept() {
    let (ended, text) = run("(sleep 0.3; echo late) & echo early").await;
    assert_eq!(ended, Ended::Exited { code: 0 });
    assert_eq!(text, "early\nlate\n");
}

#[tokio::test]
async fn a_dropped_job_is_killed() {
    let (job, mut output) = start("trap '' TERM; sleep 1000");
    drop(job);
    let mut text = String::new();
    output.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "");
}

/// Runs this test program again, with one test alone, as an agent process of its own.
fn agent(role: &str, fifo: &Path) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", role, "--nocapture"])
        .env("ROLE_FIFO", fifo)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

fn fifo(dir: &Path) -> PathBuf {
    let path = dir.join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
    path
}

#[test]
fn the_death_of_the_agent_kills_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path());
    let mut agent = agent("role_agent_that_is_killed", &path);
    // The job alone has the other end; its end of the line is the end of the job.
    let mut held = std::fs::File::open(&path).unwrap();
    let mut ready = [0; 6];
    held.read_exact(&mut ready).unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    let mut rest = String::new();
    held.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[tokio::test]
async fn role_agent_that_is_killed() {
    let Ok(fifo) = std::env::var("ROLE_FIFO") else {
        return;
    };
    let (mut job, _output) = start(&format!("exec >{fifo}; echo ready; exec sleep 1000"));
    job.wait().await;
}

#[test]
fn descendants_that_left_the_group_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let status = agent("role_agent_with_daemons", dir.path()).wait().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn role_agent_with_daemons() {
    if std::env::var("ROLE_FIFO").is_err() {
        return;
    }
    process::prepare_host();
    // What was there before, and what the agent itself starts, is not the job's.
    let mut before = std::process::Command::new("sleep")
        .arg("1000")
        .process_group(0)
        .spawn()
        .unwrap();

    // A daemon: its own session, its parent gone, deaf to SIGTERM, with a child of its own.
    let daemon = "setsid sh -c 'trap \"\" TERM; sleep 1000 & echo $$ $!; wait' &";
    let (ended, text) = run(&format!("({daemon}); exit 5")).await;
    assert_eq!(ended, Ended::Exited { code: 5 });
    let pids: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(pids.len(), 2, "{text}");
    assert!(pids.iter().all(|pid| !runs(pid)), "{text}");

    let (mut job, output) = start(&format!("({daemon}); exec sleep 1000"));
    let mut own = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let mut output = BufReader::new(output);
    let text = line(&mut output).await;
    let ended = job.stop(TERM, ready(Duration::from_millis(300))).await;
    assert_eq!(ended, Ended::Signalled { signal: TERM });
    let pids: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(pids.len(), 2, "{text}");
    assert!(pids.iter().all(|pid| !runs(pid)), "{text}");

    for child in [&mut before, &mut own] {
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
