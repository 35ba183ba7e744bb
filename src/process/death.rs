//! Why a job that failed did, as far as it can be known, in one line with advice. Pure: a decision
//! over evidence that others have gathered.
//!
//! The kernel's own counts come first, then what the program itself said last, then the signal. Where
//! none of them names a cause there is none here: an exit code speaks for itself.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::Ended;
use super::cgroup::Holder;
use super::disks::{Disk, Role};
use super::last_words::{self, Said};
use super::memory::{Memory, RanOut};
use super::signal::{self, ABRT, BUS, FPE, ILL, KILL, PIPE, SEGV, SYS, TRAP, XCPU, XFSZ};

/// What is known when a job is over.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    pub ended: Ended,
    /// The last signal that this agent sent to the job, if it sent any.
    pub sent: Option<i32>,
    pub memory: &'a Memory,
    /// The most memory the job is known to have used: of its group, or by sampling.
    pub peak: Option<u64>,
    /// The job's processes, as far as they were seen, the leader among them.
    pub pids: &'a BTreeSet<i32>,
    /// The last hundred lines or so that the job printed, secrets masked.
    pub last_lines: &'a [&'a str],
    pub disks: &'a [Disk],
    /// `ulimit -v` of the job: the memory that it may address.
    pub address_limit: Option<u64>,
}

/// A cause. `line` is the job's own word for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Death {
    /// The kernel killed it, or a process of it, for want of memory.
    OomKilled {
        ran_out: RanOut,
        /// All of the job went, not only a process that it had started.
        whole: bool,
        peak: Option<u64>,
    },
    /// It asked for memory and did not get it.
    OutOfMemory {
        address_limit: Option<u64>,
        line: String,
    },
    GpuOutOfMemory {
        line: String,
    },
    /// `disk` is the one that was full when it was looked at, if one was.
    NoSpace {
        disk: Option<Disk>,
        quota: bool,
        line: String,
    },
    /// /dev/shm, which is small in most containers. `size` is all that it holds.
    NoSharedMemory {
        size: Option<u64>,
    },
    /// Another process or node of a distributed training, or the network between them, most often.
    Collective {
        line: String,
    },
    GpuUnusable {
        line: String,
    },
    Signalled {
        signal: i32,
        by: Sender,
    },
    /// A process that the job's own launcher waited for ended by this signal: exit code 128+n.
    PartSignalled {
        signal: i32,
    },
}

/// Who sent a signal. The kernel keeps that from everybody but the process that handles it, so of a
/// job that a signal ended only this much is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    Agent,
    /// The job itself, by what it did (a crash), or a limit that was set for it.
    Own,
    Unknown,
}

/// Why the job failed; `None` if it did not, or for a reason of its own.
pub fn cause(evidence: &Evidence) -> Option<Death> {
    let signal = match evidence.ended {
        Ended::Exited { code: 0 } => return None,
        Ended::Exited { .. } => None,
        Ended::Signalled { signal } => Some(signal),
    };
    if let Some(signal) = signal.filter(|_| evidence.sent == signal) {
        let by = Sender::Agent;
        return Some(Death::Signalled { signal, by });
    }
    oom(evidence)
        // Who is killed says nothing any more.
        .or_else(|| {
            if signal == Some(KILL) {
                None
            } else {
                said(evidence)
            }
        })
        .or_else(|| match evidence.ended {
            Ended::Signalled { signal } => Some(Death::Signalled {
                signal,
                by: sender(signal),
            }),
            Ended::Exited { code } => part_signalled(code),
        })
}

/// A kill by the kernel counts if it was certainly of the job: named in the log, or in a group in
/// which there is nobody else. Otherwise the job's own end must fit.
fn oom(evidence: &Evidence) -> Option<Death> {
    let memory = evidence.memory;
    let leader_killed = evidence.ended == (Ended::Signalled { signal: KILL });
    let fits = leader_killed
        || evidence.ended == (Ended::Exited { code: 128 + KILL })
        || last_words::tells_of_a_kill(evidence.last_lines);
    let named = memory.log.as_ref().and_then(|log| {
        let mut kills = log.iter();
        kills.find(|kill| evidence.pids.contains(&kill.pid))
    });
    let ran_out = match named {
        Some(kill) if kill.machine => RanOut::Machine,
        // Where no limit is seen to have been reached, it was that of a group the job had made.
        Some(_) => {
            let seen = memory.ran_out.clone();
            let limited = seen.filter(|ran_out| *ran_out != RanOut::Machine);
            limited.unwrap_or(RanOut::OutOfSight)
        }
        None if memory.kills > 0 && memory.alone => memory.ran_out.clone()?,
        // The log would name it.
        None if leader_killed && memory.log.is_some() => return None,
        None if memory.kills > 0 && fits => memory.ran_out.clone()?,
        None if !memory.counted && memory.machine_kills > 0 && fits => memory.ran_out.clone()?,
        None => return None,
    };
    Some(Death::OomKilled {
        ran_out,
        whole: leader_killed,
        peak: evidence.peak,
    })
}

