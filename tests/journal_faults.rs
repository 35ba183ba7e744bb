//! What the journal promises, under faults: nothing lost, nothing out of order, nothing twice but what
//! was in doubt. Each test prints its figures.
#![allow(clippy::unwrap_used)]

#[path = "common/figures.rs"]
mod figures;
#[path = "common/log_server.rs"]
mod log_server;

use std::path::Path;
use std::time::Duration;

use clearml_agent::journal::sync::{Sent, What, Whose, send_left};
use clearml_agent::journal::{Amount, Journal, Options, Receipt, Upload};
use clearml_agent::mask::Mask;
use figures::{Figures, NOTHING_WRONG, figures};
use log_server::{Fault, LogServer, WORKER};

const TASK: &str = "1c02df25bf594ec6b41dc593f6d0ceb6";
const LONG: Duration = Duration::from_secs(120);
const MACHINE: &str = "host";

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        machine: MACHINE.into(),
        limit: u64::MAX,
        log_file: None,
        terminal: false,
        suppress_carriage_return: true,
        setup_to_server: false,
        mask: Mask::default(),
    }
}

fn started(options: Options, server: &LogServer, task: &str) -> Journal {
    let journal = Journal::open(options).unwrap();
    journal.connect(Upload {
        session: server.session.clone(),
        task: task.into(),
        worker: WORKER.into(),
        mark: String::new(),
    });
    journal.job_started();
    journal
}

async fn print(journal: &Journal, text: &[u8]) {
    journal.read_from(text).await.unwrap();
    // Text in memory is always there to be read: the server, on this thread too, gets its turn.
    tokio::task::yield_now().await;
}

/// Numbered lines.
fn numbered(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|n| format!("line {n}\n")).collect()
}

fn assert_times_ascend(server: &LogServer) {
    let mut last = 0;
    for event in server.events() {
        let time = event["timestamp"].as_u64().unwrap();
        assert!(time > last, "{time} after {last}");
        last = time;
    }
}

#[tokio::test]
async fn bursts_of_errors_and_dropped_connections_lose_nothing() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    server.fail_next([
        Fault::Status(503),
        Fault::Dropped,
        Fault::Status(500),
        Fault::Status(500),
        Fault::Dropped,
    ]);
    let journal = started(options(dir.path()), &server, TASK);
    print(&journal, numbered(0..20_000).as_bytes()).await;
    let receipt = journal.finish(LONG).await;
    assert_eq!(figures(&server.log(), 20_000), NOTHING_WRONG);
    assert_eq!(receipt.lost(), Amount::default());
    assert_times_ascend(&server);
}

#[tokio::test]
async fn a_lost_answer_doubles_the_batch_in_doubt_and_no_more() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    server.fail_next([Fault::AnswerLost]);
    let journal = started(options(dir.path()), &server, TASK);
    // The batch in doubt holds these.
    print(&journal, numbered(0..10).as_bytes()).await;
    server.log_with("line 9\n").await;
    print(&journal, numbered(10..5_000).as_bytes()).await;
    let receipt = journal.finish(LONG).await;
    let figures = figures(&server.log(), 5_000);
    assert_eq!(
        figures,
        Figures {
            duplicated: 10,
            ..NOTHING_WRONG
        }
    );
    assert_eq!(receipt.lost(), Amount::default());
}

