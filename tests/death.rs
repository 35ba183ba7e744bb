//! How jobs end and what they used, with the kernel's own kills, limits and full disks.
//!
//! Parts need root, control groups that can be written, or Docker: without them they say so and pass.
#![allow(clippy::unwrap_used)]

#[path = "common/bare_image.rs"]
mod bare_image;
#[path = "common/limits.rs"]
mod limits;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use bare_image::image;
use clearml_agent::process::cgroup::{self, Version};
use clearml_agent::process::death::{self, Evidence};
use clearml_agent::process::disks;
use clearml_agent::process::job_group::{Entrance, JobGroup};
use clearml_agent::process::last_words::files_named;
use clearml_agent::process::memory::{Before, Memory};
use clearml_agent::process::usage::{self, Sampler};
use clearml_agent::process::{Ended, kernel_log::KernelLog};
use limits::{Limited, SMALL, Tmpfs, me};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

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

// ---- killed by the kernel ----

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

#[test]
fn a_job_that_the_kernel_kills_at_a_groups_limit() {
    let group = match Limited::create() {
        Ok(group) => group,
        Err(why) => return skip(&format!("no group with a memory limit can be made: {why}")),
    };
    let output = group.run(agent_that_waits("eat"));
    let reason = told(&output, "reason");
    assert!(
        reason.starts_with(
            "oom_killed: killed by the kernel for want of memory: the memory limit of the"
        ) && reason.contains("was reached, 64 MiB"),
        "{output}"
    );
    let memory = told(&output, "memory");
    assert!(memory.contains("kills: 1, alone: true"), "{memory}");
    assert!(memory.contains("ran_out: Some(Own {"), "{memory}");
    if KernelLog::open().is_some() {
        let named = format!("Kill {{ pid: {}, name:", told(&output, "leader"));
        assert!(
            memory.contains(&named) && memory.contains("machine: false"),
            "{memory}"
        );
    }
}

#[test]
fn a_worker_that_the_kernel_kills_while_its_launcher_goes_on() {
    let group = match Limited::create() {
        Ok(group) => group,
        Err(why) => return skip(&format!("no group with a memory limit can be made: {why}")),
    };
    let output = group.run(agent_that_waits("launch"));
    assert!(output.contains("the worker is gone"), "{output}");
    let reason = told(&output, "reason");
    let expected = "oom_killed: a process of the job was killed by the kernel for want of memory";
    assert!(reason.starts_with(expected), "{output}");
}

#[test]
fn a_jobs_own_group_counts_for_the_job_alone() {
    let group = match Limited::create() {
        Ok(group) => group,
        Err(why) => return skip(&format!("no group with a memory limit can be made: {why}")),
    };
    if JobGroup::create().is_none() {
        return skip("no group can be made for a job");
    }
    let mut agent = agent_that_waits("eat");
    agent.env("ROLE_OWN_GROUP", "1");
    let output = group.run(agent);
    let memory = told(&output, "memory");
    assert!(memory.contains("kills: 1, alone: true"), "{memory}");
    // The limit is that of the group around the job's.
    assert!(memory.contains("ran_out: Some(Around {"), "{memory}");
    assert!(
        told(&output, "reason").contains("was reached, 64 MiB"),
        "{output}"
    );
    let peak: u64 = memory
        .split_once("peak: Some(")
        .and_then(|(_, rest)| rest.split_once(')')?.0.parse().ok())
        .unwrap_or_else(|| panic!("{memory}"));
    assert!((SMALL / 2..=SMALL).contains(&peak), "{memory}");
}

// ---- in a container ----

