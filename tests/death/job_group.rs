//! The job's own control group.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use clearml_agent::process::cgroup::{self, Version};
use clearml_agent::process::job_group::JobGroup;
use rustix::process::Pid;

use crate::limits::me;
use crate::{enter, plays, role, shell, skip};

fn job_group() -> Option<JobGroup> {
    let group = JobGroup::create();
    if group.is_none() {
        skip("no group can be made for a job");
    }
    group
}

/// Starts `script`, in the group, and reads its first line.
fn start_in(group: &JobGroup, script: &str) -> (Child, i32) {
    let mut command = shell(script);
    enter(&mut command, group.entrance());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let output = child.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    (child, line.trim().parse().unwrap())
}

fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits for the end of a process that is not a child of this one.
fn wait_gone(pid: i32) {
    while runs(pid) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn groups_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

const DAEMON: &str =
    "setsid sh -c 'setsid sh -c \"echo \\$\\$; exec sleep 1000 >/dev/null\" & exit' & wait";

#[test]
fn a_daemon_that_left_everything_else_is_still_in_the_group() {
    let Some(group) = job_group() else { return };
    assert!(group.processes().is_empty());
    let (mut leader, daemon) = start_in(&group, DAEMON);
    let inside = group.processes();
    assert!(inside.contains(&daemon) && !inside.contains(&me()));
    assert!(leader.wait().unwrap().success());
    assert_eq!(group.processes(), [daemon]);
    assert!(groups_of(daemon).contains(&format!("/clearml-agent-{}-", me())));

    group.kill();
    wait_gone(daemon);
    while !group.processes().is_empty() {
        group.kill();
        std::thread::yield_now();
    }
}

#[test]
fn a_group_is_given_up_where_nobody_is_in_it_and_not_where_a_leader_has_ended() {
    let Some(mut group) = job_group() else { return };
    let (mut leader, daemon) = start_in(&group, DAEMON);
    leader.wait().unwrap();
    assert_eq!(group.give_up_empty(), 0);
    assert!(runs(daemon) && group.processes() == [daemon]);
    drop(group);
    wait_gone(daemon);

    let Some(mut group) = job_group() else { return };
    assert!(group.give_up_empty() > 0);
    assert!(group.is_given_up());
}

#[test]
fn dropping_the_group_kills_and_removes() {
    let Some(group) = job_group() else { return };
    let (mut leader, daemon) = start_in(&group, DAEMON);
    leader.wait().unwrap();
    let name = groups_of(daemon);
    let (_, name) = name.split_once("/clearml-agent-").unwrap();
    let name = format!("clearml-agent-{}", name.lines().next().unwrap());
    assert!(group_dirs().iter().any(|dir| dir.ends_with(&name)));
    drop(group);
    wait_gone(daemon);
    assert!(!group_dirs().iter().any(|dir| dir.ends_with(&name)));
}

/// Groups of jobs below this process' groups.
fn group_dirs() -> Vec<PathBuf> {
    let around = [cgroup::unified(me()), cgroup::of_memory(me())];
    let dirs = around.into_iter().flatten().map(|place| place.dir);
    dirs.flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.display().to_string().contains("/clearml-agent-"))
        .collect()
}

#[test]
fn a_process_can_be_added_later_and_what_it_used_is_counted() {
    let Some(group) = job_group() else { return };
    let mut job = shell("read x; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    group.add(Pid::from_child(&job)).unwrap();
    assert_eq!(group.processes(), [i32::try_from(job.id()).unwrap()]);
    job.stdin.take().unwrap().write_all(b"\n").unwrap();
    let text = std::io::read_to_string(job.stdout.take().unwrap()).unwrap();
    job.wait().unwrap();
    assert_eq!(text, "done\n");
    let usage = group.usage();
    if cgroup::unified(me()).is_some() {
        assert!(usage.cpu.unwrap().as_micros() > 1000, "{usage:?}");
    }
    if cgroup::of_memory(me()).is_some_and(|place| place.version == Version::V1) {
        assert!(usage.peak_memory.unwrap() > 0, "{usage:?}");
    }
}

#[test]
fn the_group_of_a_killed_agent_goes_with_the_next() {
    if job_group().is_none() {
        return;
    }
    let mut agent = role("job_group::role_agent_that_is_killed")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(agent.stdout.take().unwrap());
    let daemon: i32 = output
        .lines()
        .find_map(|line| line.unwrap().strip_prefix("daemon ")?.parse().ok())
        .unwrap();
    let name = format!("clearml-agent-{}-", agent.id());
    let is_there = || {
        group_dirs()
            .iter()
            .any(|dir| dir.display().to_string().contains(&name))
    };

    // As long as its agent lives it is left alone.
    drop(JobGroup::create());
    assert!(is_there() && runs(daemon));

    agent.kill().unwrap();
    agent.wait().unwrap();
    // Another test's group may be the next, and not yet be done with it.
    for _ in 0..1000 {
        drop(JobGroup::create());
        if !is_there() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(!is_there());
    wait_gone(daemon);
}

#[test]
fn role_agent_that_is_killed() {
    if !plays("job_group::role_agent_that_is_killed") {
        return;
    }
    let group = JobGroup::create().unwrap();
    let (_leader, daemon) = start_in(&group, DAEMON);
    println!("\ndaemon {daemon}");
    loop {
        std::thread::park();
    }
}