#[tokio::test]
async fn a_token_that_ends_in_mid_run_is_renewed() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    let journal = started(options(dir.path()), &server, TASK);
    print(&journal, numbered(0..10).as_bytes()).await;
    server.log_with("line 9\n").await;
    server.forget_tokens();
    print(&journal, numbered(10..20).as_bytes()).await;
    let receipt = journal.finish(LONG).await;
    assert_eq!(figures(&server.log(), 20), NOTHING_WRONG);
    assert_eq!(receipt.lost(), Amount::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_gets_full_packets_and_all_of_them() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::stuck().await);
    let journal = started(options(dir.path()), &server, TASK);
    let text = numbered(0..300_000);
    print(&journal, text.as_bytes()).await;
    let receipt = {
        // One answer at a time, each only once the next question waits.
        let answering = async {
            loop {
                server.asked().await;
                server.answer(1);
            }
        };
        tokio::select! {
            receipt = journal.finish(LONG) => receipt,
            () = answering => unreachable!(),
        }
    };
    assert_eq!(receipt.lost(), Amount::default());
    assert_eq!(figures(&server.log(), 300_000), NOTHING_WRONG);
    // 3.8 MB in packets of up to 1 MB, the first one cut where it was.
    let requests = server.requests();
    assert!(requests <= 7, "{requests}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_million_lines_arrive() {
    const LINES: usize = 10_000_000;
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    let journal = started(options(dir.path()), &server, TASK);
    let mut next = 0;
    while next < LINES {
        print(&journal, numbered(next..next + 100_000).as_bytes()).await;
        next += 100_000;
    }
    let receipt = journal.finish(LONG).await;
    assert_eq!(receipt.lost(), Amount::default());
    assert_eq!(figures(&server.log(), LINES), NOTHING_WRONG);
    assert_times_ascend(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_of_100_mb_arrives_whole() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    let journal = started(options(dir.path()), &server, TASK);
    let part = "0123456789abcdef".repeat(62_500);
    for _ in 0..100 {
        print(&journal, part.as_bytes()).await;
    }
    print(&journal, b"\nafter\n").await;
    let receipt = journal.finish(LONG).await;
    assert_eq!(receipt.lost(), Amount::default());
    let log = server.log();
    assert_eq!(log.len(), 100_000_007);
    assert!(log.ends_with("cdef\nafter\n"));
    assert_eq!(log.matches("0123456789abcdef").count(), 6_250_000);
}

#[tokio::test]
async fn nothing_but_carriage_returns_comes_to_its_last_state() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    let journal = started(options(dir.path()), &server, TASK);
    let frames: String = (0..100_000).map(|n| format!("\r{n} of 100000")).collect();
    print(&journal, frames.as_bytes()).await;
    let receipt = journal.finish(LONG).await;
    let log = server.log();
    assert!(log.ends_with("99999 of 100000"), "{log}");
    assert!(log.lines().count() < 100, "{log}");
    assert_eq!(receipt.accepted.bytes, frames.len() as u64);
    assert_eq!(receipt.lost(), Amount::default());
}

#[tokio::test]
async fn what_does_not_fit_is_counted_and_the_log_says_where_it_is_missing() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::stuck().await);
    let options = Options {
        limit: 1024 * 1024,
        ..options(dir.path())
    };
    let journal = started(options, &server, TASK);
    let mut text = numbered(0..400_000);
    print(&journal, text.as_bytes()).await;
    server.answer_all();
    // Once there is room again, the log goes on.
    loop {
        print(&journal, b"more\n").await;
        text.push_str("more\n");
        if server.log().contains("more\n") {
            break;
        }
        tokio::task::yield_now().await;
    }
    let receipt = journal.finish(LONG).await;
    println!("{}", receipt.words());
    assert_gap(&server.log(), &text, &receipt, "agent.journal.max_size_mb");
}

/// `log` is `text` with one gap, where a line says what is missing and that it is because of `why`.
fn assert_gap(log: &str, text: &str, receipt: &Receipt, why: &str) {
    let notice = log
        .lines()
        .find(|line| line.contains("of output are missing here"))
        .unwrap();
    println!("{notice}");
    assert!(notice.contains(why), "{notice}");
    let (before, after) = log.split_once(&format!("{notice}\n")).unwrap();
    // The line in which it began to be missing was ended for the notice, if it had begun.
    let whole = |before: &str| {
        text.starts_with(before)
            && text.ends_with(after)
            && before.len() + after.len() + receipt.missing.bytes as usize == text.len()
    };
    assert!(whole(before) || before.strip_suffix('\n').is_some_and(whole));
    assert!(receipt.missing.bytes > 0);
    assert_eq!(receipt.lost(), receipt.missing);
    assert_eq!(receipt.spool, None);
}

/// Keeps a journal and goes away without ending it, as a killed agent does, after the server has
/// decided on `lines` lines at least.
async fn left_behind(dir: &Path, server: &LogServer, text: &str, seen: &str) {
    let journal = started(options(dir), server, TASK);
    print(&journal, text.as_bytes()).await;
    server.log_with(seen).await;
    journal.finish(Duration::ZERO).await;
}

async fn sync(dir: &Path, server: &LogServer) -> Vec<Sent> {
    let mut all = Vec::new();
    send_left(dir, Whose::All, &server.session, |sent| all.push(sent))
        .await
        .unwrap();
    all
}