fn in_a_container(arguments: &[&str], job: &str) -> Result<String, String> {
    let image = image()?;
    let exe = std::env::current_exe().unwrap();
    let output = Command::new("docker")
        .args(["run", "--rm", "--network", "none", "-v", "/usr:/usr:ro"])
        .args(["-v", &format!("{}:/agent:ro", exe.display())])
        .args(["-e", "ROLE=role_agent", "-e", &format!("ROLE_JOB={job}")])
        .args(arguments)
        .args([image, "/agent", "--exact", "role_agent", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    Ok(text)
}

#[test]
fn a_job_that_the_kernel_kills_at_a_containers_limit() {
    let limits = ["--memory", "64m", "--memory-swap", "64m"];
    for (job, expected) in [
        ("eat", "oom_killed: killed by the kernel for want of memory"),
        (
            "launch",
            "oom_killed: a process of the job was killed by the kernel for want of memory",
        ),
    ] {
        let output = match in_a_container(&limits, job) {
            Ok(output) => output,
            Err(why) => return skip(&why),
        };
        let reason = told(&output, "reason");
        let limit = "the memory limit of the container was reached, 64 MiB";
        assert!(
            reason.starts_with(expected) && reason.contains(limit) && reason.contains("(--memory)"),
            "{output}"
        );
    }
}

#[test]
fn a_jobs_own_group_in_a_container_that_may_make_one() {
    // As for a container that runs containers itself.
    let arguments = [
        "-v",
        "/sys/fs/cgroup:/sys/fs/cgroup",
        "--memory",
        "64m",
        "--memory-swap",
        "64m",
        "-e",
        "ROLE_OWN_GROUP=1",
    ];
    let output = match in_a_container(&arguments, "eat") {
        Ok(output) => output,
        Err(why) => return skip(&why),
    };
    let limit = "the memory limit of the container was reached, 64 MiB";
    assert!(told(&output, "reason").contains(limit), "{output}");
    assert!(
        told(&output, "memory").contains("kills: 1, alone: true"),
        "{output}"
    );
}

#[test]
fn a_container_that_ends_well_had_no_kill() {
    let limits = ["--memory", "64m", "--memory-swap", "64m"];
    let output = match in_a_container(&limits, "exit 3") {
        Ok(output) => output,
        Err(why) => return skip(&why),
    };
    assert_eq!(
        told(&output, "reason"),
        "nothing known of Exited { code: 3 }"
    );
    assert!(
        told(&output, "memory").contains("kills: 0, alone: true"),
        "{output}"
    );
    assert!(
        told(&output, "memory").contains("limit: Some(67108864)"),
        "{output}"
    );
}

#[test]
fn a_containers_small_shared_memory() {
    let job = "cat /dev/zero >/dev/shm/x";
    let output = match in_a_container(&["--shm-size", "1m"], job) {
        Ok(output) => output,
        Err(why) => return skip(&why),
    };
    let reason = told(&output, "reason");
    let expected = "no_shared_memory: shared memory (/dev/shm, 1 MiB) is used up";
    assert!(reason.starts_with(expected), "{output}");
}

// ---- refused by the machine ----

#[test]
fn a_full_disk_is_named() {
    for (options, script, left) in [
        ("size=1m", "cat /dev/zero > big", "0 bytes of 1 MiB free"),
        (
            "size=1m,nr_inodes=8",
            "mkdir a b c d e f g h",
            "no more files can be made on it, though it has space",
        ),
    ] {
        let Some(disk) = Tmpfs::mount(options) else {
            return skip("no file system can be mounted");
        };
        let dir = disk.path();
        let (end, leader, output) = run(shell(script), dir);
        let reason = reason(end, leader, &Memory::default(), &output, dir);
        let expected = format!("no_space: no space left on the disk of {}", dir.display());
        assert!(
            reason.starts_with(&expected) && reason.contains(left),
            "{reason}"
        );
    }
}

#[test]
fn memory_that_is_not_given() {
    let before = Before::take(None);
    let job = shell("ulimit -v 600000; exec python3 -c 'x = bytearray(1 << 40)'");
    let (end, leader, output) = run(job, Path::new("/"));
    assert_eq!(end, Ended::Exited { code: 1 }, "{output}");
    let reason = reason(end, leader, &before.after(), &output, Path::new("/"));
    assert!(
        reason.starts_with("out_of_memory: out of memory (MemoryError)"),
        "{reason}"
    );
}

#[test]
fn a_kill_by_somebody_is_not_taken_for_want_of_memory() {
    let before = Before::take(None);
    let (end, leader, output) = run(shell("kill -9 $$"), Path::new("/"));
    let reason = reason(end, leader, &before.after(), &output, Path::new("/"));
    assert!(
        reason.starts_with("signalled: killed by SIGKILL, not by this agent"),
        "{reason}"
    );
}

// ---- the job's own group ----

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
    assert!(group.holds(daemon) && !group.holds(me()));
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
    let mut agent = role("role_agent_that_is_killed")
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
    if !plays("role_agent_that_is_killed") {
        return;
    }
    let group = JobGroup::create().unwrap();
    let (_leader, daemon) = start_in(&group, DAEMON);
    println!("\ndaemon {daemon}");
    loop {
        std::thread::park();
    }
}

// ---- seen from outside ----

#[test]
fn what_a_job_used_without_a_group() {
    let mut job = shell(
        "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; head -c 30000000 /dev/zero | tail -n 1 >/dev/null; echo done",
    )
    .stdout(Stdio::null())
    .spawn()
    .unwrap();
    let pid = i32::try_from(job.id()).unwrap();
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::Pid(Pid::from_child(&job)), options).unwrap();
    // Ended and not reaped: its CPU time is there, its memory is not.
    assert!(usage::cpu_time(pid).unwrap().as_millis() >= 10);
    let mut sampler = Sampler::default();
    sampler.look(&[pid]);
    assert_eq!(sampler.peak(), usage::Peak::default());
    job.wait().unwrap();
    assert_eq!(usage::cpu_time(pid), None);
}

#[test]
fn a_peak_that_is_over_is_still_seen() {
    let mut job = role("role_hold").stdout(Stdio::piped()).spawn().unwrap();
    let pid = i32::try_from(job.id()).unwrap();
    let mut output = BufReader::new(job.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "freed" {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0);
    }
    let mut sampler = Sampler::default();
    sampler.look(&[pid, me()]);
    let peak = sampler.peak();
    assert!(peak.process.unwrap() > 100 << 20, "{peak:?}");
    assert!(
        peak.together.unwrap() < peak.process.unwrap() + (100 << 20),
        "{peak:?}"
    );
    assert!(sampler.seen().contains(&pid));
    rustix::process::kill_process(Pid::from_child(&job), Signal::KILL).unwrap();
    job.wait().unwrap();
}

#[test]
fn role_hold() {
    if !plays("role_hold") {
        return;
    }
    drop(std::hint::black_box(vec![1_u8; 100 << 20]));
    println!("\nfreed");
    loop {
        std::thread::park();
    }
}
