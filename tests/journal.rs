//! The way of a job's output, from real jobs to a server, a log file and a terminal.
#![allow(clippy::unwrap_used)]

#[path = "common/log_server.rs"]
mod log_server;

use std::collections::BTreeMap;
use std::future::ready;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use clearml_agent::journal::{Amount, Journal, JournalError, Options, Receipt, Upload};
use clearml_agent::mask::Mask;
use clearml_agent::process::{self, Command, Job, OutputPipe};
use log_server::{Fault, LogServer, WORKER};
use tempfile::TempDir;

const TASK: &str = "1c02df25bf594ec6b41dc593f6d0ceb6";
const LONG: Duration = Duration::from_secs(60);

fn start(script: &str) -> (Job, OutputPipe) {
    process::spawn(Command {
        program: "sh".into(),
        args: vec!["-c".into(), script.into()],
        working_dir: "/".into(),
        env: BTreeMap::from([("PATH".to_owned(), std::env::var("PATH").unwrap())]),
    })
    .unwrap()
}

/// Runs `script` with its output going to `journal`.
async fn run(journal: &Journal, script: &str) {
    let (mut job, output) = start(script);
    let (_, read) = tokio::join!(job.wait(), journal.read_from(output));
    read.unwrap();
}

fn options(dir: &TempDir) -> Options {
    Options {
        dir: dir.path().join("run"),
        machine: "host".into(),
        limit: u64::MAX,
        log_file: None,
        terminal: false,
        suppress_carriage_return: true,
        setup_to_server: false,
        mask: Mask::default(),
    }
}

fn connect(journal: &Journal, server: &LogServer) {
    journal.connect(Upload {
        session: server.session.clone(),
        task: TASK.into(),
        worker: WORKER.into(),
        mark: String::new(),
    });
}

/// A journal whose job part has begun.
fn started(dir: &TempDir, server: &LogServer) -> Journal {
    let journal = Journal::open(options(dir)).unwrap();
    connect(&journal, server);
    journal.job_started();
    journal
}

fn amount(text: &str) -> Amount {
    Amount {
        lines: text.lines().count() as u64,
        bytes: text.len() as u64,
    }
}

fn all_sent(text: &str) -> Receipt {
    Receipt {
        produced: amount(text),
        wanted: amount(text),
        accepted: amount(text),
        refused: Amount::default(),
        missing: Amount::default(),
        spool: None,
    }
}

fn files_in(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test]
async fn the_server_gets_every_line_and_the_receipt_says_so() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    let journal = started(&dir, &server);
    run(
        &journal,
        "echo one; echo two >&2; printf '\\033[31mred\\033[0m no end'",
    )
    .await;
    let receipt = journal.finish(LONG).await;

    let text = "one\ntwo\n\x1b[31mred\x1b[0m no end";
    assert_eq!(server.log(), text);
    assert_eq!(receipt, all_sent(text));
    assert_eq!(receipt.lost(), Amount::default());
    assert_eq!(files_in(&dir.path().join("run")), 0);
    let mut last = 0;
    for event in server.events() {
        assert_eq!(event["type"], "log");
        assert_eq!(event["level"], "DEBUG");
        assert_eq!(event["task"], TASK);
        assert_eq!(event["worker"], WORKER);
        let time = event["timestamp"].as_u64().unwrap();
        assert!(time > last);
        last = time;
    }
}

#[tokio::test]
async fn lines_arrive_while_the_job_runs() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    let journal = started(&dir, &server);
    let (mut job, output) = start("echo first; printf 'name? '; exec sleep 1000");
    let reading = journal.clone();
    let reading = tokio::spawn(async move { reading.read_from(output).await });
    server.log_with("first\n").await;
    // A prompt has no newline, and is shown all the same.
    server.log_with("name? ").await;
    job.stop(15, ready(LONG)).await;
    reading.await.unwrap().unwrap();
    let receipt = journal.finish(LONG).await;
    assert_eq!(receipt, all_sent("first\nname? "));
    assert_eq!(server.log(), "first\nname? ");
}

