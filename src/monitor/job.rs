//! What the job itself uses: all of its processes, by the kernel's figures of each.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use rustix::param::{clock_ticks_per_second, page_size};

use super::stats::Transferred;

/// The script's process while it runs; shared by who starts it and who watches it.
#[derive(Debug, Clone, Default)]
pub struct Script(std::sync::Arc<tokio::sync::watch::Sender<Life>>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Life {
    #[default]
    Before,
    Running {
        /// The leader of the job's session.
        pid: i32,
    },
    Over,
}

impl Script {
    pub fn started(&self, pid: u32) {
        let pid = pid.cast_signed();
        self.0.send_replace(Life::Running { pid });
    }

    pub fn ended(&self) {
        self.0.send_replace(Life::Over);
    }

    pub(super) fn subscribe(&self) -> tokio::sync::watch::Receiver<Life> {
        self.0.subscribe()
    }
}

/// One look at the job. The counters count from the job's start and hold what its ended processes
/// used, as far as their parents waited for them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Use {
    /// Seconds of processor time, divided by the number of the machine's cores.
    pub cpu: f64,
    /// MiB in memory; what processes share counts for each.
    pub memory: f64,
    pub threads: u64,
    pub processes: u64,
    /// From and to disks; `None` where the kernel does not count.
    pub disk: Option<Transferred>,
}

/// Looks now and then: each look reads the machine's whole table of processes.
#[derive(Debug)]
pub struct Watch {
    leader: i32,
    looks: u32,
    next: Instant,
    pids: Vec<i32>,
    cores: u32,
}

impl Watch {
    pub fn of(leader: i32) -> Self {
        Self {
            leader,
            looks: 0,
            next: Instant::now(),
            pids: vec![leader],
            cores: fs::read_to_string("/proc/stat").map_or(1, |text| cores(&text)),
        }
    }

    /// A look, if it is time for one: soon at first, for short jobs, then each ten seconds.
    pub fn look(&mut self, now: Instant) -> Option<Use> {
        if now < self.next {
            return None;
        }
        self.next =
            now + Duration::from_millis(500 << self.looks.min(5)).min(Duration::from_secs(10));
        self.looks += 1;
        let table = table();
        let agent = rustix::process::getpid().as_raw_nonzero().get();
        let members = members(&table, self.leader, agent);
        self.pids = members.iter().map(|process| process.pid).collect();
        if members.is_empty() {
            return None;
        }
        let ticks: u64 = members.iter().map(|process| process.ticks).sum();
        let pages: u64 = members.iter().map(|process| process.pages).sum();
        let disk = members
            .iter()
            .filter_map(|process| fs::read_to_string(format!("/proc/{}/io", process.pid)).ok())
            .filter_map(|text| transferred(&text))
            .reduce(|sum, one| Transferred {
                inward: sum.inward + one.inward,
                outward: sum.outward + one.outward,
            });
        Some(Use {
            cpu: ticks as f64 / clock_ticks_per_second() as f64 / f64::from(self.cores),
            memory: super::stats::mebibytes(pages * page_size() as u64),
            threads: members.iter().map(|process| process.threads).sum(),
            // One that has ended and waits to be reaped has none.
            processes: members.iter().filter(|p| p.threads > 0).count() as u64,
            disk,
        })
    }

    /// The job's processes at the last look.
    pub fn pids(&self) -> &[i32] {
        &self.pids
    }
}

/// One process, from `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    /// When it started, in ticks since the machine did.
    started: u64,
    /// Its processor time and that of children it waited for.
    ticks: u64,
    threads: u64,
    /// In memory.
    pages: u64,
}