fn said(evidence: &Evidence) -> Option<Death> {
    let full = |role: fn(Role) -> bool| {
        let mut disks = evidence.disks.iter();
        disks.find(|disk| role(disk.role) && disk.is_full())
    };
    let shared_memory = || {
        let mut disks = evidence.disks.iter();
        let disk = disks.find(|disk| disk.role == Role::SharedMemory);
        Death::NoSharedMemory {
            size: disk.map(|disk| disk.size),
        }
    };
    let shared_memory_is_full = full(|role| role == Role::SharedMemory).is_some();
    let Some((said, line)) = last_words::cause(evidence.last_lines) else {
        let bus_error = evidence.ended == (Ended::Signalled { signal: BUS });
        return (bus_error && shared_memory_is_full).then(shared_memory);
    };
    let line = shortened(line);
    let disk = full(|role| role != Role::SharedMemory).cloned();
    Some(match said {
        Said::NoMemory => Death::OutOfMemory {
            address_limit: evidence.address_limit,
            line,
        },
        Said::NoGpuMemory => Death::GpuOutOfMemory { line },
        Said::NoSpace if disk.is_none() && shared_memory_is_full => shared_memory(),
        Said::NoSpace => Death::NoSpace {
            disk,
            quota: false,
            line,
        },
        Said::NoQuota => Death::NoSpace {
            disk: None,
            quota: true,
            line,
        },
        // Only a full disk makes this one certain.
        Said::NotWritten => Death::NoSpace {
            disk: Some(disk?),
            quota: false,
            line,
        },
        Said::NoSharedMemory => shared_memory(),
        Said::Collective => Death::Collective { line },
        Said::GpuUnusable => Death::GpuUnusable { line },
    })
}

fn sender(signal: i32) -> Sender {
    match signal {
        ILL | TRAP | ABRT | BUS | FPE | SEGV | PIPE | XCPU | XFSZ | SYS => Sender::Own,
        _ => Sender::Unknown,
    }
}

/// 128+n is what shells and launchers give for a child that a signal ended. Only of signals that a
/// program does not choose as its own exit code.
fn part_signalled(code: i32) -> Option<Death> {
    let signal = code - 128;
    matches!(
        signal,
        ILL | TRAP | ABRT | BUS | FPE | KILL | SEGV | XCPU | XFSZ | SYS
    )
    .then_some(Death::PartSignalled { signal })
}

impl Death {
    /// The word for it in a machine's report.
    pub fn kind(&self) -> &'static str {
        match self {
            Death::OomKilled { .. } => "oom_killed",
            Death::OutOfMemory { .. } => "out_of_memory",
            Death::GpuOutOfMemory { .. } => "gpu_out_of_memory",
            Death::NoSpace { .. } => "no_space",
            Death::NoSharedMemory { .. } => "no_shared_memory",
            Death::Collective { .. } => "collective_failed",
            Death::GpuUnusable { .. } => "gpu_unusable",
            Death::Signalled { .. } | Death::PartSignalled { .. } => "signalled",
        }
    }

    /// One line: what happened, and what to do.
    pub fn reason(&self) -> String {
        match self {
            Death::OomKilled {
                ran_out,
                whole,
                peak,
            } => oom_reason(ran_out, *whole, *peak),
            Death::OutOfMemory {
                address_limit: Some(limit),
                line,
            } => format!(
                "out of memory ({line}): the job may address {} (ulimit -v); raise that limit or \
                 make the job use less",
                size(*limit)
            ),
            Death::OutOfMemory { line, .. } => format!(
                "out of memory ({line}): the job asked for more than the machine could give; make \
                 it use less or run it where there is more"
            ),
            Death::GpuOutOfMemory { line } => format!(
                "out of GPU memory ({line}): use smaller batches or a GPU with more memory, and see \
                 whether other processes use this one"
            ),
            Death::NoSpace {
                quota: true, line, ..
            } => format!(
                "the disk quota is used up ({line}): remove files or ask for more, then run it again"
            ),
            Death::NoSpace {
                disk: Some(disk),
                line,
                ..
            } => no_space_reason(disk, line),
            Death::NoSpace { line, .. } => format!(
                "no space left on a disk ({line}): make room where the job writes, then run it again"
            ),
            Death::NoSharedMemory { size: all } => {
                let mut text = String::from("shared memory (/dev/shm");
                if let Some(all) = all {
                    let _ = write!(text, ", {}", size(*all));
                }
                text.push_str(
                    ") is used up: in a container give it more (--shm-size, or --ipc=host), or use \
                     fewer data loader workers",
                );
                text
            }
            Death::Collective { line } => format!(
                "the processes of a distributed training lost each other ({line}): most often \
                 another process or node failed first; its log tells why"
            ),
            Death::GpuUnusable { line } => format!(
                "the GPU or its driver does not work ({line}): run it on another machine and have \
                 this one looked at"
            ),
            Death::Signalled { signal, by } => signal_reason(*signal, *by),
            Death::PartSignalled { signal: KILL } => format!(
                "a program that the script started was killed by SIGKILL (exit code {}): by whom \
                 is not known, and no kill for want of memory was seen",
                128 + KILL
            ),
            Death::PartSignalled { signal } => {
                let name = signal::name(*signal);
                let what = crash(*signal).unwrap_or("was ended by it");
                format!(
                    "a program that the script started ended by {name} (exit code {}): it {what}",
                    128 + signal
                )
            }
        }
    }
}

