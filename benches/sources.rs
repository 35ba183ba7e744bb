//! How long a task waits for its code, beside the git command line in the same run: a work tree of
//! 5,000 files from a warm mirror, and one commit of a repository of 50,000 from a server.
//! `cargo bench --bench sources`
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/git_http.rs"]
mod git_http;
#[path = "../tests/common/source_host.rs"]
mod source_host;
#[path = "../tests/common/ssh_server.rs"]
mod ssh_server;

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clearml_agent::task::Script;
use git_http::{TestRepo, git_command, git_in};
use source_host::{Host, script};
use ssh_server::GitDaemon;

const ROUNDS: usize = 7;
const FILES: usize = 5_000;
const AT_ONCE: usize = 8;
const COMMITS: usize = 50_000;

fn main() {
    warm_mirror();
    one_commit();
}

fn warm_mirror() {
    let repo = TestRepo::new();
    for number in 0..FILES {
        let text = format!("line of file {number}\n").repeat(40);
        repo.write(&format!("folder_{}/file_{number}.py", number % 50), text);
    }
    let commit = repo.commit("many files");
    let host = Host::new();
    let task = at(&repo.url(), &commit);
    host.fetch(&task).unwrap();
    let mirror = host.mirror();
    let mut turn = 0;
    let mut next = || {
        turn += 1;
        host.folder.path().join(format!("by_git_{turn}"))
    };
    report(
        "5,000 files from a warm mirror",
        &mut || drop(host.fetch(&task).unwrap()),
        &mut [
            ("git clone --local", &mut || {
                let folder = next();
                let to = folder.to_str().unwrap().to_owned();
                git_in(&mirror, &["clone", "--quiet", "--local", ".", &to]);
            }),
            ("git worktree add", &mut || {
                turn_worktree(&mirror, &commit);
            }),
        ],
    );
    report(
        &format!("the same, {AT_ONCE} runs at once"),
        &mut || {
            std::thread::scope(|scope| {
                for _ in 0..AT_ONCE {
                    scope.spawn(|| drop(host.fetch(&task).unwrap()));
                }
            });
        },
        &mut [("git clone --local, as many at once", &mut || {
            let folders: Vec<_> = (0..AT_ONCE).map(|_| next()).collect();
            std::thread::scope(|scope| {
                for folder in &folders {
                    let to = folder.to_str().unwrap();
                    let mirror = &mirror;
                    scope.spawn(move || {
                        git_in(mirror, &["clone", "--quiet", "--local", ".", to]);
                    });
                }
            });
        })],
    );
}

fn turn_worktree(mirror: &Path, commit: &str) {
    let folder = tempfile::tempdir_in(mirror.parent().unwrap()).unwrap();
    let to = folder.path().join("tree");
    let to = to.to_str().unwrap();
    git_in(
        mirror,
        &["worktree", "add", "--quiet", "--detach", to, commit],
    );
    std::mem::forget(folder);
}

fn one_commit() {
    let repo = TestRepo::new();
    let mut child = git_command(&repo.folder, &["fast-import", "--quiet", "--force"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = std::io::BufWriter::new(child.stdin.take().unwrap());
    for number in 0..COMMITS {
        let text = format!("print({number})\n");
        let path = match number % 100 {
            0 => format!("src/module_{}.py", number / 100),
            _ => "train.py".to_owned(),
        };
        write!(
            input,
            "commit refs/heads/main\ncommitter T <t@localhost> {} +0000\ndata 1\nx\nM 644 inline {path}\ndata {}\n{text}\n",
            1_700_000_000 + number,
            text.len()
        )
        .unwrap();
    }
    drop(input);
    assert!(child.wait().unwrap().success());
    let commit = repo
        .git(&["rev-parse", "refs/heads/main~100"])
        .trim()
        .to_owned();
    let daemon = GitDaemon::start(repo.served_root());
    let url = daemon.url("up");
    let task = at(&url, &commit);
    report(
        "one commit of 50,000, with its work tree",
        &mut || drop(Host::new().fetch(&task).unwrap()),
        &mut [("git fetch --depth 1, checkout", &mut || {
            let folder = tempfile::tempdir().unwrap();
            let git = |args: &[&str]| git_in(folder.path(), args);
            git(&["init", "--quiet"]);
            git(&["fetch", "--quiet", "--depth", "1", &url, &commit]);
            git(&["checkout", "--quiet", &commit]);
        })],
    );
}

fn at(url: &str, commit: &str) -> Script {
    Script {
        version_num: commit.to_owned(),
        ..script(url)
    }
}

type Step<'s> = &'s mut dyn FnMut();

/// Best of the rounds, taken in turn: others use this machine, too.
fn report(name: &str, ours: Step<'_>, theirs: &mut [(&str, Step<'_>)]) {
    let time = |step: &mut dyn FnMut()| {
        let started = Instant::now();
        step();
        started.elapsed()
    };
    let mut best = vec![Duration::MAX; theirs.len() + 1];
    for _ in 0..ROUNDS {
        best[0] = best[0].min(time(ours));
        for (index, (_, step)) in theirs.iter_mut().enumerate() {
            best[index + 1] = best[index + 1].min(time(step));
        }
    }
    println!("{name}: {:.0} ms", best[0].as_secs_f64() * 1e3);
    for ((git, _), best_of_git) in theirs.iter().zip(&best[1..]) {
        println!(
            "    {git}: {:.0} ms (ours: {:.2} of it)",
            best_of_git.as_secs_f64() * 1e3,
            best[0].as_secs_f64() / best_of_git.as_secs_f64()
        );
    }
}