/// How many processors `/proc/stat` has lines of: all of the machine's, whatever this process may use.
fn cores(stat: &str) -> u32 {
    let one = |line: &str| {
        let number = line
            .strip_prefix("cpu")
            .and_then(|rest| rest.split(' ').next());
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let count = stat.lines().filter(|line| one(line)).count();
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

fn table() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

/// `pid (name) state ppid pgrp session …`, numbered from 1 in proc(5); the name may hold anything.
fn parse(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (_, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ended = matches!(fields.first(), Some(&"Z" | &"X"));
    Some(Process {
        pid: pid.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        ticks: field(14)? + field(15)? + field(16)? + field(17)?,
        threads: if ended { 0 } else { field(20)? },
        started: field(22)?,
        pages: field(24)?,
    })
}

/// The job's leader, its session, and what they started, in whatever session; orphans that came back
/// to the agent too, which are younger than the leader and not in the agent's own session.
fn members(table: &[Process], leader: i32, agent: i32) -> Vec<Process> {
    let find = |pid: i32| table.iter().find(|process| process.pid == pid);
    let born = find(leader).map(|process| process.started);
    let own_session = find(agent).map(|process| process.session);
    let orphan = |process: &Process| {
        process.parent == agent
            && Some(process.session) != own_session
            && born.is_some_and(|born| process.started >= born)
    };
    let mut found: BTreeSet<i32> = table
        .iter()
        .filter(|p| p.pid == leader || p.session == leader || orphan(p))
        .map(|p| p.pid)
        .collect();
    loop {
        let before = found.len();
        found.extend(
            table
                .iter()
                .filter(|p| found.contains(&p.parent))
                .map(|p| p.pid)
                .collect::<Vec<_>>(),
        );
        if found.len() == before {
            break;
        }
    }
    let of_the_job = |process: &&Process| found.contains(&process.pid);
    table.iter().filter(of_the_job).copied().collect()
}

/// `/proc/PID/io`; with the children that were waited for.
fn transferred(io: &str) -> Option<Transferred> {
    let figure = |name: &str| {
        let line = io.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    Some(Transferred {
        inward: figure("read_bytes:")?,
        outward: figure("write_bytes:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_process_table() {
        let line = "12 (a) b) S 7 12 11 0 -1 4 0 0 0 0 5 6 7 8 20 0 3 0 900 100000 256 18446744073709551615 1";
        let expected = Process {
            pid: 12,
            parent: 7,
            session: 11,
            started: 900,
            ticks: 26,
            threads: 3,
            pages: 256,
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse("12 (a) S 7"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn processors_are_counted() {
        for (stat, expected) in [
            ("cpu  1 2 3\ncpu0 1 2\ncpu1 3 4\nintr 5\n", 2),
            ("cpu  1\n", 1),
            ("", 1),
        ] {
            assert_eq!(cores(stat), expected, "{stat}");
        }
    }

    #[test]
    fn the_job_is_what_came_of_its_leader() {
        let process = |pid, parent, session, started| Process {
            pid,
            parent,
            session,
            started,
            ..Process::default()
        };
        let table = [
            process(1, 0, 1, 1),
            process(100, 1, 90, 50),   // the agent
            process(101, 100, 90, 60), // its git
            process(80, 100, 80, 10),  // a child that it had before
            process(200, 100, 200, 70),
            process(201, 200, 200, 71),
            process(202, 201, 202, 72), // a session of its own
            process(203, 1, 200, 73),   // its parent is gone
            process(210, 100, 210, 74), // an orphan that came back
            process(211, 210, 211, 75),
            process(400, 1, 400, 76), // a stranger
        ];
        let pids = |leader| -> Vec<i32> {
            let members = members(&table, leader, 100);
            members.iter().map(|process| process.pid).collect()
        };
        assert_eq!(pids(200), [200, 201, 202, 203, 210, 211]);
        assert_eq!(pids(999), Vec::<i32>::new());
    }

    #[test]
    fn bytes_from_and_to_disks() {
        let io = "rchar: 9\nwchar: 8\nsyscr: 1\nsyscw: 1\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 0\n";
        let found = transferred(io).unwrap();
        assert_eq!((found.inward, found.outward), (4096, 8192));
        assert_eq!(transferred("rchar: 9\n"), None);
    }

    #[test]
    fn looks_become_rarer() {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let mut watch = Watch::of(me);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let looked: Vec<u64> = (0..120_000)
            .step_by(500)
            .filter(|&ms| watch.look(at(ms)).is_some())
            .collect();
        assert_eq!(looked[..6], [0, 500, 1500, 3500, 7500, 15500]);
        assert!(looked.windows(2).skip(5).all(|w| w[1] - w[0] == 10_000));
        assert!(watch.pids().contains(&me));
    }
}
