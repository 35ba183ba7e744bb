//! How jobs end and what they used, with the kernel's own kills, limits and full disks.
//!
//! Parts need root, control groups that can be written, or Docker: without them they say so and pass.
#![allow(clippy::unwrap_used)]

mod containers;
mod from_outside;
mod job_group;
mod limits_reached;

#[path = "../common/bare_image.rs"]
mod bare_image;
#[path = "../common/limits.rs"]
mod limits;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use clearml_agent::process::Ended;
use clearml_agent::process::death::{self, Evidence};
use clearml_agent::process::disks;
use clearml_agent::process::job_group::{Entrance, JobGroup};
use clearml_agent::process::last_words::files_named;
use clearml_agent::process::memory::{Before, Memory};
use clearml_agent::process::usage;
use limits::SMALL;

fn skip(why: &str) {
    eprintln!("not tested here: {why}");
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// This test program again, with one test alone, which then plays a role.
fn role(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("ROLE", name);
    command
}

fn plays(name: &str) -> bool {
    std::env::var("ROLE").is_ok_and(|role| role == name)
}

/// Puts the command's process into the groups, as the agent does.
fn enter(command: &mut Command, entrance: Entrance) -> &mut Command {
    let enter = move || {
        entrance.enter();
        Ok(())
    };
    // SAFETY: one plain system call for each group, as `Entrance::enter` promises.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(enter)
    }
}

fn ended(status: ExitStatus) -> Ended {
    match status.code() {
        Some(code) => Ended::Exited { code },
        None => Ended::Signalled {
            signal: status.signal().unwrap(),
        },
    }
}

/// The reason, from all that can be gathered about a job that is over.
fn reason(end: Ended, leader: i32, memory: &Memory, output: &str, dir: &Path) -> String {
    let lines: Vec<&str> = output.lines().collect();
    let named: Vec<PathBuf> = lines.iter().flat_map(|line| files_named(line)).collect();
    let env: BTreeMap<String, String> = std::env::vars().collect();
    let evidence = Evidence {
        ended: end,
        sent: None,
        memory,
        peak: memory.peak,
        pids: &BTreeSet::from([leader]),
        last_lines: &lines,
        disks: &disks::look(&named, dir, &env),
        address_limit: usage::address_limit(),
    };
    match death::cause(&evidence) {
        Some(death) => format!("{}: {}", death.kind(), death.reason()),
        None => format!("nothing known of {end:?}"),
    }
}

/// Runs `command` as a job in `dir`; how it ended, its id, and all that it printed.
fn run(mut command: Command, dir: &Path) -> (Ended, i32, String) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    command
        .current_dir(dir)
        .stdout(writer.try_clone().unwrap())
        .stderr(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    (ended(child.wait().unwrap()), pid, output)
}

/// An agent that runs one job under the limit that it finds itself in, and tells what it learned.
#[test]
fn role_agent() {
    if !plays("role_agent") {
        return;
    }
    let group = std::env::var("ROLE_OWN_GROUP")
        .is_ok()
        .then(JobGroup::create)
        .flatten();
    println!("\ngroup {}", group.is_some());
    let before = Before::take(group.as_ref());
    let mut job = match std::env::var("ROLE_JOB").unwrap().as_str() {
        "eat" => role("role_eat"),
        "launch" => shell(r#""$0" --exact role_eat --nocapture; echo the worker is gone; exit 3"#),
        script => shell(script),
    };
    job.env("ROLE", "role_eat");
    if matches!(std::env::var("ROLE_JOB").as_deref(), Ok("launch")) {
        job.arg(std::env::current_exe().unwrap());
    }
    if let Some(group) = &group {
        enter(&mut job, group.entrance());
    }
    let (end, leader, output) = run(job, Path::new("/"));
    let memory = before.after();
    println!("\noutput {output:?}");
    println!("memory {memory:?}");
    println!("leader {leader}");
    println!(
        "reason {}",
        reason(end, leader, &memory, &output, Path::new("/"))
    );
}

/// Takes memory until it is killed.
#[test]
fn role_eat() {
    if !plays("role_eat") {
        return;
    }
    let mut eaten = Vec::new();
    // Far above the limit, far below what the machine has.
    for _ in 0..(8 * SMALL) >> 20 {
        eaten.push(vec![1_u8; 1 << 20]);
    }
    println!("not killed after {} MiB", std::hint::black_box(eaten).len());
}

/// `role_agent` when it is in its group.
fn agent_that_waits(job: &str) -> Command {
    let mut command = shell(r#"cat >/dev/null; exec "$0" --exact role_agent --nocapture"#);
    command
        .arg(std::env::current_exe().unwrap())
        .env("ROLE", "role_agent")
        .env("ROLE_JOB", job);
    command
}

fn told<'a>(output: &'a str, name: &str) -> &'a str {
    let line = output.lines().find_map(|l| l.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {output}"))
        .trim()
}