fn receipt_of(sent: &Sent) -> &Receipt {
    match &sent.what {
        What::Done { task, receipt, .. } if task == TASK => receipt,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_an_outage_left_is_sent_later_once() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::stuck().await);
    server.answer(1);
    let text = numbered(0..100_000);
    left_behind(dir.path(), &server, &text, "line 0\n").await;
    let first = server.log().lines().count();
    assert!(first < 100_000);
    server.answer_all();

    let sent = sync(dir.path(), &server).await;
    assert_eq!(sent.len(), 1);
    let receipt = receipt_of(&sent[0]);
    assert_eq!(receipt.lost(), Amount::default());
    // The request that the end cut off may have been taken: that is the batch in doubt.
    let figures = figures(&server.log(), 100_000);
    assert_eq!((figures.lost, figures.in_order), (0, true));
    assert!(sync(dir.path(), &server).await.is_empty());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_journal_in_use_and_one_for_another_server_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (server, other) = (LogServer::stuck().await, LogServer::start().await);
    let running = started(options(dir.path()), &server, TASK);
    print(&running, b"of the one that runs\n").await;
    left_behind_unsent(dir.path(), &server).await;

    let sent = sync(dir.path(), &other).await;
    assert_eq!(sent.len(), 1);
    assert!(
        matches!(&sent[0].what, What::OtherServer { server: s } if s == server.session.host()),
        "{sent:?}"
    );
    assert_eq!(other.log(), "");

    server.answer_all();
    let sent = sync(dir.path(), &server).await;
    assert_eq!(sent.len(), 1);
    running.finish(LONG).await;
    let mut lines: Vec<_> = server.log().lines().map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    assert_eq!(lines, ["left", "of the one that runs"]);
}

async fn left_behind_unsent(dir: &Path, server: &LogServer) {
    let journal = started(options(dir), server, TASK);
    print(&journal, b"left\n").await;
    journal.finish(Duration::ZERO).await;
}

#[tokio::test]
async fn several_agents_share_a_folder_and_what_is_left_in_it() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::stuck().await);
    for _ in 0..20 {
        left_behind_unsent(dir.path(), &server).await;
    }
    server.answer_all();
    let agents = (0..4).map(|n| {
        let (dir, session) = (dir.path().to_owned(), server.session.clone());
        let journal = started(options(&dir), &server, TASK);
        tokio::spawn(async move {
            let mut sent = 0;
            let sending = send_left(&dir, Whose::Machine(MACHINE), &session, |_| sent += 1);
            let (synced, ()) = tokio::join!(sending, async {
                print(&journal, format!("agent {n}\n").as_bytes()).await;
            });
            synced.unwrap();
            journal.finish(LONG).await;
            sent
        })
    });
    let agents: Vec<_> = agents.collect();
    let mut sent = 0;
    for agent in agents {
        sent += agent.await.unwrap();
    }
    assert_eq!(sent, 20);
    let log = server.log();
    // Those that were cut off in the middle of a request may have come twice.
    assert!(log.matches("left\n").count() >= 20);
    for n in 0..4 {
        assert_eq!(log.matches(&format!("agent {n}\n")).count(), 1);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_folder_that_is_not_there_has_nothing_left_in_it() {
    let server = LogServer::start().await;
    assert!(sync(Path::new("/no/such/folder"), &server).await.is_empty());
}

#[tokio::test]
async fn a_file_that_is_no_journal_is_told_and_left() {
    let (dir, server) = (tempfile::tempdir().unwrap(), LogServer::start().await);
    let path = dir.path().join("output-host-x.journal");
    std::fs::write(&path, "something else").unwrap();
    let sent = sync(dir.path(), &server).await;
    assert!(matches!(sent[0].what, What::Left { .. }), "{sent:?}");
    assert!(path.exists());
}

/// Runs this test program's test `role` again, in a mount namespace of its own where `dir` is a file
/// system of `size`; `None` where this machine lets nobody have one.
fn on_a_small_disk(role: &str, dir: &Path, size: &str) -> Option<std::process::Output> {
    let unshare = [["-m", "--"], ["-rm", "--"]].into_iter().find(|flags| {
        let mut probe = std::process::Command::new("unshare");
        probe.args(flags).arg("true");
        probe.output().is_ok_and(|output| output.status.success())
    })?;
    let program = std::env::current_exe().unwrap();
    let script = format!(
        "mount -t tmpfs -o size={size} none \"$1\" && exec \"$2\" --exact {role} --nocapture"
    );
    let output = std::process::Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", &script, "sh"])
        .args([dir, &program])
        .env("ROLE_DIR", dir)
        .output()
        .unwrap();
    Some(output)
}

#[test]
fn a_full_disk_loses_what_it_says_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let Some(output) = on_a_small_disk("role_full_disk", dir.path(), "2m") else {
        println!("not tried: this machine allows no mount namespace");
        return;
    };
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn role_full_disk() {
    let Ok(dir) = std::env::var("ROLE_DIR") else {
        return;
    };
    let dir = Path::new(&dir);
    let server = LogServer::stuck().await;
    let journal = started(options(dir), &server, TASK);
    let text = numbered(0..400_000);
    print(&journal, text.as_bytes()).await;
    server.answer_all();
    let receipt = journal.finish(LONG).await;
    println!("{}", receipt.words());
    assert_gap(&server.log(), &text, &receipt, "No space left on device");
}
