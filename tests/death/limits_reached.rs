//! Killed by the kernel at a limit, refused by the machine, killed by somebody.

use std::path::Path;

use clearml_agent::process::Ended;
use clearml_agent::process::job_group::JobGroup;
use clearml_agent::process::kernel_log::KernelLog;
use clearml_agent::process::memory::{Before, Memory};

use crate::limits::{Limited, SMALL, Tmpfs};
use crate::{agent_that_waits, reason, run, shell, skip, told};

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
