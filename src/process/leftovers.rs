//! Which processes of this machine belong to a job: its group, its descendants, and the orphans that
//! came back to the agent.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::{Pid, Signal, WaitOptions};

/// One line of the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
    /// It has ended and waits to be reaped.
    pub zombie: bool,
}

/// All processes that can be seen; empty where there is no /proc.
pub(super) fn process_table() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

/// `pid (name) state ppid pgrp …`; the name may hold blanks and brackets.
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (_, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    Some(Process {
        pid: pid.parse().ok()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
        zombie: matches!(state, "Z" | "X"),
    })
}

/// Who asks, so that the agent's other children are left alone.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    pub pid: i32,
    pub group: i32,
    /// Children of the agent that this job did not leave: the leaders of other jobs, and those that
    /// were there before it (an agent started by a shell's `exec` has that shell's children).
    pub others: BTreeSet<i32>,
}

/// The processes of the job that `leader` leads, `leader` not among them.
///
/// A direct child of the agent is its own tool (git, uv) if it is in the agent's process group: a job
/// starts in another session and nothing that comes out of it can be in that group. Every other
/// direct child is a job's leader or an orphan that was handed back.
pub(super) fn leftovers(table: &[Process], leader: i32, agent: &Agent) -> Vec<Process> {
    let of_the_job = |process: &Process| {
        process.group == leader
            || process.parent == leader
            || (process.parent == agent.pid
                && process.group != agent.group
                && !agent.others.contains(&process.pid)
                && !agent.others.contains(&process.group))
    };
    let mut found: BTreeSet<i32> = table
        .iter()
        .filter(|p| p.pid != agent.pid && of_the_job(p))
        .map(|p| p.pid)
        .collect();
    loop {
        let before = found.len();
        for process in table {
            if found.contains(&process.parent) {
                found.insert(process.pid);
            }
        }
        if found.len() == before {
            break;
        }
    }
    found.remove(&leader);
    table
        .iter()
        .filter(|p| found.contains(&p.pid))
        .copied()
        .collect()
}

/// The children that the agent has now.
pub(super) fn children(table: &[Process], agent: i32) -> BTreeSet<i32> {
    table
        .iter()
        .filter(|p| p.parent == agent)
        .map(|p| p.pid)
        .collect()
}

/// Sends `signal` to each; those that are gone meanwhile are none of our concern.
pub(super) fn send(processes: &[Process], signal: Signal) {
    for process in processes {
        if let Some(pid) = Pid::from_raw(process.pid) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// Reaps the orphans among `processes` that have ended; gives those that still run.
pub(super) fn reap(processes: Vec<Process>, agent: i32) -> Vec<Process> {
    let (ended, alive): (Vec<_>, Vec<_>) = processes.into_iter().partition(|p| p.zombie);
    for process in ended.iter().filter(|p| p.parent == agent) {
        // Already reaped is as good.
        let _ = rustix::process::waitpid(Pid::from_raw(process.pid), WaitOptions::NOHANG);
    }
    alive
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, group: i32) -> Process {
        Process {
            pid,
            parent,
            group,
            zombie: false,
        }
    }

    #[test]
    fn stat_lines() {
        for (line, expected) in [
            ("12 (sh) S 1 12 12 0 -1", Some(process(12, 1, 12))),
            ("12 (a) b (c) R 7 3 12 0", Some(process(12, 7, 3))),
            (
                "9 (python) Z 1 2 2 0",
                Some(Process {
                    zombie: true,
                    ..process(9, 1, 2)
                }),
            ),
            ("", None),
            ("12 (sh", None),
        ] {
            assert_eq!(parse_stat(line), expected, "{line}");
        }
    }

    #[test]
    fn this_process_is_in_the_table() {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        assert!(process_table().iter().any(|p| p.pid == me && !p.zombie));
    }

    #[test]
    fn a_job_is_its_group_its_descendants_and_its_orphans() {
        let agent = Agent {
            pid: 100,
            group: 90,
            others: BTreeSet::from([300]),
        };
        let table = [
            process(1, 0, 1),
            process(90, 1, 90),     // the shell that started the agent
            process(100, 90, 90),   // the agent
            process(150, 100, 90),  // its git
            process(151, 150, 90),  // git's helper
            process(200, 100, 200), // the job
            process(201, 200, 200), // its child
            process(202, 201, 202), // a grandchild with a group of its own
            process(203, 1, 200),   // of the group, its parent gone
            process(210, 100, 210), // an orphan that had left the group
            process(211, 210, 211), // and what it started
            process(300, 100, 300), // another job
            process(301, 300, 300),
            process(302, 100, 300), // the other job's orphan
            process(400, 1, 400),   // a stranger
        ];
        let found: Vec<i32> = leftovers(&table, 200, &agent)
            .iter()
            .map(|p| p.pid)
            .collect();
        assert_eq!(found, [201, 202, 203, 210, 211]);
    }
}