#[tokio::test]
async fn the_setup_part_is_the_terminals_and_the_files_alone() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    let log_file = dir.path().join("log.txt");
    std::fs::write(&log_file, "of the last run").unwrap();
    let journal = Journal::open(Options {
        log_file: Some(log_file.clone()),
        ..options(&dir)
    })
    .unwrap();
    let console = journal.console();
    console.say("Cloning");
    connect(&journal, &server);
    run(&journal, "printf 'half a line'").await;
    journal.job_started();
    run(&journal, "printf '\\r10%%\\r20%%'").await;
    console.say("Process completed successfully");
    let receipt = journal.finish(LONG).await;
    console.say("and this is for the terminal alone");

    let setup = "Cloning\nhalf a line\n";
    let job = "\r10%\r20%\nProcess completed successfully\n";
    assert_eq!(server.log(), "20%\nProcess completed successfully\n");
    assert_eq!(
        std::fs::read_to_string(log_file).unwrap(),
        format!("{setup}{job}")
    );
    assert_eq!(
        receipt,
        Receipt {
            produced: amount(&format!("{setup}{job}")),
            ..all_sent(job)
        }
    );
}

#[tokio::test]
async fn the_setup_part_goes_to_the_server_where_it_failed_or_is_asked_for() {
    for asked_for in [false, true] {
        let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
        let journal = Journal::open(Options {
            setup_to_server: asked_for,
            ..options(&dir)
        })
        .unwrap();
        let console = journal.console();
        console.say("Cloning");
        connect(&journal, &server);
        console.say("fatal: no such commit");
        if asked_for {
            journal.job_started();
        } else {
            journal.release_setup();
        }
        let receipt = journal.finish(LONG).await;
        assert_eq!(server.log(), "Cloning\nfatal: no such commit\n");
        assert_eq!(receipt, all_sent("Cloning\nfatal: no such commit\n"));
    }
}

#[tokio::test]
async fn without_a_server_the_receipt_wants_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(options(&dir)).unwrap();
    journal.job_started();
    run(&journal, "echo x").await;
    let receipt = journal.finish(LONG).await;
    assert_eq!(receipt.produced, amount("x\n"));
    assert_eq!(receipt.wanted, Amount::default());
    assert_eq!(receipt.spool, None);
    assert_eq!(files_in(&dir.path().join("run")), 0);
}

#[tokio::test]
async fn a_server_that_is_away_for_a_while_misses_nothing() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    server.fail_next([503, 502, 404, 503].map(Fault::Status));
    let journal = started(&dir, &server);
    run(
        &journal,
        "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done",
    )
    .await;
    let log = server.log_with("takes the log again\n").await;
    let receipt = journal.finish(LONG).await;

    let lines: String = (0..3000).map(|i| format!("line {i}\n")).collect();
    let told = log.strip_prefix(&lines).unwrap();
    assert!(
        told.contains("The server does not take the log now: "),
        "{told}"
    );
    assert_eq!(receipt.lost(), Amount::default());
    assert_eq!(receipt.accepted.lines, 3002);
    assert_eq!(receipt.spool, None);
}

#[tokio::test]
async fn the_job_does_not_wait_for_the_server() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::stuck().await);
    let journal = started(&dir, &server);
    // More than pipes and packets hold. That it ends at all is the point: nobody answers.
    run(&journal, "yes 0123456789abcde | head -c 8000000").await;
    server.asked().await;
    assert_eq!(server.log(), "");
    server.answer_all();
    let receipt = journal.finish(LONG).await;
    assert_eq!(server.log(), "0123456789abcde\n".repeat(500_000));
    assert_eq!(receipt, all_sent(&server.log()));
}

#[tokio::test]
async fn what_the_server_never_took_is_kept() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::stuck().await);
    let journal = started(&dir, &server);
    run(&journal, "echo x").await;
    let receipt = journal.finish(Duration::from_millis(300)).await;
    assert_eq!(receipt.lost(), amount("x\n"));
    let spool = std::fs::read(receipt.spool.unwrap()).unwrap();
    assert!(spool.ends_with(b"x\n"));
}

#[tokio::test]
async fn only_what_the_server_refuses_is_left_out() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    server.refuse("poison");
    let journal = started(&dir, &server);
    // Lines of an event's size each.
    let line = |word: &str| format!("echo {word}; head -c 65500 /dev/zero | tr '\\0' x; echo;");
    let script: String = ["a", "b", "poison", "c", "d"].map(line).concat();
    run(&journal, &script).await;
    server.log_with("refused a part of the log").await;
    let receipt = journal.finish(LONG).await;

    let log = server.log();
    for word in ["a\n", "b\n", "c\n", "d\n"] {
        assert!(log.contains(word));
    }
    assert!(!log.contains("poison"));
    assert_eq!(log.matches("refused a part of the log").count(), 1);
    assert!(receipt.lost().lines > 0 && receipt.lost().lines <= 2);
    assert_eq!(receipt.lost(), receipt.refused);
    // The server has decided: nothing is left to be sent.
    assert_eq!(receipt.spool, None);
}