fn oom_reason(ran_out: &RanOut, whole: bool, peak: Option<u64>) -> String {
    let who = if whole {
        ""
    } else {
        "a process of the job was "
    };
    let limited = |limit: &Option<u64>, holder: &Holder| {
        let of = match holder {
            Holder::BatchJob => "of the batch job ".to_owned(),
            Holder::Pod => "of the pod ".to_owned(),
            Holder::Container => "of the container ".to_owned(),
            Holder::Unit(name) => format!("of the systemd unit {name} "),
            Holder::Machine => String::new(),
            Holder::Group(name) => format!("of the control group {name} "),
        };
        let knob = match holder {
            Holder::BatchJob => " (Slurm: --mem)",
            Holder::Pod => " (resources.limits.memory)",
            Holder::Container => " (--memory)",
            Holder::Unit(_) => " (MemoryMax=)",
            Holder::Machine | Holder::Group(_) => "",
        };
        let limit = limit.map_or_else(
            || format!("the memory limit {of}was reached"),
            |limit| format!("the memory limit {of}was reached, {}", size(limit)),
        );
        (
            limit,
            format!("give it more memory{knob} or make it use less"),
        )
    };
    let (what, advice) = match ran_out {
        RanOut::Own { limit, holder } | RanOut::Around { limit, holder } => limited(limit, holder),
        RanOut::Machine => (
            "the machine had no memory left".to_owned(),
            "make the job use less, run fewer jobs at once there, or run it where there is more"
                .to_owned(),
        ),
        RanOut::OutOfSight => (
            "the machine had no memory left, or a group of which this one is a part".to_owned(),
            "give the job (the pod) more memory, make it use less, or run it where there is more"
                .to_owned(),
        ),
    };
    let used = match (ran_out, peak) {
        // All of it.
        (RanOut::Own { .. }, _) | (_, None) => String::new(),
        (_, Some(peak)) => format!(" (the job used {} at its peak)", size(peak)),
    };
    format!("{who}killed by the kernel for want of memory: {what}{used}; {advice}")
}

fn no_space_reason(disk: &Disk, line: &str) -> String {
    let folder = disk.folder.display();
    let role = match disk.role {
        Role::WorkingDir => " (the working folder)",
        Role::Temporary => " (TMPDIR)",
        Role::Home => " (HOME)",
        Role::Named | Role::SharedMemory => "",
    };
    let left = if disk.no_more_files && disk.free > 0 {
        "no more files can be made on it, though it has space".to_owned()
    } else {
        format!("{} of {} free", size(disk.free), size(disk.size))
    };
    format!(
        "no space left on the disk of {folder}{role}, {left} ({line}): make room there, then run it \
         again"
    )
}

fn signal_reason(signal: i32, by: Sender) -> String {
    let name = signal::name(signal);
    match (by, signal) {
        (Sender::Agent, _) => format!("ended by {name} from this agent"),
        (Sender::Own, _) => {
            let what = crash(signal).unwrap_or("ended itself so");
            format!("ended by {name}: the program {what}")
        }
        (Sender::Unknown, KILL) => format!(
            "killed by {name}, not by this agent, and no kill for want of memory was seen: somebody \
             with the right to, such as the batch system, an administrator or a resource limit"
        ),
        (Sender::Unknown, _) => format!(
            "ended by {name}, not by this agent: by itself, or by somebody with the right to (the \
             batch system, a user)"
        ),
    }
}

/// What a signal that nobody sends says of the program that got it.
fn crash(signal: i32) -> Option<&'static str> {
    Some(match signal {
        ILL => {
            "uses CPU instructions that this machine does not have, or is damaged; try another \
             machine or a package built for older CPUs"
        }
        ABRT => "gave up by itself; its last lines say why",
        BUS => {
            "touched memory that is not there, such as a file that became shorter, a full \
             /dev/shm, or a disk that failed"
        }
        FPE => "divided by zero or the like",
        SEGV => {
            "crashed, in its own or a library's compiled code; for Python, run it with \
             PYTHONFAULTHANDLER=1 to see where"
        }
        PIPE => "wrote to somebody who had gone",
        XCPU => "used up its CPU time (ulimit -t); raise that limit",
        XFSZ => "wrote a file larger than allowed (ulimit -f); raise that limit",
        SYS => "made a system call that is forbidden here (a seccomp profile)",
        TRAP => "ran into a trap that it had set for itself",
        _ => return None,
    })
}

fn shortened(line: &str) -> String {
    const LONGEST: usize = 200;
    let words: Vec<&str> = line.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}

/// `512 MiB`, `63.5 GiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.1}");
    format!(
        "{} {}",
        text.strip_suffix(".0").unwrap_or(&text),
        UNITS[unit]
    )
}

#[cfg(test)]
mod tests;