#[tokio::test]
async fn how_the_output_is_cut_on_its_way_does_not_matter() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    let journal = started(&dir, &server);
    let text = "Grüße € 🦀 \x1b[32mgrün\x1b[0m and more\n".repeat(40);
    let (mut sender, receiver) = tokio::io::duplex(7);
    let writing = async {
        use tokio::io::AsyncWriteExt as _;
        for part in text.as_bytes().chunks(5) {
            sender.write_all(part).await.unwrap();
        }
        drop(sender);
    };
    let (read, ()) = tokio::join!(journal.read_from(receiver), writing);
    read.unwrap();
    let receipt = journal.finish(LONG).await;
    assert_eq!(server.log(), text);
    assert_eq!(receipt, all_sent(&text));
}

#[tokio::test]
async fn a_log_file_that_cannot_be_made_is_told_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let error = Journal::open(Options {
        log_file: Some("/no/such/folder/log.txt".into()),
        ..options(&dir)
    })
    .unwrap_err();
    assert!(matches!(error, JournalError::LogFile { .. }));
    assert_eq!(
        error.to_string(),
        "cannot write the log file /no/such/folder/log.txt: No such file or directory (os error 2) \
         (given by --log-file)"
    );
}

#[tokio::test]
async fn a_full_disk_under_the_log_file_is_told_once() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    let journal = Journal::open(Options {
        log_file: Some("/dev/full".into()),
        ..options(&dir)
    })
    .unwrap();
    connect(&journal, &server);
    journal.job_started();
    run(&journal, "echo one; echo two").await;
    server.log_with("Cannot write the log file /dev/full").await;
    journal.finish(LONG).await;
    let log = server.log();
    assert!(log.contains("one\n") && log.contains("two\n"), "{log}");
    assert_eq!(log.matches("Cannot write").count(), 1);
}

/// Runs this test program again, with one test alone, as an agent process of its own.
fn agent(role: &str) -> std::process::Command {
    let mut agent = std::process::Command::new(std::env::current_exe().unwrap());
    agent
        .args(["--exact", role, "--nocapture"])
        .env("ROLE", role);
    agent
}

fn is_role(role: &str) -> bool {
    std::env::var("ROLE").is_ok_and(|set| set == role)
}

#[test]
fn the_terminal_shows_the_bytes_as_they_came() {
    let output = agent("role_terminal").output().unwrap();
    assert!(output.status.success());
    let shown = String::from_utf8_lossy(&output.stdout);
    let expected = "Running\n\x1b[1mbold\x1b[0m\r10%\r20%\nerr\nafter the end\n";
    assert!(shown.contains(expected), "{shown:?}");
}

#[test]
fn a_terminal_that_is_gone_does_not_end_the_run() {
    // The test harness in that process fails on the closed pipe, too: that the run got through, it
    // says in a file.
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    let mut agent = agent("role_terminal");
    agent.env("MARK", &mark).stderr(Stdio::null());
    agent.output().unwrap();
    assert_eq!(std::fs::read_to_string(mark).unwrap(), "3 lines");
}

#[tokio::test]
async fn role_terminal() {
    if !is_role("role_terminal") {
        return;
    }
    let mark = std::env::var("MARK");
    if mark.is_ok() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        rustix::stdio::dup2_stdout(writer).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(Options {
        terminal: true,
        ..options(&dir)
    })
    .unwrap();
    let console = journal.console();
    console.say("Running");
    journal.job_started();
    run(
        &journal,
        "printf '\\033[1mbold\\033[0m\\r10%%\\r20%%\\n'; echo err >&2",
    )
    .await;
    let receipt = journal.finish(LONG).await;
    console.say("after the end");
    // As the program does.
    clearml_agent::outlet::finish();
    if let Ok(mark) = mark {
        std::fs::write(mark, format!("{} lines", receipt.produced.lines)).unwrap();
    }
}

#[test]
fn memory_is_bounded_whatever_is_printed() {
    assert!(agent("role_memory").status().unwrap().success());
}

/// 100 MB with no newline in them, then 30 MB of lines, all while the server answers nothing.
#[tokio::test]
async fn role_memory() {
    if !is_role("role_memory") {
        return;
    }
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::stuck().await);
    let journal = started(&dir, &server);
    run(
        &journal,
        "head -c 100000000 /dev/zero | tr '\\0' x; echo; yes a line of output | head -c 30000000",
    )
    .await;
    server.asked().await;
    let receipt = journal.finish(Duration::from_millis(100)).await;
    assert_eq!(receipt.produced.bytes, 130_000_001);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 60_000, "{peak} kB");
}
